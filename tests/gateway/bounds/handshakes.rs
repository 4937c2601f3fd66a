//! Half-open connections: clients that connect and do not ask for anything keep out no other.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::half_open;
use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::http::exchange;
use crate::support::jwks::Jwks;
use crate::support::socket::KEY;
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway, within};

const CHAT: &str = "/ws/chat/lobby/";
/// As many as `max_connections = 1000` and the 128 places beside it, which once were all places.
const SILENT: usize = 1128;

async fn replica(settings: &[(&str, i64)]) -> Gateway {
    let mut builder = gateway().set("server.handshake_timeout", "60s");
    for (key, value) in settings {
        builder = builder.set(&format!("server.{key}"), *value);
    }
    let database = Database::sqlite().await;
    builder.tenant("acme").users(&database).start().await
}

/// Waits until so many connections are half open.
async fn half_open_are(gateway: &Gateway, enough: impl Fn(f64) -> bool) {
    let replica = gateway.replica();
    let name = "lockgate_half_open_connections";
    replica.metric(name, &[], enough).await;
}

/// Before: each connect was reset until the silent ones reached `handshake_timeout` (10 s by default), `/readyz` was 200,
/// and no metric counted it.
#[tokio::test]
async fn a_thousand_silent_connections_keep_no_client_out() {
    let gateway = replica(&[("max_connections", 1000)]).await;
    let silent = half_open(gateway.replica().server, SILENT, b"").await;
    half_open_are(&gateway, |now| now == SILENT as f64).await;
    for _ in 0..20 {
        let mut socket = gateway.open(CHAT).await;
        assert!(socket.ping().await.is_empty());
    }
    let scrape = gateway.replica().metrics().await;
    assert!(scrape.value("lockgate_half_open_limit", &[]) >= SILENT as f64);
    assert_eq!(scrape.value("lockgate_half_open_dropped_total", &[]), 0.0);
    drop(silent);
    half_open_are(&gateway, |now| now == 0.0).await;
}

/// Before: as above, but for every `handshake_timeout`.
#[tokio::test]
async fn at_the_bound_the_oldest_silent_connection_goes_and_is_counted() {
    let gateway = replica(&[("max_handshakes", 100)]).await;
    let server = gateway.replica().server;
    let mut first = TcpStream::connect(server).await.unwrap();
    let mut half = TcpStream::connect(server).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    half_open_are(&gateway, |now| now == 2.0).await;
    let silent = half_open(server, SILENT, b"").await;
    let mut socket = gateway.open(CHAT).await;
    assert!(socket.ping().await.is_empty());
    let mut byte = [0];
    let ended = within(PATIENCE, "the end of the oldest", first.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    // A part of a request is worth more than silence: it is still there, and served once it is complete.
    half.write_all(b"Host: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = within(PATIENCE, "an answer", half.read_to_end(&mut answer)).await;
    assert!(read.is_ok() && answer.starts_with(b"HTTP/1.1 404 "));
    let dropped = "lockgate_half_open_dropped_total";
    let gone = gateway
        .replica()
        .metric(dropped, &[("stage", "silent")], |gone| gone > 0.0)
        .await;
    // All but those that have a place now; the refused one may have been among them.
    assert!(gone >= (SILENT - 101) as f64, "{gone}");
    half_open_are(&gateway, |now| now <= 100.0).await;
    drop(silent);
}

/// Drips bytes of a head into each connection until the replica ends it. Before, such clients were held to their timeout,
/// and at the bound each connect was reset.
#[tokio::test]
async fn slow_heads_make_room_for_clients_that_ask() {
    let gateway = replica(&[("max_handshakes", 50)]).await;
    let server = gateway.replica().server;
    let dripping = tokio::spawn(async move {
        let mut streams = half_open(server, 400, b"GET /").await;
        loop {
            for stream in &mut streams {
                stream.write_all(b"x").await.ok();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let dropped = "lockgate_half_open_dropped_total";
    let replica = gateway.replica();
    replica
        .metric(dropped, &[("stage", "head")], |gone| gone > 0.0)
        .await;
    // While more connections come at once than there are places, a newcomer cannot be told from them.
    replica.metric(dropped, &[], |gone| gone >= 350.0).await;
    for _ in 0..10 {
        let mut socket = gateway.open(CHAT).await;
        assert!(socket.ping().await.is_empty());
    }
    dripping.abort();
}

/// Clients that were refused and do not close hold their places for a second. Before, each of them was one of 128.
#[tokio::test]
async fn refused_clients_that_do_not_close_make_room() {
    let gateway = replica(&[("max_handshakes", 20)]).await;
    let refused = b"GET /nowhere HTTP/1.1\r\nHost: none.test\r\n\r\n";
    let held = half_open(gateway.replica().server, 300, refused).await;
    let mut socket = gateway.open(CHAT).await;
    assert!(socket.ping().await.is_empty());
    drop(held);
}

/// Strangers whose token names a key that has to be fetched wait for the key set. Before, they had all places, and each client
/// of any tenant got 503, or was cut where `max_handshakes` was reached as well.
#[tokio::test]
async fn strangers_that_wait_for_a_key_set_keep_no_client_out() {
    // It takes connections and answers nothing.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", deaf.local_addr().unwrap());
    let database = Database::sqlite().await;
    let gateway = gateway()
        .set("server.max_connections", 20)
        .set("server.max_handshakes", 60)
        .tenant("acme")
        .users(&database)
        .tenant("fetches")
        .users(&database)
        .with("token.algorithm", "RS256")
        .with("token.jwk_url", url)
        .spawn()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let token = tenant.token(ALICE);
    let dial = || replica.dial(tenant, CHAT).token(&token);
    eventually(PATIENCE, "the replica serves", async || {
        let served = dial().attempt_or_cut().await;
        served.map(|served| served.is_ok()).ok_or("cut")
    })
    .await;
    let claims =
        json!({"token_type": "access", "exp": 4_000_000_000_u64, "jti": "a", "user_id": 1});
    let forged = Jwks::start().await.sign(&claims);
    let host = &gateway.named("fetches").host;
    let request = format!(
        "GET {CHAT}?token={forged} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let strangers = half_open(replica.server, 100, request.leak().as_bytes()).await;
    for _ in 0..10 {
        let mut socket = dial().open().await;
        assert!(socket.ping().await.is_empty());
    }
    drop(strangers);
}

/// Silent connections do not hold a drain up, and a draining replica still answers those that ask.
#[tokio::test]
async fn silent_connections_do_not_delay_a_drain() {
    let gateway = gateway()
        .set("server.handshake_timeout", "60s")
        .set("server.drain.delay", "1s")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let replica = gateway.replica();
    let mut socket = gateway.open(CHAT).await;
    let silent = half_open(replica.server, 500, b"").await;
    half_open_are(&gateway, |now| now == 500.0).await;
    replica.process.signal(Signal::TERM);
    let mut late = gateway.open(CHAT).await;
    assert_eq!(socket.closed().await.0, 1012);
    assert_eq!(late.closed().await.0, 1012);
    let status = replica.exited(PATIENCE).await;
    assert_eq!(status.code(), Some(0));
    drop(silent);
}

/// The memory of the process for each silent connection. Before: 13.3 KB.
#[tokio::test]
async fn a_silent_connection_takes_little_memory() {
    const COUNT: usize = 3000;
    let gateway = replica(&[("max_handshakes", 4000)]).await;
    let replica = gateway.replica();
    let resident = async || {
        let scrape = replica.metrics().await;
        scrape.value("process_resident_memory_bytes", &[])
    };
    // The first connections pay for what stays.
    drop(half_open(replica.server, 200, b"").await);
    half_open_are(&gateway, |now| now == 0.0).await;
    let before = resident().await;
    let silent = half_open(replica.server, COUNT, b"").await;
    half_open_are(&gateway, |now| now == COUNT as f64).await;
    let each = (resident().await - before) / COUNT as f64;
    assert!(each < 5000.0, "{each} bytes");
    drop(silent);
}

/// A head holds its bytes, which count in the account, and gives them back.
#[tokio::test]
async fn the_bytes_of_heads_are_counted_and_given_back() {
    let gateway = replica(&[]).await;
    let replica = gateway.replica();
    let heads = half_open(replica.server, 100, b"GET / HTTP/1.1\r\nX: ").await;
    let (name, labels) = ("lockgate_held_bytes", [("kind", "heads")]);
    replica
        .metric(name, &labels, |held| held >= 100.0 * 2048.0)
        .await;
    drop(heads);
    eventually(PATIENCE, "heads are given back", async || {
        let held = replica.metrics().await.value(name, &labels);
        if held == 0.0 { Ok(()) } else { Err(held) }
    })
    .await;
}

/// An address over its handshakes is refused before its request is read, whatever it would have asked for.
#[tokio::test]
async fn an_address_over_its_handshakes_is_refused_before_its_request_is_read() {
    let gateway = replica(&[("per_address.handshakes", 1)]).await;
    let server = gateway.replica().server;
    let ask = async || {
        let answer = exchange(server, b"rubbish\r\n\r\n").await;
        answer.expect("an answer").body().await
    };
    // Which of two connections is counted first is not known, so an attempt counts only if the first one had the place.
    let refused = eventually(PATIENCE, "the first one has the place", async || {
        let mut held = TcpStream::connect(server).await.unwrap();
        held.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let refused = ask().await;
        held.write_all(b"Host: a\r\n\r\n").await.ok();
        let mut answer = Vec::new();
        let read = within(PATIENCE, "an answer", held.read_to_end(&mut answer)).await;
        match read.is_ok() && answer.starts_with(b"HTTP/1.1 404 ") {
            true if refused.status == 429 => Ok(refused),
            _ => Err(refused),
        }
    })
    .await;
    Problem::new(429, "too_many_connections").is(&refused, "");
    // The place is that of a handshake: once it is over, the next request is read.
    eventually(PATIENCE, "the place is free", async || {
        let answer = ask().await;
        match answer.status {
            400 => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
}
