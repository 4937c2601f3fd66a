//! A Redis that comes back, with all recorded events or without the newest ones, whose offsets it gives again.

use std::ops::Range;

use serde_json::json;

use super::resume::{events, position, position_of, publish, returning, with_history};
use super::resume_replicas::{behind_proxy, told};
use crate::support::proxy::Line;
use crate::support::replica::Replica;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway};

const HISTORY: &str = "{ size = 5000, ttl = '10m' }";

fn epoch_of(position: &str) -> &str {
    position.rsplit('~').nth(1).unwrap()
}

/// Publishes these events after a restart of Redis, as soon as the replica's link has come back.
async fn publish_once_back(gateway: &Gateway, replica: &Replica, numbers: Range<u64>) {
    let path = format!("/v1/tenants/{}/groups/chat_a/send", gateway.tenant().name);
    let body = json!({"type": "t", "n": numbers.start}).to_string();
    eventually(PATIENCE, "an event is taken", async || {
        let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
        match answer.status {
            200 => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
    publish(gateway, replica, numbers.start + 1..numbers.end).await;
}

/// Comes back from a position whose next events are lost.
async fn told_at(gateway: &Gateway, replica: &Replica, since: &str) {
    let dial = returning(replica, gateway.tenant(), "/ws/a/", &[since]);
    let mut socket = dial.open().await;
    told(&mut socket).await;
    assert_eq!(socket.ping().await, [], "{since}");
}

/// Redis has saved ten events, and has lost five more. It gives the offsets of those to others, while the replica that has
/// delivered the five is away.
async fn lost_tail(kind: &str) {
    let redis = RedisServer::start().await;
    let (gateway, proxy) = behind_proxy(&redis, &[("layer.kind", kind.into())]).await;
    let (cut, other) = (&gateway.replicas[0], &gateway.replicas[1]);
    let mut live = returning(cut, gateway.tenant(), "/ws/a/", &[]).open().await;
    position(&mut live).await;
    publish(&gateway, other, 0..10).await;
    let kept = events(&mut live, 0..10).await;
    let _: String = redis.command(&["SAVE"]).await;
    publish(&gateway, other, 10..15).await;
    let lost = events(&mut live, 10..15).await;
    proxy.set(Line::Reset);
    redis.restart().await;
    publish_once_back(&gateway, other, 15..25).await;
    // The position is behind the newest one, and is that of another event now.
    told_at(&gateway, other, &lost).await;
    proxy.set(Line::Open);
    let gap = live.next_json().await;
    assert_eq!(gap, json!({"type": "lockgate.gap", "group": "chat_a"}));
    let end = position(&mut live).await;
    assert_eq!(end["recovered"], false);
    assert_ne!(epoch_of(&position_of(&end)), epoch_of(&lost));
    let has = events(&mut live, 15..25).await;
    // Now it is known, and those that stand before the lost events are told as well, on any replica.
    told_at(&gateway, other, &kept).await;
    told_at(&gateway, cut, &lost).await;
    publish(&gateway, other, 25..30).await;
    events(&mut live, 25..30).await;
    let mut back = returning(other, gateway.tenant(), "/ws/a/", &[&has])
        .open()
        .await;
    events(&mut back, 25..30).await;
    assert_eq!(position(&mut back).await["recovered"], true);
    assert_eq!((live.ping().await, back.ping().await), (vec![], vec![]));
}

/// The live socket used to get the events with offsets beyond its own alone, and a client that came back the same, both without
/// a word.
#[tokio::test]
async fn newest_events_that_redis_lost_are_told_though_others_have_their_offsets() {
    lost_tail("pubsub").await;
    lost_tail("core").await;
}

#[tokio::test]
async fn newest_events_that_redis_lost_are_told_where_no_replica_has_seen_them() {
    let redis = RedisServer::start().await;
    let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
    let mut gateway = builder.replicas(1).start().await;
    let mut live = returning(gateway.replica(), gateway.tenant(), "/ws/a/", &[])
        .open()
        .await;
    position(&mut live).await;
    publish(&gateway, gateway.replica(), 0..10).await;
    let kept = events(&mut live, 0..10).await;
    let _: String = redis.command(&["SAVE"]).await;
    publish(&gateway, gateway.replica(), 10..15).await;
    let lost = events(&mut live, 10..15).await;
    gateway.replicas[0].process.kill();
    redis.restart().await;
    gateway.add_replica().await;
    let replica = gateway.replicas.last().unwrap();
    replica.ready().await;
    publish(&gateway, replica, 15..25).await;
    told_at(&gateway, replica, &lost).await;
    // One that stands at the last event that was saved gets what followed.
    let mut back = returning(replica, gateway.tenant(), "/ws/a/", &[&kept])
        .open()
        .await;
    events(&mut back, 15..25).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

#[tokio::test]
async fn a_redis_that_comes_back_with_all_events_is_no_gap() {
    for kind in ["pubsub", "core"] {
        let redis = RedisServer::start().await;
        let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
        let builder = builder.with("layer.kind", kind);
        let gateway = builder.with("on_gap", "notify").replicas(2).start().await;
        let [first, second] = &*gateway.replicas else {
            panic!("two replicas");
        };
        let mut live = returning(first, gateway.tenant(), "/ws/a/", &[])
            .open()
            .await;
        let mut known = vec![position_of(&position(&mut live).await)];
        for round in 0..3 {
            let next = round * 20;
            publish(&gateway, second, next..next + 10).await;
            known.push(events(&mut live, next..next + 10).await);
            redis.restart_with_data().await;
            publish_once_back(&gateway, second, next + 10..next + 20).await;
            known.push(events(&mut live, next + 10..next + 20).await);
        }
        assert_eq!(live.ping().await, []);
        // From each epoch and place, on either replica.
        for (index, since) in known.iter().enumerate() {
            let replica = &gateway.replicas[index % 2];
            let dial = returning(replica, gateway.tenant(), "/ws/a/", &[since]);
            let mut back = dial.open().await;
            events(&mut back, index as u64 * 10..60).await;
            assert_eq!(position(&mut back).await["recovered"], true, "{since}");
        }
        let answer = second
            .api(
                &gateway.api_key,
                "GET",
                &format!(
                    "/v1/tenants/{}/groups/chat_a/history?since={}&limit=1000",
                    gateway.tenant().name,
                    known[1]
                ),
                "",
            )
            .await
            .json();
        assert_eq!(answer["complete"], true, "{answer}");
        assert_eq!(answer["events"].as_array().map(Vec::len), Some(50));
        let metrics = first.metrics().await;
        assert_eq!(metrics.value("lockgate_unhealed_gaps_total", &[]), 0.0);
    }
}
