//! Database and Redis servers for tests: each in a directory of its own, on a loopback port of its own, ended by
//! its process id. As root they run as the users that their packages made.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ports::free_port;

/// A running server; dropped, it is killed and its directory removed.
pub(crate) struct Server {
    dir: TempDir,
    program: PathBuf,
    args: Vec<String>,
    user: Option<&'static str>,
    child: Option<Child>,
    pub(crate) port: u16,
}

impl Server {
    /// PostgreSQL; user `app` without a password, database `postgres`.
    pub(crate) fn postgres() -> Self {
        let bin = Path::new("/usr/lib/postgresql/15/bin");
        let (dir, port) = (directory(Some("postgres")), free_port());
        let data = dir.path().join("data");
        let data = data.to_str().unwrap();
        run(
            Command::new(bin.join("initdb")).args([
                "-D",
                data,
                "-A",
                "trust",
                "-U",
                "app",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
            ]),
            Some("postgres"),
        );
        let sockets = dir.path().to_str().unwrap().to_owned();
        let args = format!(
            "-D {data} -p {port} -k {sockets} -c listen_addresses=127.0.0.1 -c fsync=off -c synchronous_commit=off \
             -c full_page_writes=off"
        );
        Self::begin(dir, bin.join("postgres"), &args, Some("postgres"), port)
    }

    /// MariaDB; user `root` without a password.
    pub(crate) fn mariadb() -> Self {
        let (dir, port) = (directory(Some("mysql")), free_port());
        let data = dir.path().join("data");
        let data = data.to_str().unwrap();
        // A server that begins removes temporary tables, also those of another one in the same folder.
        let temporary = format!("--tmpdir={}", dir.path().display());
        run(
            Command::new("mariadb-install-db")
                .args([
                    "--no-defaults",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                ])
                .args([&format!("--datadir={data}"), &temporary]),
            Some("mysql"),
        );
        let socket = dir.path().join("socket");
        let args = format!(
            "--no-defaults --datadir={data} {temporary} --socket={} --port={port} --bind-address=127.0.0.1 \
             --innodb-flush-log-at-trx-commit=0 --skip-log-bin --innodb-buffer-pool-size=32M",
            socket.display()
        );
        Self::begin(dir, "/usr/sbin/mariadbd".into(), &args, Some("mysql"), port)
    }

    /// Redis without persistence.
    pub(crate) fn redis() -> Self {
        let (dir, port) = (directory(None), free_port());
        let args = format!(
            "--port {port} --bind 127.0.0.1 --appendonly no --daemonize no --dir {} --save",
            dir.path().display()
        );
        let mut server = Self::prepare(dir, "redis-server".into(), &args, None, port);
        server.args.push(String::new());
        server.start();
        server
    }

    fn prepare(
        dir: TempDir,
        program: PathBuf,
        args: &str,
        user: Option<&'static str>,
        port: u16,
    ) -> Self {
        Self {
            dir,
            program,
            args: args.split_whitespace().map(str::to_owned).collect(),
            user,
            child: None,
            port,
        }
    }

    fn begin(
        dir: TempDir,
        program: PathBuf,
        args: &str,
        user: Option<&'static str>,
        port: u16,
    ) -> Self {
        let mut server = Self::prepare(dir, program, args, user, port);
        server.start();
        server
    }

    /// Starts it (again) and waits until it takes connections. PostgreSQL refuses as long as a process of the server that was
    /// killed lives, and is started again then.
    pub(crate) fn start(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(log) = self.try_start(deadline) {
            let may_pass = log.contains("pre-existing shared memory block");
            assert!(
                may_pass && Instant::now() < deadline,
                "{:?}: {log}",
                self.program
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns the server's log if it ends before it takes connections.
    fn try_start(&mut self, deadline: Instant) -> Result<(), String> {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log);
        self.child = Some(as_user(&mut command, self.user).spawn().unwrap());
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() || Instant::now() >= deadline {
                return Err(std::fs::read_to_string(self.dir.path().join("log")).unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // PostgreSQL's other processes notice and end, too.
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal by its name, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        run(Command::new("kill").args([&format!("-{name}"), &pid]), None);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_root() -> bool {
    id("-u", None) == 0
}

fn id(flag: &str, user: Option<&str>) -> u32 {
    let output = Command::new("id").arg(flag).args(user).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn as_user<'c>(command: &'c mut Command, user: Option<&str>) -> &'c mut Command {
    match user {
        Some(user) if is_root() => command.uid(id("-u", Some(user))).gid(id("-g", Some(user))),
        _ => command,
    }
}

fn directory(user: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    if let Some(user) = user.filter(|_| is_root()) {
        std::os::unix::fs::chown(
            dir.path(),
            Some(id("-u", Some(user))),
            Some(id("-g", Some(user))),
        )
        .unwrap();
    }
    dir
}

fn run(command: &mut Command, user: Option<&str>) {
    let output = as_user(command, user).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
