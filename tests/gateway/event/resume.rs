//! Clients that come back to groups with history, on one replica.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::replica::Replica;
use crate::support::socket::{Dial, Socket};
use crate::support::{Database, Gateway, PATIENCE, Tenant, eventually, gateway};

/// A route whose clients come back, and one whose clients do not, into the same groups.
pub(crate) const ROUTES: [&str; 2] = [
    "path = 'ws/<slug:room>/'\n groups = ['chat_{room}']\n resume = true",
    "path = 'plain/<slug:room>/'\n groups = ['chat_{room}']",
];

/// A tenant whose groups `chat_…` have a history.
pub(crate) async fn with_history(builder: Builder, history: &str) -> Builder {
    let groups = format!("[[groups]]\nname = 'chat_<slug:room>'\nhistory = {history}");
    let builder = builder
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with_toml(&groups);
    ROUTES
        .iter()
        .fold(builder, |builder, route| builder.route(route))
}

/// One replica without any server beside it.
async fn alone(history: &str) -> Builder {
    let builder = gateway().without_redis();
    with_history(builder, history)
        .await
        .with("layer.kind", "memory")
}

/// A client of alice that comes back from these positions.
pub(crate) fn returning(replica: &Replica, tenant: &Tenant, path: &str, since: &[&str]) -> Dial {
    let mut query = format!("token={}", tenant.token(ALICE));
    for position in since {
        query.push_str(&format!("&since={position}"));
    }
    replica.dial(tenant, path).query(&query)
}

/// The position of an event or of a notice.
pub(crate) fn position_of(frame: &Value) -> String {
    let position = frame.get("lockgate.position").or(frame.get("position"));
    let position = position.and_then(Value::as_str);
    position
        .unwrap_or_else(|| panic!("no position: {frame}"))
        .to_owned()
}

/// Reads the notice of a client's position in a group.
pub(crate) async fn position(socket: &mut Socket) -> Value {
    let frame = socket.next_json().await;
    assert_eq!(frame["type"], "lockgate.position", "{frame}");
    frame
}

/// Reads the events with these numbers, and returns the last position.
pub(crate) async fn events(socket: &mut Socket, numbers: std::ops::Range<u64>) -> String {
    let mut last = String::new();
    for n in numbers {
        let frame = socket.next_json().await;
        assert_eq!(frame["n"], n, "{frame}");
        last = position_of(&frame);
    }
    last
}

/// Publishes events with these numbers to `chat_a`, in batches.
pub(crate) async fn publish(gateway: &Gateway, replica: &Replica, numbers: std::ops::Range<u64>) {
    let path = format!("/v1/tenants/{}/send", gateway.tenant().name);
    let numbers: Vec<u64> = numbers.collect();
    for batch in numbers.chunks(500) {
        let message = |n: &u64| json!({"group": "chat_a", "event": {"type": "t", "n": n}});
        let body = json!({"messages": batch.iter().map(message).collect::<Vec<_>>()});
        let body = body.to_string();
        let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

async fn recoveries(gateway: &Gateway, result: &str) -> f64 {
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_recoveries_total", &[("result", result)])
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_and_then_live_events() {
    let gateway = alone("{ size = 100, ttl = '10m' }").await.start().await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut first = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position(&mut first).await;
    assert_eq!(begin.get("recovered"), None);
    publish(&gateway, replica, 0..10).await;
    let has = events(&mut first, 0..10).await;
    drop(first);
    publish(&gateway, replica, 10..60).await;
    for (from, missed) in [(&has, 10..60), (&position_of(&begin), 0..60)] {
        let mut back = returning(replica, tenant, "/ws/a/", &[from]).open().await;
        let last = events(&mut back, missed).await;
        let end = position(&mut back).await;
        assert_eq!(end["recovered"], true);
        assert_eq!(position_of(&end), last);
        assert_eq!(back.ping().await, []);
    }
    let mut back = returning(replica, tenant, "/ws/a/", &[&has]).open().await;
    publish(&gateway, replica, 60..70).await;
    // The notice stands where the replay ended, between events of any number.
    let (mut next, mut notices) = (10, 0);
    while next < 70 || notices < 1 {
        let frame = back.next_json().await;
        match frame["type"].as_str() {
            Some("lockgate.position") => {
                assert_eq!(frame["recovered"], true);
                notices += 1;
            }
            _ => {
                assert_eq!(frame["n"], next, "{frame}");
                next += 1;
            }
        }
    }
    assert_eq!((notices, back.ping().await), (1, vec![]));
    assert_eq!(recoveries(&gateway, "recovered").await, 3.0);
}

#[tokio::test]
async fn a_position_that_leads_nowhere_is_told_and_refuses_nobody() {
    let builder = alone("{ size = 100, ttl = '10m' }").await;
    let gateway = builder
        .route("path = 'both/<slug:room>/'\n groups = ['chat_{room}', 'news']\n resume = true")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut socket = returning(replica, tenant, "/ws/a/", &[]).open().await;
    position(&mut socket).await;
    publish(&gateway, replica, 0..3).await;
    let has = events(&mut socket, 0..3).await;
    let (rest, _) = has.rsplit_once('~').unwrap();
    let (_, epoch) = rest.rsplit_once('~').unwrap();
    let ours = |offset: &str| vec![format!("{rest}~{offset}")];
    let other = |text: String| vec![text];
    for since in [
        ours("4"),
        ours("18446744073709551615"),
        ours("-1"),
        ours("01"),
        other("chat_a~ffff~2".to_owned()),
        other(String::new()),
        other("garbage".to_owned()),
        other("chat_a".to_owned()),
        other(format!("chat_a~{}~1", "e".repeat(10 * 1024))),
        vec![has.clone(), format!("chat_a~{epoch}x~1")],
    ] {
        let since: Vec<&str> = since.iter().map(String::as_str).collect();
        let mut back = returning(replica, tenant, "/ws/a/", &since).open().await;
        let gap = back.next_json().await;
        assert_eq!(
            gap,
            json!({"type": "lockgate.gap", "group": "chat_a"}),
            "{since:?}"
        );
        let end = position(&mut back).await;
        assert_eq!(
            (position_of(&end), &end["recovered"]),
            (has.clone(), &json!(false))
        );
        assert_eq!(back.ping().await, [], "{since:?}");
    }
    // None is of the group. A request line holds a thousand of them, and each group is told once.
    let many: Vec<String> = (0..1000).map(|n| format!("g~e~{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut back = returning(replica, tenant, "/ws/a/", &many).open().await;
    let mut frames = [back.next_json().await, back.next_json().await];
    frames.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!(frames[0], json!({"type": "lockgate.gap", "group": "g"}));
    assert_eq!(
        frames[1],
        json!({"type": "lockgate.position", "position": has})
    );
    assert_eq!(back.ping().await, []);
    // Repeated, the last one counts; a group without history and one of another route are told.
    let old = format!("{rest}~1");
    let since = ["chat_a~x~0", &old, "news~e~1", "chat_b~e~1"];
    let mut back = returning(replica, tenant, "/both/a/", &since).open().await;
    let mut frames = Vec::new();
    for _ in 0..5 {
        frames.push(back.next_json().await);
    }
    let told = |group: &str| frames.contains(&json!({"type": "lockgate.gap", "group": group}));
    assert!(
        told("news") && told("chat_b") && !told("chat_a"),
        "{frames:?}"
    );
    let numbers: Vec<_> = frames
        .iter()
        .filter_map(|frame| frame["n"].as_u64())
        .collect();
    assert_eq!(numbers, [1, 2]);
    assert!(
        frames.iter().any(|frame| frame["recovered"] == true),
        "{frames:?}"
    );
    assert_eq!(back.ping().await, []);
}

#[tokio::test]
async fn what_was_trimmed_is_told_and_none_of_it_comes() {
    let gateway = alone("{ size = 5, ttl = '10m' }").await.start().await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut socket = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position_of(&position(&mut socket).await);
    publish(&gateway, replica, 0..6).await;
    events(&mut socket, 0..6).await;
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    assert_eq!(back.next_json().await["type"], "lockgate.gap");
    assert_eq!(position(&mut back).await["recovered"], false);
    publish(&gateway, replica, 6..8).await;
    events(&mut back, 6..8).await;
    assert_eq!(recoveries(&gateway, "too_old").await, 1.0);
    let first = format!("{}~1", begin.rsplit_once('~').unwrap().0);
    let mut back = returning(replica, tenant, "/ws/a/", &[&first]).open().await;
    assert_eq!(back.next_json().await["type"], "lockgate.gap");
    let third = format!("{}~3", begin.rsplit_once('~').unwrap().0);
    let mut back = returning(replica, tenant, "/ws/a/", &[&third]).open().await;
    events(&mut back, 3..8).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

/// A replay of more than `limits.send_queue` waits for the client, and live events wait behind it.
#[tokio::test]
async fn a_replay_is_no_reason_to_close_a_client() {
    const EVENTS: u64 = 3_000;
    let builder = alone("{ size = 10000, ttl = '10m' }").await;
    let gateway = builder.with("limits.send_queue", "16KiB").start().await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut socket = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position_of(&position(&mut socket).await);
    drop(socket);
    publish(&gateway, replica, 0..EVENTS).await;
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    publish(&gateway, replica, EVENTS..EVENTS + 500).await;
    // The notice comes where the replay ended, which may be behind all of them.
    let (mut next, mut notices) = (0, 0);
    while next < EVENTS + 500 || notices < 1 {
        let frame = back.next_json_within(4 * PATIENCE).await;
        match frame["n"].as_u64() {
            Some(n) => {
                assert_eq!(n, next);
                next += 1;
            }
            None => {
                assert_eq!(frame["recovered"], true, "{frame}");
                notices += 1;
            }
        }
    }
    assert_eq!((notices, back.ping().await), (1, vec![]));
    eventually(PATIENCE, "nothing is held any more", async || {
        let held = replica.metrics().await;
        match held.value("lockgate_held_bytes", &[("kind", "history")]) {
            0.0 => Ok(()),
            bytes => Err(bytes),
        }
    })
    .await;
}

#[tokio::test]
async fn a_route_without_resume_sees_no_positions_and_messages_that_hold_none_are_followed_by_theirs()
 {
    let gateway = alone("{ size = 100, ttl = '10m' }").await.start().await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut plain = gateway.open("/plain/a/").await;
    let mut resuming = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position_of(&position(&mut resuming).await);
    let own = json!({"type": "t", "lockgate.position": "mine", "n": 1});
    gateway.send("chat_a", &own).await;
    gateway
        .send(
            "chat_a",
            &json!({"type": "websocket.send", "text": "plain"}),
        )
        .await;
    gateway
        .send(
            "chat_a",
            &json!({"type": "websocket.send", "text": "{\"a\": 1}"}),
        )
        .await;
    assert_eq!(
        plain.next_text().await,
        r#"{"lockgate.position":"mine","n":1}"#
    );
    assert_eq!(plain.next_text().await, "plain");
    assert_eq!(plain.next_text().await, r#"{"a": 1}"#);
    let group = begin.rsplit_once('~').unwrap().0;
    let at = |offset: u32| format!(r#""lockgate.position":"{group}~{offset}"}}"#);
    assert_eq!(resuming.next_text().await, format!(r#"{{"n":1,{}"#, at(1)));
    assert_eq!(resuming.next_text().await, "plain");
    let notice = json!({"type": "lockgate.position", "position": format!("{group}~2")});
    assert_eq!(resuming.next_json().await, notice);
    assert_eq!(resuming.next_text().await, format!(r#"{{"a": 1,{}"#, at(3)));
    // Neither is doubled by a client that comes back behind it.
    let since = format!("{group}~2");
    let mut back = returning(replica, tenant, "/ws/a/", &[&since]).open().await;
    assert_eq!(back.next_text().await, format!(r#"{{"a": 1,{}"#, at(3)));
    assert_eq!(position(&mut back).await["recovered"], true);
    // A close in the history closes those that get it live, and no one that comes back later.
    gateway
        .send("chat_a", &json!({"type": "websocket.close", "code": 4000}))
        .await;
    assert_eq!(plain.closed().await.0, 4000);
    assert_eq!(back.closed().await.0, 4000);
    let mut back = returning(replica, tenant, "/ws/a/", &[&since]).open().await;
    assert_eq!(back.next_text().await, format!(r#"{{"a": 1,{}"#, at(3)));
    assert_eq!(
        position_of(&position(&mut back).await),
        format!("{group}~4")
    );
    assert_eq!(back.ping().await, Vec::<Message>::new());
}

#[tokio::test]
async fn a_client_of_a_tenant_that_was_suspended_comes_back_to_all_it_missed() {
    let gateway = alone("{ size = 100, ttl = '10m' }").await.start().await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut socket = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position_of(&position(&mut socket).await);
    publish(&gateway, replica, 0..5).await;
    let call = async |what: &str| {
        let path = format!("/v1/tenants/{}/{what}", tenant.name);
        let answer = replica.api(&gateway.api_key, "POST", &path, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    events(&mut socket, 0..5).await;
    call("suspend").await;
    assert_eq!(socket.closed().await.0, 4016);
    publish(&gateway, replica, 5..10).await;
    call("resume").await;
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    events(&mut back, 0..10).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}
