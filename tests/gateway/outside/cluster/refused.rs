//! Servers that are no cluster that can be used, and what is said about each.

use std::sync::Arc;
use std::time::Duration;

use lockgate::error::Dependency;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use serde_json::json;

use crate::problem::Problem;
use crate::support::cluster::{Cluster, node};
use crate::support::database::ALICE;
use crate::support::{PATIENCE, RedisServer, eventually, gateway};

fn store(address: &str) -> Arc<RedisStore> {
    let url = format!("redis+cluster://{address}");
    let url = RedisUrl::parse(&url.as_str().into()).unwrap();
    RedisStore::new(&url, Dependency::Redis).unwrap()
}

/// A write fails, and in time the error has this text.
async fn says(address: &str, text: &str) {
    let store = store(address);
    eventually(PATIENCE, "the reason is told", async || {
        let answer = store.set_ex("k", b"v", Duration::from_secs(1)).await;
        let error = answer.expect_err("there is no cluster").to_string();
        assert!(!error.contains("hunter2"), "{error}");
        match error.contains(text) {
            true => Ok(()),
            false => Err(error),
        }
    })
    .await;
}

async fn serve_all_slots(server: &RedisServer) {
    let slots = ["CLUSTER", "ADDSLOTSRANGE", "0", "16383"];
    let () = server.command(&slots).await;
    eventually(PATIENCE, "it serves", async || {
        let state: String = server.command(&["CLUSTER", "INFO"]).await;
        match state.contains("cluster_state:ok") {
            true => Ok(()),
            false => Err(state),
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_no_cluster_is_said_in_words_that_help() {
    let server = RedisServer::shared().await;
    let text = "this server is no cluster: write redis://";
    says(&server.endpoint(), text).await;
    says(&RedisServer::absent().endpoint(), "refused").await;
    // One seed that is no cluster says more than one that is away.
    let both = format!("{},{}", RedisServer::absent().endpoint(), server.endpoint());
    says(&both, text).await;
}

#[tokio::test]
async fn a_node_before_redis_7_is_named_as_the_reason() {
    let old = RedisServer::old_with("6.0.9", &["--cluster-enabled", "yes"]).await;
    says(&old.endpoint(), "every node needs Redis 7.0 or newer").await;
}

#[tokio::test]
async fn a_login_that_may_not_read_the_map_is_told_the_right_that_it_lacks() {
    let server = node(&[]).await;
    serve_all_slots(&server).await;
    let rights = "ACL SETUSER blind on >hunter2 ~* &* +@all -cluster";
    let rights: Vec<&str> = rights.split(' ').collect();
    let () = server.command(&rights).await;
    let address = format!("blind:hunter2@{}", server.endpoint());
    says(&address, "grant +cluster|shards").await;
    let wrong = format!("blind:not-hunter2@{}", server.endpoint());
    says(&wrong, "Password authentication failed").await;
}

#[tokio::test]
async fn a_cluster_without_slots_or_at_another_address_is_named() {
    let empty = node(&[]).await;
    says(&empty.endpoint(), "names no master with slots").await;
    // As behind an address translation: the address that it announces leads nowhere.
    let nowhere = RedisServer::absent();
    let port = nowhere.port().to_string();
    let announced = [
        "--cluster-announce-ip",
        "127.0.0.1",
        "--cluster-announce-port",
        &port,
    ];
    let server = node(&announced).await;
    serve_all_slots(&server).await;
    says(&server.endpoint(), "refused").await;
}

#[tokio::test]
async fn a_cluster_of_one_node_serves() {
    let server = node(&[]).await;
    serve_all_slots(&server).await;
    let gateway = gateway()
        .redis(&format!("redis+cluster://{}", server.endpoint()))
        .tenant("acme")
        .without_layer_kind()
        .start()
        .await;
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await["n"], 1);
}

/// Two nodes of one cluster are one Redis: the second tenant with the prefix of the first is not served.
#[tokio::test]
async fn tenants_on_two_nodes_of_one_cluster_may_not_share_a_prefix() {
    let cluster = Cluster::start().await;
    let at = |node: usize| format!("redis+cluster://{}", cluster.nodes[node].endpoint());
    let gateway = gateway()
        .set("server.ready_wait", "5s")
        .tenant("one")
        .with("redis.url", at(0))
        .with("layer.kind", "sharded")
        .with("layer.prefix", "both")
        .tenant("other")
        .with("redis.url", at(1))
        .with("layer.kind", "sharded")
        .with("layer.prefix", "both")
        .spawn()
        .await;
    let dial = |word: &str| {
        let tenant = gateway.named(word);
        let dial = gateway.replica().dial(tenant, "/ws/chat/lobby/");
        dial.token(&tenant.token(ALICE))
    };
    eventually(PATIENCE, "the second is told", async || {
        let state = gateway.readyz().await;
        let text = state.body.to_string();
        match text.contains("prefix") && text.contains(&gateway.named("other").name) {
            true => Ok(()),
            false => Err(state),
        }
    })
    .await;
    drop(dial("one").open().await);
    Problem::new(503, "unavailable").is(&dial("other").refused().await, "other");
}
