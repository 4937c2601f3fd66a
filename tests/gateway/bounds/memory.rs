//! The memory that clients can make a replica hold: one bound, a deadline, and nothing kept.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Database, Gateway, PATIENCE, gateway, within};

const ECHO: &str = "/ws/echo/";
const HELD: &str = "lockgate_held_bytes";

async fn replica(settings: &[(&str, &str)]) -> Gateway {
    // No client here answers pings.
    let mut builder = gateway().set("server.heartbeat.interval", "10m");
    for (key, value) in settings {
        builder = builder.set(&format!("server.{key}"), *value);
    }
    let database = Database::sqlite().await;
    let builder = builder.tenant("acme").users(&database);
    let echo = "path = \"ws/echo/\"\nconsumer = { kind = \"echo\" }";
    builder.route(echo).start().await
}

/// A masked frame with a mask of zeroes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | len as u8),
        len => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// A socket that has sent `len` bytes of a message, and no more.
async fn unfinished(gateway: &Gateway, len: usize) -> TcpStream {
    let mut stream = gateway.open(ECHO).await.into_stream();
    // The replica may close it before it has taken all.
    let bytes = frame(0x02, &vec![b'x'; len]);
    stream.write_all(&bytes).await.ok();
    stream
}

/// The code of the close frame that comes next.
async fn close_code(stream: &mut TcpStream) -> u16 {
    let read = async {
        loop {
            let first = stream.read_u8().await.unwrap();
            let len = stream.read_u8().await.unwrap();
            let mut payload = vec![0; usize::from(len)];
            stream.read_exact(&mut payload).await.unwrap();
            if first == 0x88 {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    };
    within(Duration::from_secs(60), "a close frame", read).await
}

async fn held_are(gateway: &Gateway, enough: impl Fn(f64) -> bool) -> f64 {
    let labels = [("kind", "messages")];
    gateway.replica().metric(HELD, &labels, enough).await
}

/// Before: 1,000 such sockets held 63.5 KiB each, whatever `max_queue_bytes` was, and no metric showed it.
#[tokio::test]
async fn unfinished_messages_are_within_the_bound_of_memory() {
    const SOCKETS: usize = 1000;
    let bound = 16.0 * 1024.0 * 1024.0;
    let gateway = replica(&[("max_queue_bytes", "16MiB")]).await;
    let mut small = unfinished(&gateway, 10).await;
    let mut quiet = gateway.open(ECHO).await;
    let sockets = (0..SOCKETS).map(|_| unfinished(&gateway, 65_000));
    let sockets = futures_util::stream::iter(sockets).buffer_unordered(32);
    let held: Vec<TcpStream> = sockets.collect().await;
    held_are(&gateway, |bytes| bytes > 0.0 && bytes <= bound).await;
    let closed = gateway.replica().metric(
        "lockgate_disconnects_total",
        &[("code", "4008"), ("reason", "too_slow")],
        |closed| closed >= SOCKETS as f64 - bound / 65_000.0,
    );
    let closed = closed.await;
    assert!(closed < SOCKETS as f64, "those that fit stay");
    // Who holds little is closed for no other.
    assert!(quiet.ping().await.is_empty());
    small.write_all(&frame(0x80, b"!")).await.unwrap();
    let mut echo = [0; 13];
    within(PATIENCE, "the echo", small.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"\x82\x0bxxxxxxxxxx!");
    drop(held);
    held_are(&gateway, |bytes| bytes == 0.0).await;
}

/// Before: it was held for as long as its client answered pings.
#[tokio::test]
async fn a_message_that_is_not_finished_in_time_ends_with_1008() {
    let gateway = replica(&[("message_timeout", "1s")]).await;
    let mut slow = unfinished(&gateway, 1000).await;
    let mut pieces = gateway.open(ECHO).await.into_stream();
    let mut fine = gateway.open(ECHO).await;
    // Fragments and pings between them do not put the deadline off.
    let drip = async {
        pieces.write_all(&frame(0x01, b"a")).await.unwrap();
        loop {
            let more = [frame(0x00, b"b"), frame(0x89, b"")].concat();
            if pieces.write_all(&more).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, "the end of the fragments", drip).await;
    assert_eq!(close_code(&mut slow).await, 1008);
    // Many whole messages in more than that time are no slow one.
    for n in 0..30 {
        fine.send_text(&n.to_string()).await;
        assert_eq!(fine.next_text().await, n.to_string());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let labels = [("code", "1008"), ("reason", "message_timeout")];
    let replica = gateway.replica();
    replica
        .metric("lockgate_disconnects_total", &labels, |closed| {
            closed == 2.0
        })
        .await;
    held_are(&gateway, |bytes| bytes == 0.0).await;
}

/// Whatever way a socket with half a message goes, its bytes are given back.
#[tokio::test]
async fn the_bytes_of_a_message_are_given_back_on_each_way_out() {
    let gateway = replica(&[]).await;
    for bytes in [
        &frame(0x80, b"end")[..],
        &frame(0x88, b""),
        b"\xff\xff",
        b"",
    ] {
        let mut stream = unfinished(&gateway, 5000).await;
        held_are(&gateway, |held| held >= 5000.0).await;
        stream.write_all(bytes).await.unwrap();
        if bytes.is_empty() {
            drop(stream);
        }
        held_are(&gateway, |held| held == 0.0).await;
    }
}

#[tokio::test]
async fn half_a_message_does_not_hold_a_drain_up() {
    let gateway = replica(&[]).await;
    let mut stream = unfinished(&gateway, 60_000).await;
    held_are(&gateway, |held| held >= 60_000.0).await;
    gateway.replica().terminate();
    assert_eq!(close_code(&mut stream).await, 1012);
    drop(stream);
    let status = gateway.replica().exited(PATIENCE).await;
    assert_eq!(status.code(), Some(0));
}
