//! A temporary PostgreSQL server, and a proxy that delays its traffic.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::{LOAD_CORE, Process};
use crate::world::wait_for;

const SUPERUSER: &str = "lockgate";
/// The user of the server's files and processes if this program runs as root, which PostgreSQL refuses.
const SYSTEM_USER: &str = "postgres";
const GOODBYE: Duration = Duration::from_secs(5);

/// A server with `auth_user` in its one database.
pub(crate) struct Postgres {
    process: Process,
    _dir: TempDir,
    pub(crate) port: u16,
    log: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Postgres {
    /// Starts the server with `users` users in the tables of Django's migrations.
    pub(crate) fn start(users: u64) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lockgate-postgres")
            .tempdir()?;
        if rustix::process::geteuid().is_root() {
            chown(dir.path(), Some(system_id("-u")?), Some(system_id("-g")?))?;
        }
        let data = dir.path().join("data");
        let made = Command::new("setpriv")
            .args(privileges())
            .arg(server_program("initdb")?)
            .args(["--no-sync", "--auth=trust", "--locale=C", "--encoding=UTF8"])
            .args(["--username", SUPERUSER, "--pgdata"])
            .arg(&data)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .context("cannot run initdb")?;
        ensure!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let port = free_port();
        let log = dir.path().join("log");
        let log_file = File::create(&log)?;
        let program = server_program("postgres")?;
        let mut process = Process::spawn(LOAD_CORE, Path::new("setpriv"), |command| {
            command
                .args(privileges())
                .arg(program)
                .args(["-p", &port.to_string(), "-D"])
                .arg(&data)
                .args(["-c", "listen_addresses=127.0.0.1", "-c"])
                .args(["unix_socket_directories=", "-c", "fsync=off", "-c"])
                .args(["dynamic_shared_memory_type=mmap", "-c"])
                .arg("log_statement=all")
                .current_dir(dir.path())
                .stderr(log_file)
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let make = make_users(users);
        wait_for("PostgreSQL", &mut process, || {
            runtime.block_on(async {
                let mut database = PgConnection::connect(&url(port)).await?;
                sqlx::raw_sql(sqlx::AssertSqlSafe(make.clone()))
                    .execute(&mut database)
                    .await?;
                Ok(database.close().await?)
            })
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Self {
            process,
            _dir: dir,
            port,
            log,
            runtime,
        })
    }

    /// Runs statements in one transaction.
    pub(crate) fn execute(&self, sql: String) -> Result<()> {
        self.runtime.block_on(async {
            let mut database = PgConnection::connect(&url(self.port)).await?;
            let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
            sql.execute(&mut database).await?;
            Ok(database.close().await?)
        })
    }

    /// Returns the number of statements for users in the server's log so far.
    pub(crate) fn statements(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.log)?;
        // Only the gateway reads rows as JSON, and only those of users.
        let asked = |line: &&str| line.contains("LOG:  execute") && line.contains("row_to_json");
        Ok(text.lines().filter(asked).count() as u64)
    }

    /// Returns the time of the smallest statement over a connection to `port`, the least of several.
    pub(crate) fn round_trip(&self, port: u16) -> Result<Duration> {
        self.runtime.block_on(async {
            let mut database = PgConnection::connect(&url(port)).await?;
            let mut least = Duration::MAX;
            for _ in 0..20 {
                let began = Instant::now();
                sqlx::raw_sql("SELECT 1").execute(&mut database).await?;
                least = least.min(began.elapsed());
            }
            database.close().await?;
            Ok(least)
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed server would leave a segment of shared memory behind.
        if self.process.signal(Signal::INT).is_ok() {
            let began = Instant::now();
            while self.process.check_alive().is_ok() && began.elapsed() < GOODBYE {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Returns the URL of the database behind `port`, the port that of the server or of [`slow_wire`].
pub(crate) fn url(port: u16) -> String {
    format!("postgres://{SUPERUSER}@127.0.0.1:{port}/postgres")
}

fn make_users(users: u64) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS auth_user (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
           password varchar(128) NOT NULL, last_login timestamptz, is_superuser boolean NOT NULL,
           username varchar(150) NOT NULL UNIQUE, first_name varchar(150) NOT NULL, last_name varchar(150) NOT NULL,
           email varchar(254) NOT NULL, is_staff boolean NOT NULL, is_active boolean NOT NULL, date_joined timestamptz NOT NULL);
         INSERT INTO auth_user (password, last_login, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined)
           SELECT 'pbkdf2_sha256$1000000$Zk3vYt0wXq7LbRe5uHs1Na$' || lpad(i::text, 43, '0') || '=', now(), false, 'user' || i,
             'Augusta', 'Lovelace', 'user' || i || '@example.com', false, true, now() FROM generate_series(1, {users}) AS i;
         ANALYZE auth_user"
    )
}

/// Starts a proxy to `port` of loopback that delays both directions by `delay`; returns its port.
pub(crate) fn slow_wire(port: u16, delay: Duration) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = listener.local_addr()?.port();
    // The threads live as long as the program, which is no cost: a row has few connections to its database.
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
                continue;
            };
            let ends = (near.try_clone(), far.try_clone());
            let (Ok(near_again), Ok(far_again)) = ends else {
                continue;
            };
            delayed(near, far, delay);
            delayed(far_again, near_again, delay);
        }
    });
    Ok(at)
}

fn delayed(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, chunks) = mpsc::channel::<(Instant, Vec<u8>)>();
    to.set_nodelay(true).ok();
    std::thread::spawn(move || {
        let mut chunk = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            let due = Instant::now() + delay;
            if sender.send((due, chunk[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in chunks {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Write).ok();
    });
}

/// Returns the arguments of `setpriv`: another user if this one is root, and a signal when this program ends.
fn privileges() -> Vec<String> {
    let mut arguments = vec!["--pdeathsig=INT".to_owned()];
    if rustix::process::geteuid().is_root() {
        arguments.extend([
            format!("--reuid={SYSTEM_USER}"),
            format!("--regid={SYSTEM_USER}"),
            "--clear-groups".to_owned(),
        ]);
    }
    arguments
}

/// Finds a program of the server, which Debian installs outside of the `PATH`.
fn server_program(name: &str) -> Result<PathBuf> {
    let found = glob::glob(&format!("/usr/lib/postgresql/*/bin/{name}"))?;
    let newest = found.filter_map(Result::ok).max();
    newest.context("missing: postgresql; `tests/run deps` installs it")
}

fn system_id(which: &str) -> Result<u32> {
    let output = Command::new("id").args([which, SYSTEM_USER]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let id = text.trim().parse();
    id.with_context(|| format!("there is no user {SYSTEM_USER}"))
}
