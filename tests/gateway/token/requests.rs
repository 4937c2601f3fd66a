//! Refusals of the request itself and of the replica, before any tenant is asked about anything.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::{Gateway, PATIENCE, gateway, http, within};

#[tokio::test]
async fn a_replica_at_its_bound_answers_503_and_stays_ready() {
    let gateway = gateway()
        .set("server.max_connections", 2)
        .tenant("acme")
        .start()
        .await;
    let _first = gateway.open("/ws/chat/lobby/").await;
    let _second = gateway.open("/ws/chat/lobby/").await;
    let token = gateway.tenant().token(ALICE);
    let third = gateway
        .replica()
        .dial(gateway.tenant(), "/ws/chat/lobby/")
        .token(&token)
        .refused()
        .await;
    Problem::new(503, "overloaded").is(&third, &gateway.tenant().name);
    assert_eq!(gateway.replica().readyz().await.status, 200);
}

/// Sends a request as it is; `HOST` becomes the tenant's.
async fn raw(gateway: &Gateway, request: &str) -> Option<http::Head> {
    let tenant = gateway.tenant();
    let request = request
        .replace("HOST", &tenant.host)
        .replace("TOKEN", &tenant.token(ALICE));
    http::exchange(gateway.replica().server, request.as_bytes()).await
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
        let answer = raw(&gateway, request)
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
