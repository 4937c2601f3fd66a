//! Open sockets close when their admission no longer holds: within `cache_ttl`, or at once on an order.

use serde_json::json;

use crate::support::database::{ALICE, BOB};
use crate::support::postgres::PostgresServer;
use crate::support::proxy::{Line, Proxy};
use crate::support::{Database, Gateway, RedisServer, gateway, token};

const CHAT: &str = "/ws/chat/lobby/";

/// A tenant whose users are looked at every second or so.
async fn quick(database: &Database) -> Gateway {
    gateway()
        .tenant("acme")
        .users(database)
        .with("users.cache_ttl", "2s")
        .start()
        .await
}

#[tokio::test]
async fn a_user_who_is_set_inactive_or_deleted_loses_its_sockets_without_a_call() {
    let database = Database::postgres().await;
    let gateway = quick(&database).await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut alice = gateway.open(CHAT).await;
    let bobs = tenant.token(BOB);
    let mut bob = replica.dial(tenant, CHAT).token(&bobs).open().await;
    database
        .execute("UPDATE auth_user SET is_active = false WHERE id = 1")
        .await;
    assert_eq!(alice.closed().await, (4502, "user_inactive".into()));
    assert!(bob.ping().await.is_empty());
    database.execute("DELETE FROM auth_user WHERE id = 2").await;
    assert_eq!(bob.closed().await, (4509, "user_not_found".into()));
}

#[tokio::test]
async fn a_changed_password_closes_the_sockets_of_tokens_made_before() {
    let database = Database::postgres().await;
    let gateway = gateway()
        .tenant("acme")
        .users(&database)
        .with("users.cache_ttl", "2s")
        .with("token.check_revoke_token", true)
        .start()
        .await;
    database
        .execute("UPDATE auth_user SET password = 'secret' WHERE id = 1")
        .await;
    let tenant = gateway.tenant();
    let mut claims = token::access(ALICE);
    // MD5 of "secret", as simplejwt writes it.
    claims["hash_password"] = json!("5EBE2294ECD0E0F08EAB7690D2A6EE69");
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut socket = dial.token(&tenant.sign(&claims)).open().await;
    database
        .execute("UPDATE auth_user SET password = 'another' WHERE id = 1")
        .await;
    assert_eq!(socket.closed().await, (4510, "password_changed".into()));
}

/// With the default `cache_ttl` of five minutes nothing but the message can be what closes it.
#[tokio::test]
async fn a_back_end_that_invalidates_a_user_is_heard_at_once_by_every_replica() {
    let redis = RedisServer::shared().await;
    let database = Database::postgres().await;
    let gateway = gateway()
        .replicas(2)
        .tenant("acme")
        .users(&database)
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut sockets = Vec::new();
    for replica in &gateway.replicas {
        let dial = replica.dial(tenant, CHAT);
        sockets.push(dial.token(&tenant.token(ALICE)).open().await);
    }
    database
        .execute("UPDATE auth_user SET is_active = false WHERE id = 1")
        .await;
    let key = tenant.redis_key(&format!("usergen:{ALICE}"));
    let () = redis.command(&["SET", &key, "fresh", "EX", "7200"]).await;
    let message = json!({"v": 1, "op": "invalidate", "user_id": 1}).to_string();
    let heard: u64 = redis
        .command(&["PUBLISH", &tenant.redis_key("control"), &message])
        .await;
    assert_eq!(heard, 2);
    for socket in &mut sockets {
        assert_eq!(socket.closed().await.0, 4502);
    }
    for replica in &gateway.replicas {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        assert_eq!(dial.refused().await.json()["code"], "user_inactive");
    }
}

#[tokio::test]
async fn a_right_that_is_lost_closes_the_sockets_that_stood_on_it() {
    let database = Database::postgres().await;
    database
        .execute("CREATE TABLE member (user_id bigint, room text)")
        .await;
    database
        .execute("INSERT INTO member VALUES (1, 'lobby'), (1, 'attic')")
        .await;
    let gateway = gateway()
        .tenant("acme")
        .users(&database)
        .with("users.cache_ttl", "2s")
        .route(
            "path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n \
             authorize = 'SELECT 1 FROM member WHERE user_id = :user_id AND room = :room'",
        )
        .start()
        .await;
    let mut lobby = gateway.open(CHAT).await;
    let mut attic = gateway.open("/ws/chat/attic/").await;
    database
        .execute("DELETE FROM member WHERE room = 'attic'")
        .await;
    assert_eq!(attic.closed().await, (4507, "group_forbidden".into()));
    assert!(lobby.ping().await.is_empty());
}

/// Neither a database that is away nor one that does not answer says anything about a user; what it says afterwards counts.
#[tokio::test]
async fn a_database_that_is_down_closes_nobody_and_is_believed_when_it_is_back() {
    let database = Database::postgres().await;
    let server = PostgresServer::shared().await.endpoint();
    let proxy = Proxy::to(&server).await;
    let through = database.url().replace(&server, &proxy.endpoint());
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::at(through))
        .with("users.cache_ttl", "1s")
        .with("users.stale_ttl", "1s")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut alice = gateway.open(CHAT).await;
    let bobs = tenant.token(BOB);
    let mut bob = replica.dial(tenant, CHAT).token(&bobs).open().await;
    database
        .execute("UPDATE auth_user SET is_active = false WHERE id = 2")
        .await;
    // Bob may have been looked at already: what is asked here is that alice stays.
    let errors = async || {
        let labels = [("dependency", "database")];
        let metrics = replica.metrics().await;
        metrics.value("lockgate_dependency_errors_total", &labels)
    };
    for line in [Line::Cut, Line::Clogged] {
        proxy.set(line);
        let before = errors().await;
        let labels = [("dependency", "database")];
        replica
            .metric("lockgate_dependency_errors_total", &labels, |n| {
                n >= before + 2.0
            })
            .await;
        assert!(alice.ping().await.is_empty(), "{line:?}");
        proxy.set(Line::Cut);
    }
    proxy.set(Line::Open);
    assert_eq!(bob.closed().await, (4502, "user_inactive".into()));
    assert!(alice.ping().await.is_empty());
}
