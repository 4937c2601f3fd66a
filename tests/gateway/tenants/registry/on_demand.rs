//! Tenants of the registry are made when they are first asked for, and let go after their last socket.

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use super::*;
use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::{PATIENCE, eventually};

/// Waits until the replica has made so many tenants.
async fn made(replica: &Replica, count: f64) {
    let name = "lockgate_tenants_made";
    replica.metric(name, &[], |made| made == count).await;
}

/// The replicas in the tenant's list, and the connections that hear its control channel.
async fn traces(redis: &RedisServer, tenant: &Tenant) -> (u64, u64) {
    let listed = redis
        .command(&["SCARD", &tenant.redis_key("replicas")])
        .await;
    let control = tenant.redis_key("control");
    let heard: (String, u64) = redis.command(&["PUBSUB", "NUMSUB", &control]).await;
    (listed, heard.1)
}

async fn has_traces(redis: &RedisServer, tenant: &Tenant, expected: (u64, u64)) {
    eventually(PATIENCE, "the tenant's traces in Redis", async || {
        let seen = traces(redis, tenant).await;
        if seen == expected { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// Two replicas on one Redis; the second one gets no call of the API.
async fn two_that_forget_soon(store: &Store, redis: &RedisServer) -> Gateway {
    let builder = store.gateway().redis(&redis.url()).replicas(2);
    builder.set("registry.keep", "1s").start().await
}

#[tokio::test]
async fn a_tenant_is_made_at_its_first_handshake_and_let_go_after_its_last_socket() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let gateway = two_that_forget_soon(&store, &redis).await;
    let (acme, mut document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let second = &gateway.replicas[1];
    // It is known on both, and made on none.
    for replica in &gateway.replicas {
        made(replica, 1.0).await;
    }
    assert_eq!(traces(&redis, &acme).await, (0, 0));
    let list = "/v1/tenants";
    let listed = gateway
        .replica()
        .api(&gateway.api_key, "GET", list, "")
        .await;
    let listed = listed.json();
    let entry = listed["tenants"].as_array().unwrap().iter();
    let entry = entry.filter(|entry| entry["name"] == acme.name.as_str());
    let expected = json!({"name": acme.name, "source": "registry", "suspended": null, "degraded": false, "reason": null, "connections": null});
    assert_eq!(entry.collect::<Vec<_>>(), [&expected]);

    let alice = || second.dial(&acme, CHAT).token(&acme.token(ALICE)).open();
    let sockets = join_all((0..5).map(|_| alice())).await;
    made(second, 2.0).await;
    made(gateway.replica(), 1.0).await;
    has_traces(&redis, &acme, (1, 1)).await;
    let closed = |made: f64| made == 5.0;
    let name = "lockgate_connections";
    let own = [("tenant", acme.name.as_str())];
    second.metric(name, &own, closed).await;
    drop(sockets);
    made(second, 1.0).await;
    has_traces(&redis, &acme, (0, 0)).await;
    assert!(
        !second.metrics().await.text().contains(&acme.name),
        "its series have ended"
    );

    // Once more, with all that was heard meanwhile.
    let mut again = alice().await;
    made(second, 2.0).await;
    again.ping().await;
    // A change of the document reaches it, made or not.
    document["limits"] = json!({"message_size": "10B"});
    put(&gateway, &acme, &document).await;
    again.send_text("more than ten bytes").await;
    assert_eq!(again.closed().await.0, 1009);
    call(&gateway, "DELETE", &acme, &Value::Null).await;
    let gone = second.dial(&acme, CHAT).token(&acme.token(ALICE));
    assert_eq!(gone.refused().await.status, 404);
    has_traces(&redis, &acme, (0, 0)).await;
}

#[tokio::test]
async fn what_happens_to_a_tenant_that_is_not_made_holds_at_its_next_handshake() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let gateway = two_that_forget_soon(&store, &redis).await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let second = &gateway.replicas[1];
    let dial = |user: &str| second.dial(&acme, CHAT).token(&acme.token(user));
    drop(dial(ALICE).open().await);
    made(second, 1.0).await;
    let post = async |what: &str, body: Value| {
        let path = format!("{}/{what}", path(&acme));
        let body = body.to_string();
        let answer = gateway
            .replica()
            .api(&gateway.api_key, "POST", &path, &body);
        let answer = answer.await;
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        answer.json()
    };
    let revoked_token = acme.token(ALICE);
    // The first replica makes it to carry the call out; the second one need not hear it.
    let revoked = post("revocations", json!({"user_id": ALICE})).await;
    assert_eq!(revoked["closed"], 0);
    post("suspend", Value::Null).await;
    made(gateway.replica(), 1.0).await;
    has_traces(&redis, &acme, (0, 0)).await;
    let suspended = dial(BOB).refused().await;
    Problem::new(403, "tenant_suspended").is(&suspended, &acme.name);
    assert_eq!(show(&gateway, &acme).await["state"], "suspended");
    post("resume", Value::Null).await;
    // A token that is made now is one of after the revocation, once a second has passed.
    let revoked = second.dial(&acme, CHAT).token(&revoked_token);
    let revoked = revoked.refused().await;
    assert_eq!(revoked.json()["code"], "token_revoked", "{revoked:?}");
    let mut bob = dial(BOB).open().await;
    post("groups/chat_lobby/send", json!({"type": "x", "n": 1})).await;
    assert_eq!(bob.next_json().await, json!({"n": 1}));
    // While it has a socket it stays, however long nothing else happens.
    made(gateway.replica(), 1.0).await;
    bob.ping().await;
    made(second, 2.0).await;
}

/// Before tenants were made on demand, each replica made all of them at its start.
#[tokio::test]
async fn a_storm_of_first_handshakes_is_served_and_harms_no_other_tenant() {
    const TENANTS: usize = 1_000;
    /// Those whose making two handshakes wait for.
    const SHARED: usize = 60;
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let mut of_file = gateway.open(CHAT).await;
    let (_, form) = registered("form").await;
    let mut tenants = Vec::new();
    let mut rows = Vec::new();
    for _ in 0..TENANTS {
        let (tenant, document) = registered("storm").await;
        rows.push(format!("('{}', '{document}', 1, 1, 0, 0, 1)", tenant.name));
        tenants.push(tenant);
    }
    let columns = "name, config, version, made, created_at, updated_at, serial";
    let rows = rows.join(",");
    let insert = format!("INSERT INTO lockgate_tenant ({columns}) VALUES {rows}");
    store.database.execute(&insert).await;
    store
        .database
        .execute("UPDATE lockgate_registry SET serial = 1")
        .await;
    // A change has the replica read all that is new.
    let (last, _) = registered("last").await;
    let mut document = form.clone();
    document["hosts"] = json!([last.host]);
    put(&gateway, &last, &document).await;
    made(gateway.replica(), 1.0).await;

    let started = Instant::now();
    let dials = tenants.iter().chain(&tenants[..SHARED]);
    // A client comes back after a 503, which a making that takes too long on a busy machine answers.
    let dials = dials.map(async |tenant| {
        let dial = || gateway.replica().dial(tenant, CHAT);
        let open = async || dial().token(&tenant.token(ALICE)).attempt().await;
        eventually(4 * PATIENCE, "a socket of each tenant", open).await
    });
    let (sockets, ()) = tokio::join!(join_all(dials), async {
        for n in 0..10 {
            gateway
                .send("chat_lobby", &json!({"type": "x", "n": n}))
                .await;
            assert_eq!(of_file.next_json().await, json!({"n": n}));
        }
    });
    println!("{} sockets in {:?}", sockets.len(), started.elapsed());
    assert_eq!(sockets.len(), TENANTS + SHARED);
    made(gateway.replica(), 1.0 + TENANTS as f64).await;
}
