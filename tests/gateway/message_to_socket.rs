//! From a message in Redis to a socket, whichever replica holds it, and from a frame back into Redis.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use crate::problem::word;
use crate::support::database::{ALICE, BOB};
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
async fn a_broadcast_reaches_every_replica_and_django_with_what_a_client_cannot_forge() {
    let database = Database::postgres().await;
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .replicas(2)
        .tenant("acme")
        .users(&database)
        .route(
            r#"path     = "ws/chat/<slug:room>/"
               groups   = ["chat_{room}", "user_{user.id}"]
               deliver  = "event"
               consumer = { kind = "broadcast", to = "chat_{room}", type = "chat.message", fields = ["message"], stamp = ["user_id", "username"] }"#,
        )
        .start()
        .await;
    let tenant = gateway.tenant();
    let django = Django::at(database.url())
        .layer(&redis.url(), &tenant.prefix)
        .start()
        .await;
    let channel = django.listen("chat_lobby").await;
    let dial = |n: usize, user| {
        gateway.replicas[n]
            .dial(tenant, "/ws/chat/lobby/")
            .token(&tenant.token(user))
    };
    let mut alice = dial(0, ALICE).open().await;
    let mut bob = dial(1, BOB).open().await;
    let forged = json!({"type": "admin.shutdown", "__asgi_channel__": "x", "message": "hi", "more": 1, "user_id": "99"});
    alice.send_text(&forged.to_string()).await;
    let event =
        json!({"type": "chat.message", "message": "hi", "user_id": ALICE, "username": "alice"});
    assert_eq!(alice.next_json().await, event);
    assert_eq!(bob.next_json().await, event);
    assert_eq!(django.receive(&channel).await, event);
    // One socket's frames stay in order.
    for n in 0..40 {
        alice.send_text(&json!({"message": n}).to_string()).await;
    }
    for n in 0..40 {
        assert_eq!(bob.next_json().await["message"], n);
    }
}

#[tokio::test]
async fn a_frame_that_is_no_object_is_dropped_answered_or_closes() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'drop/'\n groups = ['g']\n consumer = { kind = 'broadcast', type = 'x' }")
        .route("path = 'reply/'\n groups = ['g']\n consumer = { kind = 'broadcast', type = 'x', on_invalid = 'reply' }")
        .route("path = 'close/'\n groups = ['g']\n consumer = { kind = 'broadcast', type = 'x', on_invalid = 'close' }")
        .start()
        .await;
    let invalid = [
        "[1]",
        "1",
        "\"text\"",
        "null",
        "{",
        "",
        "{\"a\":1} x",
        "{\"a\":NaN}",
    ];
    let mut dropping = gateway.open("/drop/").await;
    let mut replying = gateway.open("/reply/").await;
    for frame in invalid {
        dropping.send_text(frame).await;
        assert!(dropping.ping().await.is_empty(), "{frame}");
        replying.send_text(frame).await;
        let answer = json!({"type": "lockgate.error", "code": "message_not_valid"});
        assert_eq!(replying.next_json().await, answer, "{frame}");
        let mut closing = gateway.open("/close/").await;
        closing.send_text(frame).await;
        assert_eq!(
            closing.closed().await,
            (4505, "message_not_valid".into()),
            "{frame}"
        );
    }
    // A binary frame is no JSON object either.
    replying.send(Message::binary(b"{}".to_vec())).await;
    assert_eq!(replying.next_json().await["code"], "message_not_valid");
    let tenant = gateway.tenant().name.clone();
    let labels = [("tenant", tenant.as_str()), ("cause", "not_valid")];
    let dropped = gateway
        .replica()
        .metrics()
        .await
        .value("lockgate_events_dropped_total", &labels);
    assert_eq!(dropped, 3.0 * invalid.len() as f64 + 1.0);
    // The good one still goes through.
    dropping.send_text("{\"ok\": 1}").await;
    assert_eq!(dropping.next_json().await, json!({"ok": 1}));
}

#[tokio::test]
async fn an_echo_comes_back_as_it_was() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'echo/'\n consumer = { kind = 'echo' }")
        .start()
        .await;
    let mut socket = gateway.open("/echo/").await;
    for message in [
        Message::text("hello"),
        Message::text(""),
        Message::binary(vec![0, 1, 255]),
        Message::binary(Vec::new()),
        Message::text("ü".repeat(30_000)),
    ] {
        socket.send(message.clone()).await;
        assert_eq!(socket.next().await, message);
    }
}

#[tokio::test]
async fn a_listener_drops_frames_or_closes() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'drop/'\n groups = ['g']")
        .route(
            "path = 'close/'\n groups = ['g']\n consumer = { kind = 'listen', on_frame = 'close' }",
        )
        .start()
        .await;
    let mut dropping = gateway.open("/drop/").await;
    dropping.send_text("hello").await;
    assert!(dropping.ping().await.is_empty());
    let tenant = gateway.tenant().name.clone();
    let labels = [("tenant", tenant.as_str())];
    gateway
        .replica()
        .metric("lockgate_events_dropped_total", &labels, |n| n == 1.0)
        .await;
    for message in [Message::text("hello"), Message::binary(vec![1])] {
        let mut closing = gateway.open("/close/").await;
        assert!(closing.ping().await.is_empty());
        closing.send(message).await;
        assert_eq!(closing.closed().await, (1003, "unsupported_data".into()));
    }
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
    // 20 MB: the kernel takes about ten before anything waits in the gateway.
    const EVENTS: u32 = 1_000;
    for n in 0..EVENTS {
        publisher
            .send("chat_lobby", &json!({"type": "x", "n": n, "text": text}))
            .await;
        assert_eq!(quick.next_json().await["n"], n);
    }
    // What was on its way still arrives, in order, then the close frame.
    let (before, (code, reason)) = slow.drained().await;
    for (n, message) in before.iter().enumerate() {
        let seen: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert_eq!(seen["n"], n);
    }
    assert!(before.len() < EVENTS as usize);
    assert_eq!((code, word(&reason)), (4008, "too_slow"));
    // One that never reads is cut.
    let tenant = gateway.tenant().name.clone();
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
async fn a_socket_over_its_message_rate_or_size_is_closed() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.messages_per_second", 10)
        .with("limits.message_size", "1KiB")
        .route("path = 'echo/'\n consumer = { kind = 'echo' }")
        .start()
        .await;
    let mut fast = gateway.open("/echo/").await;
    // A bucket holds two seconds.
    for n in 0..20 {
        fast.send_text(&n.to_string()).await;
        assert_eq!(fast.next_text().await, n.to_string());
    }
    let mut closed = None;
    for _ in 0..50 {
        if !fast.try_send(Message::text("more")).await {
            break;
        }
        if let Message::Close(frame) = fast.next().await {
            closed = frame;
            break;
        }
    }
    let frame = closed.expect("a close frame within fifty messages more");
    assert_eq!(
        (u16::from(frame.code), word(frame.reason.as_str())),
        (4013, "rate_limited")
    );

    let mut big = gateway.open("/echo/").await;
    big.send_text(&"x".repeat(1024)).await;
    assert_eq!(big.next_text().await.len(), 1024);
    big.send_text(&"x".repeat(1025)).await;
    assert_eq!(big.closed().await, (1009, "message_too_big".into()));
    let tenant = gateway.tenant().name.clone();
    let labels = [
        ("tenant", tenant.as_str()),
        ("limit", "messages_per_second"),
    ];
    gateway
        .replica()
        .metric("lockgate_rate_limited_total", &labels, |n| n >= 1.0)
        .await;
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
async fn the_api_takes_keys_of_operators_only_for_what_they_may() {
    let gateway = gateway()
        .tenant("acme")
        .with("api_keys", vec!["acmes-own-key-which-is-long-enough"])
        .tenant("other")
        .start()
        .await;
    let path = |tenant: &str, group: &str| format!("/v1/tenants/{tenant}/groups/{group}/send");
    let event = r#"{"type": "x"}"#;
    let status = async |key: &str, path: &str, body: &str| {
        let answer = gateway.replica().api(key, "POST", path, body).await;
        (
            answer.status,
            answer.json()["code"].as_str().map(str::to_owned),
        )
    };
    let own = "acmes-own-key-which-is-long-enough";
    let (acme, other) = (&gateway.named("acme").name, &gateway.named("other").name);
    assert_eq!(status(own, &path(acme, "g"), event).await.0, 200);
    assert_eq!(
        status(&gateway.api_key, &path(other, "g"), event).await.0,
        200
    );
    assert_eq!(status(own, &path(other, "g"), event).await.0, 403);
    assert_eq!(status(own, &path("nobody", "g"), event).await.0, 403);
    assert_eq!(
        status(&gateway.api_key, &path("nobody", "g"), event)
            .await
            .0,
        404
    );
    assert_eq!(status("wrong", &path(acme, "g"), event).await.0, 401);
    assert_eq!(status(own, &path(acme, "a%20b"), event).await.0, 400);
    for body in ["[]", "{", "{}", r#"{"type": 1}"#] {
        assert_eq!(status(own, &path(acme, "g"), body).await.0, 400, "{body}");
    }
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
