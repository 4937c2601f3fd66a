//! From a message in Redis to a socket, whichever replica holds it, and from a frame back into Redis.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use crate::problem::word;
use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::process::Program;
use crate::support::replica::LOCKGATE;
use crate::support::{Database, Gateway, PATIENCE, Publisher, RedisServer, gateway, within};

async fn publisher(gateway: &Gateway) -> Publisher {
    Publisher::new(RedisServer::shared().await, &gateway.tenant().prefix).await
}

#[tokio::test]
async fn what_django_and_the_command_line_publish_arrives_on_every_replica_in_order_and_once() {
    let database = Database::postgres().await;
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .replicas(2)
        .tenant("acme")
        .users(&database)
        .start()
        .await;
    let tenant = gateway.tenant();
    let django = Django::at(database.url())
        .signing_key(&tenant.key)
        .layer(&redis.url(), &tenant.prefix)
        .start()
        .await;
    let mut sockets = Vec::new();
    for (replica, user) in [(0, "alice"), (1, "bob"), (0, "bob")] {
        let token = django.access_token(user).await;
        let dial = gateway.replicas[replica]
            .dial(tenant, "/ws/chat/lobby/")
            .token(&token);
        sockets.push(dial.open().await);
    }
    let event = |n: u32| json!({"type": "chat.message", "n": n, "text": "grüß dich"});
    let django_sends = async |from: u32, to: u32| {
        django
            .group_send("chat_lobby", &(from..to).map(event).collect::<Vec<_>>())
            .await;
    };
    django_sends(0, 50).await;
    for n in 50..53 {
        Program::new("lockgate send", LOCKGATE)
            .args(["send", "--tenant", &tenant.name, "--group", "chat_lobby"])
            .args(["--url", &format!("http://{}", gateway.replicas[1].api)])
            .args(["--api-key-file", gateway.key_file.to_str().unwrap()])
            .args([event(n).to_string()])
            .run();
    }
    django_sends(53, 100).await;
    for socket in &mut sockets {
        for n in 0..100 {
            let text = socket.next_text().await;
            let seen: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(seen, json!({"n": n, "text": "grüß dich"}));
        }
        assert_eq!(socket.ping().await, []);
    }
}

/// `config check` took such a tenant for one with a pub/sub layer; `serve` built a memory layer and ignored the hosts.
#[tokio::test]
async fn the_hosts_of_a_layer_carry_events_where_no_kind_and_no_redis_is_configured() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .without_redis()
        .tenant("acme")
        .without_layer_kind()
        .with("layer.hosts", vec![redis.url()])
        .start()
        .await;
    let token = gateway.tenant().token(ALICE);
    let mut socket = gateway
        .replica()
        .dial(gateway.tenant(), "/ws/chat/lobby/")
        .token(&token)
        .open()
        .await;
    let event = json!({"type": "chat.message", "n": 1});
    let heard = publisher(&gateway).await.send("chat_lobby", &event).await;
    assert_eq!(heard, 1, "no replica is subscribed");
    assert_eq!(socket.next_json().await, json!({"n": 1}));
}

#[tokio::test]
async fn an_event_sent_right_after_the_handshake_is_never_lost() {
    let gateway = gateway().replicas(2).tenant("acme").start().await;
    let publisher = publisher(&gateway).await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    for n in 0..500 {
        // A new group each time: its subscription is new as well.
        let path = format!("/ws/chat/try-{n}/");
        let mut socket = gateway.replicas[n % 2]
            .dial(tenant, &path)
            .token(&token)
            .open()
            .await;
        let heard_by = publisher
            .send(&format!("chat_try-{n}"), &json!({"type": "x", "n": n}))
            .await;
        assert_eq!(heard_by, 1, "try {n}");
        assert_eq!(socket.next_json().await, json!({"n": n}));
    }
}

#[tokio::test]
async fn a_group_left_and_joined_again_at_once_loses_nothing() {
    let gateway = gateway().tenant("acme").start().await;
    let publisher = publisher(&gateway).await;
    for n in 0..50 {
        // The last member's leaving is acted on after a second, while the next one is there.
        let mut socket = gateway.open("/ws/chat/lobby/").await;
        publisher
            .send("chat_lobby", &json!({"type": "x", "n": n}))
            .await;
        assert_eq!(socket.next_json().await, json!({"n": n}));
        socket.close(1000, "").await;
    }
}

#[tokio::test]
async fn the_last_members_leaving_ends_the_subscription() {
    let gateway = gateway().replicas(2).tenant("acme").start().await;
    let publisher = publisher(&gateway).await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    let event = json!({"type": "x"});
    let mut sockets = Vec::new();
    for replica in &gateway.replicas {
        sockets.push(
            replica
                .dial(tenant, "/ws/chat/lobby/")
                .token(&token)
                .open()
                .await,
        );
    }
    assert_eq!(publisher.send("chat_lobby", &event).await, 2);
    drop(sockets.pop());
    crate::support::eventually(
        PATIENCE,
        "one replica is subscribed",
        async || match publisher.send("chat_lobby", &event).await {
            1 => Ok(()),
            n => Err(n),
        },
    )
    .await;
    drop(sockets);
    crate::support::eventually(
        PATIENCE,
        "no replica is subscribed",
        async || match publisher.send("chat_lobby", &event).await {
            0 => Ok(()),
            n => Err(n),
        },
    )
    .await;
}

#[tokio::test]
async fn a_route_delivers_the_body_the_event_or_one_field() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'body/'\n groups = ['all']")
        .route("path = 'event/'\n groups = ['all']\n deliver = 'event'")
        .route("path = 'field/'\n groups = ['all']\n deliver = { field = 'message' }")
        .start()
        .await;
    let publisher = publisher(&gateway).await;
    let mut body = gateway.open("/body/").await;
    let mut event = gateway.open("/event/").await;
    let mut field = gateway.open("/field/").await;
    // Key order is the sender's; numbers keep their kind.
    let sent = json!({"z": 1, "type": "a.b", "message": "as \"it\" is", "a": [1.0, -1, null, {"y": "ü", "x": 1e300}]});
    publisher.send("all", &sent).await;
    assert_eq!(normal(&event.next_text().await), sent.to_string());
    let mut without = sent.clone();
    without.as_object_mut().unwrap().shift_remove("type");
    assert_eq!(normal(&body.next_text().await), without.to_string());
    assert_eq!(field.next_text().await, "as \"it\" is");
    publisher
        .send(
            "all",
            &json!({"type": "a.b", "message": {"b": 1, "a": [true]}}),
        )
        .await;
    assert_eq!(normal(&field.next_text().await), r#"{"b":1,"a":[true]}"#);
}

/// JSON as serde_json writes it, whatever white space and escapes it came with; key order stays.
fn normal(json: &str) -> String {
    let value: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
    value.to_string()
}

#[tokio::test]
async fn a_route_delivers_only_the_types_it_names() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'ws/'\n groups = ['all']\n events = ['chat.*', 'alarm']\n deliver = 'event'")
        .start()
        .await;
    let publisher = publisher(&gateway).await;
    let mut socket = gateway.open("/ws/").await;
    for kind in [
        "chat.message",
        "chatter",
        "alarm",
        "alarm.off",
        "other",
        "chat.",
    ] {
        publisher.send("all", &json!({"type": kind})).await;
    }
    for kind in ["chat.message", "alarm", "chat."] {
        assert_eq!(socket.next_json().await, json!({"type": kind}));
    }
    assert!(socket.ping().await.is_empty());
}

#[tokio::test]
async fn two_types_act_as_asgi_messages_on_every_route() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'ws/<slug:n>/'\n groups = ['g_{n}']\n events = ['none']")
        .start()
        .await;
    let publisher = publisher(&gateway).await;
    let mut socket = gateway.open("/ws/a/").await;
    publisher
        .send(
            "g_a",
            &json!({"type": "websocket.send", "text": "as it is"}),
        )
        .await;
    assert_eq!(socket.next_text().await, "as it is");
    // {"type": "websocket.send", "bytes": b"\x00\xff"}, which JSON cannot say.
    let binary = b"\x82\xa4type\xaewebsocket.send\xa5bytes\xc4\x02\x00\xff";
    publisher.send_bytes("g_a", binary).await;
    assert_eq!(socket.next().await, Message::binary(vec![0, 255]));
    for (name, code, closed) in [
        ("b", json!(3001), (3001, "bye")),
        ("c", json!(4999), (4999, "bye")),
        ("d", json!(1000), (1000, "bye")),
        // May not be sent: RFC 6455 7.4.1.
        ("e", json!(1006), (1011, "")),
        ("f", json!(12), (1011, "")),
    ] {
        let mut socket = gateway.open(&format!("/ws/{name}/")).await;
        let event = json!({"type": "websocket.close", "code": code, "reason": "bye"});
        publisher.send(&format!("g_{name}"), &event).await;
        let (code, reason) = socket.closed().await;
        assert_eq!(code, closed.0);
        if !closed.1.is_empty() {
            assert_eq!(reason, closed.1);
        }
    }
    let mut socket = gateway.open("/ws/g/").await;
    publisher
        .send("g_g", &json!({"type": "websocket.close"}))
        .await;
    assert_eq!(socket.closed().await.0, 1000);
}

#[tokio::test]
async fn a_socket_that_does_not_read_is_closed_and_others_do_not_wait_for_it() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.send_queue", "64KiB")
        .start()
        .await;
    let publisher = publisher(&gateway).await;
    let mut slow = gateway.open("/ws/chat/lobby/").await;
    let silent = gateway.open("/ws/chat/lobby/").await.into_stream();
    let mut quick = gateway.open("/ws/chat/lobby/").await;
    let text = "x".repeat(20_000);
    let tenant = gateway.tenant().name.clone();
    let deliveries = async || {
        let metrics = gateway.replica().metrics().await;
        metrics.value("lockgate_deliveries_total", &[("tenant", &tenant)])
    };
    // 40 MB at most. The events end when both others are closed, five seconds after more than the bound waited for them,
    // and only the quick socket is served. The slow one then has four seconds to read.
    const EVENTS: usize = 2_000;
    const BETWEEN_SCRAPES: usize = 10;
    let (mut sent, mut delivered) = (0, 0.0);
    loop {
        publisher
            .send("chat_lobby", &json!({"type": "x", "n": sent, "text": text}))
            .await;
        assert_eq!(quick.next_json().await["n"], sent);
        sent += 1;
        if sent % BETWEEN_SCRAPES == 0 {
            let before = std::mem::replace(&mut delivered, deliveries().await);
            if delivered - before < 1.5 * BETWEEN_SCRAPES as f64 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(sent < EVENTS, "they are still open");
    }
    // The frames under way still arrive, in order, before the close frame.
    let (before, (code, reason)) = slow.drained().await;
    for (n, message) in before.iter().enumerate() {
        let seen: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert_eq!(seen["n"], n);
    }
    assert!(before.len() < sent);
    assert_eq!((code, word(&reason)), (4008, "too_slow"));
    // One that never reads is cut.
    let labels = [
        ("tenant", tenant.as_str()),
        ("code", "4008"),
        ("reason", "too_slow"),
    ];
    gateway
        .replica()
        .metric("lockgate_disconnects_total", &labels, |n| n == 2.0)
        .await;
    drop(silent);
    assert!(quick.ping().await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_rendered_is_dropped_and_harms_nobody() {
    let gateway = gateway().tenant("acme").start().await;
    let publisher = publisher(&gateway).await;
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    let tenant = gateway.tenant().name.clone();
    let not_decoded: [&[u8]; 7] = [
        b"",
        b"\xc1",
        b"{\"type\": \"json on a msgpack layer\"}",
        // Truncated, trailing bytes, a map that claims four billion entries, an array.
        b"\x81\xa4type",
        b"\x81\xa4type\xa1x\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\x91\xa1x",
    ];
    for payload in not_decoded {
        publisher.send_bytes("chat_lobby", payload).await;
    }
    // Bytes and NaN have no JSON.
    let not_rendered: [&[u8]; 2] = [
        b"\x82\xa4type\xa1x\xa1b\xc4\x01\x00",
        b"\x82\xa4type\xa1x\xa1f\xcb\x7f\xf8\0\0\0\0\0\0",
    ];
    for payload in not_rendered {
        publisher.send_bytes("chat_lobby", payload).await;
    }
    publisher
        .send("chat_lobby", &json!({"type": "x", "fine": true}))
        .await;
    assert_eq!(socket.next_json().await, json!({"fine": true}));
    let value = async |cause: &str| {
        let labels = [("tenant", tenant.as_str()), ("cause", cause)];
        gateway
            .replica()
            .metrics()
            .await
            .value("lockgate_events_dropped_total", &labels)
    };
    assert_eq!(value("not_decoded").await, not_decoded.len() as f64);
    assert_eq!(value("not_rendered").await, not_rendered.len() as f64);
}

#[tokio::test]
async fn a_memory_layer_and_the_api_serve_one_replica_without_pubsub() {
    let gateway = gateway()
        .tenant("acme")
        .with("layer.kind", "memory")
        .start()
        .await;
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
}

#[tokio::test]
async fn frames_come_unmasked_and_as_small_as_they_can_be() {
    let gateway = gateway().tenant("acme").start().await;
    let publisher = publisher(&gateway).await;
    let socket = gateway.open("/ws/chat/lobby/").await;
    let mut stream = socket.into_stream();
    publisher
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    let mut frame = [0; 9];
    within(PATIENCE, "a frame", stream.read_exact(&mut frame))
        .await
        .unwrap();
    assert_eq!(&frame, b"\x81\x07{\"n\":1}");
}
