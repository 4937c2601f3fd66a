//! `lockgate doctor` on groups with a memory: what they take, a Redis that evicts them, and the function of back ends.

use super::doctor::{findings, is};
use crate::support::gateway::Builder;
use crate::support::{Database, PATIENCE, RedisServer, eventually, gateway};

const SERVER: &str = "redis ";

async fn recording(url: &str) -> Builder {
    gateway()
        .redis(url)
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with_toml("groups = [{ name = 'chat_<slug:room>', history = { size = 100 } }, { name = 'news', history = { size = 1000 } }]")
}

#[tokio::test]
async fn the_memory_of_histories_is_estimated_and_an_eviction_of_them_warned_of() {
    let redis = RedisServer::start().await;
    let gateway = recording(&redis.url()).await.write().await;
    let name = &gateway.tenant().name;
    // 340 bytes for an event.
    for expected in [
        format!("{name}: chat_<slug:room>: up to 100 events, about 34 KiB"),
        "news: up to 1000 events, about 333 KiB for each group in use (with events of 300 bytes)"
            .to_owned(),
    ] {
        let found = findings(&gateway.config);
        is(&found, (SERVER, "history"), "ok", &expected);
    }
    let _: String = redis
        .command(&["CONFIG", "SET", "maxmemory", "100mb"])
        .await;
    for (policy, verdict, detail) in [
        ("noeviction", "ok", "events of 300 bytes)"),
        (
            "allkeys-lru",
            "warn",
            "Redis may evict them before their time",
        ),
        (
            "volatile-ttl",
            "warn",
            "Redis may evict them before their time",
        ),
    ] {
        let _: String = redis
            .command(&["CONFIG", "SET", "maxmemory-policy", policy])
            .await;
        let found = findings(&gateway.config);
        is(&found, (SERVER, "history"), verdict, detail);
    }
}

#[tokio::test]
async fn the_function_of_back_ends_is_looked_for() {
    let redis = RedisServer::start().await;
    let mut gateway = recording(&redis.url()).await.write().await;
    let function = (SERVER, "function");
    let found = findings(&gateway.config);
    is(
        &found,
        function,
        "note",
        "no replica has loaded the function",
    );
    gateway.add_replica().await;
    gateway.replica().ready().await;
    eventually(PATIENCE, "the replica loads it", async || {
        let found = findings(&gateway.config);
        match found.to_string().contains("back ends record is loaded") {
            true => Ok(found),
            false => Err(found),
        }
    })
    .await;
    is(&findings(&gateway.config), function, "ok", "is loaded");
}

#[tokio::test]
async fn a_user_that_may_not_list_functions_is_a_note() {
    let redis = RedisServer::start().await;
    let rules = "ACL SETUSER boss on >hunter2 ~* &* +@all -function";
    let words: Vec<&str> = rules.split(' ').collect();
    let () = redis.command(&words).await;
    let url = format!("redis://boss:hunter2@{}/0", redis.endpoint());
    let gateway = recording(&url).await.write().await;
    let found = findings(&gateway.config);
    is(
        &found,
        (SERVER, "function"),
        "note",
        "functions cannot be listed",
    );
    assert!(!found.to_string().contains("hunter2"), "{found}");
}

/// On `core` Channels records nothing itself.
#[tokio::test]
async fn the_layer_core_needs_no_function() {
    let redis = RedisServer::start().await;
    let builder = recording(&redis.url()).await.with("layer.kind", "core");
    let gateway = builder.write().await;
    let found = findings(&gateway.config);
    is(&found, (SERVER, "history"), "ok", "up to 100 events");
    assert!(!found.to_string().contains("functions"), "{found}");
    assert!(
        !found.to_string().contains("the function by which"),
        "{found}"
    );
}
