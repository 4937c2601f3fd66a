//! Redis behind Sentinels: the master dies, a replica takes over, and sockets stay.

use std::time::{Duration, Instant};

use lockgate::error::Dependency;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use serde_json::json;

use crate::support::database::ALICE;
use crate::support::sentinel::Deployment;
use crate::support::{Gateway, Publisher, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";
/// Sentinels need about five seconds to agree; then everybody has to find out.
const FAILOVER: Duration = Duration::from_secs(30);

async fn on_sentinels(deployment: &Deployment, kind: &str) -> Gateway {
    gateway()
        .redis(&deployment.url())
        .set("denylist.redis", deployment.url())
        .tenant("acme")
        .with("on_gap", "notify")
        .with("layer.kind", kind)
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n consumer = { kind = 'broadcast', type = 'x' }")
        .start()
        .await
}

/// Kills the master and waits until a socket's own event comes back through the new one.
async fn survives_a_failover(kind: &str) {
    let mut deployment = Deployment::start().await;
    let gateway = on_sentinels(&deployment, kind).await;
    let tenant = gateway.tenant();
    let mut sockets = [gateway.open(CHAT).await, gateway.open(CHAT).await];
    sockets[0].send_text(r#"{"n":1}"#).await;
    for socket in &mut sockets {
        assert_eq!(socket.next_json().await, json!({"n": 1}));
    }

    let master = deployment.master().await;
    deployment.kill(master);
    let killed = Instant::now();
    let new = eventually(FAILOVER, "another master", async || {
        match deployment.master().await {
            other if other != master => Ok(other),
            same => Err(same),
        }
    })
    .await;
    for socket in &mut sockets {
        assert_eq!(
            socket.next_json_within(FAILOVER).await,
            json!({"type": "lockgate.gap"}),
            "{kind}"
        );
    }
    println!(
        "{kind}: told of the gap {:?} after the master died",
        killed.elapsed()
    );
    if kind == "pubsub" {
        let publisher = Publisher::new(&deployment.servers[new], &tenant.prefix).await;
        publisher
            .send("chat_lobby", &json!({"type": "x", "n": 2}))
            .await;
        for socket in &mut sockets {
            assert_eq!(socket.next_json().await, json!({"n": 2}));
        }
    }
    // The command link follows as well: publishes, handshakes with their denylist and user cache.
    let mut late = eventually(FAILOVER, "a socket opens", async || {
        let dial = gateway.replica().dial(tenant, CHAT);
        dial.token(&tenant.token(ALICE)).attempt().await
    })
    .await;
    late.send_text(r#"{"n":3}"#).await;
    for socket in sockets.iter_mut().chain([&mut late]) {
        assert_eq!(socket.next_json().await, json!({"n": 3}), "{kind}");
    }
    let labels = [("tenant", tenant.name.as_str())];
    let gaps = gateway
        .replica()
        .metrics()
        .await
        .value("lockgate_gaps_total", &labels);
    assert!(gaps >= 1.0);
    assert_eq!(gateway.replica().readyz().await.status, 200);
}

#[tokio::test]
async fn a_failover_costs_a_pubsub_layer_a_counted_gap_and_no_socket() {
    survives_a_failover("pubsub").await;
}

#[tokio::test]
async fn a_failover_costs_a_core_layer_a_counted_gap_and_no_socket() {
    survives_a_failover("core").await;
}

#[tokio::test]
async fn servers_and_sentinels_have_logins_of_their_own() {
    let deployment = Deployment::start().await;
    let right = "?sentinel_username=watcher&sentinel_password=watch";
    for (servers, sentinels, good) in [
        ("gate:the-servers@", right, true),
        ("gate:the-servers@", "", true),
        ("gate:wrong@", right, false),
        (
            "gate:the-servers@",
            "?sentinel_username=watcher&sentinel_password=wrong",
            false,
        ),
    ] {
        let url = deployment.url_with(servers, sentinels);
        let url = RedisUrl::parse(&url.as_str().into()).unwrap();
        let store = RedisStore::new(&url, Dependency::Redis).unwrap();
        let name = redis::cmd("ACL").arg("WHOAMI").to_owned();
        let answer: Result<String, _> = store.query("whoami", &name).await;
        match answer {
            Ok(user) => assert!(good && user == "gate", "{servers} {sentinels} {user}"),
            Err(error) => assert!(!good, "{servers} {sentinels} {error}"),
        }
    }
}

/// A failover that an operator asks for: the old master lives on as a replica.
#[tokio::test]
async fn a_demoted_master_is_left() {
    let deployment = Deployment::start().await;
    let gateway = on_sentinels(&deployment, "pubsub").await;
    let mut socket = gateway.open(CHAT).await;
    let master = deployment.master().await;
    deployment.fail_over().await;
    eventually(FAILOVER, "another master", async || {
        match deployment.master().await {
            other if other != master => Ok(()),
            same => Err(same),
        }
    })
    .await;
    assert_eq!(
        socket.next_json_within(FAILOVER).await,
        json!({"type": "lockgate.gap"})
    );
    let mut late = eventually(FAILOVER, "a socket opens", async || {
        let tenant = gateway.tenant();
        let dial = gateway.replica().dial(tenant, CHAT);
        dial.token(&tenant.token(ALICE)).attempt().await
    })
    .await;
    late.send_text(r#"{"n":1}"#).await;
    assert_eq!(late.next_json().await, json!({"n": 1}));
}
