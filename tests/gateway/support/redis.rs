//! A real redis-server on a port of its own, which can be killed, frozen, and started again.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use ::redis::{Client, FromRedisValue, aio::MultiplexedConnection};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::ports::free_port;
use super::process::{Process, Program, find_program};
use super::{PATIENCE, eventually, scratch};

/// One server, empty at every start.
pub(crate) struct RedisServer {
    dir: TempDir,
    port: u16,
    program: PathBuf,
    more: Vec<String>,
    has_clock: bool,
    process: Mutex<Option<Process>>,
}

impl RedisServer {
    /// The server that tests share which do it no harm.
    pub(crate) async fn shared() -> &'static RedisServer {
        static SHARED: OnceCell<RedisServer> = OnceCell::const_new();
        SHARED.get_or_init(RedisServer::start).await
    }

    /// A server for one test, running.
    pub(crate) async fn start() -> Self {
        let server = Self::absent();
        server.restart().await;
        server
    }

    /// A server that does not run yet; its port is known.
    pub(crate) fn absent() -> Self {
        Self {
            dir: scratch("redis"),
            port: free_port(),
            program: find_program("redis-server"),
            more: Vec::new(),
            has_clock: false,
            process: Mutex::new(None),
        }
    }

    /// A running server with further options, such as `--replicaof`.
    pub(crate) async fn with(options: &[&str]) -> Self {
        let mut server = Self::absent();
        server.more = options.iter().map(|&option| option.to_owned()).collect();
        server.restart().await;
        server
    }

    /// A running server whose clock [`RedisServer::step_clock`] steps.
    pub(crate) async fn with_clock() -> Self {
        let server = Self {
            has_clock: true,
            ..Self::absent()
        };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway/support/clock.c");
        Program::new("cc", find_program("cc"))
            .args(["-shared", "-fPIC", "-O1", source, "-o"])
            .args([server.clock_library()])
            .run();
        server.step_clock(0);
        server.restart().await;
        server
    }

    fn clock_library(&self) -> PathBuf {
        self.dir.path().join("clock.so")
    }

    /// Puts its clock so many seconds ahead of the machine's.
    pub(crate) fn step_clock(&self, seconds: i64) {
        let mut options = std::fs::OpenOptions::new();
        // The server has the file in its memory, so it is never cut short.
        let file = options.create(true).write(true).truncate(false);
        let file = file.open(self.dir.path().join("clock"));
        let file = file.expect("a file can be made");
        std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0)
            .expect("a file can be written");
    }

    /// A running server of an old version, as `tests/run` takes it from a package of Python.
    pub(crate) async fn old(version: &str) -> Self {
        Self::old_with(version, &[]).await
    }

    /// As `old`, with further options.
    pub(crate) async fn old_with(version: &str, options: &[&str]) -> Self {
        let folder = std::env::var_os("LOCKGATE_TEST_OLD_REDIS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/old_redis"),
            PathBuf::from,
        );
        let program = folder.join(version).join("redis-server");
        assert!(
            program.exists(),
            "missing: {} - `tests/run deps` installs it",
            program.display()
        );
        let server = Self {
            program,
            more: options.iter().map(|&option| option.to_owned()).collect(),
            ..Self::with_bus()
        };
        server.restart().await;
        server
    }

    /// As `absent`. The port 10,000 above is free as well: nodes before Redis 7 take it for the bus of their cluster.
    fn with_bus() -> Self {
        loop {
            let server = Self::absent();
            if TcpListener::bind((Ipv4Addr::LOCALHOST, server.port + 10_000)).is_ok() {
                return server;
            }
        }
    }

    /// Starts it (again) on its port, with nothing in it, and waits until it answers.
    pub(crate) async fn restart(&self) {
        self.kill();
        let port = self.port.to_string();
        let mut program = Program::new("redis-server", &self.program).dir(self.dir.path());
        if self.has_clock {
            program = program
                .env("LD_PRELOAD", self.clock_library())
                .env("CLOCK_FILE", self.dir.path().join("clock"));
        }
        let process = program
            .args(["--port", &port, "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir", "."])
            .args(&self.more)
            .start();
        *self.process.lock().expect("never poisoned") = Some(process);
        eventually(PATIENCE, "redis-server answers", async || {
            self.ask::<String>(&["PING"]).await
        })
        .await;
    }

    /// As `restart`, with the data that it holds now.
    pub(crate) async fn restart_with_data(&self) {
        let _: String = self.command(&["SAVE"]).await;
        self.restart().await;
    }

    /// `kill -9`; what it held is lost.
    pub(crate) fn kill(&self) {
        drop(self.process.lock().expect("never poisoned").take());
    }

    /// True unless it was killed.
    pub(crate) fn runs(&self) -> bool {
        self.process.lock().expect("never poisoned").is_some()
    }

    /// Stops it in its tracks: connections stay, nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// The end of `freeze`.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.lock().expect("never poisoned");
        process.as_ref().expect("it runs").signal(signal);
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`.
    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL, database 0.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}/0", self.endpoint())
    }

    /// A new connection.
    pub(crate) async fn connection(&self) -> ::redis::RedisResult<MultiplexedConnection> {
        let client = Client::open(self.url())?;
        tokio::time::timeout(
            Duration::from_secs(2),
            client.get_multiplexed_async_connection(),
        )
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    /// One command, on a connection of its own.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &[&str]) -> ::redis::RedisResult<T> {
        let mut connection = self.connection().await?;
        let mut cmd = ::redis::cmd(command[0]);
        for argument in &command[1..] {
            cmd.arg(*argument);
        }
        cmd.query_async(&mut connection).await
    }

    /// One command that has to work.
    pub(crate) async fn command<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.ask(command)
            .await
            .unwrap_or_else(|e| panic!("{command:?}: {e}"))
    }
}
