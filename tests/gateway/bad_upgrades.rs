//! Upgrade requests that are none: each gets its status or its connection cut, and the next client is served.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::{Gateway, PATIENCE, gateway, http, within};

/// What may come of a request.
#[derive(Debug)]
enum Outcome {
    /// One of these statuses.
    Status(&'static [u16]),
    /// One of these, or the connection ends without an answer.
    StatusOrCut(&'static [u16]),
}

use Outcome::{Status, StatusOrCut};

/// `HOST` and `TOKEN` are put in before sending; every other byte goes as it is.
fn rows() -> Vec<(&'static str, String, Outcome)> {
    const GOOD: &str = "Host: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let get = |headers: &str| format!("GET /ws/chat/lobby/?token=TOKEN HTTP/1.1\r\n{headers}\r\n");
    let without = |name: &str| {
        let kept = GOOD
            .split_inclusive("\r\n")
            .filter(|line| !line.starts_with(name));
        get(&kept.collect::<String>())
    };
    let instead =
        |name: &str, line: &str| without(name).replace("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"));
    let with = |line: &str| get(&format!("{GOOD}{line}\r\n"));
    let first_line = |line: &str| format!("{line}\r\n{GOOD}\r\n");
    let path = "/ws/chat/lobby/?token=TOKEN";
    let mut rows = vec![
        (
            "H01 post",
            first_line(&format!("POST {path} HTTP/1.1")),
            Status(&[405]),
        ),
        (
            "H01 head",
            first_line(&format!("HEAD {path} HTTP/1.1")),
            Status(&[405]),
        ),
        (
            "H01 lower-case get",
            first_line(&format!("get {path} HTTP/1.1")),
            Status(&[400, 405]),
        ),
        (
            "H02 http/1.0",
            first_line(&format!("GET {path} HTTP/1.0")),
            Status(&[400, 426, 505]),
        ),
        (
            "H02 http/1.1x",
            first_line(&format!("GET {path} HTTP/1.1x")),
            StatusOrCut(&[400, 505]),
        ),
        (
            "H02 http/0.9",
            format!("GET {path}\r\n"),
            StatusOrCut(&[400, 505, 408]),
        ),
        ("H03 no upgrade", without("Upgrade"), Status(&[426])),
        (
            "H03 h2c",
            instead("Upgrade", "Upgrade: h2c"),
            Status(&[426]),
        ),
        (
            "H03 websocketx",
            instead("Upgrade", "Upgrade: websocketx"),
            Status(&[426]),
        ),
        ("H03 empty", instead("Upgrade", "Upgrade:"), Status(&[426])),
        (
            "H04 no connection",
            without("Connection"),
            Status(&[400, 426]),
        ),
        (
            "H04 keep-alive",
            instead("Connection", "Connection: keep-alive"),
            Status(&[400, 426]),
        ),
        (
            "H04 notupgrade",
            instead("Connection", "Connection: notupgrade"),
            Status(&[400, 426]),
        ),
        ("H05 no key", without("Sec-WebSocket-Key"), Status(&[400])),
        (
            "H05 empty key",
            instead("Sec-WebSocket-Key", "Sec-WebSocket-Key:"),
            Status(&[400]),
        ),
        (
            "H05 15 bytes",
            instead(
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1",
            ),
            Status(&[400]),
        ),
        (
            "H05 17 bytes",
            instead(
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Njc=",
            ),
            Status(&[400]),
        ),
        (
            "H05 not base64",
            instead(
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==",
            ),
            Status(&[400]),
        ),
        (
            "H06 two keys",
            with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            Status(&[400]),
        ),
        (
            "H07 no version",
            without("Sec-WebSocket-Version"),
            Status(&[400, 426]),
        ),
        (
            "H07 version 8",
            instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"),
            Status(&[426]),
        ),
        (
            "H07 version 14",
            instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 14"),
            Status(&[426]),
        ),
        (
            "H07 version abc",
            instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: abc"),
            Status(&[400, 426]),
        ),
        (
            "H08 two versions",
            with("Sec-WebSocket-Version: 13"),
            Status(&[400, 426]),
        ),
        ("H09 no host", without("Host"), Status(&[400])),
        ("H09 two hosts", with("Host: HOST"), Status(&[400])),
        ("H09 bad host", instead("Host", "Host: a b"), Status(&[400])),
        ("H10 nul", with("X: a\0b"), StatusOrCut(&[400])),
        ("H10 bare cr", with("X: a\rb"), StatusOrCut(&[400])),
        ("H11 space before colon", with("X : a"), StatusOrCut(&[400])),
        ("H11 no colon", with("X"), StatusOrCut(&[400])),
        ("H11 empty name", with(": a"), StatusOrCut(&[400])),
        ("H11 not a name", with("X(y): a"), StatusOrCut(&[400])),
        ("H12 folded", with("X: a\r\n b"), StatusOrCut(&[400])),
        (
            "H13 length and encoding",
            with("Content-Length: 0\r\nTransfer-Encoding: chunked"),
            StatusOrCut(&[400]),
        ),
        (
            "H13 two lengths",
            with("Content-Length: 0\r\nContent-Length: 1"),
            StatusOrCut(&[400]),
        ),
        (
            "H13 negative length",
            with("Content-Length: -1"),
            StatusOrCut(&[400]),
        ),
        (
            "H13 signed length",
            with("Content-Length: +5"),
            StatusOrCut(&[400]),
        ),
        (
            "H14 a body",
            with("Content-Length: 5\r\n").replace("\r\n\r\n\r\n", "\r\n\r\n") + "hello",
            StatusOrCut(&[400]),
        ),
        (
            "H15 unknown encoding",
            with("Transfer-Encoding: gzip"),
            StatusOrCut(&[400, 501]),
        ),
        (
            "H16 path with nul",
            first_line("GET /ws/%00/?token=TOKEN HTTP/1.1"),
            Status(&[400, 404]),
        ),
        (
            "H16 path with %zz",
            first_line("GET /ws/%zz/?token=TOKEN HTTP/1.1"),
            Status(&[400, 404]),
        ),
        (
            "H16 dots",
            first_line("GET /ws/chat/../chat/lobby/?token=TOKEN HTTP/1.1"),
            Status(&[400, 404]),
        ),
        (
            "H16 two slashes",
            first_line("GET //ws/chat/lobby/?token=TOKEN HTTP/1.1"),
            Status(&[400, 404]),
        ),
        (
            "H18 unknown path",
            first_line("GET /nowhere?token=TOKEN HTTP/1.1"),
            Status(&[404]),
        ),
        (
            "H18 unknown host",
            instead("Host", "Host: nobody.test"),
            Status(&[404]),
        ),
        (
            "H22 2000 headers",
            with(
                &(0..2000)
                    .map(|n| format!("X{n}: y"))
                    .collect::<Vec<_>>()
                    .join("\r\n"),
            ),
            StatusOrCut(&[400, 431]),
        ),
        (
            "H23 large header",
            with(&format!("X: {}", "y".repeat(40_000))),
            StatusOrCut(&[431]),
        ),
        (
            "H24 long line",
            first_line(&format!("GET /{}?token=TOKEN HTTP/1.1", "x".repeat(17_000))),
            StatusOrCut(&[414]),
        ),
        (
            "H31 http/2 preface",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            StatusOrCut(&[400, 405, 505]),
        ),
        (
            "H32 tls hello",
            "\u{16}\u{3}\u{1}\0\u{5}hello\r\n\r\n".to_owned(),
            StatusOrCut(&[400]),
        ),
        (
            "H33 proxy protocol",
            format!("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n{}", with("X: y")),
            StatusOrCut(&[400]),
        ),
        (
            "H37 suffix of an origin",
            with("Origin: https://HOST.evil.example"),
            Status(&[403]),
        ),
        ("H37 null", with("Origin: null"), Status(&[403])),
        (
            "H38 two origins",
            with("Origin: https://HOST\r\nOrigin: https://HOST"),
            Status(&[400, 403]),
        ),
        ("H42 the good one", with("X: y"), Status(&[101])),
        (
            "H19 many subprotocols",
            with(&format!(
                "Sec-WebSocket-Protocol: {}",
                (0..200)
                    .map(|n| format!("p{n}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
            Status(&[101]),
        ),
        (
            "H21 expect",
            with("Expect: 100-continue"),
            Status(&[101, 417]),
        ),
        (
            "H40 bad deflate",
            with("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=7"),
            Status(&[101, 400]),
        ),
        (
            "H41 many extensions",
            with(&format!(
                "Sec-WebSocket-Extensions: {}",
                vec!["x"; 350].join(", ")
            )),
            Status(&[101]),
        ),
        (
            "upgrade among others",
            instead("Connection", "Connection: keep-alive, UPGRADE"),
            Status(&[101]),
        ),
        (
            "upgrade in any case",
            instead("Upgrade", "Upgrade: WebSocket"),
            Status(&[101]),
        ),
    ];
    rows.push((
        "no request at all",
        "\r\n\r\n\r\n".into(),
        StatusOrCut(&[400, 408]),
    ));
    rows
}

async fn send(gateway: &Gateway, request: &str) -> Option<http::Head> {
    let tenant = gateway.tenant();
    let request = request
        .replace("HOST", &tenant.host)
        .replace("TOKEN", &tenant.token(ALICE));
    http::exchange(gateway.replica().server, request.as_bytes()).await
}

#[tokio::test]
async fn every_malformed_upgrade_has_its_outcome_and_harms_nobody() {
    let gateway = gateway()
        .set("server.handshake_timeout", "2s")
        .tenant("acme")
        .start()
        .await;
    let mut bystander = gateway.open("/ws/chat/lobby/").await;
    let mut wrong = Vec::new();
    for (name, request, expected) in rows() {
        let head = send(&gateway, &request).await;
        let status = head.as_ref().map(|head| head.response.status);
        let fits = match (&expected, status) {
            (Status(list) | StatusOrCut(list), Some(status)) => list.contains(&status),
            (Status(_), None) => false,
            (StatusOrCut(_), None) => true,
        };
        if !fits {
            wrong.push(format!("{name}: {status:?}, not {expected:?}"));
        }
        if let Some(head) = head {
            for (header, status) in [
                ("allow", 405),
                ("upgrade", 426),
                ("sec-websocket-version", 426),
            ] {
                if head.response.status == status && head.response.header(header).is_none() {
                    wrong.push(format!("{name}: {status} without {header}"));
                }
            }
            let extensions = head.response.header("sec-websocket-extensions");
            if extensions.is_some() {
                wrong.push(format!("{name}: {extensions:?} was agreed to"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(bystander.ping().await.is_empty());
    let labels = [("tenant", "_none"), ("result", "request_not_valid")];
    assert!(
        gateway
            .replica()
            .metrics()
            .await
            .value("lockgate_handshakes_total", &labels)
            > 5.0
    );
}

#[tokio::test]
async fn refusals_of_the_request_itself_are_problem_documents_too() {
    let gateway = gateway().tenant("acme").start().await;
    let name = gateway.tenant().name.clone();
    let line = format!("GET /{} HTTP/1.1\r\nHost: HOST\r\n\r\n", "x".repeat(17_000));
    let header = format!(
        "GET / HTTP/1.1\r\nHost: HOST\r\nX: {}\r\n\r\n",
        "x".repeat(33_000)
    );
    for (request, problem) in [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            Problem::new(400, "request_not_valid"),
        ),
        (&line, Problem::new(414, "request_too_large")),
        (&header, Problem::new(431, "request_too_large")),
        (
            "PUT /ws/chat/lobby/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
            Problem::new(405, "method_not_allowed"),
        ),
        (
            "GET /ws/chat/lobby/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
            Problem::new(426, "upgrade_required"),
        ),
    ] {
        let answer = send(&gateway, request)
            .await
            .expect("an answer")
            .body()
            .await;
        problem.is(&answer, &name);
    }
}

#[tokio::test]
async fn a_request_that_does_not_end_is_ended() {
    let gateway = gateway()
        .set("server.handshake_timeout", "1s")
        .tenant("acme")
        .start()
        .await;
    let server = gateway.replica().server;
    let started = Instant::now();
    for begun in ["", "GET /ws/chat/lobby/ HTTP/1.1\r\nHost: a\r\nX-Endless: "] {
        let mut stream = TcpStream::connect(server).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, begun.as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        within(PATIENCE, "its end", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408 "),
            "{answer}"
        );
    }
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn half_open_requests_do_not_keep_others_out() {
    let gateway = gateway().tenant("acme").start().await;
    let mut halves = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(gateway.replica().server).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\n")
            .await
            .unwrap();
        halves.push(stream);
    }
    gateway.open("/ws/chat/lobby/").await;
}
