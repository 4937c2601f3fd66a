//! The count of replicas in answers: what cannot be known is said, and the registry mends itself.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::database::ALICE;
use crate::support::http::Response;
use crate::support::{Database, Gateway, RedisServer, eventually, gateway};
use crate::tenants::reload::change;

const CHAT: &str = "/ws/chat/lobby/";
/// A list is believed again ten seconds after its loss.
const MENDED_WITHIN: Duration = Duration::from_secs(40);

async fn call(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Response {
    let path = path.replace("TENANT", &gateway.tenant().name);
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let asked = &gateway.replicas[1];
    asked.api(&gateway.api_key, method, &path, &body).await
}

/// Waits until a call counts two replicas, both confirmed.
async fn acquainted(gateway: &Gateway) {
    eventually(MENDED_WITHIN, "both replicas are counted", async || {
        let path = "/v1/tenants/TENANT/connections";
        let answer = call(gateway, "GET", path, &Value::Null).await.json();
        let both = json!({"expected": 2, "confirmed": 2, "missing": []});
        match answer["replicas"] == both {
            true => Ok(()),
            false => Err(answer),
        }
    })
    .await;
}

async fn two() -> (RedisServer, Gateway) {
    // Of its own: the tests break the registry.
    let redis = RedisServer::start().await;
    let users = Database::sqlite().await;
    let gateway = gateway()
        .redis(&redis.url())
        .replicas(2)
        .tenant("acme")
        .users(&users)
        .start()
        .await;
    acquainted(&gateway).await;
    (redis, gateway)
}

/// Revokes all tokens of alice while the first replica, which has a socket of hers, is frozen. The answer must not claim that
/// every replica confirmed. On a busy machine the stop may reach that replica after its answer, which changes nothing.
async fn revoked_in_doubt(gateway: &Gateway, why: &str) {
    let body = json!({"user_id": ALICE});
    let answer = call(gateway, "POST", "/v1/tenants/TENANT/revocations", &body).await;
    let replicas = &answer.json()["replicas"];
    println!("{why}: {replicas}");
    assert_eq!(answer.status, 200, "{why}: {answer:?}");
    assert_eq!(replicas["expected"], Value::Null, "{why}: {answer:?}");
    assert!(replicas["warning"].is_string(), "{why}: {answer:?}");
}

/// Freezes the first replica with a socket of alice on it, breaks the registry, and looks at a revocation; then all is mended.
async fn broken_by(redis: &RedisServer, gateway: &Gateway, commands: &[&[&str]], mend: &[&str]) {
    let tenant = gateway.tenant();
    let first = &gateway.replicas[0];
    let mut claims = crate::support::token::access(ALICE);
    // Issued in the future: the cut-offs of earlier calls do not concern it.
    claims["iat"] = json!(claims["iat"].as_u64().unwrap() - 60);
    let key = tenant.redis_key("deny:user:1");
    let _: i64 = redis.command(&["DEL", &key]).await;
    let dial = first.dial(tenant, CHAT).token(&tenant.sign(&claims));
    let mut alice = dial.open().await;
    first.process.signal(Signal::STOP);
    for command in commands {
        let _: ::redis::Value = redis.command(command).await;
    }
    revoked_in_doubt(gateway, &format!("{commands:?}")).await;
    if !mend.is_empty() {
        let _: ::redis::Value = redis.command(mend).await;
    }
    first.process.signal(Signal::CONT);
    assert_eq!(alice.closed().await.0, 4501);
    acquainted(gateway).await;
}

/// Each used to answer `expected 1, confirmed 1` while the frozen replica kept the socket.
#[tokio::test]
async fn a_broken_list_of_replicas_is_told_and_mended() {
    let (redis, gateway) = two().await;
    let list = gateway.tenant().redis_key("replicas");
    broken_by(&redis, &gateway, &[&["DEL", &list]], &[]).await;
    broken_by(&redis, &gateway, &[&["SET", &list, "x"]], &[]).await;
    let kind: String = redis.command(&["TYPE", &list]).await;
    assert_eq!(kind, "set");
    let refuse = ["ACL", "SETUSER", "default", "-sadd", "-sscan", "-smembers"];
    let grant = ["ACL", "SETUSER", "default", "+@all"];
    broken_by(&redis, &gateway, &[&refuse], &grant).await;
}

/// A replica that is frozen for so long that its entry has expired still holds its sockets. It used not to be counted.
#[tokio::test]
async fn a_replica_that_is_frozen_for_long_is_not_forgotten() {
    let (redis, gateway) = two().await;
    let first = &gateway.replicas[0];
    let mut alice = gateway.open(CHAT).await;
    first.process.signal(Signal::STOP);
    eventually(MENDED_WITHIN, "its entry expires", async || {
        let alive: Vec<String> = redis.command(&["KEYS", "lockgate::replica:*"]).await;
        match alive.len() {
            1 => Ok(()),
            _ => Err(alive),
        }
    })
    .await;
    revoked_in_doubt(&gateway, "expired").await;
    first.process.signal(Signal::CONT);
    assert_eq!(alice.closed().await.0, 4501);
    acquainted(&gateway).await;
}

/// Every call that counts replicas says it, not only revocations.
#[tokio::test]
async fn all_calls_tell_that_replicas_cannot_be_counted() {
    let (redis, gateway) = two().await;
    gateway.replicas[0].process.signal(Signal::STOP);
    for list in [
        &*gateway.tenant().redis_key("replicas"),
        "lockgate::replicas",
    ] {
        let _: i64 = redis.command(&["DEL", list]).await;
    }
    let event = json!({"type": "x"});
    for (method, path, body) in [
        ("GET", "tenants/TENANT/connections", &Value::Null),
        ("GET", "tenants/TENANT/groups/chat_lobby", &Value::Null),
        ("POST", "tenants/TENANT/users/1/send", &event),
        ("POST", "tenants/TENANT/users/1/disconnect", &json!({})),
        ("POST", "tenants/TENANT/users/1/invalidate", &Value::Null),
        ("POST", "tenants/TENANT/suspend", &Value::Null),
        ("POST", "tenants/TENANT/resume", &Value::Null),
        ("POST", "reload", &Value::Null),
    ] {
        let answer = call(&gateway, method, &format!("/v1/{path}"), body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let replicas = &answer.json()["replicas"];
        assert_eq!(replicas["expected"], Value::Null, "{path}: {answer:?}");
        assert!(replicas["warning"].is_string(), "{path}: {answer:?}");
    }
    let list = call(&gateway, "GET", "/v1/tenants", &Value::Null)
        .await
        .json();
    assert_eq!(list["tenants"][0]["connections"], Value::Null, "{list}");
    let labels = [("tenant", gateway.tenant().name.as_str())];
    let asked = gateway.replicas[1].metrics().await;
    assert!(asked.value("lockgate_replicas_unknown_total", &labels) >= 7.0);
    gateway.replicas[0].process.signal(Signal::CONT);
    acquainted(&gateway).await;
}

/// The channel of all replicas used to stay on the Redis of the start: a reload that moved the tenants left it there, and the next
/// one reached no other replica once the old server was gone.
#[tokio::test]
async fn a_reload_moves_the_channel_of_all_replicas_to_another_redis() {
    let (old, new) = (RedisServer::start().await, RedisServer::start().await);
    let gateway = gateway()
        .redis(&old.url())
        .replicas(2)
        .tenant("acme")
        .start()
        .await;
    gateway.know_each_other().await;
    change(&gateway, |table| table["redis"]["url"] = new.url().into());
    // It reaches the replica that still hears the old channel.
    let answer = call(&gateway, "POST", "/v1/reload", &Value::Null).await;
    assert_eq!(answer.json()["applied"], 2, "{answer:?}");
    old.kill();
    let all = json!({"expected": 2, "confirmed": 2, "missing": []});
    eventually(MENDED_WITHIN, "both are on the new one", async || {
        let answer = call(&gateway, "POST", "/v1/reload", &Value::Null).await;
        match (
            answer.json()["replicas"] == all,
            answer.json()["applied"].as_u64(),
        ) {
            (true, Some(2)) => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
    let listed: u64 = new.command(&["SCARD", "lockgate::replicas"]).await;
    assert_eq!(listed, 2);
}
