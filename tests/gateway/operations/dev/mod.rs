//! `lockgate dev`: no server, no file, no flag; two users who can talk at once, in a terminal and in a browser.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::http::Response;
use crate::support::process::{Process, Program};
use crate::support::replica::LOCKGATE;
use crate::support::socket::{Dial, Socket};
use crate::support::{PATIENCE, eventually, http};

mod appearance;
mod page;
mod replicas;

struct Dev {
    process: Process,
    ready: Value,
    /// Its folder of temporary files.
    temporary: Arc<TempDir>,
}

async fn dev() -> Dev {
    dev_with(&[]).await
}

async fn dev_with(more: &[&str]) -> Dev {
    dev_of(Program::new("lockgate dev", LOCKGATE), more).await
}

async fn dev_of(program: Program, more: &[&str]) -> Dev {
    // A demo that is killed leaves its folder.
    dev_in(Arc::new(tempfile::tempdir().unwrap()), program, more).await
}

async fn dev_in(temporary: Arc<TempDir>, program: Program, more: &[&str]) -> Dev {
    let process = program
        .env("TMPDIR", temporary.path())
        .args(["dev", "--listen", "127.0.0.1:0"])
        .args(["--admin", "127.0.0.1:0", "--json"])
        .args(more)
        .start();
    let ready = process
        .line("the line with its addresses", PATIENCE, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line.get("users").is_some().then_some(line)
        })
        .await;
    Dev {
        process,
        ready,
        temporary,
    }
}

impl Dev {
    fn text(&self, key: &str) -> &str {
        self.ready[key].as_str().expect(key)
    }

    /// Calls the management API, with the printed key.
    async fn call(&self, method: &str, path: &str, body: &Value) -> Response {
        let key = format!("Bearer {}", self.text("api_key"));
        let headers = [("Authorization", &*key)];
        let api = self.text("api").parse().expect("an address");
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        http::request(api, method, path, &headers, &body).await
    }

    fn url(&self, user: &str) -> &str {
        let users = self.ready["users"].as_array().expect("a list");
        let user = users
            .iter()
            .find(|entry| entry["name"] == user)
            .expect("there");
        user["url"].as_str().expect("text")
    }

    /// Opens a socket of a user, which is told where it begins.
    async fn open(&self, user: &str) -> Socket {
        self.open_since(user, "").await.0
    }

    /// Opens a socket of a user behind a position, if one is given. Returns its first frame, too.
    async fn open_since(&self, user: &str, position: &str) -> (Socket, Value) {
        let url = self.url(user).strip_prefix("ws://").expect("ws://…");
        let (host, rest) = url.split_once('/').expect("a path");
        let (path, query) = rest.split_once('?').expect("a query with the token");
        let query = match position {
            "" => query.to_owned(),
            position => format!("{query}&since={position}"),
        };
        let server = host.parse().expect("an address");
        let dial = Dial::new(server, host, &format!("/{path}")).query(&query);
        let mut socket = dial.open().await;
        let first = socket.next_json().await;
        (socket, first)
    }
}

#[tokio::test]
async fn a_message_of_alice_reaches_bob() {
    let dev = dev().await;
    assert_eq!(dev.ready["users"].as_array().unwrap().len(), 2);
    let mut alice = dev.open("alice").await;
    let mut bob = dev.open("bob").await;
    alice.send_text(r#"{"message": "hello bob"}"#).await;
    for socket in [&mut alice, &mut bob] {
        let seen = socket.next_json().await;
        assert_eq!(seen["message"], "hello bob");
        assert_eq!(seen["username"], "alice", "{seen}");
    }
    let admin = dev.ready["admin"].as_str().unwrap();
    let admin = admin.trim_start_matches("http://").parse().unwrap();
    assert_eq!(
        http::request(admin, "GET", "/readyz", &[], "").await.status,
        200
    );
    assert!(dev.process.is_running());
}

#[tokio::test]
async fn a_busy_port_is_told_and_exit_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let process = Program::new("lockgate dev", LOCKGATE)
        .args([
            "dev",
            "--listen",
            &address,
            "--admin",
            "127.0.0.1:0",
            "--json",
        ])
        .start();
    assert_eq!(process.exited(PATIENCE).await.code(), Some(1));
    let text = process.output.text();
    assert!(text.contains(&address), "{text}");
    assert_eq!(text.lines().count(), 1, "told once: {text}");
}

#[tokio::test]
async fn an_address_that_others_reach_has_to_be_allowed() {
    let process = Program::new("lockgate dev", LOCKGATE)
        .args(["dev", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"])
        .start();
    let code = process.exited(PATIENCE).await.code();
    assert!(matches!(code, Some(1 | 2)), "{code:?}");
    assert!(
        process.output.text().contains("--allow-remote"),
        "{}",
        process.output.text()
    );
}

#[tokio::test]
async fn every_start_has_a_key_of_its_own() {
    let (one, other) = (dev().await, dev().await);
    let url = one.url("alice").split_once('?').unwrap().1.to_owned();
    let host = other.ready["listen"]
        .as_str()
        .unwrap()
        .trim_start_matches("http://");
    let path = other.url("alice").split_once("://").unwrap().1;
    let path = &path[path.find('/').unwrap()..path.find('?').unwrap()];
    let refusal = Dial::new(host.parse().unwrap(), host, path)
        .query(&url)
        .refused()
        .await;
    assert_eq!(
        (refusal.status, &refusal.json()["check"]),
        (401, &json!("signature"))
    );
}

/// A page of another site whose name is made to resolve to 127.0.0.1 (DNS rebinding). Before: 200, with the tokens; then still
/// on the listeners of probes and of the API.
#[tokio::test]
async fn the_page_and_its_tokens_are_for_this_machine_alone() {
    let dev = dev().await;
    let server: SocketAddr = dev.ready["listen"].as_str().unwrap().parse().unwrap();
    let port = server.port();
    let get = async |server: SocketAddr, path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let head = http::exchange(server, request.as_bytes()).await.unwrap();
        head.body().await
    };
    let page = async |host: &str| get(server, "/", host).await;
    let others = [("admin", "/metrics"), ("api", "/openapi.json")];
    let others = others.map(|(key, path)| (dev.text(key).parse().unwrap(), path));
    for host in [
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        "127.1.2.3".to_owned(),
        format!("[0:0:0:0:0:0:0:1]:{port}"),
    ] {
        let answer = page(&host).await;
        assert!(
            answer.status == 200 && answer.body.contains("alice"),
            "{host}: {answer:?}"
        );
        for (other, path) in others {
            assert_eq!(get(other, path, &host).await.status, 200, "{path} {host}");
        }
    }
    for host in [
        format!("rebound.example:{port}"),
        "localhost.rebound.example".to_owned(),
        "192.0.2.1".to_owned(),
    ] {
        let answer = page(&host).await;
        assert_eq!(answer.status, 421, "{host}");
        assert!(!answer.body.contains("alice"), "{host}: {answer:?}");
        for (other, path) in others {
            assert_eq!(get(other, path, &host).await.status, 421, "{path} {host}");
        }
        let url = dev.url("alice");
        let (_, token) = url.split_once("?token=").unwrap();
        let dial = Dial::new(server, &host, "/ws/echo/").token(token);
        assert_eq!(dial.refused().await.status, 404, "{host}");
    }
}

/// The page calls the API by its own server; without the key it is refused there too.
#[tokio::test]
async fn the_api_is_on_with_a_key_of_its_own() {
    let dev = dev().await;
    let mut bob = dev.open("bob").await;
    let event = json!({"type": "chat.message", "message": "from a back end"});
    let path = "/v1/tenants/demo/groups/chat_lobby/send";
    assert_eq!(dev.call("POST", path, &event).await.status, 200);
    assert_eq!(bob.next_json().await["message"], "from a back end");
    let page: SocketAddr = dev.text("listen").parse().unwrap();
    let key = format!("Bearer {}", dev.text("api_key"));
    for (key, status) in [(&*key, 200), ("Bearer guessed", 401)] {
        let headers = [("Authorization", key)];
        let answer = http::request(page, "POST", path, &headers, &event.to_string()).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

/// The file is the configuration of the demo: other commands find everything in it. It ends with the demo.
#[tokio::test]
async fn the_configuration_is_a_file_that_other_commands_take() {
    let dev = dev().await;
    let mut alice = dev.open("alice").await;
    let config = dev.text("config").to_owned();
    let run = async |arguments: &[&str]| {
        let command = Program::new("lockgate", LOCKGATE)
            .args(arguments)
            .args(["-c", &config]);
        let command = command.start();
        let code = command.exited(PATIENCE).await.code();
        (code, command.output.text())
    };
    let event = r#"{"type": "chat.message", "message": "from a terminal"}"#;
    let sent = run(&["send", "--tenant", "demo", "--group", "chat_lobby", event]).await;
    assert_eq!(sent.0, Some(0), "{}", sent.1);
    assert_eq!(alice.next_json().await["message"], "from a terminal");
    let checked = run(&["config", "check"]).await;
    assert_eq!(checked.0, Some(0), "{}", checked.1);
    assert!(!checked.1.contains("warning"), "{}", checked.1);
    let folder = std::path::Path::new(&config).parent().unwrap().to_owned();
    dev.process.signal(Signal::TERM);
    assert_eq!(dev.process.exited(PATIENCE).await.code(), Some(0));
    assert!(!folder.exists(), "{}", folder.display());
}

/// Before, a demo that was killed left its keys and its folder for ever.
#[tokio::test]
async fn the_next_start_removes_the_folder_of_a_demo_that_was_killed() {
    let (killed, runs) = (dev().await, dev().await);
    let folder = |dev: &Dev| {
        std::path::Path::new(dev.text("config"))
            .parent()
            .unwrap()
            .to_owned()
    };
    let start = async |temporary: &Arc<TempDir>| {
        dev_in(
            temporary.clone(),
            Program::new("lockgate dev", LOCKGATE),
            &[],
        )
        .await
    };
    let (left, kept) = (folder(&killed), folder(&runs));
    killed.process.signal(Signal::KILL);
    killed.process.exited(PATIENCE).await;
    assert!(left.exists());
    let _next = start(&killed.temporary).await;
    assert!(!left.exists());
    let _beside = start(&runs.temporary).await;
    assert!(kept.join("api-key").exists(), "its demo runs");
}

/// The commands got 404, and a client that came back nothing of what it had missed.
#[tokio::test]
async fn history_presence_and_resume_can_be_tried() {
    let dev = dev().await;
    let run = async |arguments: &[&str]| {
        let command = Program::new("lockgate", LOCKGATE)
            .args(arguments)
            .args(["--tenant", "demo", "--group", "chat_lobby", "--json"])
            .args(["-c", dev.text("config")])
            .start();
        let code = command.exited(PATIENCE).await.code();
        let text = command.output.text();
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let (bob, first) = dev.open_since("bob", "").await;
    assert_eq!(first["type"], "lockgate.position");
    let mut alice = dev.open("alice").await;
    let user = |id: &str, name: &str| json!({"id": id, "sockets": 1, "user": {"username": name}});
    let both = json!({"sockets": 2, "users": [user("1", "alice"), user("2", "bob")]});
    let present = eventually(PATIENCE, "both are there", async || {
        let found = run(&["presence"]).await;
        if found == both { Ok(()) } else { Err(found) }
    });
    present.await;
    let count = run(&["presence", "--count"]).await;
    assert_eq!(count, json!({"sockets": 2, "users": 2}));
    drop(bob);
    alice
        .send_text(r#"{"message": "while you were away"}"#)
        .await;
    alice.next_json().await;
    let kept = run(&["history"]).await;
    let event = &kept["events"][0]["event"];
    assert_eq!(event["message"], "while you were away", "{kept}");
    let since = first["position"].as_str().expect("a position");
    let (_bob, missed) = dev.open_since("bob", since).await;
    assert_eq!(missed["message"], "while you were away", "{missed}");
}

/// A new Debian without `ca-certificates` is such a machine. The demo and the commands that ask it used to end there.
#[tokio::test]
async fn a_machine_without_certificates_serves_and_asks() {
    let bare = |name: &str| {
        Program::new(name, LOCKGATE)
            .env("SSL_CERT_FILE", "/nonexistent/certificates")
            .env("SSL_CERT_DIR", "/nonexistent")
    };
    let dev = dev_of(bare("lockgate dev"), &[]).await;
    let mut alice = dev.open("alice").await;
    let event = r#"{"type": "chat.message", "message": "from a terminal"}"#;
    let sent = bare("lockgate send")
        .args(["send", "--tenant", "demo", "--group", "chat_lobby", event])
        .args(["-c", dev.text("config")])
        .start();
    let code = sent.exited(PATIENCE).await.code();
    assert_eq!(code, Some(0), "{}", sent.output.text());
    assert_eq!(alice.next_json().await["message"], "from a terminal");
}

/// Two demos may run at once: without `--api` the second one takes another port.
#[tokio::test]
async fn the_api_gives_way_unless_it_was_asked_for() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let process = Program::new("lockgate dev", LOCKGATE)
        .args(["dev", "--listen", "localhost:0", "--admin", "localhost:0"])
        .args(["--api", &address])
        .start();
    assert_eq!(process.exited(PATIENCE).await.code(), Some(1));
    let told = process.output.text();
    assert!(
        told.contains("choose another one with --api localhost:PORT"),
        "{told}"
    );
    let (one, other) = (dev().await, dev().await);
    assert_ne!(one.text("api"), other.text("api"));
}
