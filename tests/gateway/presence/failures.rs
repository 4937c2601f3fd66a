//! Killed replicas, a Redis that lost its data, one that refuses writes, and one that is away.

use std::time::Duration;

use serde_json::json;

use super::{HEALED, LAYERS, enter, house, present, told};
use crate::support::database::{ALICE, BOB};
use crate::support::proxy::{Line, Proxy};
use crate::support::socket::Socket;
use crate::support::{PATIENCE, RedisServer, within};

/// Waits for a leave of Bob, and fails if anything else comes.
async fn hears_the_leave(alice: &mut Socket, deadline: Duration) {
    let left = told("leave", "a", json!({"id": BOB}));
    assert_eq!(alice.next_json_within(deadline).await, left);
}

/// Reads what Alice hears at the beginning: that she and Bob joined, in any order.
async fn hears_both_joins(alice: &mut Socket) {
    let mut ids = [alice.next_json().await, alice.next_json().await]
        .map(|frame| frame["user"]["id"].as_str().unwrap_or_default().to_owned());
    ids.sort_unstable();
    assert_eq!(ids, [ALICE, BOB]);
}

#[tokio::test]
async fn the_users_of_a_killed_replica_are_gone_within_half_a_minute() {
    for layer in LAYERS {
        let rule = "notify = true, linger = '1s'";
        let mut gateway = house(2, layer, rule).start().await;
        let mut alice = enter(&gateway, 0, "a", ALICE).await;
        let _bob = enter(&gateway, 1, "a", BOB).await;
        // In a room of which the other replica knows nothing.
        let _alone = enter(&gateway, 1, "b", BOB).await;
        hears_both_joins(&mut alice).await;
        present(&gateway, (0, "b"), &[(BOB, 1)], PATIENCE).await;
        gateway.replicas[1].process.kill();
        present(&gateway, (0, "a"), &[(ALICE, 1)], HEALED).await;
        present(&gateway, (0, "b"), &[], HEALED).await;
        hears_the_leave(&mut alice, HEALED).await;
        assert!(alice.ping().await.is_empty());
    }
}

#[tokio::test]
async fn a_redis_that_lost_its_data_is_filled_again_and_nobody_seems_gone() {
    for layer in LAYERS {
        let redis = RedisServer::start().await;
        let rule = "notify = true, linger = '1s'";
        let gateway = house(2, layer, rule).redis(&redis.url()).start().await;
        let mut alice = enter(&gateway, 0, "a", ALICE).await;
        let bob = enter(&gateway, 1, "a", BOB).await;
        hears_both_joins(&mut alice).await;
        let both = [(ALICE, 1), (BOB, 1)];
        present(&gateway, (0, "a"), &both, PATIENCE).await;
        let _: () = redis.command(&["FLUSHALL"]).await;
        present(&gateway, (0, "a"), &both, HEALED).await;
        redis.restart().await;
        present(&gateway, (1, "a"), &both, HEALED).await;
        // One who leaves afterwards leaves once, and nothing else was told meanwhile.
        drop(bob);
        hears_the_leave(&mut alice, HEALED).await;
    }
}

#[tokio::test]
async fn a_redis_that_refuses_writes_closes_no_socket_and_gets_them_later() {
    let redis = RedisServer::start().await;
    let gateway = house(1, "pubsub", "notify = true, linger = '0s'")
        .redis(&redis.url())
        .start()
        .await;
    let mut alice = enter(&gateway, 0, "a", ALICE).await;
    assert_eq!(alice.next_json().await["user"]["id"], ALICE);
    let _: () = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let bob = enter(&gateway, 0, "a", BOB).await;
    gateway.replica().logged("Presence cannot be written").await;
    let unwritten = "lockgate_presence_unwritten_groups";
    let replica = gateway.replica();
    replica.metric(unwritten, &[], |groups| groups == 1.0).await;
    let gone = enter(&gateway, 0, "a", BOB).await;
    drop(gone);
    let _: () = redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    present(&gateway, (0, "a"), &[(ALICE, 1), (BOB, 1)], HEALED).await;
    gateway
        .replica()
        .logged("Presence is written to Redis again")
        .await;
    replica.metric(unwritten, &[], |groups| groups == 0.0).await;
    assert_eq!(alice.next_json().await["user"]["id"], BOB);
    drop(bob);
    hears_the_leave(&mut alice, HEALED).await;
}

#[tokio::test]
async fn what_was_missed_while_the_link_was_cut_is_told_when_it_is_back() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(&redis.endpoint()).await;
    let rule = "notify = true, linger = '0s'";
    let near = house(1, "pubsub", rule).redis(&redis.url());
    let mut gateway = near.start().await;
    // A second replica of the same configuration, on a line that can be cut.
    let config = std::fs::read_to_string(&gateway.config).unwrap();
    let config = config.replace(&redis.endpoint(), &proxy.endpoint());
    std::fs::write(&gateway.config, config).unwrap();
    gateway.add_replica().await;
    gateway.replicas[1].ready().await;
    let mut bob = enter(&gateway, 0, "a", BOB).await;
    assert_eq!(bob.next_json().await["user"]["id"], BOB);
    let mut alice = enter(&gateway, 1, "a", ALICE).await;
    assert_eq!(alice.next_json().await["user"]["id"], ALICE);
    proxy.set(Line::Cut);
    drop(bob);
    present(&gateway, (0, "a"), &[(ALICE, 1)], PATIENCE).await;
    proxy.set(Line::Open);
    hears_the_leave(&mut alice, HEALED).await;
    let _bob = enter(&gateway, 0, "a", BOB).await;
    let joined = within(HEALED, "the join", alice.next_json()).await;
    assert_eq!(joined, told("join", "a", json!({"id": BOB})));
}
