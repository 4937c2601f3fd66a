//! A tenant from its first socket to its last. An order to a tenant acts on all its sockets.

use std::time::Duration;

use serde_json::{Value, json};
use toml::Table;

use super::reload::{APPLIED, change, hang_up, tenant_table};
use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::gateway::Builder;
use crate::support::proxy::{Line, Proxy};
use crate::support::socket::Socket;
use crate::support::token::now;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, Tenant, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";

/// Starts a gateway without one of its tenants; a reload of the configuration that is answered brings it.
async fn without(word: &str, builder: Builder) -> (Gateway, String) {
    let mut gateway = builder.write().await;
    let whole = std::fs::read_to_string(&gateway.config).unwrap();
    let name = gateway.named(word).name.clone();
    change(&gateway, |table| {
        table["tenants"].as_table_mut().unwrap().remove(&name);
    });
    gateway.add_replica().await;
    (gateway, whole)
}

async fn reload(gateway: &Gateway, configuration: &str) {
    std::fs::write(&gateway.config, configuration).unwrap();
    hang_up(gateway, APPLIED).await;
}

async fn open(gateway: &Gateway, tenant: &Tenant, user: &str) -> Socket {
    let dial = gateway.replica().dial(tenant, CHAT);
    dial.token(&tenant.token(user)).open().await
}

async fn call(gateway: &Gateway, tenant: &Tenant, method: &str, path: &str, body: &Value) -> Value {
    let path = format!("/v1/tenants/{}/{path}", tenant.name);
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let answer = gateway
        .replica()
        .api(&gateway.api_key, method, &path, &body);
    let answer = answer.await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

/// Revokes every token of the tenant and answers what the API says.
async fn revoke_all(gateway: &Gateway, tenant: &Tenant) -> Value {
    let body = json!({"issued_before": now() + 60});
    call(gateway, tenant, "POST", "revocations", &body).await
}

/// Returns the number of sockets that close with each of these codes; no other code is expected.
async fn codes<const N: usize>(sockets: Vec<Socket>, expected: [u16; N]) -> [u64; N] {
    let mut count = [0; N];
    for mut socket in sockets {
        let (_, (code, reason)) = socket.drained().await;
        let at = expected.iter().position(|known| *known == code);
        count[at.unwrap_or_else(|| panic!("{code} {reason}"))] += 1;
    }
    count
}

/// The control channel of a tenant that a reload had brought was not heard for up to 30 s: the replica was missing among
/// its own answers, and the revoked socket stayed.
#[tokio::test]
async fn a_tenant_that_a_reload_brings_hears_a_revocation_with_its_first_socket() {
    let (gateway, whole) = without("late", gateway().tenant("early").tenant("late")).await;
    gateway.replica().ready().await;
    reload(&gateway, &whole).await;
    let late = gateway.named("late");
    let mut socket = open(&gateway, late, ALICE).await;
    let answer = revoke_all(&gateway, late).await;
    assert_eq!(answer["closed"], 1, "{answer}");
    assert_eq!(answer["replicas"]["missing"], json!([]), "{answer}");
    assert_eq!(socket.closed().await.0, 4501);
}

/// The same after a reload that moves a tenant to another Redis.
#[tokio::test]
async fn a_tenant_that_moves_to_another_redis_hears_a_revocation_with_its_first_socket() {
    let redis = RedisServer::start().await;
    let gateway = gateway().tenant("acme").start().await;
    change(&gateway, |table| {
        let url: Table = format!("url = '{}'", redis.url()).parse().unwrap();
        tenant_table(table, gateway.tenant()).insert("redis".into(), url.into());
    });
    hang_up(&gateway, APPLIED).await;
    let mut socket = open(&gateway, gateway.tenant(), ALICE).await;
    let answer = revoke_all(&gateway, gateway.tenant()).await;
    assert_eq!(answer["closed"], 1, "{answer}");
    assert_eq!(answer["replicas"]["missing"], json!([]), "{answer}");
    assert_eq!(socket.closed().await.0, 4501);
}

/// Before, a link with the old login stayed until the next reload, and asked Redis for its role.
#[tokio::test]
async fn links_with_a_login_that_a_reload_replaces_end_by_themselves() {
    let redis = RedisServer::start().await;
    for user in ["before", "after"] {
        let rules = ["on", ">secret", "~*", "&*", "+@all"];
        let command = [&["ACL", "SETUSER", user][..], &rules].concat();
        let () = redis.command(&command).await;
    }
    let url = |user: &str| format!("redis://{user}:secret@{}/0", redis.endpoint());
    let gateway = gateway().redis(&url("before")).tenant("acme").start().await;
    change(&gateway, |table| {
        let text = toml::to_string(table).unwrap();
        *table = text.replace("before:", "after:").parse().unwrap();
    });
    hang_up(&gateway, APPLIED).await;
    let _open = open(&gateway, gateway.tenant(), ALICE).await;
    // The last questions to the channels of the old login are heard for 30 s, and twice as long is between two looks.
    eventually(
        Duration::from_secs(100),
        "no link of the old login",
        async || {
            let links: String = redis.command(&["CLIENT", "LIST"]).await;
            let old = links.lines().filter(|link| link.contains("user=before "));
            let old: Vec<_> = old.map(str::to_owned).collect();
            if old.is_empty() { Ok(()) } else { Err(old) }
        },
    )
    .await;
}

/// With `ready_wait = "0s"` no tenant heard its control channel for 30 s.
#[tokio::test]
async fn a_start_that_waits_for_nothing_hears_a_revocation_with_the_first_socket() {
    let builder = gateway().set("server.ready_wait", "0s").tenant("acme");
    let gateway = builder.spawn().await;
    let mut socket = open(&gateway, gateway.tenant(), ALICE).await;
    let answer = revoke_all(&gateway, gateway.tenant()).await;
    assert_eq!(answer["closed"], 1, "{answer}");
    assert_eq!(socket.closed().await.0, 4501);
}

/// A tenant without the Redis of its control channel admits no client, and is served once the channel is heard.
#[tokio::test]
async fn no_socket_opens_before_the_control_channel_is_heard() {
    let redis = RedisServer::shared().await;
    let control = RedisServer::absent();
    let builder = gateway().set("server.ready_wait", "0s").tenant("acme");
    // Its groups are on a Redis that answers; the denylist's outage is no refusal.
    let builder = builder.with("redis.url", control.url());
    let builder = builder.with("layer.hosts", vec![redis.url()]);
    let gateway = builder.set("denylist.on_outage", "allow").spawn().await;
    gateway.replica().ready().await;
    let tenant = gateway.tenant();
    let dial = || {
        let dial = gateway.replica().dial(tenant, CHAT);
        dial.token(&tenant.token(ALICE))
    };
    Problem::new(503, "unavailable").is(&dial().refused().await, &tenant.name);
    control.restart().await;
    let mut socket = eventually(PATIENCE, "the tenant is served", async || {
        dial().attempt().await
    })
    .await;
    let answer = revoke_all(&gateway, tenant).await;
    assert_eq!(answer["closed"], 1, "{answer}");
    assert_eq!(socket.closed().await.0, 4501);
    // A control link that is lost later refuses no client.
    control.kill();
    gateway
        .replica()
        .logged("No subscriber link to Redis")
        .await;
    let other = tenant.token(BOB);
    let dial = gateway.replica().dial(tenant, CHAT).token(&other);
    assert!(dial.open().await.ping().await.is_empty());
}

/// 20 sockets each of two users on a tenant whose prefix a reload has just changed; one closes in a second.
async fn moving() -> (Gateway, Vec<Socket>, Vec<Socket>) {
    let builder = gateway().set("server.drain.rate", 1).tenant("acme");
    let gateway = builder.start().await;
    let (mut alices, mut bobs) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        alices.push(open(&gateway, gateway.tenant(), ALICE).await);
        bobs.push(open(&gateway, gateway.tenant(), BOB).await);
    }
    change(&gateway, |table| {
        let layer = tenant_table(table, gateway.tenant());
        let layer = layer["layer"].as_table_mut().unwrap();
        let prefix = format!("{}x", gateway.tenant().prefix);
        layer.insert("prefix".into(), prefix.into());
    });
    hang_up(&gateway, APPLIED).await;
    (gateway, alices, bobs)
}

/// Sockets that a reload drained were found by nothing: `closed` was 0, and revoked users stayed until their turn came.
#[tokio::test]
async fn sockets_that_leave_are_listed_and_reached_until_the_last_is_gone() {
    let (gateway, alices, bobs) = moving().await;
    let tenant = gateway.tenant();
    let mut new = open(&gateway, tenant, ALICE).await;

    let list = call(
        &gateway,
        tenant,
        "GET",
        "connections?limit=1000",
        &Value::Null,
    )
    .await;
    let listed = list["sockets"].as_array().unwrap();
    assert_eq!(list["connections"], listed.len(), "{list}");
    let prefix = format!("{}specific.", tenant.prefix);
    let leaving = listed
        .iter()
        .filter(|socket| socket["channel"].as_str().unwrap().starts_with(&prefix));
    let (all, leaving) = (listed.len(), leaving.count());
    assert!(leaving > 1 && leaving == all - 1, "{list}");
    let group = call(&gateway, tenant, "GET", "groups/chat_lobby", &Value::Null).await;
    assert!(group["connections"].as_u64() > Some(1), "{group}");

    let event = json!({"type": "x", "n": 1});
    let sent = call(
        &gateway,
        tenant,
        "POST",
        &format!("users/{BOB}/send"),
        &event,
    )
    .await;
    let disconnected = format!("users/{BOB}/disconnect");
    let disconnected = call(&gateway, tenant, "POST", &disconnected, &json!({})).await;
    let closed = disconnected["closed"].as_u64().unwrap();
    assert!(closed > 0, "{disconnected}");
    assert!(
        sent["delivered"].as_u64() >= Some(closed),
        "{sent} {disconnected}"
    );
    let [by_operator, _] = codes(bobs, [4508, 1012]).await;
    assert_eq!(by_operator, closed);

    let revoked = revoke_all(&gateway, tenant).await;
    let closed = revoked["closed"].as_u64().unwrap();
    // The one on the new layer is among them.
    assert!(closed > 1, "{revoked}");
    assert_eq!(new.closed().await.0, 4501);
    let [by_revocation, _] = codes(alices, [4501, 1012]).await;
    assert_eq!(by_revocation, closed - 1);
    eventually(PATIENCE, "the last socket is gone", async || {
        let list = call(&gateway, tenant, "GET", "connections", &Value::Null).await;
        match list["connections"] == 0 {
            true => Ok(()),
            false => Err(list),
        }
    })
    .await;
}

#[tokio::test]
async fn a_suspension_closes_the_sockets_that_leave_too() {
    let (gateway, mut sockets, bobs) = moving().await;
    sockets.extend(bobs);
    let answer = call(&gateway, gateway.tenant(), "POST", "suspend", &Value::Null).await;
    let closed = answer["closed"].as_u64().unwrap();
    assert!(closed > 1, "{answer}");
    let [suspended, _] = codes(sockets, [4016, 1012]).await;
    assert_eq!(suspended, closed);
}

/// Orders to a tenant also act on one that a reload has removed.
#[tokio::test]
async fn a_removed_tenant_can_be_revoked_until_its_last_socket_is_gone() {
    let builder = gateway().set("server.drain.rate", 1);
    let gateway = builder.tenant("stays").tenant("removed").start().await;
    let removed = gateway.named("removed");
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(open(&gateway, removed, ALICE).await);
    }
    change(&gateway, |table| {
        let tenants = table["tenants"].as_table_mut().unwrap();
        tenants.remove(&removed.name);
    });
    hang_up(&gateway, APPLIED).await;
    let answer = revoke_all(&gateway, removed).await;
    let closed = answer["closed"].as_u64().unwrap();
    assert!(closed > 1, "{answer}");
    let [revoked, _] = codes(sockets, [4501, 4017]).await;
    assert_eq!(revoked, closed);
    let path = format!("/v1/tenants/{}/connections", removed.name);
    eventually(PATIENCE, "the tenant is gone", async || {
        let api = gateway.replica().api(&gateway.api_key, "GET", &path, "");
        match api.await.status {
            404 => Ok(()),
            status => Err(status),
        }
    })
    .await;
}

/// The state of a tenant was once read at the start only, when Redis was away, and then once in `denylist.recheck`.
#[tokio::test]
async fn a_suspended_tenant_is_never_served_where_its_redis_comes_late() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(&redis.endpoint()).await;
    proxy.set(Line::Cut);
    let builder = gateway().set("server.ready_wait", "0s").tenant("acme");
    let url = format!("redis://{}/0", proxy.endpoint());
    let gateway = builder.with("redis.url", url).write().await;
    let tenant = gateway.tenant().clone();
    let () = redis
        .command(&["SET", &tenant.redis_key("state"), "suspended"])
        .await;
    let mut gateway = gateway;
    gateway.add_replica().await;
    let replica = gateway.replica();
    replica.ready().await;
    let dial = || replica.dial(&tenant, CHAT).token(&tenant.token(ALICE));
    Problem::new(503, "unavailable").is(&dial().refused().await, &tenant.name);
    proxy.set(Line::Open);
    let refusal = eventually(PATIENCE, "Redis is reached", async || {
        match dial().attempt().await {
            Err(refusal) if refusal.status == 503 => Err(refusal.status),
            Err(refusal) => Ok(refusal),
            Ok(_) => panic!("a suspended tenant was served"),
        }
    })
    .await;
    Problem::new(403, "tenant_suspended").is(&refusal, &tenant.name);
}

/// A tenant that a reload brings was looked at after up to 30 s, behind all tenants whose Redis does not answer.
#[tokio::test]
async fn tenants_without_their_redis_delay_no_look_at_another() {
    let silent = RedisServer::start().await;
    let proxy = Proxy::to(&silent.endpoint()).await;
    let database = Database::sqlite().await;
    let mut builder = gateway().set("server.ready_wait", "0s");
    for word in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let url = format!("redis://{}/0", proxy.endpoint());
        builder = builder.tenant(word).with("redis.url", url).users(&database);
    }
    builder = builder.tenant("lacking").users(&database);
    // Without the column `is_active`.
    let query = "SELECT id FROM auth_user WHERE id IN (:user_ids)";
    let (gateway, whole) = without("lacking", builder.with("users.query", query)).await;
    gateway.replica().ready().await;
    proxy.set(Line::Clogged);
    reload(&gateway, &whole).await;
    let name = &gateway.named("lacking").name;
    let line = gateway
        .replica()
        .logged("The tenant cannot be served")
        .await;
    assert!(line.contains(name), "{line}");
}

/// A removed tenant once kept its place among `metrics.tenant_series`.
#[tokio::test]
async fn the_series_of_a_removed_tenant_end_and_its_place_is_the_next_tenants() {
    let builder = gateway().set("metrics.tenant_series", 2);
    let builder = builder.tenant("first").tenant("second").tenant("third");
    let (gateway, whole) = without("third", builder).await;
    let replica = gateway.replica();
    replica.ready().await;
    let (first, third) = (gateway.named("first"), gateway.named("third"));
    let mut socket = open(&gateway, first, ALICE).await;
    let open_of = async |tenant: &str| {
        let labels = [("tenant", tenant)];
        let one = |value| value == 1.0;
        replica.metric("lockgate_connections", &labels, one).await;
    };
    open_of(&first.name).await;
    change(&gateway, |table| {
        let tenants = table["tenants"].as_table_mut().unwrap();
        tenants.remove(&first.name);
    });
    hang_up(&gateway, APPLIED).await;
    assert_eq!(socket.closed().await.0, 4017);
    eventually(PATIENCE, "its series end", async || {
        let scrape = replica.metrics().await.text().to_owned();
        match scrape.contains(&first.name) {
            true => Err(scrape
                .lines()
                .filter(|line| line.contains(&first.name))
                .map(str::to_owned)
                .collect::<Vec<_>>()),
            false => Ok(()),
        }
    })
    .await;
    let mut table: Table = whole.parse().unwrap();
    let tenants = table["tenants"].as_table_mut().unwrap();
    tenants.remove(&first.name);
    reload(&gateway, &table.to_string()).await;
    let _socket = open(&gateway, third, ALICE).await;
    open_of(&third.name).await;
}
