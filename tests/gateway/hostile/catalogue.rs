//! Hostile upgrades and frames against a running gateway: every row of `upgrades` and `frames`, and the cases that need
//! time, several connections or the metrics.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::frames::{self, check_frame_row};
use super::upgrades::{self, check_upgrade_row};
use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway, within};

/// The number of rows that run at the same time.
const TOGETHER: usize = 16;

/// Starts a gateway with one tenant that accepts every host, and an echo route.
async fn echo_gateway() -> Gateway {
    let none: Vec<String> = Vec::new();
    gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("hosts", none)
        .with("limits.messages_per_second", 0)
        .with("limits.message_size", "64KiB")
        .route("path = 'echo/'\n consumer = { kind = 'echo' }")
        .start()
        .await
}

fn path(gateway: &Gateway) -> String {
    format!("/echo/?token={}", gateway.tenant().token(ALICE))
}

/// Waits until no socket and no queued byte is counted, so that no hostile client leaves a trace.
async fn empty(gateway: &Gateway) {
    let tenant = gateway.tenant().name.clone();
    let labels = [("tenant", tenant.as_str())];
    let replica = gateway.replica();
    replica
        .metric("lockgate_connections", &labels, |n| n == 0.0)
        .await;
    replica
        .metric("lockgate_send_queue_bytes", &[], |n| n == 0.0)
        .await;
}

#[tokio::test]
async fn every_hostile_upgrade_has_its_answer_and_harms_nobody() {
    let gateway = echo_gateway().await;
    let mut bystander = gateway.open("/echo/").await;
    let (server, path) = (gateway.replica().server, path(&gateway));
    let rows = upgrades::rows();
    assert!(rows.len() >= 84, "{} rows", rows.len());
    futures_util::stream::iter(&rows)
        .for_each_concurrent(TOGETHER, |row| check_upgrade_row(server, &path, row))
        .await;
    bystander.send_text("still here").await;
    assert_eq!(bystander.next_text().await, "still here");
    drop(bystander);
    empty(&gateway).await;
}

#[tokio::test]
async fn every_hostile_frame_has_its_answer_and_harms_nobody() {
    let gateway = echo_gateway().await;
    let mut bystander = gateway.open("/echo/").await;
    let (server, path) = (gateway.replica().server, path(&gateway));
    let rows = frames::rows();
    assert!(rows.len() >= 114, "{} rows", rows.len());
    futures_util::stream::iter(&rows)
        .for_each_concurrent(TOGETHER, |row| check_frame_row(server, &path, row))
        .await;
    bystander.send_text("still here").await;
    assert_eq!(bystander.next_text().await, "still here");
    drop(bystander);
    empty(&gateway).await;
}

/// An unknown host is refused with 404, with and without a token.
#[tokio::test]
async fn an_unknown_host_is_told_without_a_look_at_the_token() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let tenant = gateway.tenant();
    let dial = |host: &str| {
        let mut other = tenant.clone();
        other.host = host.to_owned();
        gateway.replica().dial(&other, "/ws/chat/lobby/")
    };
    for host in ["other.test", "acme.test.", "127.0.0.1", "[::1]:8000"] {
        for dial in [dial(host), dial(host).token(&tenant.token(ALICE))] {
            let refusal = dial.refused().await;
            Problem::new(404, "tenant_not_found").is(&refusal, &tenant.name);
        }
    }
    let mut upper = tenant.clone();
    upper.host = format!("{}:8000", tenant.host.to_ascii_uppercase());
    let dial = gateway.replica().dial(&upper, "/ws/chat/lobby/");
    dial.token(&tenant.token(ALICE)).open().await;
}

/// The handshake timeout holds for the whole head, not for each byte.
#[tokio::test]
async fn a_head_that_drips_is_cut_at_the_handshake_timeout() {
    let gateway = gateway()
        .set("server.handshake_timeout", "1s")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let stream = TcpStream::connect(gateway.replica().server).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let drip = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        for byte in b"GET /ws/chat/lobby/ HTTP/1.1\r\nHost: a\r\nX: "
            .iter()
            .cycle()
        {
            every.tick().await;
            if writing.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let mut answer = Vec::new();
    // The end may come as a reset, because unread bytes were under way.
    let read = within(PATIENCE, "the end", reading.read_to_end(&mut answer)).await;
    assert!(read.is_err() || answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "));
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    drip.abort();
}

/// Handshakes that do not end take no place of `max_connections`, and end at their timeout.
#[tokio::test]
async fn a_hundred_half_handshakes_keep_no_client_out() {
    let gateway = gateway()
        .set("server.handshake_timeout", "2s")
        .set("server.max_connections", 20)
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let server = gateway.replica().server;
    let mut halves = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        halves.push(stream);
    }
    let mut served = gateway.open("/ws/chat/lobby/").await;
    assert!(served.ping().await.is_empty());
    for mut half in halves {
        let mut answer = Vec::new();
        let read = within(PATIENCE, "the end", half.read_to_end(&mut answer)).await;
        assert!(read.is_err() || answer.starts_with(b"HTTP/1.1 408 "));
    }
}

/// The refusal of a draining replica has a `Retry-After`.
#[tokio::test]
async fn a_draining_replica_refuses_with_a_wait() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .set("server.drain.rate", 1)
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(gateway.open("/ws/chat/lobby/").await);
    }
    gateway.replica().terminate();
    // The first close frame shows that the drain has begun.
    let closes = held.iter_mut().map(|socket| Box::pin(socket.closed()));
    futures_util::future::select_all(closes).await;
    let dial = gateway.replica().dial(gateway.tenant(), "/ws/chat/lobby/");
    let refusal = dial.refused().await;
    Problem::new(503, "draining").is(&refusal, &gateway.tenant().name);
    let wait: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!(wait >= 1);
}

/// A client that pings without reading fills its own queue and no other.
#[tokio::test]
async fn a_flood_of_pings_is_answered_or_its_sender_closed() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("limits.send_queue", "64KiB")
        // Without a rate, which would close either before.
        .with("limits.messages_per_second", 0)
        .route("path = 'echo/'\n consumer = { kind = 'echo' }")
        .start()
        .await;
    let mut bystander = gateway.open("/echo/").await;
    let ping = [&[0x89, 0xfd][..], &[0; 4], &[b'p'; 125]].concat();

    // A client that reads gets every pong, in order and with nothing between.
    let stream = gateway.open("/echo/").await.into_stream();
    let (mut reading, mut writing) = stream.into_split();
    let flood = ping.repeat(20_000);
    let send = tokio::spawn(async move { (writing.write_all(&flood).await, writing).0.is_ok() });
    let mut pongs = vec![0; 20_000 * 127];
    within(PATIENCE, "pongs", reading.read_exact(&mut pongs))
        .await
        .unwrap();
    assert!(send.await.unwrap());
    let pong = [&[0x8a, 125][..], &[b'p'; 125]].concat();
    assert!(pongs.chunks(127).all(|chunk| chunk == pong));

    // A client that does not read is closed five seconds after the kernel takes no more and 64 KiB are queued; until then
    // nothing more is read from it.
    let mut silent = gateway.open("/echo/").await.into_stream();
    let flood = tokio::spawn(async move {
        for _ in 0..20_000 {
            if silent.write_all(&ping.repeat(100)).await.is_err() {
                break;
            }
        }
        silent
    });
    let tenant = gateway.tenant().name.clone();
    let labels = [
        ("tenant", tenant.as_str()),
        ("code", "4008"),
        ("reason", "too_slow"),
    ];
    eventually(PATIENCE * 2, "the silent client is closed", async || {
        let metrics = gateway.replica().metrics().await;
        match metrics.value("lockgate_disconnects_total", &labels) {
            1.0 => Ok(()),
            closed => Err(closed),
        }
    })
    .await;
    flood.abort();
    assert!(bystander.ping().await.is_empty());
}

/// Many small messages meet `messages_per_second`.
#[tokio::test]
async fn a_flood_of_small_messages_ends_at_the_rate_limit() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("limits.messages_per_second", 100)
        .route("path = 'echo/'\n consumer = { kind = 'echo' }")
        .start()
        .await;
    for text in ["x", r#"{"type":"ping"}"#] {
        let mut socket = gateway.open("/echo/").await;
        for _ in 0..1_000 {
            if !socket.try_send(Message::text(text)).await {
                break;
            }
        }
        let (before, (code, reason)) = socket.drained().await;
        assert_eq!(code, 4013, "{reason}");
        assert!(reason.starts_with("rate_limited retry_after_ms="));
        // The bucket holds two seconds, and some more drips in while it is emptied.
        assert!((200..600).contains(&before.len()), "{}", before.len());
    }
}

/// A connection that ends in the middle of a frame or message leaves no socket behind.
#[tokio::test]
async fn an_end_in_the_middle_of_a_frame_leaves_nothing_behind() {
    let gateway = echo_gateway().await;
    let cuts: [&[u8]; 5] = [
        b"",
        b"\x81",
        b"\x81\x85\0\0",
        b"\x81\x85\0\0\0\0He",
        b"\x01\x85\0\0\0\0Hello",
    ];
    for bytes in cuts {
        for reset in [false, true] {
            let mut stream = gateway.open("/echo/").await.into_stream();
            stream.write_all(bytes).await.unwrap();
            if reset {
                // With a linger of zero the end is an RST.
                stream.set_zero_linger().unwrap();
            }
        }
    }
    empty(&gateway).await;
    let tenant = gateway.tenant().name.clone();
    let labels = [
        ("tenant", tenant.as_str()),
        ("code", "1006"),
        ("reason", "client"),
    ];
    let metrics = gateway.replica().metrics().await;
    let count = metrics.value("lockgate_disconnects_total", &labels);
    assert_eq!(count, 10.0);
}

/// A client that is silent, or whose pong answers no ping, is closed after interval and timeout.
#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed() {
    let gateway = gateway()
        .set("server.heartbeat.interval", "2s")
        .set("server.heartbeat.timeout", "1s")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let started = Instant::now();
    let mut silent = gateway.open("/ws/chat/lobby/").await.into_stream();
    let mut wrong = gateway.open("/ws/chat/lobby/").await.into_stream();
    let mut alive = gateway.open("/ws/chat/lobby/").await;
    wrong.write_all(b"\x8a\x81\0\0\0\0x").await.unwrap();
    for stream in [&mut silent, &mut wrong] {
        let mut bytes = Vec::new();
        // The client that answers pings stays open beside them.
        tokio::select! {
            read = within(PATIENCE, "the end", stream.read_to_end(&mut bytes)) => drop(read),
            message = alive.next() => panic!("{message:?}"),
        }
        // Pings, then the close frame.
        let frame = b"\x88\x0e\x0f\xa9pong_timeout";
        assert!(bytes.ends_with(frame), "{}", bytes.escape_ascii());
    }
    assert!(started.elapsed() >= Duration::from_secs(1));
    let rest = tokio::time::timeout(Duration::from_secs(4), alive.next()).await;
    assert!(rest.is_err(), "{rest:?}");
}

/// A client with a window of zero ends with a counted 4008 and takes no more memory; others are served meanwhile.
#[tokio::test]
async fn a_client_that_never_reads_is_cut_and_its_queue_freed() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("layer.kind", "memory")
        .with("limits.send_queue", "64KiB")
        .start()
        .await;
    let silent = gateway.open("/ws/chat/lobby/").await.into_stream();
    let mut quick = gateway.open("/ws/chat/lobby/").await;
    let text = "x".repeat(100_000 / 2);
    let tenant = gateway.tenant().name.clone();
    let labels = [("tenant", tenant.as_str()), ("code", "4008")];
    let mut closed = 0.0;
    for _ in 0..1_000 {
        gateway
            .send("chat_lobby", &json!({"type": "x", "text": text}))
            .await;
        quick.next_text().await;
        let metrics = gateway.replica().metrics().await;
        closed = metrics.value("lockgate_disconnects_total", &labels);
        if closed > 0.0 {
            break;
        }
    }
    if closed == 0.0 {
        gateway
            .replica()
            .metric("lockgate_disconnects_total", &labels, |n| n == 1.0)
            .await;
    }
    gateway
        .replica()
        .metric("lockgate_send_queue_bytes", &[], |n| n == 0.0)
        .await;
    drop(silent);
}
