//! Servers that are no cluster that can be used, and what is said about each.

use std::sync::Arc;
use std::time::Duration;

use lockgate::error::{Dependency, ErrorKind};
use lockgate::stores::key_read::KeyRead;
use lockgate::stores::redis::cluster::slot_of;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use serde_json::{Value, json};

use crate::operations::doctor::{findings, is};
use crate::problem::Problem;
use crate::support::cluster::{Cluster, node, old_node, ranges_in};
use crate::support::database::ALICE;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway};

fn store(url: &str) -> Arc<RedisStore> {
    let url = RedisUrl::parse(&url.into()).unwrap();
    RedisStore::new(&url, Dependency::Redis).unwrap()
}

/// A write fails, and in time the error has this text.
async fn says(address: &str, text: &str) {
    let store = store(&format!("redis+cluster://{address}"));
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
    // Before: it was nowhere said which address it was.
    let text = format!("{}: Connection refused", nowhere.endpoint());
    says(&server.endpoint(), &text).await;
    let gateway = written(&format!("redis+cluster://{}", server.endpoint())).await;
    let found = findings(&gateway.config);
    let subject = format!("redis {}/cluster {}", server.endpoint(), nowhere.endpoint());
    is(&found, (&subject, "reach"), "fail", "refused");
    let advice = of(&found, &subject, "reach")["advice"].to_string();
    assert!(advice.contains("set cluster-announce-ip"), "{found}");
}

/// The deployment of one tenant on this Redis, of which no replica runs.
async fn written(url: &str) -> Gateway {
    let builder = gateway().redis(url).tenant("acme");
    builder.without_layer_kind().write().await
}

/// The only finding of a check on a subject.
fn of<'a>(found: &'a Value, subject: &str, check: &str) -> &'a Value {
    let all = found["findings"].as_array().unwrap().iter();
    let of: Vec<_> = all
        .filter(|finding| finding["subject"] == subject && finding["check"] == check)
        .collect();
    match of[..] {
        [one] => one,
        _ => panic!("{} findings of {check} on {subject}: {found}", of.len()),
    }
}

/// Before: one line, with the address of a node that answered.
#[tokio::test]
async fn doctor_names_the_node_that_is_away_and_looks_at_the_others() {
    let cluster = Cluster::of_masters(vec![node(&[]).await, node(&[]).await, node(&[]).await]);
    let cluster = cluster.await;
    let [first, second, third] = [0, 1, 2].map(|node: usize| cluster.nodes[node].endpoint());
    let gateway = written(&format!("redis+cluster://{first},{third}")).await;
    cluster.nodes[1].kill();
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], false, "{found}");
    let seed = first.clone().min(third.clone());
    let at = |node: &str| format!("redis {seed}/cluster {node}");
    is(&found, (&at(&second), "reach"), "fail", "refused");
    let advice = of(&found, &at(&second), "reach")["advice"].to_string();
    assert!(advice.contains("CLUSTER SHARDS announces"), "{found}");
    for node in [&first, &third] {
        for check in ["version", "latency", "role", "write", "pubsub"] {
            is(&found, (&at(node), check), "ok", "");
        }
    }
    let all = found["findings"].as_array().unwrap().iter();
    let failed: Vec<_> = all.filter(|finding| finding["verdict"] == "fail").collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
}

/// Before: the check of the configuration found nothing, `doctor` told a MOVED beside an ok, and handshakes got 503.
#[tokio::test]
async fn a_node_of_a_cluster_behind_the_url_of_one_server_is_told_the_url_to_write() {
    let server = node(&[]).await;
    serve_all_slots(&server).await;
    let rights = "ACL SETUSER shy on >hunter2 ~* &* +@all -info";
    let rights: Vec<&str> = rights.split(' ').collect();
    let () = server.command(&rights).await;
    // The second may not ask for the mode of the server.
    for login in ["", "shy:hunter2@"] {
        let url = format!("redis://{login}{}/0", server.endpoint());
        let builder = gateway().redis(&url).set("server.ready_wait", "5s");
        let gateway = builder.tenant("acme").spawn().await;
        let found = findings(&gateway.config);
        is(
            &found,
            ("redis ", "reach"),
            "fail",
            "is a node of a Redis Cluster",
        );
        let all = found["findings"].as_array().unwrap().iter();
        let of_redis: Vec<_> = { all }
            .filter(|finding| finding["subject"].to_string().contains("redis "))
            .collect();
        assert_eq!(of_redis.len(), 1, "{found}");
        let advice = of_redis[0]["advice"].to_string();
        assert!(advice.contains("redis+cluster://"), "{found}");
        degraded(&gateway, "redis+cluster://").await;
        assert!(!gateway.output().contains("hunter2"), "{login}");
    }
}

/// The only tenant is degraded in time, for a reason with this text, and its handshakes are refused.
async fn degraded(gateway: &Gateway, text: &str) {
    let tenant = gateway.tenant();
    eventually(PATIENCE, "the reason is told", async || {
        let state = gateway.readyz().await.json();
        let reason = state["tenants"][&tenant.name].to_string();
        match state["degraded"] == 1 && reason.contains(text) {
            true => Ok(()),
            false => Err(state),
        }
    })
    .await;
    let dial = gateway.replica().dial(tenant, "/ws/chat/lobby/");
    let refused = dial.token(&tenant.token(ALICE)).refused().await;
    Problem::new(503, "unavailable").is(&refused, &tenant.name);
    let line = gateway
        .replica()
        .logged("The tenant cannot be served")
        .await;
    assert!(line.contains(text), "{line}");
}

/// Before: each was an `io` error like an outage, and the tenant was waited for.
#[tokio::test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "the package of an old Redis is for x86_64 alone"
)]
async fn a_reason_that_does_not_heal_degrades_the_tenant_and_keeps_its_kind() {
    let (plain, old) = (RedisServer::start().await, old_node("6.0.9").await);
    let unseen = node(&[]).await;
    serve_all_slots(&unseen).await;
    let rights = "ACL SETUSER blind on >hunter2 ~* &* +@all -cluster";
    let rights: Vec<&str> = rights.split(' ').collect();
    let () = unseen.command(&rights).await;
    for (login, server, kind, text, advice) in [
        (
            "",
            &plain,
            "protocol",
            "this server is no cluster",
            "do not fit",
        ),
        (
            "",
            &old,
            "protocol",
            "every node needs Redis 7.0",
            "do not fit",
        ),
        (
            "blind:hunter2@",
            &unseen,
            "permission",
            "grant +cluster|shards",
            "doctor --acl",
        ),
    ] {
        let url = format!("redis+cluster://{login}{}", server.endpoint());
        let builder = gateway().redis(&url).set("server.ready_wait", "5s");
        let builder = builder.tenant("acme").without_layer_kind();
        let gateway = builder.spawn().await;
        degraded(&gateway, text).await;
        let metrics = gateway.replica().metrics().await;
        let errors = |kind| metrics.value("lockgate_dependency_errors_total", &[("kind", kind)]);
        assert_eq!(errors("io"), 0.0, "{}", metrics.text());
        assert!(errors(kind) > 0.0, "{}", metrics.text());
        let found = findings(&gateway.config);
        is(&found, ("redis ", "reach"), "fail", text);
        is(&found, ("redis ", "reach"), "fail", &format!("({kind})"));
        let subject = found["findings"][0]["subject"].as_str().unwrap();
        let advised = of(&found, subject, "reach")["advice"].to_string();
        assert!(advised.contains(advice), "{found}");
        assert!(!gateway.output().contains("hunter2"), "{url}");
    }
}

/// Before: doctor told a note, the log and the canary's warnings advised to grant a command that the node does not know, and
/// `/readyz` gave no reason.
#[tokio::test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "the package of an old Redis is for x86_64 alone"
)]
async fn a_cluster_with_a_node_before_redis_7_is_degraded_and_names_the_node() {
    let nodes = vec![node(&[]).await, node(&[]).await, old_node("6.0.9").await];
    let cluster = Cluster::of_masters(nodes).await;
    for node in &cluster.nodes {
        let rights = "ACL SETUSER shy on >hunter2 ~* +@all -info allchannels";
        // The old one knows no rules for channels.
        let known = rights.split(' ').filter(|word| {
            *word != "allchannels" || node.endpoint() != cluster.nodes[2].endpoint()
        });
        let () = node.command(&known.collect::<Vec<_>>()).await;
    }
    let old = cluster.nodes[2].endpoint();
    let prefix = prefix_at(&cluster, 2).await;
    let seed = cluster.nodes[0].endpoint();
    // The second may not ask for the version.
    for (login, text) in [
        ("", format!("Redis 6.0.9 at {old}")),
        ("shy:hunter2@", "takes no subscription of its ".to_owned()),
    ] {
        let builder = gateway()
            .redis(&format!("redis+cluster://{login}{seed}"))
            .set("server.ready_wait", "5s")
            .tenant("acme")
            .without_layer_kind()
            .with("layer.prefix", prefix.as_str());
        let gateway = builder.spawn().await;
        degraded(&gateway, &text).await;
        degraded(&gateway, "every node needs Redis 7.0").await;
        gateway
            .replica()
            .logged("Redis refuses the canary's channel")
            .await;
        // It is asked again each five seconds, and told once.
        let (errors, kind) = ("lockgate_dependency_errors_total", [("kind", "protocol")]);
        let before = gateway.replica().metrics().await.value(errors, &kind);
        let again = |value| value > before + 3.0;
        gateway.replica().metric(errors, &kind, again).await;
        let log = gateway.output();
        let told = log.matches("Redis refuses the canary's channel").count();
        assert_eq!(told, 1, "{log}");
        assert!(!log.contains("ACL SETUSER"), "{log}");
    }
    let gateway = written(&format!("redis+cluster://{seed}")).await;
    let found = findings(&gateway.config);
    let at = |node: &str| format!("redis {seed}/cluster {node}");
    is(&found, (&at(&old), "version"), "fail", "6.0.9");
    for node in &cluster.nodes[..2] {
        is(&found, (&at(&node.endpoint()), "version"), "ok", "7.");
    }
}

/// A prefix whose group without a name, which the gateway tries, is on this node.
async fn prefix_at(cluster: &Cluster, node: usize) -> String {
    let nodes: String = cluster.nodes[node].command(&["CLUSTER", "NODES"]).await;
    let own = nodes.lines().find(|line| line.contains("myself"));
    let ranges: Vec<_> = ranges_in(own.expect("it knows itself")).collect();
    let is_here = |prefix: &String| {
        let slot = slot_of(format!("{prefix}__group__").as_bytes());
        ranges.iter().any(|range| range.contains(&slot))
    };
    let mut prefixes = (0..).map(|number| format!("p{number}"));
    prefixes.find(is_here).expect("each slot has a name")
}

/// Before: the words of the server, and nothing more.
#[tokio::test]
async fn a_key_that_a_node_does_not_serve_is_told_the_url_to_write() {
    let server = node(&[]).await;
    // Half of the slots: the other keys are refused.
    let slots = ["CLUSTER", "ADDSLOTSRANGE", "0", "8191"];
    let () = server.command(&slots).await;
    let store = store(&server.url());
    let mut refused = 0;
    for number in 0..10 {
        let key = format!("k{number}");
        let stored = store.set_ex(&key, b"v", Duration::from_secs(1)).await;
        let read = store.get_each([KeyRead::text(key, 9)]).await.map(drop);
        for error in [stored, read].into_iter().filter_map(Result::err) {
            let text = error.to_string();
            assert!(text.contains("write redis+cluster://"), "{text}");
            assert_eq!(error.kind, ErrorKind::Protocol, "{text}");
            refused += 1;
        }
    }
    assert!(refused > 0);
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
