//! Tenants do not see each other, whatever they share.

use serde_json::json;

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::{Publisher, RedisServer, Tenant, gateway};

const CHAT: &str = "/ws/chat/lobby/";

#[tokio::test]
async fn a_token_of_one_tenant_opens_nothing_at_another() {
    let gateway = gateway().tenant("one").tenant("other").start().await;
    let (one, other) = (gateway.named("one"), gateway.named("other"));
    let token = one.token(ALICE);
    gateway.replica().dial(one, CHAT).token(&token).open().await;
    let refusal = gateway
        .replica()
        .dial(other, CHAT)
        .token(&token)
        .refused()
        .await;
    Problem::token("signature").is(&refusal, &other.name);
    // Nor does the other host with this one's name in a header.
    let dial = gateway.replica().dial(other, CHAT).token(&token);
    let refusal = dial.header("X-Forwarded-Host", &one.host).refused().await;
    Problem::token("signature").is(&refusal, &other.name);
}

#[tokio::test]
async fn events_denials_and_cached_users_stay_within_their_tenant() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .replicas(2)
        .tenant("one")
        .tenant("other")
        .start()
        .await;
    let (one, other) = (gateway.named("one"), gateway.named("other"));
    let dial = |replica: usize, tenant: &Tenant, user: &str| {
        gateway.replicas[replica]
            .dial(tenant, CHAT)
            .token(&tenant.token(user))
    };
    let mut ours = dial(0, one, ALICE).open().await;
    let mut theirs = dial(0, other, ALICE).open().await;
    let (to_one, to_other) = (
        Publisher::new(redis, &one.prefix).await,
        Publisher::new(redis, &other.prefix).await,
    );
    for n in 0..20 {
        to_one
            .send("chat_lobby", &json!({"type": "x", "one": n}))
            .await;
        to_other
            .send("chat_lobby", &json!({"type": "x", "other": n}))
            .await;
    }
    for n in 0..20 {
        assert_eq!(ours.next_json().await, json!({"one": n}));
        assert_eq!(theirs.next_json().await, json!({"other": n}));
    }
    assert!(ours.ping().await.is_empty());
    assert!(theirs.ping().await.is_empty());

    let () = redis
        .command(&["SET", &one.redis_key("deny:all"), "99999999999"])
        .await;
    Problem::new(401, "token_revoked").is(&dial(1, one, ALICE).refused().await, &one.name);
    dial(1, other, ALICE).open().await;

    // A record under the wrong name is not believed: bob is in the database under 2, not here.
    let record = json!({"v": 1, "tenant": one.name, "id": "1", "fetched_at": 99999999999_u64, "gen": "",
        "user": {"id": 7, "username": "mallory", "is_active": true}});
    let key = other.redis_key("user:7");
    let () = redis.command(&["SET", &key, &record.to_string()]).await;
    Problem::new(401, "user_not_found").is(&dial(1, other, "7").refused().await, &other.name);
}

#[tokio::test]
async fn a_tenant_that_cannot_be_served_takes_nobody_with_it() {
    let gateway = gateway()
        .set("server.ready_wait", "1s")
        .tenant("good")
        .tenant("broken")
        .with("users.database", "postgres://nobody@127.0.0.1:1/nothing")
        .start()
        .await;
    let (good, broken) = (gateway.named("good"), gateway.named("broken"));
    gateway
        .replica()
        .dial(good, CHAT)
        .token(&good.token(ALICE))
        .open()
        .await;
    let refusal = gateway
        .replica()
        .dial(broken, CHAT)
        .token(&broken.token(ALICE))
        .refused()
        .await;
    Problem::new(503, "unavailable").is(&refusal, &broken.name);
    // A bad token needs no database: it is told so, not told to come back.
    let refusal = gateway
        .replica()
        .dial(broken, CHAT)
        .token("rubbish")
        .attempt()
        .await
        .err()
        .unwrap();
    assert!(matches!(refusal.status, 401 | 503), "{refusal:?}");
}
