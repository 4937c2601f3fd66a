//! Revocations of a socket whose token was refreshed: the new token counts, and the old one no longer.

use std::collections::BTreeMap;

use serde_json::json;

use super::{CHAT, claims, open, refreshed, refreshing, request, revoke};
use crate::support::database::ALICE;
use crate::support::{PATIENCE, RedisServer, eventually, token};

#[tokio::test]
async fn a_revocation_finds_the_socket_by_its_new_token_and_no_longer_by_its_old_one() {
    let gateway = refreshing().start().await;
    let tenant = gateway.tenant();
    let now = token::now();
    let mut socket = open(&gateway, CHAT, &claims("old", now - 100)).await;
    let mut control = open(&gateway, CHAT, &claims("old", now - 100)).await;
    refreshed(&mut socket, tenant, &claims("new", now)).await;
    let exp = now + 300;
    assert_eq!(
        revoke(&gateway, json!({"jti": "old", "exp": exp})).await["closed"],
        1
    );
    assert_eq!(control.closed().await.0, 4501);
    // Neither a cut-off between the two.
    for between in [
        json!({"user_id": ALICE, "issued_before": now - 50}),
        json!({"issued_before": now - 50}),
    ] {
        assert_eq!(revoke(&gateway, between).await["closed"], 0);
    }
    assert!(socket.ping().await.is_empty());
    // It is one socket of one user still.
    let path = format!("/v1/tenants/{}/connections", tenant.name);
    let replica = gateway.replica();
    drop(control);
    eventually(PATIENCE, "one socket is listed", async || {
        let listed = replica.api(&gateway.api_key, "GET", &path, "").await.json();
        match listed["connections"] == 1 && listed["sockets"][0]["user_id"] == ALICE {
            true => Ok(()),
            false => Err(listed),
        }
    })
    .await;
    assert_eq!(
        revoke(&gateway, json!({"jti": "new", "exp": exp})).await["closed"],
        1
    );
    assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
    // The new token was issued before the old one, and a cut-off between the two finds it.
    for (mut cut_off, second, at) in [
        (json!({"user_id": ALICE}), now - 10, now - 5),
        (json!({}), now - 3, now - 2),
    ] {
        let mut socket = open(&gateway, CHAT, &claims("first", now)).await;
        let mut control = open(&gateway, CHAT, &claims("first", now)).await;
        refreshed(&mut socket, tenant, &claims("second", second)).await;
        cut_off["issued_before"] = at.into();
        assert_eq!(revoke(&gateway, cut_off).await["closed"], 1);
        assert_eq!(socket.closed().await.0, 4501);
        assert!(control.ping().await.is_empty());
    }
}

/// Each of them: the id, the user's cut-off, the tenant's cut-off.
#[tokio::test]
async fn a_token_that_is_revoked_already_closes_the_socket_that_sends_it() {
    let redis = RedisServer::shared().await;
    for (key, value) in [
        ("deny:jti:gone".to_owned(), "1".to_owned()),
        (
            format!("deny:user:{ALICE}"),
            (token::now() - 50).to_string(),
        ),
        ("deny:all".to_owned(), (token::now() - 50).to_string()),
    ] {
        let gateway = refreshing().start().await;
        let tenant = gateway.tenant();
        let mut socket = open(&gateway, CHAT, &claims("mine", token::now())).await;
        let mut other = open(&gateway, CHAT, &claims("mine", token::now())).await;
        let key = tenant.redis_key(&key);
        let () = redis.command(&["SET", &key, &value, "EX", "60"]).await;
        let gone = tenant.sign(&claims("gone", token::now() - 100));
        socket.send_text(&request(&gone)).await;
        assert_eq!(
            socket.closed().await,
            (4501, "token_revoked".into()),
            "{key}"
        );
        assert!(other.ping().await.is_empty());
    }
}

/// Nobody announces these revocations: only the recheck finds them.
#[tokio::test]
async fn the_recheck_asks_for_the_new_token() {
    let redis = RedisServer::shared().await;
    let gateway = refreshing().set("denylist.recheck", "1s").start().await;
    let tenant = gateway.tenant();
    let mut sockets = BTreeMap::new();
    for name in ["stays", "goes", "not-refreshed"] {
        let first = claims(&format!("{name}-1"), token::now());
        let mut socket = open(&gateway, CHAT, &first).await;
        if name != "not-refreshed" {
            let second = claims(&format!("{name}-2"), token::now());
            refreshed(&mut socket, tenant, &second).await;
        }
        sockets.insert(name, socket);
    }
    for jti in ["stays-1", "goes-2", "not-refreshed-1"] {
        let key = tenant.redis_key(&format!("deny:jti:{jti}"));
        let () = redis.command(&["SET", &key, "1", "EX", "60"]).await;
    }
    for name in ["goes", "not-refreshed"] {
        let socket = sockets.get_mut(name).unwrap();
        assert_eq!(socket.closed().await.0, 4501, "{name}");
    }
    // A second look, after the one that closed the others.
    let key = tenant.redis_key("deny:jti:later");
    let mut later = open(&gateway, CHAT, &claims("later", token::now())).await;
    let () = redis.command(&["SET", &key, "1", "EX", "60"]).await;
    assert_eq!(later.closed().await.0, 4501);
    assert!(sockets.get_mut("stays").unwrap().ping().await.is_empty());
}

/// A second replica holds other sockets of the same token: each is found by the token that it has.
#[tokio::test]
async fn every_replica_finds_its_own() {
    let gateway = refreshing().replicas(2).start().await;
    let tenant = gateway.tenant();
    let old = claims("old", token::now());
    let new = claims("new", token::now());
    let mut sockets = Vec::new();
    for replica in &gateway.replicas {
        let dial = replica.dial(tenant, CHAT);
        sockets.push(dial.token(&tenant.sign(&old)).open().await);
    }
    refreshed(&mut sockets[1], tenant, &new).await;
    let exp = token::now() + 300;
    for (jti, at) in [("new", 1), ("old", 0)] {
        revoke(&gateway, json!({"jti": jti, "exp": exp})).await;
        assert_eq!(sockets[at].closed().await.0, 4501, "{jti}");
    }
}
