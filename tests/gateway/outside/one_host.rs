//! Pages and sockets under one host, behind nginx and HAProxy as `docs/one-host.md` has them: both are served, and no log of
//! the proxy or of the gateway has a token.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::database::ALICE;
use crate::support::process::{Process, Program, find_program};
use crate::support::socket::Dial;
use crate::support::{
    Database, Gateway, PATIENCE, eventually, gateway, http, ports, scratch, token,
};

const PAGE: &str = include_str!("../../../docs/one-host.md");
const ROOM: &str = "/ws/chat/lobby/";

/// The page's block of this language, with addresses and paths of the test.
fn block(language: &str, places: &[(&str, String)]) -> String {
    let (_, rest) = PAGE
        .split_once(&format!("```{language}\n"))
        .expect("the page has one");
    let (block, _) = rest.split_once("```").expect("it ends");
    places.iter().fold(block.to_owned(), |block, (from, to)| {
        assert!(block.contains(from), "{language}: no {from}");
        block.replace(from, to)
    })
}

/// The block with one place changed.
fn but_for(block: String, but: Option<(&str, &str)>) -> String {
    let Some((from, to)) = but else {
        return block;
    };
    assert!(block.contains(from), "no {from}: {block}");
    block.replace(from, to)
}

/// Answers every request as a page of Django.
async fn gunicorn() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer =
                    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\na page";
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok() {
                    drop(stream.write_all(answer).await);
                }
            });
        }
    });
    address
}

/// nginx with the page's block, but for one place.
fn nginx(dir: &Path, places: &[(&str, String)], port: u16, but: Option<(&str, &str)>) -> Process {
    let mut places = places.to_vec();
    places.push(("listen 80;", format!("listen 127.0.0.1:{port};")));
    places.push(("/var/log/nginx", dir.display().to_string()));
    let site = but_for(block("nginx", &places), but);
    let dir = dir.display();
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/{name};"))
        .join(" ");
    let file = format!("{dir}/nginx.conf");
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr crit;
         events {{ worker_connections 64; }} http {{ {paths} {site} }}"
    );
    std::fs::write(&file, config).unwrap();
    Program::new("nginx", find_program("nginx"))
        .args(["-e", "stderr", "-c", &file])
        .start()
}

/// HAProxy with the page's block, but for one place.
fn haproxy(dir: &Path, places: &[(&str, String)], port: u16, but: Option<(&str, &str)>) -> Process {
    let mut places = places.to_vec();
    places.push(("bind :80", format!("bind 127.0.0.1:{port}")));
    let site = but_for(block("haproxy", &places), but);
    let file = dir.join("haproxy.cfg");
    std::fs::write(
        &file,
        format!("global\n    log stdout format raw local0 info\n\n{site}"),
    )
    .unwrap();
    Program::new("haproxy", find_program("haproxy"))
        .args(["-db".as_ref(), "-f".as_ref(), file.as_os_str()])
        .start()
}

type Start = fn(&Path, &[(&str, String)], u16, Option<(&str, &str)>) -> Process;

/// What was logged, and the tokens that were sent.
struct Played {
    logs: String,
    gateway: String,
    tokens: Vec<String>,
}

impl Played {
    /// Returns true if the text has a token, or the signature of one.
    fn leaks(&self, text: &str) -> bool {
        let mut parts = self
            .tokens
            .iter()
            .flat_map(|token| token.split('.').skip(1));
        parts.any(|part| text.contains(part))
    }
}

/// Plays every kind of request through the proxy, and returns what was logged.
async fn play(start: Start, but: Option<(&str, &str)>) -> Played {
    let mut gateway = gateway()
        .set("log.level", "debug")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let (dir, port) = (scratch("one-host"), ports::free_port());
    let places = [
        ("127.0.0.1:8001", gateway.replica().server.to_string()),
        ("127.0.0.1:8000", gunicorn().await.to_string()),
    ];
    let proxy = start(dir.path(), &places, port, but);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually(PATIENCE, "the proxy listens", async || {
        TcpStream::connect(address).await.map(drop)
    })
    .await;
    let host = gateway.tenant().host.clone();
    let good = gateway.tenant().token(ALICE);
    let stranger = token::sign("another key of thirty-two bytes!", &token::access(ALICE));

    let page = http::request(address, "GET", "/", &[], "").await;
    assert_eq!((page.status, page.body.as_str()), (200, "a page"));
    let dial = |token: &str| Dial::new(address, &host, ROOM).token(token);
    let mut socket = dial(&good).open().await;
    let event = json!({"type": "chat.message", "message": "hi"});
    gateway.send("chat_lobby", &event).await;
    assert_eq!(socket.next_json().await, json!({"message": "hi"}));
    socket.close(1000, "").await;
    drop(socket);
    assert_eq!(dial(&stranger).refused().await.status, 401);
    let malformed = [
        format!("GET {ROOM}?token={good} HTTP/9.9\r\nHost: {host}\r\n\r\n"),
        format!("GET {ROOM}?token={good} HTTP/1.1\r\nHost: {host}\r\nno header\r\n\r\n"),
        format!("GET {ROOM}?token={good}\u{1} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    ];
    for request in malformed {
        http::exchange(address, request.as_bytes()).await;
    }
    kill(&mut gateway);
    let unserved = dial(&good).refused().await.status;
    assert!(unserved >= 502, "{unserved}");

    let played = |logs: String| Played {
        logs,
        gateway: gateway.output(),
        tokens: vec![good.clone(), stranger.clone()],
    };
    eventually(PATIENCE, "the log has all three sockets", async || {
        let logs = logs(dir.path(), &proxy);
        let lines = logs.lines().filter(|line| line.contains(ROOM));
        let statuses = [" 101 ", " 401 ", &format!(" {unserved} ")];
        let lines: Vec<_> = lines.collect();
        let all = statuses
            .iter()
            .all(|status| lines.iter().any(|line| line.contains(status)));
        if all { Ok(played(logs)) } else { Err(logs) }
    })
    .await
}

fn kill(gateway: &mut Gateway) {
    gateway.replicas[0].process.kill();
}

/// All that the proxy has written.
fn logs(dir: &Path, proxy: &Process) -> String {
    let mut all = proxy.output.text();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            all += &std::fs::read_to_string(path).unwrap();
        }
    }
    all
}

/// A format with the query shows that the test would see a token.
async fn has_no_token(start: Start, without: &str, with: &str) {
    let played = play(start, None).await;
    assert!(!played.leaks(&played.logs), "{}", played.logs);
    assert!(!played.leaks(&played.gateway), "{}", played.gateway);
    let played = play(start, Some((without, with))).await;
    assert!(played.leaks(&played.logs), "{}", played.logs);
}

#[tokio::test]
async fn the_logs_of_nginx_have_no_token() {
    has_no_token(
        nginx,
        "\"$request_method $uri $server_protocol\"",
        "\"$request\"",
    )
    .await;
}

/// More verbose levels write the request line of a socket that no upstream took.
#[tokio::test]
async fn an_error_log_of_nginx_that_tells_more_would_have_a_token() {
    let played = play(nginx, Some(("site-error.log crit", "site-error.log error"))).await;
    assert!(played.leaks(&played.logs), "{}", played.logs);
}

#[tokio::test]
async fn the_logs_of_haproxy_have_no_token() {
    has_no_token(haproxy, "%HP", "%HU").await;
}
