//! A cluster as managed ones are: TLS, nodes that announce a host name, users with the rights that `doctor --acl` prints, and
//! revocations that a replica has to acknowledge.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult, Value as RedisValue};
use serde_json::{Value, json};

use super::super::managed_redis::{CHAT, GROUPS, api, dial, does_everything};
use super::super::tls::{ca, file};
use crate::operations::doctor::{doctor, findings};
use crate::support::cluster::{Cluster, node};
use crate::support::database::ALICE;
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway, token};

fn url(cluster: &Cluster, login: &str) -> String {
    let (first, last) = (cluster.tls[0], cluster.tls[5]);
    format!("rediss+cluster://{login}localhost:{first},localhost:{last}")
}

/// Sets the users that `doctor --acl` prints on every node, with a password each; returns their names.
async fn set_users(gateway: &Gateway, cluster: &Cluster) -> Vec<String> {
    let printed = doctor(&gateway.config, &["--acl", "--json"]);
    assert_eq!(printed.status, Some(0), "{}", printed.text);
    let printed: Value = serde_json::from_str(&printed.text).unwrap();
    let mut names = Vec::new();
    for user in printed["users"].as_array().unwrap() {
        let line = user["line"].as_str().unwrap();
        let name = line.split(' ').nth(2).unwrap();
        let line = line.replace(">PASSWORD", &format!(">{name}-password"));
        let words: Vec<&str> = line.split(' ').collect();
        for node in &cluster.nodes {
            let () = node.command(&words).await;
        }
        names.push(name.to_owned());
    }
    names
}

/// A link to each of the first three masters, as one of the users.
async fn log_in(cluster: &Cluster, name: &str) -> Vec<MultiplexedConnection> {
    let mut links = Vec::new();
    for node in &cluster.nodes[..3] {
        let url = format!("redis://{name}:{name}-password@{}", node.endpoint());
        let client = Client::open(url).unwrap();
        links.push(client.get_multiplexed_async_connection().await.unwrap());
    }
    links
}

/// Sends a command to the master that has its slot.
async fn ask(links: &mut [MultiplexedConnection], words: &[&str]) -> RedisResult<RedisValue> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let mut answer = Ok(RedisValue::Nil);
    for link in links {
        answer = command.query_async(link).await;
        match &answer {
            Err(error) if error.redirect_node().is_some() => {}
            _ => break,
        }
    }
    answer
}

#[tokio::test]
async fn a_cluster_with_tls_and_users_does_everything() {
    let cluster = Cluster::secured(&file("")).await;
    let mut gateway = gateway()
        .redis(&url(&cluster, "lockgate:lockgate-password@"))
        .set("tls.ca", ca("ca.pem"))
        .set("denylist.replicas", 1)
        .tenant("acme")
        .without_layer_kind()
        .users(&Database::sqlite().await)
        .with_toml(GROUPS)
        .write()
        .await;
    let users = set_users(&gateway, &cluster).await;
    gateway.add_replica().await;
    gateway.add_replica().await;
    for replica in &gateway.replicas {
        replica.ready().await;
    }
    // It waits a second for the map, which a busy machine may need.
    eventually(PATIENCE, "doctor finds nothing", async || {
        let found = findings(&gateway.config);
        match found["ok"] == true {
            true => Ok(()),
            false => Err(found),
        }
    })
    .await;
    back_ends_are_confined(&gateway, &cluster, &users[1]).await;
    needs_a_replica(&gateway, &cluster).await;
    does_everything(&gateway).await;
}

/// The user of a back end publishes to its own groups and to nothing else.
async fn back_ends_are_confined(gateway: &Gateway, cluster: &Cluster, back_end: &str) {
    let tenant = gateway.tenant();
    let mut links = log_in(cluster, back_end).await;
    let own = format!("{}__group__chat_lobby", tenant.prefix);
    let published = ask(&mut links, &["SPUBLISH", &own, "x"]).await;
    published.expect("its own group");
    for words in [
        &["SPUBLISH", "lockgate::control", "x"][..],
        &["SPUBLISH", "other__group__chat_lobby", "x"],
        &["SSUBSCRIBE", "other__group__chat_lobby"],
        &["EVAL", "return 1", "0"],
        &["KEYS", "*"],
        &["FLUSHALL"],
        &["CLUSTER", "RESET"],
        &["CLUSTER", "FAILOVER"],
        &["SET", "lockgate:other:deny:all", "1"],
    ] {
        let error = ask(&mut links, words).await.expect_err(&words.join(" "));
        assert_eq!(error.code(), Some("NOPERM"), "{words:?}: {error}");
    }
}

/// While no replica answers, no revocation is acknowledged, and the call says so. With the replicas it is acknowledged again.
async fn needs_a_replica(gateway: &Gateway, cluster: &Cluster) {
    for replica in &cluster.nodes[3..] {
        replica.freeze();
    }
    let mut socket = dial(gateway, "unacknowledged").await;
    let body = json!({"jti": "unacknowledged", "exp": token::now() + 300});
    let asked = Instant::now();
    let answer = api(gateway, "POST", "revocations", &body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{answer:?}");
    for replica in &cluster.nodes[3..] {
        replica.thaw();
    }
    eventually(PATIENCE, "the revocation is acknowledged", async || {
        let answer = api(gateway, "POST", "revocations", &body).await;
        match answer.status {
            200 => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
    assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
    let tenant = gateway.tenant();
    let mut claims = token::access(ALICE);
    claims["jti"] = "unacknowledged".into();
    let refused = gateway.replicas[1].dial(tenant, CHAT);
    let refused = refused.token(&tenant.sign(&claims)).refused().await;
    assert_eq!(refused.status, 401, "{refused:?}");
}

/// Before: each URL had a block, and the second `ACL SETUSER … reset` took away what the first had given.
#[tokio::test]
async fn two_urls_of_one_cluster_give_each_user_all_of_its_rights() {
    let nodes = vec![node(&[]).await, node(&[]).await, node(&[]).await];
    let cluster = Cluster::of_masters(nodes).await;
    let at = |node: usize| format!("redis+cluster://{}", cluster.nodes[node].endpoint());
    let gateway = gateway()
        .redis(&at(0))
        .tenant("one")
        .without_layer_kind()
        .tenant("other")
        .with("redis.url", at(1))
        .without_layer_kind()
        // Its revocations and its events come by two URLs.
        .tenant("split")
        .with("layer.hosts", vec![at(2)])
        .without_layer_kind()
        .write()
        .await;
    let users = set_users(&gateway, &cluster).await;
    let (mut names, count) = (users.clone(), users.len());
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "each user has one line: {users:?}");
    let may = async |user: &str, command: &[&str]| {
        for node in &cluster.nodes {
            let words = [&["ACL", "DRYRUN", user], command].concat();
            let answer: String = node.command(&words).await;
            assert_eq!(answer, "OK", "{user} {command:?}");
        }
    };
    for word in ["one", "other", "split"] {
        let tenant = gateway.named(word);
        let channel = format!("{}__group__lobby", tenant.prefix);
        may("lockgate", &["SSUBSCRIBE", &channel]).await;
        let back_end = format!("{}-backend", tenant.name);
        may(&back_end, &["SPUBLISH", &channel, "x"]).await;
        let denied = tenant.redis_key("deny:jti:x");
        may(&back_end, &["SET", &denied, "1"]).await;
    }
    let text = doctor(&gateway.config, &["--acl"]).text;
    assert!(
        text.contains("send its lines to every node, replicas"),
        "{text}"
    );
    for node in &cluster.nodes {
        assert_eq!(text.matches(&node.endpoint()).count(), 1, "{text}");
    }
}
