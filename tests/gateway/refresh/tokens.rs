//! The tokens that an open socket takes, those that it does not, and the end of the one that it has.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    CHAT, ECHO, claims, counted, error, open, refresh, refreshed, refreshing, request, revoke,
};
use crate::support::database::{ALICE, BOB};
use crate::support::{PATIENCE, RedisServer, eventually, token};

fn ends_in(seconds: i64) -> Value {
    let mut claims = token::access(ALICE);
    claims["exp"] = (token::now() + seconds).into();
    claims
}

/// Of two sockets by one token the one without a refresh closes at its end, and the other lives on.
#[tokio::test]
async fn a_refreshed_socket_outlives_its_first_token() {
    let gateway = refreshing().start().await;
    let first = ends_in(4);
    let mut stays = open(&gateway, CHAT, &first).await;
    let mut closes = open(&gateway, CHAT, &first).await;
    refreshed(&mut stays, gateway.tenant(), &ends_in(300)).await;
    assert_eq!(closes.closed().await, (4001, "token_expired".into()));
    assert!(stays.ping().await.is_empty());
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(stays.next_json().await, json!({"n": 1}));
}

/// The regular check of such a socket is up to `heartbeat.interval` away.
#[tokio::test]
async fn a_token_that_ends_earlier_closes_the_socket_earlier() {
    let gateway = refreshing()
        .set("server.heartbeat.interval", "10m")
        .start()
        .await;
    let mut socket = open(&gateway, CHAT, &ends_in(300)).await;
    let mut replaced = open(&gateway, CHAT, &ends_in(300)).await;
    // An older token than the socket's own is as good as any.
    let mut older = ends_in(3);
    older["iat"] = (token::now() - 1000).into();
    refreshed(&mut replaced, gateway.tenant(), &older).await;
    refreshed(&mut socket, gateway.tenant(), &older).await;
    refreshed(&mut replaced, gateway.tenant(), &ends_in(300)).await;
    assert_eq!(socket.closed().await, (4001, "token_expired".into()));
    assert!(replaced.ping().await.is_empty());
}

#[tokio::test]
async fn leeway_counts_and_a_token_that_closes_nothing_is_told_its_end_all_the_same() {
    let gateway = refreshing()
        .with("token.leeway", "20s")
        .with("token.on_expiry", "keep")
        .start()
        .await;
    let mut socket = gateway.open(CHAT).await;
    let ended = ends_in(-10);
    let answer = refresh(&mut socket, &gateway.tenant().sign(&ended)).await;
    assert_eq!(answer["type"], "lockgate.refreshed");
    assert_eq!(answer["expires_at"], ended["exp"].as_i64().unwrap() + 20);
    assert!(socket.ping().await.is_empty());
}

/// The socket keeps its own token: it stays open, is still found by it, and takes a good one afterwards.
#[tokio::test]
async fn a_token_that_does_not_verify_closes_nothing() {
    let gateway = refreshing()
        .tenant("other")
        .with("token.refresh", true)
        .start()
        .await;
    let tenant = gateway.tenant();
    let with = |key: &str, value: Value| {
        let mut claims = token::access(ALICE);
        claims[key] = value;
        tenant.sign(&claims)
    };
    let not_valid = |check: &str| error("token_not_valid", json!({"check": check}));
    let good = tenant.token(ALICE);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{signed}.{flipped}{}", &signature[1..]);
    let unsigned = "eyJhbGciOiJub25lIn0.e30.";
    for (n, (bad, answer)) in [
        (
            with("token_type", "refresh".into()),
            not_valid("token_type"),
        ),
        (
            with("exp", (token::now() - 5).into()),
            error("token_expired", json!({})),
        ),
        (with("iat", (token::now() + 500).into()), not_valid("iat")),
        (with("user_id", json!([1])), not_valid("user_id")),
        (gateway.named("other").token(ALICE), not_valid("signature")),
        (tampered, not_valid("signature")),
        (unsigned.to_owned(), not_valid("algorithm")),
        (
            format!("Bearer {}", tenant.token(ALICE)),
            not_valid("format"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let jti = format!("own-{n}");
        let mut socket = open(&gateway, ECHO, &claims(&jti, token::now())).await;
        assert_eq!(refresh(&mut socket, &bad).await, answer);
        socket.send_text("still here").await;
        assert_eq!(socket.next_text().await, "still here");
        match n % 2 {
            0 => refreshed(&mut socket, tenant, &token::access(ALICE)).await,
            _ => {
                let body = json!({"jti": jti, "exp": token::now() + 300});
                assert_eq!(revoke(&gateway, body).await["closed"], 1, "{answer}");
                assert_eq!(socket.closed().await.0, 4501);
            }
        }
    }
    assert_eq!(counted(&gateway, "token_expired").await, 1.0);
    assert_eq!(counted(&gateway, "token_not_valid").await, 7.0);
    assert_eq!(counted(&gateway, "refreshed").await, 4.0);
}

#[tokio::test]
async fn the_token_of_another_user_closes_the_socket() {
    let gateway = refreshing().start().await;
    let tenant = gateway.tenant();
    let mut no_such_user = token::access(ALICE);
    no_such_user["user_id"] = "99999999999999999999999".into();
    for other in [tenant.token(BOB), tenant.sign(&no_such_user)] {
        let mut socket = gateway.open(CHAT).await;
        socket.send_text(&request(&other)).await;
        assert_eq!(socket.closed().await, (4500, "token_not_valid".into()));
    }
    assert_eq!(counted(&gateway, "token_not_valid").await, 2.0);
    // Another user's cut-off would not have found it, and the socket of that user has nothing to do with it.
    let mut bob = gateway
        .replica()
        .dial(tenant, CHAT)
        .token(&tenant.token(BOB))
        .open()
        .await;
    assert!(bob.ping().await.is_empty());
}

/// With caches out of the way the refresh is the first to see the change; the look at open sockets comes minutes later.
#[tokio::test]
async fn a_user_who_may_no_longer_connect_loses_the_socket_at_a_refresh() {
    let redis = RedisServer::shared().await;
    for (change, close) in [
        (
            "UPDATE auth_user SET is_active = false WHERE id = 1",
            (4502, "user_inactive"),
        ),
        (
            "DELETE FROM auth_user WHERE id = 1",
            (4509, "user_not_found"),
        ),
        (
            "UPDATE auth_user SET password = 'another' WHERE id = 1",
            (4510, "password_changed"),
        ),
    ] {
        let gateway = refreshing()
            .with("users.local_ttl", "0s")
            .with("token.check_revoke_token", true)
            .start()
            .await;
        let tenant = gateway.tenant();
        let with_password = || {
            let mut claims = token::access(ALICE);
            // MD5 of "secret", as simplejwt writes it.
            claims["hash_password"] = "5EBE2294ECD0E0F08EAB7690D2A6EE69".into();
            claims
        };
        let password = "UPDATE auth_user SET password = 'secret' WHERE id = 1";
        tenant.database.execute(password).await;
        let mut socket = open(&gateway, CHAT, &with_password()).await;
        refreshed(&mut socket, tenant, &with_password()).await;
        tenant.database.execute(change).await;
        let record = tenant.redis_key(&format!("user:{ALICE}"));
        let () = redis.command(&["DEL", &record]).await;
        socket
            .send_text(&request(&tenant.sign(&with_password())))
            .await;
        assert_eq!(socket.closed().await, (close.0, close.1.to_owned()));
        assert_eq!(counted(&gateway, close.1).await, 1.0);
    }
}

/// The socket has the digest of the new token's record, so the look at open sockets does not take it for one of before.
#[tokio::test]
async fn a_refresh_after_a_changed_password_carries_the_new_one() {
    let gateway = refreshing()
        .with("users.local_ttl", "0s")
        .with("token.check_revoke_token", true)
        .start()
        .await;
    let tenant = gateway.tenant();
    let redis = RedisServer::shared().await;
    let with_password = |digest: &str| {
        let mut claims = token::access(ALICE);
        claims["hash_password"] = digest.into();
        claims
    };
    let set = async |password: &str| {
        let change = format!("UPDATE auth_user SET password = '{password}' WHERE id = 1");
        tenant.database.execute(&change).await;
        let record = tenant.redis_key(&format!("user:{ALICE}"));
        let () = redis.command(&["DEL", &record]).await;
    };
    set("secret").await;
    let secret = "5EBE2294ECD0E0F08EAB7690D2A6EE69";
    let mut socket = open(&gateway, CHAT, &with_password(secret)).await;
    let mut left_behind = open(&gateway, CHAT, &with_password(secret)).await;
    set("another").await;
    // MD5 of "another".
    let another = "B32D73E56EC99BC5EC8F83871CDE708A";
    refreshed(&mut socket, tenant, &with_password(another)).await;
    let path = format!("/v1/tenants/{}/users/{ALICE}/invalidate", tenant.name);
    let replica = gateway.replica();
    let answer = replica.api(&gateway.api_key, "POST", &path, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        left_behind.closed().await,
        (4510, "password_changed".into())
    );
    assert!(socket.ping().await.is_empty());
}

#[tokio::test]
async fn max_age_counts_from_the_connect_whatever_is_refreshed() {
    let gateway = refreshing().set("server.max_age", "2s").start().await;
    let mut socket = gateway.open(CHAT).await;
    let (code, reason) = eventually(PATIENCE, "its age closes it", async || {
        let frame = Message::text(request(&gateway.tenant().token(ALICE)));
        if !socket.try_send(frame).await {
            return Err(Value::Null);
        }
        match socket.next().await {
            Message::Close(Some(frame)) => Ok((u16::from(frame.code), frame.reason.to_string())),
            Message::Text(answer) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(answer.as_str().into())
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(code, 1012);
    assert!(reason.starts_with("max_age retry_after_ms="), "{reason}");
    assert!(counted(&gateway, "refreshed").await >= 1.0);
}
