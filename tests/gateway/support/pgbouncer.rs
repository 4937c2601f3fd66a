//! A real PgBouncer in transaction mode before the shared PostgreSQL, with two server connections for each database.

use std::os::unix::fs::PermissionsExt;

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::ports::free_port;
use super::postgres::PostgresServer;
use super::process::{Process, Program, find_program};
use super::{PATIENCE, eventually, scratch};

/// One PgBouncer.
pub(crate) struct PgBouncer {
    // In this order: the process goes before its files do.
    _process: Process,
    _dir: TempDir,
    port: u16,
}

impl PgBouncer {
    /// Starts it; `more` are further lines of its configuration.
    pub(crate) async fn start(more: &str) -> Self {
        let server = PostgresServer::shared().await;
        let (dir, port) = (scratch("pgbouncer"), free_port());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
            .expect("a directory of ours");
        let file = dir.path().join("pgbouncer.ini");
        let (host, server_port) = { server.endpoint() }
            .split_once(':')
            .map(|(host, port)| (host.to_owned(), port.to_owned()))
            .expect("host:port");
        let text = format!(
            "[databases]\n* = host={host} port={server_port} user=lockgate\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n{more}\n"
        );
        std::fs::write(&file, text).expect("a file can be written");
        let user = rustix::process::geteuid().is_root().then_some("postgres");
        let program = Program::as_user("pgbouncer", find_program("pgbouncer"), user);
        let process = program.dir(dir.path()).args([&file]).start();
        let pooler = Self {
            _process: process,
            _dir: dir,
            port,
        };
        // Not as the gateway connects: this asks only whether anything answers.
        let url = format!("{}?statement-cache-capacity=0", pooler.url("postgres"));
        eventually(PATIENCE, "pgbouncer answers", async || {
            let options: sqlx::postgres::PgConnectOptions = url.parse()?;
            PgConnection::connect_with(&options.extra_float_digits(None))
                .await
                .map(drop)
        })
        .await;
        pooler
    }

    /// The plain URL of a database of the shared server, through the pooler.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://lockgate@127.0.0.1:{}/{database}", self.port)
    }
}
