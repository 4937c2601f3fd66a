//! A real MariaDB server below a directory that goes away.

use std::path::Path;

use sqlx::{Connection, Executor, MySqlConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::ports::free_port;
use super::process::{Process, Program, find_program};
use super::{PATIENCE, eventually, scratch, unique};

/// One server.
pub(crate) struct MariaDbServer {
    // In this order: the process goes before its files do.
    _process: Process,
    _dir: TempDir,
    port: u16,
}

impl MariaDbServer {
    /// The server that all tests share; each takes a database of its own.
    pub(crate) async fn shared() -> &'static MariaDbServer {
        static SHARED: OnceCell<MariaDbServer> = OnceCell::const_new();
        SHARED.get_or_init(MariaDbServer::start).await
    }

    async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server of its own with this certificate and key; clients choose whether they encrypt.
    pub(crate) async fn with_tls(certificate: &Path, key: &Path) -> Self {
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        Self::with(&[option("ssl-cert", certificate), option("ssl-key", key)]).await
    }

    async fn with(options: &[String]) -> Self {
        let dir = scratch("mariadb");
        let data = format!("--datadir={}", dir.path().join("data").display());
        // A server that begins removes temporary tables, also those of another one in the same folder.
        let temporary = format!("--tmpdir={}", dir.path().display());
        let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
        let user = if rustix::process::geteuid().is_root() {
            "root".to_owned()
        } else {
            user
        };
        Program::new("mariadb-install-db", find_program("mariadb-install-db"))
            .args(["--no-defaults", "--skip-test-db", &data, &temporary])
            .args([format!("--user={user}")])
            .run();
        let init = dir.path().join("init.sql");
        std::fs::write(
            &init,
            "CREATE USER 'lockgate'@'127.0.0.1' IDENTIFIED BY 'lockgate';\n\
             GRANT ALL ON *.* TO 'lockgate'@'127.0.0.1';\n",
        )
        .expect("a file can be written");
        let port = free_port();
        let process = Program::new("mariadbd", find_program("mariadbd"))
            .args(["--no-defaults", &data, &temporary])
            .args([format!("--user={user}"), format!("--port={port}")])
            .args([
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--skip-log-bin",
            ])
            .args([
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=32M",
            ])
            .args([
                format!("--socket={}", dir.path().join("socket").display()),
                format!("--pid-file={}", dir.path().join("pid").display()),
                format!("--init-file={}", init.display()),
            ])
            .args(options)
            .start();
        let server = Self {
            _process: process,
            _dir: dir,
            port,
        };
        eventually(PATIENCE, "mariadbd answers", async || {
            MySqlConnection::connect(&server.url("mysql"))
                .await
                .map(drop)
        })
        .await;
        server
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "mysql://lockgate:lockgate@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Makes an empty database of a new name, and returns the name.
    pub(crate) async fn create_database(&self) -> String {
        let name = format!("t_{}", unique().replace('-', "_"));
        let mut connection = MySqlConnection::connect(&self.url("mysql"))
            .await
            .expect("mariadbd answers");
        let statement = format!("CREATE DATABASE {name} CHARACTER SET utf8mb4");
        connection
            .execute(sqlx::AssertSqlSafe(statement))
            .await
            .expect("a database can be made");
        name
    }
}
