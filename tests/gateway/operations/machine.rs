//! Mistakes of operators and effects of the machine: the words are clear, and no socket is harmed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use toml::{Table, Value};

use crate::support::database::ALICE;
use crate::support::ports::free_port;
use crate::support::process::Program;
use crate::support::replica::{LOCKGATE, Replica};
use crate::support::socket::Dial;
use crate::support::{
    Gateway, PATIENCE, Publisher, RedisServer, eventually, gateway, http, within,
};

const CHAT: &str = "/ws/chat/lobby/";

fn lockgate(arguments: &[&str], gateway: &Gateway) -> Output {
    Command::new(LOCKGATE)
        .args(arguments)
        .arg("--config")
        .arg(&gateway.config)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A table with one key.
fn one(key: &str, value: impl Into<Value>) -> Value {
    Table::from_iter([(key.to_owned(), value.into())]).into()
}

/// Mistakes in a ConfigMap or a Secret: each ends the start with 1 and names the fault and its place.
#[tokio::test]
async fn a_mistake_in_what_is_mounted_ends_the_start_in_clear_words() {
    let mounts = tempfile::tempdir().unwrap();
    let path = |name: &str| mounts.path().join(name).display().to_string();
    std::fs::create_dir(path("a-folder")).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("huge"), vec![b'x'; 4 << 20]).unwrap();
    std::fs::write(path("binary"), [0xff, 0xfe, 0xfd]).unwrap();
    let file = |name: &str| one("file", path(name));
    let made = Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(made.success());
    let rows: [(&str, &str, Value, &[&str]); 10] = [
        (
            "a secret that is not mounted",
            "redis",
            one("url", file("none")),
            &["redis.url", "No such file"],
        ),
        (
            "a folder where a secret should be",
            "redis",
            one("url", file("a-folder")),
            &["redis.url", "directory"],
        ),
        // Before: neither verb ended.
        (
            "a pipe where a secret should be",
            "redis",
            one("url", file("pipe")),
            &["redis.url", "it is a pipe"],
        ),
        (
            "a device where a secret should be",
            "redis",
            one("url", one("file", "/dev/zero")),
            &["redis.url", "it is a device"],
        ),
        (
            "a pipe among the included files",
            "include",
            vec![path("pipe")].into(),
            &["include[0]", "it is a pipe"],
        ),
        (
            "an empty secret",
            "redis",
            one("url", file("empty")),
            &["redis.url", "which is empty"],
        ),
        (
            "a secret without an end",
            "redis",
            one("url", file("huge")),
            &["redis.url", "large"],
        ),
        (
            "a secret that is no text",
            "redis",
            one("url", file("binary")),
            &["redis.url", "UTF-8"],
        ),
        (
            "an unknown key",
            "metrics",
            one("tenant_serie", 5),
            &["metrics.tenant_serie", "unknown key"],
        ),
        (
            "an unknown table",
            "servers",
            one("listen", "0.0.0.0:1"),
            &["servers", "unknown key"],
        ),
    ];
    for (what, table, value, words) in rows {
        let gateway = gateway().tenant("acme").write().await;
        let written = std::fs::read_to_string(&gateway.config).unwrap();
        let mut config: Table = written.parse().unwrap();
        config.insert(table.to_owned(), value);
        std::fs::write(&gateway.config, config.to_string()).unwrap();
        // One included file's mistake ends a start with --strict alone.
        let serve: &[_] = match table {
            "include" => &["serve", "--strict"],
            _ => &["serve"],
        };
        for verb in [&["config", "check"], serve] {
            let output = lockgate(verb, &gateway);
            let told = text(&output);
            assert_eq!(output.status.code(), Some(1), "{what}: {told}");
            for word in words {
                assert!(told.contains(word), "{what}: {word} in {told}");
            }
            assert!(!told.contains("listening"), "{what}: {told}");
        }
    }
}

#[tokio::test]
async fn a_grace_period_shorter_than_the_drain_is_refused_and_a_longer_one_proved() {
    let gateway = gateway()
        .set("server.max_connections", 30_000)
        .tenant("acme")
        .write()
        .await;
    let short = lockgate(&["config", "check", "--grace", "69s"], &gateway);
    assert_eq!(short.status.code(), Some(1));
    let told = text(&short);
    assert!(
        told.contains("expected at most the grace period 69s"),
        "{told}"
    );
    let enough = lockgate(&["config", "check", "--grace", "90s"], &gateway);
    assert_eq!(enough.status.code(), Some(0));
    let told = text(&enough);
    assert!(
        told.contains("30000 sockets close at 500 per second within 60s"),
        "{told}"
    );
    let json = lockgate(&["config", "check", "--grace", "90s", "--json"], &gateway);
    let answer: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        answer["drain"],
        json!({"connections": 30_000, "per_second": 500, "seconds": 70.0})
    );
}

#[tokio::test]
async fn a_hundred_scrapes_at_once_are_answered_and_no_socket_waits() {
    let gateway = gateway().tenant("acme").start().await;
    let replica = gateway.replica();
    let mut socket = gateway.open(CHAT).await;
    let publisher = Publisher::new(RedisServer::shared().await, &gateway.tenant().prefix).await;
    let admin = replica.admin;
    let scrapes: Vec<_> = (0..100)
        .map(|_| {
            tokio::spawn(async move { http::request(admin, "GET", "/metrics", &[], "").await })
        })
        .collect();
    for n in 0..50 {
        let sent = Instant::now();
        publisher
            .send("chat_lobby", &json!({"type": "x", "n": n}))
            .await;
        assert_eq!(socket.next_json().await["n"], n);
        // Far above what it takes, far below what a hundred renderings in a row would.
        assert!(
            sent.elapsed() < Duration::from_secs(2),
            "{:?}",
            sent.elapsed()
        );
    }
    for scrape in scrapes {
        let answer = within(PATIENCE, "a scrape", scrape).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains("lockgate_connections{"), "{answer:?}");
    }
}

/// A replica whose log goes where the test wants; killed when this goes.
struct Loud {
    child: Child,
    server: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Loud {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Loud {
    async fn start(log: Stdio) -> (Gateway, Self) {
        let [server, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let gateway = gateway()
            .set("server.listen", server.to_string())
            .set("admin.listen", admin.to_string())
            .set("log.level", "trace")
            .tenant("acme")
            .write()
            .await;
        let child = Command::new(LOCKGATE)
            .args(["serve", "--config"])
            .arg(&gateway.config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let loud = Self {
            child,
            server,
            admin,
        };
        eventually(PATIENCE, "/readyz", async || {
            // Nobody listens at first.
            if tokio::net::TcpStream::connect(admin).await.is_err() {
                return Err(0);
            }
            match http::request(admin, "GET", "/readyz", &[], "").await.status {
                200 => Ok(()),
                status => Err(status),
            }
        })
        .await;
        (gateway, loud)
    }

    /// Sockets open, events arrive, `/livez` answers.
    async fn serves(&self, gateway: &Gateway) {
        let tenant = gateway.tenant();
        let token = tenant.token(ALICE);
        let mut socket = Dial::new(self.server, &tenant.host, CHAT)
            .token(&token)
            .open()
            .await;
        let publisher = Publisher::new(RedisServer::shared().await, &tenant.prefix).await;
        for n in 0..20 {
            publisher
                .send("chat_lobby", &json!({"type": "x", "n": n}))
                .await;
            assert_eq!(socket.next_json().await["n"], n);
        }
        let livez = http::request(self.admin, "GET", "/livez", &[], "").await;
        assert_eq!(livez.status, 200);
    }
}

#[tokio::test]
async fn a_full_disk_under_the_log_harms_no_socket() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let (gateway, mut loud) = Loud::start(full.into()).await;
    for _ in 0..5 {
        loud.serves(&gateway).await;
    }
    assert_eq!(loud.child.try_wait().unwrap(), None, "it still runs");
}

#[tokio::test]
async fn a_log_pipe_that_nobody_reads_harms_no_socket_and_tells_later_what_was_dropped() {
    let (gateway, mut loud) = Loud::start(Stdio::piped()).await;
    let pipe = loud.child.stdout.take().unwrap();
    // A line of 210 bytes for each closed socket: 64 KiB of them fill the pipe, as many the writer's buffer, 4,096 lines the
    // queue before it. These are more.
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    let come_and_go = |_| async {
        let dial = Dial::new(loud.server, &tenant.host, CHAT).token(&token);
        drop(dial.open().await);
    };
    for _ in 0..130 {
        futures_util::future::join_all((0..40).map(come_and_go)).await;
    }
    loud.serves(&gateway).await;
    let told = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(pipe).lines().map_while(Result::ok);
        lines.find(|line| line.contains("Dropped log lines because nothing read them"))
    });
    let told = within(PATIENCE, "the line about dropped lines", told).await;
    assert!(told.unwrap().is_some());
    loud.serves(&gateway).await;
}

/// Before, a replica left one where its limit allowed it, with the tokens and keys in its memory.
#[tokio::test]
async fn a_replica_leaves_no_core_dump() {
    let gateway = gateway().tenant("acme").write().await;
    let allowed = "ulimit -S -c \"$(ulimit -H -c)\" && exec \"$@\"";
    let program = Program::new("lockgate serve", "sh")
        .args(["-c", allowed, "sh", LOCKGATE, "serve", "--config"])
        .args([&gateway.config]);
    let replica = Replica::run(program).await;
    let path = format!("/proc/{}/limits", replica.process.pid.as_raw_nonzero());
    let limits = std::fs::read_to_string(path).unwrap();
    let core = { limits.lines() }.find_map(|line| line.strip_prefix("Max core file size"));
    let soft = core.and_then(|limits| limits.split_whitespace().next());
    assert_eq!(soft, Some("0"), "{limits}");
}
