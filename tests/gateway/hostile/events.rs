//! Payloads that are not events, from Redis to the socket. Each is counted once and logged once, and the next event of its
//! group arrives. `tests/parts/channel_layer/poison.rs` has more of them at the layer.

use rmp::encode;
use serde_json::json;

use super::values::Healthy;
use crate::support::database::BOB;
use crate::support::{Database, Gateway, PATIENCE, Publisher, RedisServer, eventually, gateway};

const DECODED: &str = "Dropped a message that is no event";
const RENDERED: &str = "Dropped an event that cannot be rendered";

/// A map of `type` and `n`, whose value follows.
fn with(value: &[u8]) -> Vec<u8> {
    [&b"\x82\xa4type\xa1t\xa1n"[..], value].concat()
}

fn not_decoded() -> Vec<(&'static str, Vec<u8>)> {
    let nested = |open: &[u8], depth: usize| with(&[&open.repeat(depth)[..], b"\xc0"].concat());
    let mut rows: Vec<(&'static str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("noise", vec![0x2a]),
        ("truncated", b"\x81\xa4type\xa1".to_vec()),
        ("trailing bytes", b"\x81\xa4type\xa1x\xc0".to_vec()),
        ("trailing bytes: twice", b"\x81\xa4type\xa1x".repeat(2)),
        ("reserved byte", with(b"\xc1")),
        ("depth: lists", nested(b"\x91", 100_000)),
        ("depth: maps", nested(b"\x81\xa1k", 100_000)),
        ("no map: nil", b"\xc0".to_vec()),
        ("no map: a text", b"\xa1t".to_vec()),
        ("no map: a list", b"\x91\x01".to_vec()),
        ("key", b"\x82\xa4type\xa1t\x01\x01".to_vec()),
        ("not UTF-8", with(b"\xa1\xff")),
        ("JSON", br#"{"type": "t", "n": 1}"#.to_vec()),
        (
            "encrypted",
            b"gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD8jNzDVzFtAtMYFsHSKogzK1axNrRPikLqU5LGOp".to_vec(),
        ),
        ("prefix", [&[7; 12][..], &with(b"\x01")].concat()),
        ("type: no type", b"\x81\xa1n\x01".to_vec()),
        ("type: an empty one", b"\x81\xa4type\xa0".to_vec()),
        ("type: a number", b"\x81\xa4type\x07".to_vec()),
        ("type: an underscore", b"\x81\xa4type\xa2_x".to_vec()),
        ("type: a dot", b"\x81\xa4type\xa2.x".to_vec()),
    ];
    for head in [0xdd_u8, 0xdf, 0xdb, 0xc6, 0xc9] {
        rows.push(("claimed length", with(&[head, 255, 255, 255, 255, 0])));
    }
    rows
}

fn not_rendered() -> Vec<(&'static str, Vec<u8>)> {
    let float = |n: f64| with(&[&b"\xcb"[..], &n.to_be_bytes()].concat());
    vec![
        (
            "key: bytes as a key",
            b"\x82\xa4type\xa1t\xc4\x01k\x01".to_vec(),
        ),
        ("bytes", with(b"\xc4\x01t")),
        ("extension: a time", with(b"\xd6\xff\0\0\0\x01")),
        ("extension: unknown", with(b"\xd4\x2a\x01")),
        ("float: NaN", float(f64::NAN)),
        ("float: infinite", float(f64::NEG_INFINITY)),
    ]
}

async fn dropped(gateway: &Gateway, cause: &str) -> f64 {
    let labels = [("tenant", gateway.tenant().name.as_str()), ("cause", cause)];
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_events_dropped_total", &labels)
}

fn told(gateway: &Gateway, what: &str) -> usize {
    gateway.output().matches(what).count()
}

#[tokio::test]
async fn what_is_no_event_is_counted_told_once_and_harms_nobody() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let tenant = gateway.tenant();
    let publisher = Publisher::new(redis, &tenant.prefix).await;
    let mut healthy = Healthy::open(&gateway).await;
    let dial = gateway.replica().dial(tenant, "/ws/chat/den/");
    let mut neighbour = dial.token(&tenant.token(BOB)).open().await;
    for (cause, rows) in [
        ("not_decoded", not_decoded()),
        ("not_rendered", not_rendered()),
    ] {
        for (row, payload) in rows {
            let before = dropped(&gateway, cause).await;
            assert_eq!(
                publisher.send_bytes("chat_lobby", &payload).await,
                1,
                "{row}"
            );
            healthy.hears(row).await;
            assert_eq!(dropped(&gateway, cause).await, before + 1.0, "{row}");
        }
    }
    assert_eq!((told(&gateway, DECODED), told(&gateway, RENDERED)), (1, 1));
    // Another type is another mistake, and is logged too.
    publisher
        .send_bytes("chat_lobby", b"\x82\xa4type\xa1u\xa1n\xc4\x01t")
        .await;
    healthy.hears("another type").await;
    eventually(PATIENCE, "the log tells both", async || {
        match (told(&gateway, DECODED), told(&gateway, RENDERED)) {
            (1, 2) => Ok(()),
            told => Err(told),
        }
    })
    .await;
    // Orders, which hold for a socket's own channel alone.
    for order in ["lockgate.group_add", "lockgate.group_discard"] {
        let before = dropped(&gateway, "not_valid").await;
        let event = json!({"type": order, "group": "chat_den", "__asgi_channel__": "x!y"});
        publisher.send("chat_lobby", &event).await;
        healthy.hears(order).await;
        assert_eq!(
            dropped(&gateway, "not_valid").await,
            before + 1.0,
            "{order}"
        );
    }
    assert!(neighbour.ping().await.is_empty());
}

/// Events with large numbers, reserved names and long types are still events.
#[tokio::test]
async fn what_is_an_event_arrives_however_odd_it_looks() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n deliver = 'event'")
        .start()
        .await;
    let publisher = Publisher::new(redis, &gateway.tenant().prefix).await;
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    for event in [
        json!({"type": "chat.message", "n": 9_007_199_254_740_993_u64}),
        json!({"type": "chat_message", "n": u64::MAX}),
        json!({"type": "websocket.receive", "text": "not for clients to say"}),
        json!({"type": "websocket.disconnect", "code": 1000}),
        json!({"type": "t", "__asgi_channel__": "other!x", "__epoch": 1}),
        json!({"type": "t", "tenant": "other", "group": "other__group__x"}),
        json!({"type": "x".repeat(10_000), "__proto__": {"a": 1}}),
    ] {
        publisher.send("chat_lobby", &event).await;
        assert_eq!(socket.next_json().await, event);
    }
    // Fifty thousand events, a thousand at a time.
    let mut payload = Vec::new();
    encode::write_map_len(&mut payload, 1).unwrap();
    encode::write_str(&mut payload, "type").unwrap();
    encode::write_str(&mut payload, "t").unwrap();
    let link = redis.connection().await.unwrap();
    for _ in 0..50 {
        let mut pipe = ::redis::pipe();
        for _ in 0..1_000 {
            let channel = format!("{}__group__chat_lobby", gateway.tenant().prefix);
            pipe.cmd("PUBLISH").arg(channel).arg(&payload).ignore();
        }
        let () = pipe.query_async(&mut link.clone()).await.unwrap();
        for _ in 0..1_000 {
            assert_eq!(socket.next_json().await, json!({"type": "t"}));
        }
    }
    assert!(socket.ping().await.is_empty());
    assert_eq!(dropped(&gateway, "not_decoded").await, 0.0);
}
