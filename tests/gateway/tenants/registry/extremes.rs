//! A registry that is slow, hangs, is newer than the binary, or larger than any: the others notice nothing.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::support::database::ALICE;
use crate::support::proxy::{Line, Proxy};
use crate::support::{PATIENCE, eventually, within};

/// The columns of a tenant, as the API fills them.
const COLUMNS: &str = "name, config, version, made, created_at, updated_at, serial";

/// A registry behind a proxy, with a tenant.
async fn behind_a_proxy() -> (Proxy, Gateway, Tenant, Value) {
    let server = PostgresServer::shared().await;
    let store = Store::postgres().await;
    let proxy = Proxy::to(&server.endpoint()).await;
    let url = store.database.url();
    let through = url.replace(&server.endpoint(), &proxy.endpoint());
    let gateway = Store::at(through).gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    (proxy, gateway, acme, document)
}

/// Nothing that a handshake, an event, a list or a reload needs waits for the registry.
async fn nobody_waits(gateway: &Gateway, known: &Tenant) {
    let soon = Duration::from_secs(5);
    let replica = gateway.replica();
    let mut of_file = within(soon, "a socket of the file's tenant", gateway.open(CHAT)).await;
    let dial = replica.dial(known, CHAT).token(&known.token(ALICE));
    within(soon, "a socket of a known tenant", dial.open()).await;
    within(soon, "an event", async {
        gateway
            .send("chat_lobby", &json!({"type": "x", "n": 1}))
            .await;
        assert_eq!(of_file.next_json().await, json!({"n": 1}));
    })
    .await;
    let list = replica.api(&gateway.api_key, "GET", "/v1/tenants", "");
    assert_eq!(within(soon, "the list of tenants", list).await.status, 200);
    let reload = crate::tenants::reload::hang_up(gateway, crate::tenants::reload::APPLIED);
    within(soon, "a reload", reload).await;
}

#[tokio::test]
async fn a_slow_registry_holds_up_its_own_calls_alone() {
    let (proxy, gateway, acme, mut document) = behind_a_proxy().await;
    let delay = Duration::from_millis(50);
    proxy.set(Line::Slow(delay));
    document["limits"] = json!({"connections": 3});
    let change = async {
        let began = Instant::now();
        let changed = put(&gateway, &acme, &document).await;
        (changed, began.elapsed())
    };
    let ((changed, took), ()) = tokio::join!(change, nobody_waits(&gateway, &acme));
    // It was slow indeed, and done: it reads, and it writes.
    assert!(took > 2 * delay, "{took:?}");
    assert_eq!(changed["version"], 2);
}

#[tokio::test]
async fn a_registry_that_hangs_fails_its_own_calls_alone() {
    let (proxy, gateway, acme, document) = behind_a_proxy().await;
    proxy.set(Line::Clogged);
    let change = call(&gateway, "PUT", &acme, &document);
    let change = within(4 * PATIENCE, "an answer to the change", change);
    let (answer, ()) = tokio::join!(change, nobody_waits(&gateway, &acme));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    gateway
        .replica()
        .logged("The registry of tenants cannot be read")
        .await;
    proxy.set(Line::Open);
    eventually(4 * PATIENCE, "a change is taken again", async || {
        let answer = call(&gateway, "PUT", &acme, &document).await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
}

#[tokio::test]
async fn tables_of_a_newer_binary_stop_the_start_unless_this_one_can_read_them() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let config = gateway.config.clone();
    let newer = |readable_by: u32| {
        format!(
            "INSERT INTO lockgate_registry_schema (version, readable_by, applied_at) \
             VALUES ({}, {readable_by}, 0)",
            900 + readable_by
        )
    };
    // Changes that this binary need not know.
    store.database.execute(&newer(1)).await;
    let replica = Replica::start(&config).await;
    replica.ready().await;
    let dial = || replica.dial(&acme, CHAT).token(&acme.token(ALICE));
    dial().open().await;

    store.database.execute(&newer(99)).await;
    let refused = Replica::program(&config).start();
    assert_eq!(refused.exited(PATIENCE).await.code(), Some(1));
    let told = refused.output.text();
    assert!(told.contains("needs a newer binary"), "{told}");
    // Those that run go on.
    dial().open().await;
}

/// As two programs write them that go past the API.
#[tokio::test]
async fn of_two_rows_with_one_host_the_older_one_is_served() {
    let store = Store::sqlite();
    drop(store.gateway().start().await);
    let mut tenants = Vec::new();
    for (word, made) in [("b-older", 1), ("a-newer", 2), ("c-apart", 3)] {
        let (tenant, mut document) = registered(word).await;
        let host = match word {
            "c-apart" => "apart.test",
            _ => "one.test",
        };
        document["hosts"] = json!([host]);
        let row = format!("('{}', '{document}', 1, {made}, 0, 0, {made})", tenant.name);
        let insert = format!("INSERT INTO lockgate_tenant ({COLUMNS}) VALUES {row}");
        store.database.execute(&insert).await;
        let host = host.to_owned();
        tenants.push(Tenant { host, ..tenant });
    }
    let count = "UPDATE lockgate_registry SET serial = 3";
    store.database.execute(count).await;
    let gateway = store.gateway().start().await;
    let [older, newer, apart] = &tenants[..] else {
        panic!("three tenants")
    };
    let replica = gateway.replica();
    let dial = |tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    dial(older).open().await;
    dial(apart).open().await;
    gateway.open(CHAT).await;
    // The host is the older one's, whose key did not sign this.
    assert_eq!(dial(newer).refused().await.status, 401);
    let why = reason(&gateway, replica, newer).await.to_string();
    assert!(
        why.contains("one.test") && why.contains(&older.name),
        "{why}"
    );
    for served in [older, apart] {
        assert_eq!(reason(&gateway, replica, served).await, Value::Null);
    }
}

/// Before, it did not listen, and a change that came meanwhile was made when its caller had long gone.
#[tokio::test]
async fn while_the_registry_is_read_for_the_first_time_the_files_are_served_and_changes_are_refused()
 {
    let store = Store::postgres().await;
    let before = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&before, &acme, &document).await;
    drop(before);
    let lock = store.database.lock("lockgate_tenant").await;
    let gateway = store.gateway().set("server.ready_wait", "1s").start().await;
    gateway.open(CHAT).await;
    let replica = gateway.replica();
    let dial = || replica.dial(&acme, CHAT).token(&acme.token(ALICE));
    assert_eq!(dial().refused().await.status, 503);
    for (method, body) in [("PUT", &document), ("DELETE", &json!({}))] {
        let answer = call(&gateway, method, &acme, body).await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    drop(lock);
    eventually(4 * PATIENCE, "its tenant is served", async || {
        dial().attempt().await.map(drop)
    })
    .await;
    assert_eq!(put(&gateway, &acme, &document).await["version"], 2);
}

/// Before, `/readyz` answered 200 when the last tenant was read, and refused its handshakes until it was served.
#[tokio::test]
async fn a_replica_is_ready_once_the_tenants_of_a_large_registry_are_served() {
    let (store, last) = filled(6_000).await;
    let config = store.gateway().set("server.ready_wait", "120s");
    let gateway = config.start().await;
    gateway.replica().ready().await;
    let dial = gateway.replica().dial(&last, CHAT);
    dial.token(&last.token(ALICE)).open().await;
}

/// A registry of `count` tenants, and the last of them.
async fn filled(count: u64) -> (Store, Tenant) {
    let store = Store::postgres().await;
    drop(store.gateway().start().await);
    let (form, mut document) = registered("m").await;
    document["hosts"] = json!(["m-NUMBER.test"]);
    document["layer"]["prefix"] = "m-NUMBER-".into();
    let fill = format!(
        "INSERT INTO lockgate_tenant ({COLUMNS}) \
         SELECT 'm-' || n, REPLACE('{document}', 'NUMBER', CAST(n AS TEXT)), 1, n, 0, 0, n \
         FROM generate_series(1, {count}) n"
    );
    store.database.execute(&fill).await;
    let serial = format!("UPDATE lockgate_registry SET serial = {count}");
    store.database.execute(&serial).await;
    let last = Tenant {
        name: format!("m-{count}"),
        host: format!("m-{count}.test"),
        ..form
    };
    (store, last)
}

/// Before: all of them came into memory at once, whoever wrote them into the table.
#[tokio::test]
async fn documents_of_50_mb_and_many_of_a_megabyte_cost_a_part_of_that() {
    let store = Store::postgres().await;
    drop(store.gateway().start().await);
    let (acme, document) = registered("acme").await;
    let fill = |name: &str, value: &str, from: u64, to: u64| {
        format!(
            "INSERT INTO lockgate_tenant ({COLUMNS}) SELECT '{name}-' || n, {value}, 1, n, 0, 0, n \
             FROM generate_series({from}, {to}) n"
        )
    };
    // As text and as JSON: the second is read, and refused for what it says.
    for sql in [
        fill("long", "repeat('x', 52428800)", 1, 4),
        fill(
            "wide",
            "json_build_object('a', repeat('x', 1048576))::text",
            5,
            104,
        ),
        "UPDATE lockgate_registry SET serial = 104".to_owned(),
    ] {
        store.database.execute(&sql).await;
    }
    let gateway = store.gateway().start().await;
    put(&gateway, &acme, &document).await;
    let replica = gateway.replica();
    eventually(PATIENCE, "it is served", async || {
        let dial = replica.dial(&acme, CHAT).token(&acme.token(ALICE));
        dial.attempt().await.map(drop)
    })
    .await;
    let (long, wide) = (named(&acme, "long-1"), named(&acme, "wide-104"));
    let why = reason(&gateway, replica, &long).await.to_string();
    assert!(why.contains("longer than 2 MiB"), "{why}");
    assert_ne!(reason(&gateway, replica, &wide).await, Value::Null);
    let peak = replica.process.peak_memory() >> 20;
    println!("{peak} MiB");
    assert!(peak < 160, "{peak} MiB");
}

/// A tenant of this name, and otherwise the same.
fn named(tenant: &Tenant, name: &str) -> Tenant {
    Tenant {
        name: name.to_owned(),
        ..tenant.clone()
    }
}

/// `LOCKGATE_TEST_TENANTS` is another number than a million. It prints time and memory.
#[tokio::test]
#[ignore = "a million tenants take minutes and several GiB of memory"]
async fn a_registry_of_a_million_tenants_is_served_and_the_files_meanwhile() {
    let count = std::env::var("LOCKGATE_TEST_TENANTS").map_or(1_000_000, |text| {
        text.parse::<u64>()
            .expect("LOCKGATE_TEST_TENANTS is a number")
    });
    let (store, last) = filled(count).await;
    let began = Instant::now();
    let gateway = store.gateway().set("server.ready_wait", "1s").start().await;
    println!("ready after {:?}", began.elapsed());
    // Also while the registry is being read.
    gateway.open(CHAT).await;
    let replica = gateway.replica();
    let patience = Duration::from_secs(1800);
    eventually(patience, "the last tenant is served", async || {
        let dial = replica.dial(&last, CHAT).token(&last.token(ALICE));
        dial.attempt().await.map(drop)
    })
    .await;
    println!("all are known after {:?}", began.elapsed());
    let memory = replica.metrics().await;
    let memory = memory.value("process_resident_memory_bytes", &[]);
    println!("{:.2} KiB each", memory / 1024.0 / count as f64);
    let (acme, document) = registered("acme").await;
    let began = Instant::now();
    put(&gateway, &acme, &document).await;
    println!("one more after {:?}", began.elapsed());
}
