//! `on_ping = "reply"`: pages cannot send pings of the protocol, so they send their own.

use serde_json::{Value, json};

use crate::support::browser::Page;
use crate::support::gateway::Builder;
use crate::support::worker::FakeWorker;
use crate::support::{Gateway, RedisServer, gateway, unique};

const PINGS: [(&str, &str); 3] = [
    ("ping", "pong"),
    (r#"{"type":"ping"}"#, r#"{"type":"pong"}"#),
    (
        r#"{"t":1.50,"type":"ping","n":5}"#,
        r#"{"t":1.50,"type":"pong","n":5}"#,
    ),
];

fn claimed() -> Builder {
    gateway().tenant("acme").with("users.source", "claims")
}

async fn dropped(gateway: &Gateway) -> f64 {
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_events_dropped_total", &[])
}

#[tokio::test]
async fn every_kind_of_route_answers_where_it_is_told_to_and_no_other() {
    let kinds = [
        "{ kind = 'listen', on_frame = 'close' }",
        "{ kind = 'broadcast', type = 'chat', on_invalid = 'close' }",
        "{ kind = 'echo' }",
    ];
    let mut builder = claimed();
    for (n, kind) in kinds.iter().enumerate() {
        for on_ping in ["reply", "consumer"] {
            builder = builder.route(&format!(
                "path = 'ws/{n}/{on_ping}/'\ngroups = ['g{n}']\nconsumer = {kind}\non_ping = '{on_ping}'"
            ));
        }
    }
    let gateway = builder.start().await;
    for n in 0..kinds.len() {
        let mut socket = gateway.open(&format!("/ws/{n}/reply/")).await;
        for (ping, pong) in PINGS {
            socket.send_text(ping).await;
            assert_eq!(socket.next_text().await, pong, "{n}");
        }
    }
    assert_eq!(dropped(&gateway).await, 0.0);
    // Without the setting a ping is a frame like any other.
    for (ping, _) in PINGS {
        let mut closed = gateway.open("/ws/0/consumer/").await;
        closed.send_text(ping).await;
        assert_eq!(closed.closed().await.0, 1003);
        let mut echo = gateway.open("/ws/2/consumer/").await;
        echo.send_text(ping).await;
        assert_eq!(echo.next_text().await, ping);
    }
    let mut broadcast = gateway.open("/ws/1/consumer/").await;
    broadcast.send_text(PINGS[2].0).await;
    assert_eq!(broadcast.next_json().await, json!({"t": 1.5, "n": 5}));
    broadcast.send_text("ping").await;
    assert_eq!(broadcast.closed().await.0, 4505);
}

#[tokio::test]
async fn a_worker_never_sees_a_ping_that_the_gateway_answers() {
    let redis = RedisServer::start().await;
    let prefix = format!("acme-{}", unique());
    let channel = format!("{prefix}.chat");
    let gateway = claimed()
        .redis(&redis.url())
        .with("layer.prefix", prefix)
        .with("layer.serializer_format", "json")
        .route(&format!(
            "path = 'ws/'\non_ping = 'reply'\nconsumer = {{ kind = 'worker', channel = '{channel}' }}"
        ))
        .start()
        .await;
    let mut worker = FakeWorker::on(&redis, &channel).await;
    let mut socket = gateway.open("/ws/").await;
    for (ping, pong) in PINGS {
        socket.send_text(ping).await;
        assert_eq!(socket.next_text().await, pong);
    }
    socket.send_text("pong").await;
    let first = worker.next("websocket.receive").await;
    assert_eq!(first["text"], "pong", "the pings came before it");
}

#[tokio::test]
async fn pings_count_against_the_budgets_of_their_socket() {
    let gateway = claimed()
        .with("limits.messages_per_second", 2)
        .with("limits.message_size", "1KiB")
        .route("path = 'ws/'\non_ping = 'reply'")
        .start()
        .await;
    let mut flood = gateway.open("/ws/").await;
    for _ in 0..40 {
        flood.send_text("ping").await;
    }
    let (pongs, close) = flood.drained().await;
    assert_eq!(close.0, 4013);
    // Two seconds' worth, and what came back while the test was at work.
    assert!((4..40).contains(&pongs.len()), "{}", pongs.len());
    let mut large = gateway.open("/ws/").await;
    let long = json!({"type": "ping", "a": "x".repeat(2000)});
    large.send_text(&long.to_string()).await;
    assert_eq!(large.closed().await.0, 1009);
}

/// A page as people write it, with the functions of reconnecting-websocket and its kin.
#[tokio::test]
async fn a_page_is_answered_by_its_own_protocol() {
    let gateway = claimed()
        .with("origins", vec!["*".to_owned()])
        .with("hosts", vec!["127.0.0.1".to_owned()])
        .route("path = 'ws/'\non_ping = 'reply'\nconsumer = { kind = 'echo' }")
        .start()
        .await;
    let mut page = Page::open("about:blank").await;
    let url = format!(
        "ws://{}/ws/?token={}",
        gateway.replica().server,
        gateway.tenant().token("1")
    );
    let script = format!(
        "window.answers = []; window.socket = new WebSocket('{url}');
         socket.onmessage = (event) => answers.push(event.data);
         socket.onopen = () => {{ socket.send('ping'); socket.send(JSON.stringify({{type: 'ping', at: 17}})); socket.send('x'); }};"
    );
    page.evaluate(&script).await;
    page.wait_for("answers.length === 3").await;
    let answers: Value = page.evaluate("JSON.stringify(answers)").await;
    let expected = json!(["pong", "{\"type\":\"pong\",\"at\":17}", "x"]);
    let answers: Value = serde_json::from_str(answers.as_str().unwrap()).unwrap();
    assert_eq!(answers, expected);
}
