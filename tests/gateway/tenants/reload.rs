//! A new configuration is applied as a whole or not at all, and sockets that it does not concern stay.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::json;
use toml::Table;

use super::registry::Store;
use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::{
    Database, Gateway, PATIENCE, Publisher, RedisServer, Tenant, eventually, gateway,
};

const CHAT: &str = "/ws/chat/lobby/";

/// Changes the configuration file.
pub(crate) fn change(gateway: &Gateway, edit: impl FnOnce(&mut Table)) {
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    let mut table: Table = text.parse().unwrap();
    edit(&mut table);
    std::fs::write(&gateway.config, table.to_string()).unwrap();
}

pub(crate) fn tenant_table<'t>(table: &'t mut Table, tenant: &Tenant) -> &'t mut Table {
    let tenants = table["tenants"].as_table_mut().unwrap();
    tenants[&tenant.name].as_table_mut().unwrap()
}

/// Sends SIGHUP and waits until the file is applied (1), or refused (0).
pub(crate) async fn hang_up(gateway: &Gateway, outcome: &str) {
    let replica = gateway.replica();
    let before = replica.process.output.text().matches(outcome).count();
    replica.process.signal(Signal::HUP);
    eventually(PATIENCE, outcome, async || {
        let now = replica.process.output.text().matches(outcome).count();
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
}

pub(crate) const APPLIED: &str = "Applied the configuration";
pub(crate) const REFUSED: &str = "Did not apply the configuration";

#[tokio::test]
async fn changed_tenants_change_and_the_others_notice_nothing() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .tenant("same")
        .tenant("limited")
        .tenant("routes")
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']")
        .route("path = 'ws/gone/'\n groups = ['gone']")
        .route("path = 'ws/other/'\n groups = ['other']")
        .tenant("moved")
        .tenant("removed")
        .start()
        .await;
    let replica = gateway.replica();
    let open = async |word: &str, path: &str| {
        let tenant = gateway.named(word);
        let dial = replica.dial(tenant, path);
        dial.token(&tenant.token(ALICE)).open().await
    };
    let mut same = open("same", CHAT).await;
    let mut limited = open("limited", CHAT).await;
    let mut kept = open("routes", CHAT).await;
    let mut gone = open("routes", "/ws/gone/").await;
    let mut other = open("routes", "/ws/other/").await;
    let mut moved = open("moved", CHAT).await;
    let mut removed = open("removed", CHAT).await;
    let publisher = Publisher::new(redis, &gateway.named("same").prefix).await;

    change(&gateway, |table| {
        let limits: Table = "message_size = '10B'\nconnections = 1".parse().unwrap();
        tenant_table(table, gateway.named("limited")).insert("limits".into(), limits.into());
        let routes = tenant_table(table, gateway.named("routes"));
        let routes = routes["routes"].as_array_mut().unwrap();
        routes.remove(1);
        let changed = routes[1].as_table_mut().unwrap();
        changed.insert("groups".into(), vec!["another"].into());
        let layer = tenant_table(table, gateway.named("moved"));
        let layer = layer["layer"].as_table_mut().unwrap();
        let prefix = format!("{}x", gateway.named("moved").prefix);
        layer.insert("prefix".into(), prefix.into());
        let removed = &gateway.named("removed").name;
        table["tenants"].as_table_mut().unwrap().remove(removed);
    });
    hang_up(&gateway, APPLIED).await;

    // A wait would not bring the route or the tenant back, and used to be named.
    assert_eq!(gone.closed().await, (4018, "route_not_found".into()));
    let (code, reason) = other.closed().await;
    assert_eq!(code, 1012);
    assert!(reason.starts_with("draining retry_after_ms="), "{reason}");
    assert_eq!(moved.closed().await.0, 1012);
    assert_eq!(removed.closed().await, (4017, "tenant_not_found".into()));
    let host = gateway.named("removed");
    let dial = replica.dial(host, CHAT).token(&host.token(ALICE));
    assert_eq!(dial.refused().await.status, 404);
    assert!(kept.ping().await.is_empty());
    // New limits hold for the socket that was open.
    let limited_tenant = gateway.named("limited");
    let dial = replica.dial(limited_tenant, CHAT);
    let refusal = dial.token(&limited_tenant.token(ALICE)).refused().await;
    Problem::new(429, "too_many_connections").is(&refusal, &limited_tenant.name);
    limited.send_text("more than ten bytes").await;
    assert_eq!(limited.closed().await.0, 1009);
    open("moved", CHAT).await;
    open("routes", "/ws/other/").await;
    publisher
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(same.next_json().await, json!({"n": 1}));
}

/// What a tenant had recorded of its Redis stood in the way of others with its names after it had moved to memory.
#[tokio::test]
async fn a_tenant_that_leaves_its_redis_leaves_its_names() {
    let gateway = gateway().tenant("first").tenant("second").start().await;
    let (first, second) = (gateway.named("first"), gateway.named("second"));
    let replica = gateway.replica();
    let dial = |tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    dial(first).open().await;
    let layer = async |tenant: &Tenant, key: &str, value: &str| {
        change(&gateway, |table| {
            let layer = tenant_table(table, tenant)["layer"].as_table_mut().unwrap();
            layer.insert(key.into(), value.into());
        });
        hang_up(&gateway, APPLIED).await;
    };
    layer(first, "kind", "memory").await;
    layer(second, "prefix", &first.prefix).await;
    dial(second).open().await;
    dial(first).open().await;
}

#[tokio::test]
async fn a_file_with_a_mistake_changes_nothing() {
    let gateway = gateway().tenant("acme").start().await;
    let mut socket = gateway.open(CHAT).await;
    let replica = gateway.replica();
    change(&gateway, |table| {
        tenant_table(table, gateway.tenant()).insert("hots".into(), "x".into());
    });
    hang_up(&gateway, REFUSED).await;
    replica
        .metric("lockgate_config_reload_successful", &[], |ok| ok == 0.0)
        .await;
    replica.logged("hots").await;
    assert!(socket.ping().await.is_empty());
    change(&gateway, |table| {
        tenant_table(table, gateway.tenant()).remove("hots");
        let server = table["server"].as_table_mut().unwrap();
        server.insert("max_connections".into(), 7.into());
    });
    hang_up(&gateway, REFUSED).await;
    replica.logged("[server] other than drain").await;
    change(&gateway, |table| {
        drop(
            table["server"]
                .as_table_mut()
                .unwrap()
                .remove("max_connections"),
        );
    });
    hang_up(&gateway, APPLIED).await;
    replica
        .metric("lockgate_config_reload_successful", &[], |ok| ok == 1.0)
        .await;
    assert!(socket.ping().await.is_empty());
}

/// A handshake that a reload overtakes is judged by the new configuration, whether its tenant changed in place or moved to
/// another prefix. Before: 73 of 149 connects were refused with 503.
#[tokio::test]
async fn a_handshake_that_a_reload_overtakes_is_judged_by_the_new_configuration() {
    const RELOADS: usize = 20;
    let gateway = gateway()
        .tenant("acme")
        // Slow handshakes: several are under way at each moment.
        .route(
            "path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n \
             authorize = \"SELECT 1 FROM pg_sleep(0.1) WHERE :user_id > 0 AND :room <> ''\"",
        )
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let reloading = AtomicBool::new(true);
    let (connected, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let connect_again_and_again = async |client: usize| {
        for number in 0.. {
            if !reloading.load(Ordering::Relaxed) {
                return;
            }
            // A room of its own, so that no verdict is cached.
            let path = format!("/ws/chat/{client}-{number}/");
            let dial = replica.dial(tenant, &path);
            let count = match dial.token(&tenant.token(ALICE)).attempt().await {
                Ok(_) => &connected,
                Err(_) => &refused,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let reload = async {
        for number in 1..=RELOADS {
            let before = connected.load(Ordering::Relaxed);
            change(&gateway, |table| {
                let tenant_table = tenant_table(table, tenant);
                let limits: Table = format!("connections = {}", 1000 + number).parse().unwrap();
                tenant_table.insert("limits".into(), limits.into());
                let layer = tenant_table["layer"].as_table_mut().unwrap();
                let moved = "x".repeat(number / 2 % 2);
                let prefix = format!("{}{moved}", tenant.prefix);
                layer.insert("prefix".into(), prefix.into());
            });
            hang_up(&gateway, APPLIED).await;
            eventually(PATIENCE, "connects go on", async || {
                let now = connected.load(Ordering::Relaxed);
                if now > before + 2 { Ok(()) } else { Err(now) }
            })
            .await;
        }
        reloading.store(false, Ordering::Relaxed);
    };
    let clients = futures_util::future::join_all((0..4).map(connect_again_and_again));
    tokio::join!(reload, clients);
    let outcome = (refused.into_inner(), connected.into_inner());
    assert_eq!(outcome.0, 0, "refused, connected: {outcome:?}");
}

/// A listener is not moved under its clients: the key is named, and what else changed is not applied either.
#[tokio::test]
async fn another_address_to_listen_on_is_refused_by_the_name_of_its_key() {
    let gateway = gateway().tenant("acme").start().await;
    let mut socket = gateway.open(CHAT).await;
    let replica = gateway.replica();
    let before = std::fs::read_to_string(&gateway.config).unwrap();
    for section in ["server", "admin", "api"] {
        change(&gateway, |table| {
            let section = table[section].as_table_mut().unwrap();
            section.insert("listen".into(), "127.0.0.1:1".into());
            let limits: Table = "connections = 1".parse().unwrap();
            tenant_table(table, gateway.tenant()).insert("limits".into(), limits.into());
        });
        hang_up(&gateway, REFUSED).await;
        let key = format!("these keys need a restart: {section}.listen");
        let line = replica.logged(&key).await;
        assert!(!line.contains("other than"), "{line}");
        std::fs::write(&gateway.config, &before).unwrap();
    }
    // The limit did not come with it.
    let mut second = gateway.open(CHAT).await;
    assert!(second.ping().await.is_empty());
    hang_up(&gateway, APPLIED).await;
    assert!(socket.ping().await.is_empty());
}

/// A change between the reload that turned `watch` on and its first look, up to a second later, was never seen.
#[tokio::test]
async fn a_change_just_after_watch_was_turned_on_is_seen() {
    let gateway = gateway().tenant("acme").start().await;
    change(&gateway, |table| {
        drop(table.insert("watch".into(), true.into()))
    });
    hang_up(&gateway, APPLIED).await;
    change(&gateway, |table| {
        let host = vec!["another.test".to_owned()];
        tenant_table(table, gateway.tenant()).insert("hosts".into(), host.into());
    });
    let another = Tenant {
        host: "another.test".to_owned(),
        ..gateway.tenant().clone()
    };
    eventually(PATIENCE, "the change is served", async || {
        let dial = gateway.replica().dial(&another, CHAT);
        dial.token(&another.token(ALICE)).attempt().await.map(drop)
    })
    .await;
}

/// As a mounted ConfigMap changes: the file is a link, and what it leads to is exchanged.
#[tokio::test]
async fn a_link_that_is_turned_is_a_change_that_is_seen() {
    let mut gateway = gateway().set("watch", true).tenant("acme").write().await;
    let dir = gateway.config.parent().unwrap().to_owned();
    let key_file = dir.join("signing-key");
    std::fs::write(&key_file, &gateway.tenant().key).unwrap();
    change(&gateway, |table| {
        let token = tenant_table(table, gateway.tenant());
        let token = token["token"].as_table_mut().unwrap();
        let file: Table = format!("file = '{}'", key_file.display()).parse().unwrap();
        token.insert("signing_key".into(), file.into());
    });
    let (real, next) = (dir.join("1.toml"), dir.join("2.toml"));
    std::fs::rename(&gateway.config, &real).unwrap();
    symlink(&real, &gateway.config).unwrap();
    gateway.add_replica().await;
    gateway.replica().ready().await;
    let mut socket = gateway.open(CHAT).await;

    let mut table: Table = std::fs::read_to_string(&real).unwrap().parse().unwrap();
    let limits: Table = "connections = 1".parse().unwrap();
    tenant_table(&mut table, gateway.tenant()).insert("limits".into(), limits.into());
    std::fs::write(&next, table.to_string()).unwrap();
    let turned = dir.join("turned");
    symlink(&next, &turned).unwrap();
    std::fs::rename(&turned, &gateway.config).unwrap();
    let replica = gateway.replica();
    replica.logged(APPLIED).await;
    let tenant = gateway.tenant();
    let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    Problem::new(429, "too_many_connections").is(&dial.refused().await, &tenant.name);
    assert!(socket.ping().await.is_empty());

    // A secret's file is watched too: the key is another now.
    std::fs::write(&key_file, "another signing key, as long as it needs to be").unwrap();
    eventually(PATIENCE, "the old key is not taken any more", async || {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        match dial.refused().await.status {
            401 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    assert!(socket.ping().await.is_empty());
}

#[tokio::test]
async fn a_suspended_tenant_is_refused_and_closed_until_it_is_resumed() {
    let redis = RedisServer::shared().await;
    is_suspended_until_resumed(redis, gateway().tenant("acme").tenant("other")).await;
}

#[tokio::test]
async fn a_suspended_tenant_of_the_registry_is_refused_and_closed_until_it_is_resumed() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let two = gateway().redis(&redis.url()).tenant("acme").tenant("other");
    is_suspended_until_resumed(&redis, store.holds(two)).await;
}

async fn is_suspended_until_resumed(redis: &RedisServer, builder: Builder) {
    let gateway = builder.start().await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    let mut socket = gateway.open(CHAT).await;
    let mut neighbour = replica
        .dial(other, CHAT)
        .token(&other.token(ALICE))
        .open()
        .await;
    let tell = async |op: &str| {
        let message = json!({"v": 1, "op": op}).to_string();
        let channel = acme.redis_key("control");
        let () = redis.command(&["PUBLISH", &channel, &message]).await;
    };
    let () = redis
        .command(&["SET", &acme.redis_key("state"), "suspended"])
        .await;
    tell("suspend").await;
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4016);
    assert!(reason.starts_with("tenant_suspended retry_after_ms="));
    let dial = || replica.dial(acme, CHAT).token(&acme.token(ALICE));
    Problem::new(403, "tenant_suspended").is(&dial().refused().await, &acme.name);
    assert!(neighbour.ping().await.is_empty());
    // It outlives a reload.
    hang_up(&gateway, APPLIED).await;
    Problem::new(403, "tenant_suspended").is(&dial().refused().await, &acme.name);
    let () = redis.command(&["DEL", &acme.redis_key("state")]).await;
    tell("resume").await;
    eventually(PATIENCE, "the tenant is served", async || {
        dial().attempt().await.map(drop)
    })
    .await;
}

/// A check of the dependencies joins a group for a moment to see whether it may. It used to be `lockgate.probe`, and the end of the
/// check ended the subscription of the sockets in a group of that name: their events were lost.
#[tokio::test]
async fn a_group_with_the_name_of_the_old_probe_keeps_its_events() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .users(&Database::sqlite().await)
        .route("path = 'ws/probe/'\n groups = ['lockgate.probe']")
        .start()
        .await;
    let mut socket = gateway.open("/ws/probe/").await;
    let checks = async || {
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let line = stats
            .lines()
            .find_map(|l| l.strip_prefix("cmdstat_unsubscribe:calls="));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    let before = checks().await;
    // A changed tenant is checked at once.
    change(&gateway, |table| {
        let limits = Table::from_iter([("messages_per_second".to_owned(), 49.into())]);
        tenant_table(table, gateway.tenant()).insert("limits".into(), limits.into());
    });
    hang_up(&gateway, APPLIED).await;
    eventually(PATIENCE, "the end of a check", async || {
        let now = checks().await;
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
    let publisher = Publisher::new(&redis, &gateway.tenant().prefix).await;
    publisher
        .send("lockgate.probe", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
}
