//! The denylist saved and put back by the commands of `docs/denylist-backup.md`.

use std::path::Path;
use std::process::Command;

use crate::problem::Problem;
use crate::support::cluster::Cluster;
use crate::support::database::{ALICE, BOB};
use crate::support::{Database, RedisServer, gateway, token};

const PAGE: &str = include_str!("../../../docs/denylist-backup.md");

/// Runs the page's block of a shell that has this text, after these lines.
fn run_block(block: &str, before: &str, folder: &Path) {
    let blocks = PAGE.split("```sh\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("```").next());
    let shown = blocks.find(|shown| shown.contains(block)).expect(block);
    let script = format!("{before}\nset -e\n{shown}");
    let done = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
}

/// Runs the page's block that has this text against this Redis.
fn run(block: &str, redis: &RedisServer, folder: &Path) {
    let url = redis.url();
    let before = format!("redis-cli() {{ command redis-cli -u {url} \"$@\"; }}");
    run_block(block, &before, folder);
}

/// Returns the end and the value of each key.
async fn stored(redis: &RedisServer, keys: &[String]) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    for key in keys {
        let end = redis.command(&["PEXPIRETIME", key]).await;
        found.push((end, redis.command(&["GET", key]).await));
    }
    found
}

/// A key with a space was read as two words, and the suspension of a tenant was not saved.
#[tokio::test]
async fn the_pages_commands_bring_a_lost_denylist_back() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let (revoked, other) = (tenant.token(ALICE), tenant.token(BOB));
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let body = format!(r#"{{"user_id":"{ALICE}"}}"#);
    let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let keys = [
        tenant.redis_key(&format!("deny:user:{ALICE}")),
        tenant.redis_key("deny:jti:two \"words\" "),
        "lockgate:suspended:state".to_owned(),
    ];
    let () = redis.command(&["SET", &keys[1], "1", "EX", "600"]).await;
    let () = redis.command(&["SET", &keys[2], "suspended"]).await;
    let before = stored(&redis, &keys).await;

    let folder = tempfile::tempdir().unwrap();
    run("--scan", &redis, folder.path());
    let () = redis.command(&["FLUSHALL"]).await;
    let open = |token: &str| replica.dial(tenant, "/ws/chat/lobby/").token(token);
    drop(open(&revoked).open().await);
    run("PXAT", &redis, folder.path());

    assert_eq!(stored(&redis, &keys).await, before);
    Problem::new(401, "token_revoked").is(&open(&revoked).refused().await, &tenant.name);
    open(&other).open().await;
}

/// The commands for one Redis see the keys of one node, and `SET` was answered `MOVED`.
#[tokio::test]
async fn the_denylist_of_a_cluster_is_saved_and_put_back() {
    let cluster = Cluster::start().await;
    let gateway = gateway()
        .redis(&cluster.url())
        .tenant("acme")
        .without_layer_kind()
        .users(&Database::sqlite().await)
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let mut tokens = Vec::new();
    for number in 0..20 {
        let mut claims = token::access(ALICE);
        claims["jti"] = format!("number-{number}").into();
        let body = format!(r#"{{"jti":{},"exp":{}}}"#, claims["jti"], claims["exp"]);
        let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        tokens.push(tenant.sign(&claims));
    }

    let folder = tempfile::tempdir().unwrap();
    let before = format!("node={}", cluster.nodes[0].endpoint());
    run_block("masters.txt\n", &before, folder.path());
    for node in &cluster.nodes[..3] {
        let () = node.command(&["FLUSHALL"]).await;
    }
    let open = |token: &str| replica.dial(tenant, "/ws/chat/lobby/").token(token);
    drop(open(&tokens[0]).open().await);
    run_block("cluster-denylist.txt |", &before, folder.path());
    for token in &tokens {
        Problem::new(401, "token_revoked").is(&open(token).refused().await, &tenant.name);
    }
    open(&tenant.token(BOB)).open().await;
}
