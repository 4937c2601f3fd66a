//! A worker that was told of a socket is told of its end, also where the replica ends or a reload overtakes the handshake.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::database::ALICE;
use crate::support::socket::{KEY, Socket};
use crate::support::worker::FakeWorker;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, gateway, unique, within};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

const PATH: &str = "/ws/hall/";
const SPAM: &str = "/ws/spam/";

/// A replica whose sockets a worker accepts, and that worker. `settings` are the deployment's.
async fn house(settings: &[(&str, &str)], timeout: &str, limits: &str) -> (Gateway, FakeWorker) {
    let channel = format!("told-{}", unique());
    let route = format!(
        "path = 'ws/<slug:room>/'\nconsumer = {{ kind = 'worker', channel = '{channel}', \
         accept = 'worker', worker_timeout = '{timeout}' }}"
    );
    let mut builder = gateway();
    for (key, value) in settings {
        builder = builder.set(key, *value);
    }
    let gateway = builder
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("layer.serializer_format", "json")
        .with_toml(limits)
        .route(&route)
        .start()
        .await;
    let worker = FakeWorker::on(RedisServer::shared().await, &channel).await;
    (gateway, worker)
}

/// Connects meanwhile.
fn connecting(gateway: &Gateway, path: &str) -> JoinHandle<Option<Socket>> {
    let tenant = gateway.tenant();
    let dial = gateway.replica().dial(tenant, path);
    let dial = dial.token(&tenant.token(ALICE));
    tokio::spawn(async move { dial.attempt_or_cut().await?.ok() })
}

#[tokio::test]
async fn of_a_handshake_that_a_drain_cuts() {
    let drain = [
        ("server.drain.delay", "500ms"),
        ("server.drain.window", "1s"),
    ];
    let (gateway, mut worker) = house(&drain, "25s", "").await;
    let client = connecting(&gateway, PATH);
    let connect = worker.next("websocket.connect").await;
    gateway.replica().terminate();
    let end = worker.next("websocket.disconnect").await;
    assert_eq!(end["reply_channel"], connect["reply_channel"]);
    gateway.replica().exited(PATIENCE).await;
    assert!(client.await.expect("no panic").is_none());
}

/// A second signal leaves a socket one second, and a goodbye takes four. Before: the replica exited without a word to the
/// worker.
#[tokio::test]
async fn of_a_silent_socket_that_a_second_signal_cuts() {
    let delay = [("server.drain.delay", "50s")];
    let (gateway, mut worker) = house(&delay, "25s", "").await;
    let client = connecting(&gateway, PATH);
    let connect = worker.next("websocket.connect").await;
    let accept = json!({"type": "websocket.accept"});
    worker.answer(&connect, &accept).await;
    let socket = client.await.expect("no panic").expect("it is accepted");
    let _silent = socket.into_stream();
    gateway.replica().terminate();
    gateway.replica().logged("Draining").await;
    gateway.replica().terminate();
    let end = worker.next("websocket.disconnect").await;
    assert_eq!(end["code"], 1012);
    assert_eq!(gateway.replica().exited(PATIENCE).await.code(), Some(1));
}

/// Replaces the tenant in place.
async fn reload(gateway: &Gateway) {
    change(gateway, |table| {
        tenant_table(table, gateway.tenant()).insert("refusal".into(), "http".into());
    });
    hang_up(gateway, APPLIED).await;
}

/// Other clients take the one connect of each second as soon as there is one. Before, the second judgement needed another
/// one, and the client got 429.
#[tokio::test]
async fn a_handshake_that_is_judged_again_counts_once_for_the_rate() {
    let limits = "refusal = 'close'\nlimits.connects_per_second = 1";
    let (gateway, mut worker) = house(&[], "12s", limits).await;
    let client = connecting(&gateway, PATH);
    let first = worker.next("websocket.connect").await;
    let accept = json!({"type": "websocket.accept"});
    let others = async {
        let mut others = Vec::new();
        loop {
            others.push(connecting(&gateway, SPAM));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let judged_again = async {
        reload(&gateway).await;
        worker.answer(&first, &accept).await;
        loop {
            let connect = worker.next("websocket.connect").await;
            if connect["path"] == PATH {
                assert_ne!(connect["reply_channel"], first["reply_channel"]);
                worker.answer(&connect, &accept).await;
                return;
            }
        }
    };
    tokio::select! {
        () = within(2 * PATIENCE, "the second judgement", judged_again) => {}
        () = others => {}
    }
    let socket = within(PATIENCE, "the socket", client).await;
    let mut socket = socket.expect("no panic").expect("it is accepted");
    assert!(socket.ping().await.is_empty());
}

/// Before: each judgement had a time of its own, and after 30 s the client was cut without an answer.
#[tokio::test]
async fn a_handshake_that_is_judged_again_is_answered_in_time() {
    let (gateway, mut worker) = house(&[], "20s", "refusal = 'close'").await;
    let tenant = gateway.tenant();
    let mut client = TcpStream::connect(gateway.replica().server).await.unwrap();
    let request = format!(
        "GET {PATH}?token={} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n",
        tenant.token(ALICE),
        tenant.host
    );
    client.write_all(request.as_bytes()).await.unwrap();
    worker.next("websocket.connect").await;
    reload(&gateway).await;
    let mut answer = Vec::new();
    let read = within(4 * PATIENCE, "an answer", client.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        read.is_ok() && answer.starts_with("HTTP/1.1 503 "),
        "{answer}"
    );
}
