//! A registry that is wrong in one row, behind, or away: each is clear, and nobody else is concerned.

use serde_json::json;

use super::*;
use crate::support::database::ALICE;
use crate::support::proxy::{Line, Proxy};
use crate::support::{PATIENCE, eventually};

/// Waits until the replica has seen what is wrong with a tenant, by looking for changes itself.
async fn degraded(gateway: &Gateway, replica: &Replica, tenant: &Tenant, why: &str) {
    eventually(2 * PATIENCE, why, async || {
        let reason = reason(gateway, replica, tenant).await;
        match reason.as_str().is_some_and(|reason| reason.contains(why)) {
            true => Ok(()),
            false => Err(reason),
        }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_row_degrades_its_tenant_alone() {
    let store = Store::sqlite();
    let mut gateway = store.gateway().start().await;
    let mut tenants = Vec::new();
    for word in ["good", "text", "key", "host"] {
        let (tenant, document) = registered(word).await;
        put(&gateway, &tenant, &document).await;
        tenants.push((tenant, document));
    }
    let [(good, _), (text, _), (key, _), (host, document)] = &tenants[..] else {
        panic!("four tenants")
    };
    let dial =
        |replica: &Replica, tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    let mut sockets = Vec::new();
    for (tenant, _) in &tenants {
        sockets.push(dial(gateway.replica(), tenant).open().await);
    }
    store.tamper(text, "config = 'no JSON'").await;
    let sealed = "config = REPLACE(config, '$sealed\":\"', '$sealed\":\"0')";
    store.tamper(key, sealed).await;
    let mut taken = document.clone();
    taken["token"]["signing_key"] = Value::Null;
    taken["hosts"] = json!([good.host]);
    store.tamper(host, &format!("config = '{taken}'")).await;
    for (tenant, why) in [
        (text, "no JSON"),
        (key, "sealed with a key that registry.key does not list"),
        (host, "token"),
    ] {
        degraded(&gateway, gateway.replica(), tenant, why).await;
        let view = show(&gateway, tenant).await;
        assert_eq!(view["state"], "degraded", "{view}");
        // The last good configuration is served.
        dial(gateway.replica(), tenant).open().await;
    }
    for socket in &mut sockets {
        socket.ping().await;
    }
    let list = gateway
        .replica()
        .api(&gateway.api_key, "GET", "/v1/tenants", "")
        .await
        .json();
    let entries = list["tenants"].as_array().unwrap();
    let count = entries
        .iter()
        .filter(|entry| entry["degraded"] == true)
        .count();
    assert_eq!((entries.len(), count), (5, 3), "{list}");
    let replica = gateway.replica();
    replica
        .metric("lockgate_registry_tenants", &[("state", "degraded")], |n| {
            n == 3.0
        })
        .await;

    // A replica that has just started has no last good configuration of them.
    gateway.add_replica().await;
    let fresh = &gateway.replicas[1];
    fresh.ready().await;
    dial(fresh, good).open().await;
    let refused = dial(fresh, host).refused().await;
    assert_eq!(
        refused.status, 404,
        "its host is not in its document any more: {refused:?}"
    );
    let refused = dial(fresh, key).refused().await;
    assert_eq!(refused.status, 503, "{refused:?}");
    dial(fresh, gateway.tenant()).open().await;

    // Mended through the API, it is served again.
    put(&gateway, key, &tenants[2].1).await;
    eventually(PATIENCE, "both replicas serve it", async || {
        dial(fresh, key).attempt().await.map(drop)
    })
    .await;
    assert_eq!(show(&gateway, key).await["state"], "served");
}

#[tokio::test]
async fn a_tenant_of_a_file_wins_over_the_registrys() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let mut alice = gateway
        .replica()
        .dial(&acme, CHAT)
        .token(&acme.token(ALICE))
        .open()
        .await;
    // A file gets a tenant of that name, with another host.
    crate::tenants::reload::change(&gateway, |table| {
        let tenants = table["tenants"].as_table_mut().unwrap();
        let mut own = tenants[&gateway.tenant().name].clone();
        let fields = own.as_table_mut().unwrap();
        fields.insert("hosts".into(), vec!["of-the-file.test"].into());
        let prefix = format!("{}-file", acme.name);
        fields["layer"]
            .as_table_mut()
            .unwrap()
            .insert("prefix".into(), prefix.into());
        tenants.insert(acme.name.clone(), own);
    });
    crate::tenants::reload::hang_up(&gateway, crate::tenants::reload::APPLIED).await;
    let of_file = Tenant {
        host: "of-the-file.test".into(),
        ..gateway.tenant().clone()
    };
    alice.closed().await;
    gateway
        .replica()
        .dial(&of_file, CHAT)
        .token(&of_file.token(ALICE))
        .open()
        .await;
    gateway
        .replica()
        .logged("Ignored a tenant of the registry")
        .await;
    assert_eq!(show(&gateway, &acme).await["source"], "file");
}

#[tokio::test]
async fn tables_that_are_behind_stop_the_start() {
    let store = Store::sqlite();
    let config = store.gateway().set("registry.migrate", false).write().await;
    let replica = Replica::program(&config.config).start();
    let status = replica.exited(PATIENCE).await;
    assert_eq!(status.code(), Some(1));
    let told = replica.output.text();
    assert!(told.contains("lockgate registry migrate"), "{told}");
}

#[tokio::test]
async fn a_registry_that_is_away_at_the_start_is_found_later() {
    let server = PostgresServer::shared().await;
    let store = Store::postgres().await;
    // The tables and a tenant are there already.
    let before = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&before, &acme, &document).await;
    drop(before);
    let proxy = Proxy::to(&server.endpoint()).await;
    proxy.set(Line::Cut);
    let through = store
        .database
        .url()
        .replace(&server.endpoint(), &proxy.endpoint());
    let gateway = Store::at(through)
        .gateway()
        .set("server.ready_wait", "1s")
        .start()
        .await;
    let replica = gateway.replica();
    replica
        .logged("The registry of tenants cannot be read")
        .await;
    gateway.open(CHAT).await;
    // Nobody can know yet whether a tenant has this host.
    let dial = || replica.dial(&acme, CHAT).token(&acme.token(ALICE));
    assert_eq!(dial().refused().await.status, 503);
    let answer = call(&gateway, "PUT", &acme, &document).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    proxy.set(Line::Open);
    eventually(PATIENCE, "the registry is read", async || {
        dial().attempt().await.map(drop)
    })
    .await;
    let nobody = replica.dial(
        &Tenant {
            host: "nobody.test".into(),
            ..acme.clone()
        },
        CHAT,
    );
    assert_eq!(nobody.refused().await.status, 404);
    // Away again, it changes nothing.
    proxy.set(Line::Cut);
    let failed = |answer: &Response| answer.status == 503;
    assert!(failed(&call(&gateway, "PUT", &acme, &document).await));
    dial().open().await;
    gateway.open(CHAT).await;
}

#[tokio::test]
async fn a_change_that_was_not_announced_is_found() {
    let store = Store::sqlite();
    let gateway = store
        .gateway()
        .without_redis()
        .set("server.ready_wait", "1s");
    let mut gateway = gateway.with("layer.kind", "memory").start().await;
    gateway.add_replica().await;
    gateway.replicas[1].ready().await;
    let (acme, mut document) = registered("acme").await;
    document["layer"] = json!({"kind": "memory"});
    put(&gateway, &acme, &document).await;
    let second = &gateway.replicas[1];
    eventually(2 * PATIENCE, "the other replica has looked", async || {
        let dial = second.dial(&acme, CHAT).token(&acme.token(ALICE));
        dial.attempt().await.map(drop)
    })
    .await;
    call(&gateway, "DELETE", &acme, &Value::Null).await;
    eventually(
        2 * PATIENCE,
        "the other replica has looked again",
        async || {
            let dial = second.dial(&acme, CHAT).token(&acme.token(ALICE));
            match dial.attempt().await {
                Err(refused) if refused.status == 404 => Ok(()),
                other => Err(other.map(drop)),
            }
        },
    )
    .await;
}

/// Of two that meet the second one by name was shut out, and the newcomer got the events of the one that was there.
#[tokio::test]
async fn a_newcomer_that_meets_a_tenant_of_the_files_is_the_one_that_is_refused() {
    let redis = RedisServer::start().await;
    let store = Store::sqlite();
    let gateway = store.gateway().redis(&redis.url()).start().await;
    let file = gateway.tenant();
    let mut of_file = gateway.open(CHAT).await;
    // Its name comes before that of the file's.
    let (acme, mut document) = registered("acme").await;
    let same = format!("redis://localhost:{}/3", redis.port());
    document["layer"] = json!({"kind": "pubsub", "prefix": file.prefix, "hosts": [same]});
    put(&gateway, &acme, &document).await;
    let dial = gateway.replica().dial(&acme, CHAT);
    assert_eq!(
        dial.token(&acme.token(ALICE)).refused().await.status,
        503,
        "its sockets would get the events of the other"
    );
    let view = show(&gateway, &acme).await;
    let reason = view["reason"].as_str().unwrap_or_default();
    assert!(
        view["state"] == "degraded" && reason.contains(&file.name),
        "{view}"
    );
    let mut another = gateway.open(CHAT).await;
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    for socket in [&mut of_file, &mut another] {
        assert_eq!(socket.next_json().await, json!({"n": 1}));
    }

    call(&gateway, "DELETE", &acme, &Value::Null).await;

    // One that is served, and then takes a layer on which it meets the other.
    let (busy, mut document) = registered("busy").await;
    put(&gateway, &busy, &document).await;
    let dial = || {
        let dial = gateway.replica().dial(&busy, CHAT);
        dial.token(&busy.token(ALICE))
    };
    dial().open().await;
    document["layer"] = json!({"kind": "pubsub", "prefix": file.prefix, "hosts": [same]});
    put(&gateway, &busy, &document).await;
    assert_eq!(dial().refused().await.status, 503);
    gateway.open(CHAT).await;
}

/// `GET` showed it, and a `PUT` of what was shown lost it.
#[tokio::test]
async fn a_secret_that_was_written_as_plain_text_is_hidden_and_kept() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (tenant, mut document) = registered("plain").await;
    put(&gateway, &tenant, &document).await;
    store
        .tamper(&tenant, &format!("config = '{document}'"))
        .await;
    let shown = show(&gateway, &tenant).await["config"].clone();
    assert_eq!(
        shown["token"]["signing_key"],
        json!({"set": true}),
        "{shown}"
    );
    put(&gateway, &tenant, &shown).await;
    let shown = show(&gateway, &tenant).await["config"].clone();
    assert_eq!(
        shown["token"]["signing_key"],
        json!({"set": true}),
        "{shown}"
    );
    let dial = gateway.replica().dial(&tenant, CHAT);
    dial.token(&tenant.token(ALICE)).open().await;

    // What names a file of the gateway is refused, and no user of a URL is shown.
    document["users"] = json!({"database": "postgres://h/db?sslkey=/etc/hunter2"});
    let refused = call(&gateway, "PUT", &tenant, &document).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    let mistake = &refused.json()["mistakes"][0];
    assert_eq!(mistake["key"], "users.database", "{refused:?}");
    assert!(!refused.body.contains("hunter2"), "{refused:?}");
}

/// Before, such a replica confirmed the change, and refused the tenant's clients.
#[tokio::test]
async fn a_replica_without_the_registry_is_missing_and_not_confirmed() {
    let redis = RedisServer::start().await;
    let other = gateway().redis(&redis.url()).tenant("file");
    let _without = other.start().await;
    let store = Store::postgres().await;
    let with = store.gateway().redis(&redis.url()).start().await;
    let (acme, document) = registered("acme").await;
    let made = call_with(&with, "PUT", &acme, ("If-None-Match", "*"), &document).await;
    assert_eq!(made.status, 201);
    let replicas = &made.json()["replicas"];
    assert_eq!([&replicas["expected"], &replicas["confirmed"]], [2, 1]);
    assert_eq!(replicas["missing"].as_array().map(Vec::len), Some(1));
    let alice = with.replica().dial(&acme, CHAT).token(&acme.token(ALICE));
    alice.open().await;
}
