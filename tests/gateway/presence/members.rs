//! What members of a group are told, on both kinds of layers and in memory.

use std::time::Duration;

use serde_json::json;

use super::{LAYERS, ask, enter, house, present, told};
use crate::support::database::{ALICE, BOB};
use crate::support::django::Django;
use crate::support::{Database, PATIENCE, eventually};

const RULE: &str = "fields = ['username'], notify = true, linger = '5s'";

/// Alice watches a room on the first replica; Bob comes and goes on the last one.
async fn comings_and_goings(layer: &str, replicas: usize) {
    let gateway = house(replicas, layer, RULE).start().await;
    let (here, there) = (0, replicas - 1);
    let mut alice = enter(&gateway, here, "a", ALICE).await;
    let joined = |user: &str, name: &str| told("join", "a", json!({"id": user, "username": name}));
    assert_eq!(alice.next_json().await, joined(ALICE, "alice"));

    let mut bob = enter(&gateway, there, "a", BOB).await;
    assert_eq!(alice.next_json().await, joined(BOB, "bob"));
    assert_eq!(bob.next_json().await, joined(BOB, "bob"));
    present(&gateway, (here, "a"), &[(ALICE, 1), (BOB, 1)], PATIENCE).await;

    // A second socket is no second join, a room beside it is another room, and a reload is neither leave nor join.
    let second = enter(&gateway, here, "a", BOB).await;
    let elsewhere = enter(&gateway, here, "b", BOB).await;
    present(&gateway, (there, "a"), &[(ALICE, 1), (BOB, 2)], PATIENCE).await;
    present(&gateway, (there, "b"), &[(BOB, 1)], PATIENCE).await;
    drop((bob, second));
    present(&gateway, (there, "a"), &[(ALICE, 1)], PATIENCE).await;
    let bob = enter(&gateway, here, "a", BOB).await;
    present(&gateway, (there, "a"), &[(ALICE, 1), (BOB, 1)], PATIENCE).await;

    // The next that Alice hears is the leave, so the reload told nothing.
    drop((bob, elsewhere));
    let left = told("leave", "a", json!({"id": BOB}));
    assert_eq!(alice.next_json_within(Duration::from_secs(20)).await, left);
    let _bob = enter(&gateway, there, "a", BOB).await;
    assert_eq!(alice.next_json().await, joined(BOB, "bob"));
}

#[tokio::test]
async fn members_hear_of_a_users_first_and_last_socket_on_pubsub() {
    comings_and_goings("pubsub", 2).await;
}

#[tokio::test]
async fn members_hear_of_a_users_first_and_last_socket_on_core() {
    comings_and_goings("core", 2).await;
}

#[tokio::test]
async fn members_hear_of_a_users_first_and_last_socket_in_memory() {
    comings_and_goings("memory", 1).await;
}

#[tokio::test]
async fn a_replica_that_drains_takes_its_users_out() {
    for layer in LAYERS {
        let gateway = house(2, layer, RULE)
            .set("server.drain.delay", "0s")
            .start()
            .await;
        let mut alice = enter(&gateway, 0, "a", ALICE).await;
        let mut bob = enter(&gateway, 1, "a", BOB).await;
        let mut seen = [alice.next_json().await, alice.next_json().await];
        seen.sort_by_key(|frame| frame["user"]["id"].to_string());
        assert_eq!(seen[1]["user"]["id"], BOB, "{seen:?}");
        gateway.replicas[1].terminate();
        while bob.read().await.is_some_and(|read| read.is_ok()) {}
        assert!(gateway.replicas[1].exited(PATIENCE).await.success());
        // At once, not after the time that a killed replica takes.
        present(&gateway, (0, "a"), &[(ALICE, 1)], Duration::from_secs(10)).await;
        let left = told("leave", "a", json!({"id": BOB}));
        assert_eq!(alice.next_json_within(super::HEALED).await, left);
    }
}

#[tokio::test]
async fn revoked_and_suspended_sockets_are_out() {
    let gateway = house(2, "pubsub", "linger = '0s', notify = true")
        .start()
        .await;
    let mut alice = enter(&gateway, 0, "a", ALICE).await;
    let bob = enter(&gateway, 1, "a", BOB).await;
    present(&gateway, (0, "a"), &[(ALICE, 1), (BOB, 1)], PATIENCE).await;
    let call = async |path: &str, body: &str| {
        let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
        let answer = gateway.replica().api(&gateway.api_key, "POST", &path, body);
        assert_eq!(answer.await.status, 200);
    };
    call("revocations", &json!({"user_id": BOB}).to_string()).await;
    present(&gateway, (0, "a"), &[(ALICE, 1)], PATIENCE).await;
    let left = told("leave", "a", json!({"id": BOB}));
    while alice.next_json().await != left {}
    drop(bob);
    call("suspend", "").await;
    present(&gateway, (1, "a"), &[], PATIENCE).await;
}

#[tokio::test]
async fn a_handshake_that_is_refused_at_the_end_was_never_there() {
    // No worker answers, so the handshake ends with 503 after its socket joined the group.
    let gateway = house(1, "core", "notify = true")
        .route(
            "path = 'ws/chat/<slug:room>/'\ngroups = ['chat_{room}']\n\
             consumer = { kind = 'worker', channel = 'nobody', accept = 'worker', worker_timeout = '1s' }",
        )
        .route("path = 'watch/<slug:room>/'\ngroups = ['chat_{room}']")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let dial = |path: &str, user: &str| replica.dial(tenant, path).token(&tenant.token(user));
    let mut alice = dial("/watch/a/", ALICE).open().await;
    assert_eq!(alice.next_json().await["user"]["id"], ALICE);
    assert_eq!(dial("/ws/chat/a/", BOB).refused().await.status, 503);
    present(&gateway, (0, "a"), &[(ALICE, 1)], PATIENCE).await;
    assert!(alice.ping().await.is_empty());
}

#[tokio::test]
async fn presence_follows_the_orders_of_a_back_end() {
    let database = Database::postgres().await;
    let gateway = house(2, "core", RULE).users(&database).start().await;
    let tenant = gateway.tenant();
    let django = Django::at(database.url()).layer(&tenant.redis, &tenant.prefix);
    let django = django.core(&json!({})).start().await;
    let mut alice = enter(&gateway, 0, "b", ALICE).await;
    assert_eq!(alice.next_json().await["user"]["id"], ALICE);
    let _bob = enter(&gateway, 1, "a", BOB).await;
    let path = format!("/v1/tenants/{}/groups/chat_a", tenant.name);
    let listed = gateway.replica().api(&gateway.api_key, "GET", &path, "");
    let listed = listed.await.json();
    let channel = listed["sockets"][0]["channel"].as_str().expect("a channel");
    let order = |kind: &str| json!({"type": format!("lockgate.{kind}"), "group": "chat_b"});
    django.send(channel, &order("group_add")).await;
    present(&gateway, (0, "b"), &[(ALICE, 1), (BOB, 1)], PATIENCE).await;
    let user = json!({"id": BOB, "username": "bob"});
    assert_eq!(alice.next_json().await, told("join", "b", user));
    django.send(channel, &order("group_discard")).await;
    present(&gateway, (1, "b"), &[(ALICE, 1)], PATIENCE).await;
    present(&gateway, (1, "a"), &[(BOB, 1)], PATIENCE).await;
    let left = told("leave", "b", json!({"id": BOB}));
    assert_eq!(alice.next_json_within(Duration::from_secs(20)).await, left);
}

#[tokio::test]
async fn a_reload_that_changes_the_rule_moves_the_users_to_it() {
    for layer in LAYERS {
        let gateway = house(1, layer, RULE).start().await;
        let mut alice = enter(&gateway, 0, "a", ALICE).await;
        assert_eq!(alice.next_json().await["user"]["id"], ALICE);
        let config = std::fs::read_to_string(&gateway.config).unwrap();
        assert!(config.contains("\"username\""));
        let config = config.replace("\"username\"", "\"is_staff\"");
        std::fs::write(&gateway.config, config).unwrap();
        let answer = gateway
            .replica()
            .api(&gateway.api_key, "POST", "/v1/reload", "");
        assert_eq!(answer.await.status, 200);
        // As after a change of the layer: the socket closes as in a drain, and comes back under the new rule.
        assert_eq!(alice.drained().await.1.0, 1012);
        let _alice = enter(&gateway, 0, "a", ALICE).await;
        eventually(PATIENCE, "the new fields", async || {
            let page = ask(&gateway, 0, "a", "").await;
            let (sockets, user) = (&page["sockets"], &page["users"][0]["user"]);
            match *sockets == 1 && user["is_staff"].is_boolean() {
                true => Ok(()),
                false => Err(page.to_string()),
            }
        })
        .await;
    }
}
