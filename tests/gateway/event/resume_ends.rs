//! Clients that come back after each way in which a gateway ends or starves their sockets, and a Redis that takes no writes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::resume::{events, position, position_of, publish, returning, with_history};
use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::replica::Replica;
use crate::support::worker::FakeWorker;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway};

const HISTORY: &str = "{ size = 5000, ttl = '10m' }";
/// More than the systems at both ends keep for a client that takes nothing, in events of this length.
const BURST: (u64, usize) = (60, 50_000);

/// Publishes one event to a group by the API, and returns the answer's status and body.
async fn send(gateway: &Gateway, replica: &Replica, group: &str, event: &Value) -> (u16, Value) {
    let path = format!("/v1/tenants/{}/groups/{group}/send", gateway.tenant().name);
    let body = event.to_string();
    let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
    (answer.status, answer.json())
}

/// On `core`, with events of Channels and of the API in one history. What a publish or a read of this replica moved counts as
/// recorded here.
#[tokio::test]
async fn a_client_of_a_killed_replica_of_a_core_layer_comes_back_to_events_of_django_and_the_api() {
    let redis = RedisServer::start().await;
    let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
    let builder = builder.with("layer.kind", "core").replicas(2);
    let mut gateway = builder.start().await;
    let tenant = gateway.tenant().clone();
    let django = Django::at(tenant.database.url())
        .layer(&redis.url(), &tenant.prefix)
        .core(&json!({}))
        .start()
        .await;
    let by_django = async |numbers: std::ops::Range<u64>| {
        let event = |n: u64| json!({"type": "t", "n": n});
        let events: Vec<Value> = numbers.map(event).collect();
        django.group_send("chat_a", &events).await;
    };
    let mut first = returning(&gateway.replicas[0], &tenant, "/ws/a/", &[])
        .open()
        .await;
    position(&mut first).await;
    by_django(0..10).await;
    events(&mut first, 0..10).await;
    publish(&gateway, &gateway.replicas[1], 10..20).await;
    let has = events(&mut first, 10..20).await;
    gateway.replicas[0].process.kill();
    // The group has no member in any replica for a while: what Channels sends waits.
    by_django(20..30).await;
    let second = &gateway.replicas[1];
    publish(&gateway, second, 30..40).await;
    by_django(40..50).await;
    let mut back = returning(second, &tenant, "/ws/a/", &[&has]).open().await;
    events(&mut back, 20..50).await;
    assert_eq!(position(&mut back).await["recovered"], true);
    by_django(50..55).await;
    publish(&gateway, second, 55..60).await;
    events(&mut back, 50..60).await;
    assert_eq!(back.ping().await, []);
    // All but those of the first replica's time, which each of the two may have moved.
    second
        .metric("lockgate_recorded_total", &[], |count| {
            (50.0..=60.0).contains(&count)
        })
        .await;
}

#[tokio::test]
async fn sockets_that_were_closed_for_their_age_come_back_to_each_event_once() {
    const EVENTS: u64 = 400;
    let builder = with_history(gateway().without_redis(), HISTORY).await;
    let gateway = builder
        .set("server.max_age", "1s")
        .with("layer.kind", "memory")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let publishing = async {
        for n in 0..EVENTS {
            publish(&gateway, replica, n..n + 1).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reading = async {
        let (mut next, mut since, mut sockets) = (None, Vec::<String>::new(), 0);
        while next != Some(EVENTS) {
            let known: Vec<&str> = since.iter().map(String::as_str).collect();
            let mut socket = returning(replica, tenant, "/ws/a/", &known).open().await;
            sockets += 1;
            while next != Some(EVENTS) {
                let frame: Value = match socket.next().await {
                    Message::Text(text) => serde_json::from_str(&text).unwrap(),
                    Message::Close(frame) => {
                        assert_eq!(frame.map(|frame| frame.code.into()), Some(1012_u16));
                        break;
                    }
                    other => panic!("{other:?}"),
                };
                since = vec![position_of(&frame)];
                if frame["type"] == "lockgate.position" {
                    assert_ne!(frame["recovered"], false, "{frame}");
                    continue;
                }
                let number = frame["n"].as_u64().unwrap();
                assert_eq!(number, next.unwrap_or(number), "{frame}");
                next = Some(number + 1);
            }
        }
        sockets
    };
    let ((), sockets) = tokio::join!(publishing, reading);
    assert!(sockets >= 3, "{sockets} sockets in 4 s");
}

#[tokio::test]
async fn a_client_that_was_closed_as_too_slow_comes_back_to_all_it_did_not_take() {
    let builder = with_history(gateway().without_redis(), HISTORY).await;
    let gateway = builder
        .with("layer.kind", "memory")
        .with("limits.send_queue", "32KiB")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut slow = returning(replica, tenant, "/ws/a/", &[]).open().await;
    slow.keep_little(32 * 1024);
    let begin = position_of(&position(&mut slow).await);
    let padding = "x".repeat(BURST.1);
    for n in 0..BURST.0 {
        let event = json!({"type": "t", "n": n, "padding": padding});
        assert_eq!(send(&gateway, replica, "chat_a", &event).await.0, 200);
    }
    let too_slow = [("code", "4008"), ("reason", "too_slow")];
    eventually(2 * PATIENCE, "the slow client is closed", async || {
        let metrics = replica.metrics().await;
        let closed = metrics.value("lockgate_disconnects_total", &too_slow);
        if closed == 1.0 { Ok(()) } else { Err(closed) }
    })
    .await;
    // What its system had taken already comes, then the end.
    let mut has = (0, begin);
    while let Some(Ok(Message::Text(text))) = slow.read().await {
        let frame: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(frame["n"], has.0, "{}", frame["type"]);
        has = (has.0 + 1, position_of(&frame));
    }
    assert!(has.0 < BURST.0, "it was closed before it had all");
    let mut back = returning(replica, tenant, "/ws/a/", &[&has.1]).open().await;
    events(&mut back, has.0..BURST.0).await;
    assert_eq!(position(&mut back).await["recovered"], true);
    assert_eq!(back.ping().await, []);
}

/// Redis refuses writes after a snapshot that failed (MISCONF): nothing is published that is not recorded, what is recorded is
/// read, and groups without a memory go on.
#[tokio::test]
async fn a_redis_that_refuses_writes_after_a_failed_snapshot_loses_nothing() {
    let redis = RedisServer::with(&["--save", "3600 1"]).await;
    let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
    let gateway = builder
        .route("path = 'news/'\n groups = ['news']")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut socket = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position_of(&position(&mut socket).await);
    let news = replica.dial(tenant, "/news/").token(&tenant.token(ALICE));
    let mut news = news.open().await;
    publish(&gateway, replica, 0..5).await;
    events(&mut socket, 0..5).await;
    refuse_writes(&redis).await;

    let event = |n: u64| json!({"type": "t", "n": n});
    for _ in 0..2 {
        let (status, problem) = send(&gateway, replica, "chat_a", &event(99)).await;
        assert_eq!((status, &problem["code"]), (503, &"unavailable".into()));
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains("not"),
            "it says what became of it: {detail}"
        );
    }
    let (status, _) = send(&gateway, replica, "news", &event(1)).await;
    assert_eq!(status, 200);
    assert_eq!(news.next_json().await, json!({"n": 1}));
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    events(&mut back, 0..5).await;
    assert_eq!(position(&mut back).await["recovered"], true);

    let on = ["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"];
    let _: String = redis.command(&on).await;
    publish(&gateway, replica, 5..10).await;
    for socket in [&mut socket, &mut back] {
        events(socket, 5..10).await;
        assert_eq!(socket.ping().await, []);
    }
    let metrics = replica.metrics().await;
    assert_eq!(metrics.value("lockgate_unhealed_gaps_total", &[]), 0.0);
}

/// Takes its directory away from a server, and lets it try to save.
async fn refuse_writes(redis: &RedisServer) {
    let (_, dir): (String, String) = redis.command(&["CONFIG", "GET", "dir"]).await;
    std::fs::remove_dir_all(dir).unwrap();
    let _: redis::Value = redis.command(&["BGSAVE"]).await;
    eventually(PATIENCE, "a snapshot fails", async || {
        let info: String = redis.command(&["INFO", "persistence"]).await;
        match info.contains("rdb_last_bgsave_status:err") {
            true => Ok(()),
            false => Err(info),
        }
    })
    .await;
    let refused = redis.ask::<redis::Value>(&["SET", "a", "b"]).await;
    assert_eq!(refused.unwrap_err().code(), Some("MISCONF"));
}

/// A worker puts a socket into a group with a memory: it is told its position there, before any event.
#[tokio::test]
async fn a_socket_that_an_order_puts_into_a_group_is_told_its_position() {
    let redis = RedisServer::start().await;
    let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
    let gateway = builder
        .with("layer.serializer_format", "json")
        .route("path = 'work/'\n resume = true\n groups = ['chat_all']\n consumer = { kind = 'worker', channel = 'work' }")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut worker = FakeWorker::on(&redis, "work").await;
    publish(&gateway, replica, 0..3).await;
    let mut socket = returning(replica, tenant, "/work/", &[]).open().await;
    let connect = worker.next("websocket.connect").await;
    assert!(position_of(&position(&mut socket).await).starts_with("chat_all~"));
    let order = async |kind: &str| {
        let order = json!({"type": kind, "group": "chat_a"});
        assert_eq!(worker.answer(&connect, &order).await, 1);
    };
    for round in 0..2 {
        order("lockgate.group_add").await;
        let at = position(&mut socket).await;
        let (first, told) = (3 + round * 5, position_of(&at));
        let offset = told.rsplit_once('~').unwrap().1;
        assert_eq!((offset, at.get("recovered")), (&*first.to_string(), None));
        // The second order finds it there, and tells nothing.
        order("lockgate.group_add").await;
        publish(&gateway, replica, first..first + 5).await;
        events(&mut socket, first..first + 5).await;
        assert_eq!(socket.ping().await, []);
        order("lockgate.group_discard").await;
        replica
            .metric("lockgate_subscriptions", &[], |count| count == 1.0)
            .await;
    }
}
