//! From a client's frame to what its route makes of it: nothing, an echo, an event for a group.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::problem::word;
use crate::support::database::{ALICE, BOB};
use crate::support::django::Django;
use crate::support::{Database, RedisServer, gateway};

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
    let limited = gateway.replica().metrics().await;
    let hits = |limit: &str| {
        let labels = [("tenant", tenant.as_str()), ("limit", limit)];
        limited.value("lockgate_rate_limited_total", &labels)
    };
    assert!(hits("messages_per_second") >= 1.0);
    // It was not counted.
    assert_eq!(hits("message_size"), 1.0);
}

#[tokio::test]
async fn a_sender_is_skipped_by_its_own_event_alone() {
    for kind in ["memory", "pubsub", "core"] {
        let replicas = if kind == "memory" { 1 } else { 2 };
        let mut builder = gateway().replicas(replicas).tenant("acme");
        if kind != "memory" {
            builder = builder.with("layer.kind", kind);
        }
        let gateway = builder
            .route("path = 'g/'\n groups = ['g', 'h']\n consumer = { kind = 'broadcast', to = 'g', type = 'x', skip_sender = true }")
            .start()
            .await;
        let tenant = gateway.tenant();
        let dial = |n: usize| {
            let replica = &gateway.replicas[n % replicas];
            replica.dial(tenant, "/g/").token(&tenant.token(ALICE))
        };
        // Three sockets of one user: the sender's other sockets get the event.
        let mut sockets = [
            dial(0).open().await,
            dial(0).open().await,
            dial(1).open().await,
        ];
        for n in 0..30 {
            let sender = n % sockets.len();
            sockets[sender]
                .send_text(&json!({"n": n}).to_string())
                .await;
            for (at, socket) in sockets.iter_mut().enumerate() {
                if at != sender {
                    assert_eq!(socket.next_json().await, json!({"n": n}), "{kind} {at}");
                }
            }
        }
        // Equal frames of all: each gets those of the two others.
        for socket in &mut sockets {
            socket.send_text(r#"{"same":1}"#).await;
        }
        for socket in &mut sockets {
            for _ in 0..2 {
                assert_eq!(socket.next_json().await, json!({"same": 1}), "{kind}");
            }
        }
        // An event of a back end skips none, and nothing else is left in between.
        let path = format!("/v1/tenants/{}/groups/g/send", tenant.name);
        let api = &gateway.replicas[0];
        let answer = api.api(&gateway.api_key, "POST", &path, r#"{"type":"x","last":1}"#);
        assert_eq!(answer.await.status, 200);
        for socket in &mut sockets {
            assert_eq!(socket.next_json().await, json!({"last": 1}), "{kind}");
        }
    }
}
