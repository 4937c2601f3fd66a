//! A real PostgreSQL server below a directory that goes away, run as `postgres` where the tests run as root.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::ports::free_port;
use super::process::{Process, Program};
use super::{PATIENCE, eventually, scratch, unique};

/// The superuser of the server; it needs no password.
const SUPERUSER: &str = "lockgate";

/// One server.
pub(crate) struct PostgresServer {
    // In this order: the process goes before its files do.
    _process: Process,
    _dir: TempDir,
    port: u16,
}

impl PostgresServer {
    /// The server that all tests share; each takes a database of its own.
    pub(crate) async fn shared() -> &'static PostgresServer {
        static SHARED: OnceCell<PostgresServer> = OnceCell::const_new();
        SHARED.get_or_init(PostgresServer::start).await
    }

    /// A server of its own.
    pub(crate) async fn start() -> Self {
        Self::with(None).await
    }

    /// A server of its own with this certificate and key; clients choose whether they encrypt.
    pub(crate) async fn with_tls(certificate: &Path, key: &Path) -> Self {
        Self::with(Some((certificate, key))).await
    }

    async fn with(tls: Option<(&Path, &Path)>) -> Self {
        let dir = scratch("postgres");
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))
            .expect("a directory of ours");
        let user = rustix::process::geteuid().is_root().then_some("postgres");
        if let Some(user) = user {
            chown(
                dir.path(),
                Some(user_id(user, "-u")),
                Some(user_id(user, "-g")),
            )
            .expect("root may give files away");
        }
        let data = dir.path().join("data");
        Program::as_user("initdb", server_program("initdb"), user)
            .dir(dir.path())
            .args(["--no-sync", "--auth=trust", "--locale=C", "--encoding=UTF8"])
            .args(["--username", SUPERUSER, "--pgdata"])
            .args([&data])
            .run();
        let mut options: Vec<String> = Vec::new();
        if let Some((certificate, key)) = tls {
            for (setting, path) in [("ssl_cert_file", certificate), ("ssl_key_file", key)] {
                // The server takes a key of its own user alone.
                let copy = dir.path().join(setting);
                std::fs::copy(path, &copy).expect("a directory of ours");
                std::fs::set_permissions(&copy, Permissions::from_mode(0o600)).expect("ours");
                if let Some(user) = user {
                    chown(&copy, Some(user_id(user, "-u")), None).expect("root may");
                }
                options.extend(["-c".to_owned(), format!("{setting}={}", copy.display())]);
            }
            options.extend(["-c".to_owned(), "ssl=on".to_owned()]);
        }
        let port = free_port();
        let process = Program::as_user("postgres", server_program("postgres"), user)
            .dir(dir.path())
            .args(["-p", &port.to_string(), "-D"])
            .args([&data])
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
            ])
            .args(["-c", "fsync=off", "-c", "max_connections=300"])
            // Nothing of it outlives a kill, as shared memory objects would.
            .args(["-c", "dynamic_shared_memory_type=mmap"])
            .args(&options)
            .start();
        let server = Self {
            _process: process,
            _dir: dir,
            port,
        };
        eventually(PATIENCE, "postgres answers", async || {
            PgConnection::connect(&server.url("postgres"))
                .await
                .map(drop)
        })
        .await;
        server
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}", self.port)
    }

    /// `host:port`.
    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Makes a database of a new name, empty or a copy of `template`, and returns its name.
    pub(crate) async fn create_database(&self, template: &str) -> String {
        let name = format!("t-{}", unique());
        let mut connection = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("postgres answers");
        let statement = format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#);
        connection
            .execute(sqlx::AssertSqlSafe(statement))
            .await
            .expect("a database can be made");
        name
    }
}

/// Debian keeps the programs of the server off the `PATH`.
fn server_program(name: &str) -> PathBuf {
    let pattern = format!("/usr/lib/postgresql/*/bin/{name}");
    glob::glob(&pattern)
        .expect("a valid pattern")
        .filter_map(Result::ok)
        .max()
        .unwrap_or_else(|| panic!("missing: postgresql - `tests/run deps` installs it"))
}

fn user_id(user: &str, which: &str) -> u32 {
    let output = Command::new("id").args([which, user]).output();
    let output = output.expect("id is everywhere").stdout;
    String::from_utf8_lossy(&output)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("there is no user {user}"))
}
