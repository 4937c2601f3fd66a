//! Refreshes while a dependency does not answer: the socket keeps its token and the client is told to try again.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CHAT, ECHO, claims, counted, error, open, refresh, refreshing};
use crate::support::database::ALICE;
use crate::support::proxy::{Line, Proxy};
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, token};

fn unavailable() -> Value {
    error("unavailable", json!({"retry_after_ms": 1000}))
}

/// Refreshes until the answer is as expected; others may come before it while an outage begins or ends.
async fn refreshes_to(socket: &mut Socket, gateway: &Gateway, expected: &str) {
    eventually(PATIENCE * 2, expected, async || {
        let answer = refresh(socket, &gateway.tenant().token(ALICE)).await;
        let said = answer["code"].as_str().unwrap_or("refreshed").to_owned();
        if said == expected {
            return Ok(());
        }
        assert!(
            ["refreshed", "unavailable", "rate_limited"].contains(&&*said),
            "{answer}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        Err(answer)
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_is_down_closes_nothing_and_refreshes_pass_when_it_is_back() {
    let redis = RedisServer::start().await;
    let gateway = refreshing().redis(&redis.url()).start().await;
    let mut socket = gateway.open(ECHO).await;
    redis.kill();
    refreshes_to(&mut socket, &gateway, "unavailable").await;
    socket.send_text("still here").await;
    assert_eq!(socket.next_text().await, "still here");
    assert!(counted(&gateway, "unavailable").await >= 1.0);
    redis.restart().await;
    refreshes_to(&mut socket, &gateway, "refreshed").await;
}

/// The denylist alone is away: `on_outage` decides, as at a connect.
#[tokio::test]
async fn the_rule_for_a_denylist_that_is_away_holds() {
    for (rule, expected) in [("allow", "refreshed"), ("refuse", "unavailable")] {
        let denylist = RedisServer::start().await;
        let gateway = refreshing()
            .set("denylist.redis", denylist.url())
            .set("denylist.on_outage", rule)
            .start()
            .await;
        let mut socket = gateway.open(CHAT).await;
        denylist.kill();
        gateway
            .replica()
            .metric(
                "lockgate_dependency_up",
                &[("dependency", "denylist")],
                |up| up == 0.0,
            )
            .await;
        refreshes_to(&mut socket, &gateway, expected).await;
        assert!(socket.ping().await.is_empty());
    }
}

/// A record that no cache holds, and a database that does not answer: neither "no such user" nor a close.
#[tokio::test]
async fn a_database_that_is_away_closes_nothing() {
    let database = crate::support::Database::postgres().await;
    let url = database.url().to_owned();
    let (head, rest) = url.split_once('@').unwrap();
    let (server, name) = rest.split_once('/').unwrap();
    let proxy = Proxy::to(server).await;
    let through = format!("{head}@{}/{name}", proxy.endpoint());
    let redis = RedisServer::start().await;
    let gateway = refreshing()
        .redis(&redis.url())
        .users(&crate::support::Database::at(through))
        .with("users.local_ttl", "0s")
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut socket = open(&gateway, CHAT, &claims("own", token::now())).await;
    proxy.set(Line::Cut);
    let record = tenant.redis_key(&format!("user:{ALICE}"));
    let () = redis.command(&["DEL", &record]).await;
    let answer = refresh(&mut socket, &tenant.token(ALICE)).await;
    assert_eq!(answer, unavailable());
    assert!(socket.ping().await.is_empty());
    proxy.set(Line::Open);
    refreshes_to(&mut socket, &gateway, "refreshed").await;
}
