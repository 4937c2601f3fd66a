//! Bursts and slow readers: who takes what is offered stays, however much is sent at once, and who takes nothing goes.

use std::io::Read;
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::SockRef;

use crate::support::database::{ALICE, BOB};
use crate::support::publisher::msgpack;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, gateway, within};

const CHAT: &str = "/ws/chat/lobby/";
/// A burst of many events, and one of a few large ones: their number, and the length of a text in each.
const BURSTS: [(usize, usize); 2] = [(100, 20_000), (3, 600_000)];
/// A link of 1 Mbit/s.
const BYTES_PER_SECOND: usize = 125_000;
/// Bytes are counted, and the first ping comes within the interval.
const NO_PINGS: &str = "24h";

/// Publishes a burst in one pipeline, as a back end that sends in a loop does.
async fn burst(gateway: &Gateway, group: &str, (events, length): (usize, usize)) {
    let text = "x".repeat(length);
    let payload = msgpack(&json!({"type": "chat.message", "text": text}));
    let channel = format!("{}__group__{group}", gateway.tenant().prefix);
    let mut pipeline = redis::pipe();
    for _ in 0..events {
        pipeline.publish(&channel, &payload).ignore();
    }
    let mut connection = RedisServer::shared().await.connection().await.unwrap();
    within(PATIENCE, "the burst", pipeline.exec_async(&mut connection))
        .await
        .unwrap();
}

/// The length of the frame of an event whose text has `length` letters.
fn frame_length(length: usize) -> usize {
    let body = length + r#"{"text":""}"#.len();
    body + if body > usize::from(u16::MAX) { 10 } else { 4 }
}

/// The bare connection of a client whose kernel keeps little for it.
fn bare(socket: Socket) -> TcpStream {
    let stream = socket.into_stream();
    let small = SockRef::from(&stream).set_recv_buffer_size(32 * 1024);
    small.expect("the system takes it");
    let stream = stream.into_std().expect("it is ours alone");
    stream.set_nonblocking(false).expect("the system takes it");
    stream
}

/// Reads until `bytes` have come or the stream ends, at most `per_second`; returns what came.
fn reading(mut stream: TcpStream, bytes: usize, per_second: Option<usize>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        const STEPS: usize = 10;
        let mut came = Vec::new();
        let mut buffer = vec![0; per_second.map_or(64 * 1024, |rate| rate / STEPS)];
        while came.len() < bytes {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => came.extend_from_slice(&buffer[..count]),
            }
            if per_second.is_some() {
                std::thread::sleep(Duration::from_secs(1) / STEPS as u32);
            }
        }
        came
    })
}

async fn finished(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let joined = tokio::task::spawn_blocking(move || reader.join().expect("it does not panic"));
    within(PATIENCE * 4, "a reader's end", joined)
        .await
        .unwrap()
}

async fn too_slow(gateway: &Gateway) -> f64 {
    let labels = [("code", "4008"), ("reason", "too_slow")];
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_disconnects_total", &labels)
}

/// Before: 16 of 50 readers of the first burst were closed with 4008, often before any byte had left.
#[tokio::test]
async fn clients_that_read_all_the_time_are_kept_however_much_comes_at_once() {
    const READERS: usize = 5;
    let gateway = gateway()
        .set("server.heartbeat.interval", NO_PINGS)
        .tenant("acme")
        .start()
        .await;
    for shape in BURSTS {
        for round in 0..10 {
            let mut readers = Vec::new();
            let expected = shape.0 * frame_length(shape.1);
            for _ in 0..READERS {
                let stream = gateway.open(CHAT).await.into_stream().into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                readers.push(reading(stream, expected, None));
            }
            burst(&gateway, "chat_lobby", shape).await;
            for reader in readers {
                let came = finished(reader).await.len();
                assert_eq!(came, expected, "{shape:?}, round {round}");
            }
        }
    }
    assert_eq!(too_slow(&gateway).await, 0.0);
}

/// Before: closed at once, since more than `send_queue` came at once.
#[tokio::test]
async fn a_reader_on_a_slow_link_that_moves_is_kept() {
    let gateway = gateway()
        .set("server.heartbeat.interval", NO_PINGS)
        .tenant("acme")
        .with("limits.send_queue", "64KiB")
        .start()
        .await;
    let mut quick = gateway.open(CHAT).await;
    let stream = bare(gateway.open(CHAT).await);
    // 8 seconds, in which the socket is behind for more than one window of the rule.
    let shape = (50, 20_000);
    let expected = shape.0 * frame_length(shape.1);
    let began = Instant::now();
    let reader = reading(stream, expected, Some(BYTES_PER_SECOND));
    burst(&gateway, "chat_lobby", shape).await;
    for _ in 0..shape.0 {
        quick.next_text().await;
    }
    assert!(began.elapsed() < Duration::from_secs(6), "others wait");
    let came = finished(reader).await;
    // Each frame is whole, and nothing stands between two of them.
    for (at, frame) in came.chunks(frame_length(shape.1)).enumerate() {
        assert!(
            frame.starts_with(&[0x81, 126]),
            "frame {at}: {:?}",
            &frame[..frame.len().min(40)]
        );
    }
    assert_eq!(came.len(), expected);
    assert_eq!(too_slow(&gateway).await, 0.0);
}

/// Its queue is dropped, its memory is free again, and no other socket waits for it.
#[tokio::test]
async fn a_reader_that_stands_still_is_closed_and_others_are_served_meanwhile() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.send_queue", "64KiB")
        .start()
        .await;
    let standing = bare(gateway.open(CHAT).await);
    let mut quick = gateway.open(CHAT).await;
    let began = Instant::now();
    burst(&gateway, "chat_lobby", (100, 20_000)).await;
    for _ in 0..100 {
        quick.next_text().await;
    }
    while too_slow(&gateway).await == 0.0 {
        assert!(quick.ping().await.is_empty());
        assert!(began.elapsed() < PATIENCE * 2, "it is still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        began.elapsed() > Duration::from_secs(4),
        "it had no time to read"
    );
    let replica = gateway.replica();
    replica
        .metric("lockgate_send_queue_bytes", &[], |bytes| bytes == 0.0)
        .await;
    // It was not counted as a limit of the tenant.
    let limited = replica.metrics().await;
    let limited = limited.value("lockgate_rate_limited_total", &[("limit", "send_queue")]);
    assert_eq!(limited, 1.0);
    drop(standing);
    assert!(quick.ping().await.is_empty());
}

/// The rule for slow readers is out of the way here, so the budget alone closes them. Rounds go on until the kernel, which
/// takes up to 4 MiB for each socket, takes no more.
#[tokio::test]
async fn many_readers_that_stand_still_are_bounded_by_the_memory_budget() {
    const STANDING: usize = 10;
    const BUDGET: f64 = 4.0 * 1024.0 * 1024.0;
    let gateway = gateway()
        .set("server.max_queue_bytes", "4MiB")
        .tenant("acme")
        .with("limits.send_queue", "1GiB")
        .start()
        .await;
    let replica = gateway.replica();
    let mut quick = gateway.open("/ws/chat/quick/").await;
    let mut standing = Vec::new();
    for n in 0..STANDING {
        standing.push(bare(gateway.open(&format!("/ws/chat/s{n}/")).await));
    }
    let began = Instant::now();
    while too_slow(&gateway).await == 0.0 {
        let scrape = replica.metrics().await;
        let held = scrape.value("lockgate_held_bytes", &[]);
        assert!(began.elapsed() < PATIENCE * 2, "{held} bytes, none closed");
        for n in 0..STANDING {
            burst(&gateway, &format!("chat_s{n}"), (60, 20_000)).await;
        }
        // What fan-out has not taken counts too, and is a gap over the bound.
        let events = [("kind", "events")];
        let all_out = |bytes| bytes == 0.0;
        replica
            .metric("lockgate_held_bytes", &events, all_out)
            .await;
    }
    replica.logged("server.max_queue_bytes was passed").await;
    // Their own limit is not what closed them.
    let limited = replica.metrics().await;
    let limited = limited.value("lockgate_rate_limited_total", &[("limit", "send_queue")]);
    assert_eq!(limited, 0.0);
    replica
        .metric("lockgate_send_queue_bytes", &[], |bytes| bytes <= BUDGET)
        .await;
    burst(&gateway, "chat_quick", (1, 1_000)).await;
    quick.next_text().await;
    assert!(quick.ping().await.is_empty());
}

/// Before: some were closed with 4008, and their events were lost.
#[tokio::test]
async fn a_burst_before_a_drain_goes_out_whole() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .tenant("acme")
        .start()
        .await;
    let shape = BURSTS[0];
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(gateway.open(CHAT).await);
    }
    let mut watcher = gateway.open(CHAT).await;
    burst(&gateway, "chat_lobby", shape).await;
    // The last event of the burst is queued for all before it is read here.
    for _ in 0..shape.0 {
        watcher.next_text().await;
    }
    gateway.replica().terminate();
    for socket in &mut sockets {
        let (before, (code, reason)) = socket.drained().await;
        assert_eq!((before.len(), code), (shape.0, 1012), "{reason}");
    }
}

#[tokio::test]
async fn a_revocation_overtakes_what_waits_for_a_slow_reader() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let stream = bare(gateway.open(CHAT).await);
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut other = dial.token(&tenant.token(BOB)).open().await;
    let shape = (100, 20_000);
    let all = shape.0 * frame_length(shape.1);
    let reader = reading(stream, all, Some(BYTES_PER_SECOND * 4));
    burst(&gateway, "chat_lobby", shape).await;
    for _ in 0..shape.0 {
        other.next_text().await;
    }
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let body = json!({ "user_id": ALICE }).to_string();
    let answer = gateway
        .replica()
        .api(&gateway.api_key, "POST", &path, &body);
    assert_eq!(answer.await.status, 200);
    let came = finished(reader).await;
    // The close frame comes behind what the kernel had taken, long before the rest of the burst.
    assert!(came.len() < all, "{} of {all}", came.len());
    assert!(
        came.ends_with(b"\x88\x0f\x11\x95token_revoked"),
        "no close frame"
    );
    assert!(other.ping().await.is_empty());
}
