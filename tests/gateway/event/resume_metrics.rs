//! The values of the metrics of histories, recoveries and presence: each moves by what happened, and by nothing else.

use serde_json::json;

use super::resume::{events, position, position_of, publish, returning, with_history};
use super::resume_replicas::told;
use crate::support::database::{ALICE, BOB};
use crate::support::{Database, PATIENCE, RedisServer, eventually, gateway};

#[tokio::test]
async fn recoveries_are_counted_by_their_result_with_the_events_that_they_brought() {
    for kind in ["memory", "pubsub", "core"] {
        let redis = RedisServer::shared().await;
        let builder = with_history(gateway().redis(&redis.url()), "{ size = 10, ttl = '10m' }");
        let gateway = builder.await.with("layer.kind", kind).start().await;
        let (replica, tenant) = (gateway.replica(), gateway.tenant());
        let mut live = returning(replica, tenant, "/ws/a/", &[]).open().await;
        let begin = position_of(&position(&mut live).await);
        publish(&gateway, replica, 0..7).await;
        events(&mut live, 0..7).await;
        let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
        events(&mut back, 0..7).await;
        position(&mut back).await;
        publish(&gateway, replica, 7..20).await;
        events(&mut back, 7..20).await;
        for since in [&*begin, "chat_a~0123456789abcdef~3"] {
            let mut back = returning(replica, tenant, "/ws/a/", &[since]).open().await;
            told(&mut back).await;
        }
        let metrics = replica.metrics().await;
        let count = |result| metrics.value("lockgate_recoveries_total", &[("result", result)]);
        let counted = ["recovered", "too_old", "epoch", "error"].map(count);
        assert_eq!(counted, [1.0, 1.0, 1.0, 0.0], "{kind}: {}", metrics.text());
        let brought = metrics.value("lockgate_recovered_events_total", &[]);
        assert_eq!(brought, 7.0, "{kind}");
        assert_eq!(
            metrics.value("lockgate_recorded_total", &[]),
            20.0,
            "{kind}"
        );
    }
}

/// A plain `PUBLISH`, as of Channels' own class on `pubsub`.
#[tokio::test]
async fn an_event_that_was_not_recorded_is_delivered_without_a_position_and_counted() {
    let redis = RedisServer::shared().await;
    let builder = with_history(gateway().redis(&redis.url()), "{ size = 10, ttl = '10m' }");
    let builder = builder.await.with("layer.kind", "pubsub");
    let gateway = builder
        .with("layer.serializer_format", "json")
        .start()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut live = returning(replica, tenant, "/ws/a/", &[]).open().await;
    position(&mut live).await;
    let channel = |room: &str| format!("{}__group__chat_{room}", tenant.prefix);
    // They counted, so that rubbish raised the alert about back ends that do not record.
    for rubbish in ["rubbish", "7", "{}", "{\"type\":7}", "{\"type\":\"_t\"}"] {
        let heard: u64 = redis.command(&["PUBLISH", &channel("a"), rubbish]).await;
        assert_eq!(heard, 1);
    }
    for n in 0..3 {
        let event = json!({"type": "t", "n": n}).to_string();
        let heard: u64 = redis.command(&["PUBLISH", &channel("a"), &event]).await;
        assert_eq!(heard, 1);
        assert_eq!(live.next_json().await, json!({"n": n}));
    }
    publish(&gateway, replica, 3..5).await;
    events(&mut live, 3..5).await;
    let metrics = replica.metrics().await;
    assert_eq!(metrics.value("lockgate_events_unrecorded_total", &[]), 3.0);
    assert_eq!(metrics.value("lockgate_recorded_total", &[]), 2.0);
    let cause = [("cause", "not_decoded")];
    let dropped = metrics.value("lockgate_events_dropped_total", &cause);
    assert_eq!(dropped, 5.0, "{}", metrics.text());
}

#[tokio::test]
async fn the_memory_of_the_redis_of_histories_is_shown_as_a_share_of_its_bound() {
    let redis = RedisServer::start().await;
    let info: String = redis.command(&["INFO", "memory"]).await;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used.unwrap().trim().parse().unwrap();
    let bound = (10 * used).to_string();
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", &bound]).await;
    let builder = with_history(gateway().redis(&redis.url()), "{ size = 10, ttl = '10m' }");
    let gateway = builder.await.with("layer.kind", "pubsub").start().await;
    let ratio = eventually(PATIENCE, "the memory is measured", async || {
        let metrics = gateway.replica().metrics().await;
        match metrics.value("lockgate_history_memory_ratio", &[]) {
            0.0 => Err(()),
            ratio => Ok(ratio),
        }
    })
    .await;
    assert!((0.05..0.5).contains(&ratio), "{ratio}");
}

#[tokio::test]
async fn the_users_of_this_replica_in_groups_with_presence_are_counted() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("layer.kind", "pubsub")
        .with_toml("groups = [{ name = 'chat_<slug:room>', presence = { linger = '1s' } }]")
        .route("path = 'ws/<slug:room>/'\n groups = ['chat_{room}']")
        .replicas(2)
        .start()
        .await;
    let tenant = gateway.tenant();
    let enter = async |replica: usize, room: &str, user: &str| {
        let dial = gateway.replicas[replica].dial(tenant, &format!("/ws/{room}/"));
        dial.token(&tenant.token(user)).open().await
    };
    let entries = async |expected: [f64; 2]| {
        eventually(PATIENCE, "the entries", async || {
            let mut found = [0.0; 2];
            for (replica, found) in gateway.replicas.iter().zip(&mut found) {
                let metrics = replica.metrics().await;
                *found = metrics.value("lockgate_presence_entries", &[]);
            }
            if found == expected {
                Ok(())
            } else {
                Err(found)
            }
        })
        .await;
    };
    // One for each user and group, however many sockets.
    let first = enter(0, "a", ALICE).await;
    let _second = enter(0, "a", ALICE).await;
    let _third = enter(0, "a", BOB).await;
    let fourth = enter(0, "b", ALICE).await;
    let _fifth = enter(1, "a", ALICE).await;
    entries([3.0, 1.0]).await;
    drop((first, fourth));
    entries([2.0, 1.0]).await;
}
