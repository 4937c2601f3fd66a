//! Changes that an operator makes, and faults that end by themselves: nodes that come and go, a replica promoted by hand, a
//! frozen node, a full one.

use std::time::{Duration, Instant};

use lockgate::stores::redis::cluster::slot_of;
use serde_json::json;

use super::{Shard, on_cluster};
use crate::support::cluster::Cluster;
use crate::support::http::Response;
use crate::support::{Gateway, PATIENCE, eventually};

/// Time in which a frozen node stays so.
const FROZEN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn nodes_that_come_go_freeze_and_fill_up_concern_their_own_groups() {
    let mut cluster = Cluster::start().await;
    let gateway = on_cluster(&cluster).await;
    let mut shards = Shard::open_all(&gateway, &cluster).await;
    let mut round = 0;
    all_talk(&mut shards, &mut round).await;
    comes_and_goes(&gateway, &mut cluster, &mut shards, &mut round).await;
    is_promoted(&gateway, &cluster, &mut shards, &mut round).await;
    fills_up(&gateway, &cluster, &mut shards, &mut round).await;
    freezes(&gateway, &cluster, &mut shards, &mut round).await;
    assert_eq!(gateway.replica().readyz().await.status, 200);
    let other = cluster.owner(shards[1].chat_slot).await;
    is_given_away_without_its_keys(&gateway, &cluster, other).await;
}

async fn all_talk(shards: &mut [Shard], round: &mut u32) {
    *round += 1;
    for shard in shards {
        shard.talks(*round).await;
        shard.has_noticed_nothing().await;
    }
}

/// A node joins, takes the slots of the first shard's groups, gives them back, and leaves.
async fn comes_and_goes(
    gateway: &Gateway,
    cluster: &mut Cluster,
    shards: &mut [Shard],
    round: &mut u32,
) {
    let new = cluster.add_node().await;
    all_talk(shards, round).await;
    for (from, to, events) in [(0, new, 0..20), (new, 0, 20..40)] {
        let first = &mut shards[0];
        let moving = async {
            cluster.move_slot(first.kept_slot, from, to).await;
            cluster.move_slot(first.chat_slot, from, to).await;
        };
        tokio::join!(moving, first.record(gateway, events.clone()));
        first.is_told_of_a_gap(PATIENCE).await;
        first.settles().await;
        first.hears(events).await;
        all_talk(shards, round).await;
    }
    cluster.remove_last().await;
    all_talk(shards, round).await;
    shards[0].record(gateway, 40..45).await;
    shards[0].hears(40..45).await;
}

/// The replica of the second master takes over by order. The groups of that shard alone may be told of a gap.
async fn is_promoted(gateway: &Gateway, cluster: &Cluster, shards: &mut [Shard], round: &mut u32) {
    let slot = shards[1].chat_slot;
    let (replica, last) = tokio::join!(
        cluster.promote_replica_of(1),
        talks_until_told(gateway, &mut shards[1]),
    );
    cluster.taken_over(slot, 1).await;
    assert_eq!(cluster.owner(slot).await, replica);
    hears_nothing_again(gateway, &mut shards[1], last).await;
    shards[1].record(gateway, 0..5).await;
    shards[1].hears(0..5).await;
    all_talk(shards, round).await;
}

/// Sends numbers to the plain group until its socket on the first replica is told of a gap; returns the last that it heard.
async fn talks_until_told(gateway: &Gateway, shard: &mut Shard) -> u32 {
    let mut last = None;
    for n in 1_000.. {
        let answer = sends_to(gateway, &format!("chat_{}", shard.chat_room), n).await;
        if answer.status != 200 {
            continue;
        }
        let frame = shard.chat[0].next_json_within(PATIENCE).await;
        if frame == json!({"type": "lockgate.gap"}) {
            break;
        }
        assert_eq!(frame, json!({ "n": n }));
        last = Some(n);
    }
    last.expect("it talks before the replica is promoted")
}

/// The old master may pass a message on to the new one after its subscribers have moved there. It came twice then. Now it is passed
/// over once, and a gap is told, because it could be a second message with the same bytes.
async fn hears_nothing_again(gateway: &Gateway, shard: &mut Shard, last: u32) {
    let group = format!("chat_{}", shard.chat_room);
    shard.is_quiet().await;
    for n in [last, 5_000, last] {
        gateway.send(&group, &json!({"type": "x", "n": n})).await;
    }
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(shard.chat[0].next_json().await);
    }
    let gap = json!({"type": "lockgate.gap"});
    assert_eq!(heard, [gap, json!({"n": 5_000}), json!({ "n": last })]);
    shard.is_quiet().await;
}

/// The memory of the first master is full: recording there answers an error, everything else goes on.
async fn fills_up(gateway: &Gateway, cluster: &Cluster, shards: &mut [Shard], round: &mut u32) {
    let full = &cluster.nodes[0];
    let () = full
        .command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    let () = full.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let answer = sends(gateway, &shards[0], 45).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    shards[1].record(gateway, 5..10).await;
    shards[1].hears(5..10).await;
    all_talk(shards, round).await;
    let () = full.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    eventually(PATIENCE, "it records again", async || {
        let answer = sends(gateway, &shards[0], 46).await;
        match answer.status {
            200 => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
    shards[0].hears(46..47).await;
}

/// The third master stands still, and its replica takes over. The other shards answer as fast as before.
async fn freezes(gateway: &Gateway, cluster: &Cluster, shards: &mut [Shard], round: &mut u32) {
    let (frozen, others) = shards.split_last_mut().unwrap();
    cluster.nodes[2].freeze();
    let since = Instant::now();
    let mut slowest = Duration::ZERO;
    while since.elapsed() < FROZEN {
        *round += 1;
        for shard in &mut *others {
            let asked = Instant::now();
            shard.talks(*round).await;
            slowest = slowest.max(asked.elapsed());
        }
    }
    println!("while one node stood still, the slowest round elsewhere took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // The links to the frozen node still stand.
    frozen.is_told_of_a_gap(PATIENCE).await;
    frozen.settles().await;
    *round += 1;
    frozen.talks(*round).await;
    frozen.record(gateway, 0..5).await;
    frozen.hears(0..5).await;
    cluster.nodes[2].thaw();
    let node = &cluster.nodes[2];
    eventually(PATIENCE, "the node is a replica", async || {
        let role: String = node.command(&["INFO", "replication"]).await;
        match role.contains("role:slave") {
            true => Ok(()),
            false => Err(role),
        }
    })
    .await;
    *round += 1;
    frozen.talks(*round).await;
    for shard in others {
        shard.has_noticed_nothing().await;
    }
}

/// The slot of a shard's mark goes to another node, its key does not: revocations of that slot are gone as well.
async fn is_given_away_without_its_keys(gateway: &Gateway, cluster: &Cluster, other: usize) {
    for replica in &gateway.replicas {
        let at_risk = |value: f64| value == 0.0;
        replica
            .metric("lockgate_denylist_at_risk", &[], at_risk)
            .await;
    }
    let node = &cluster.nodes[0];
    let marks: Vec<String> = node.command(&["KEYS", "lockgate::epoch:*"]).await;
    // A node that has left may have had one as well, which not every replica has seen.
    for mark in &marks {
        let () = node.command(&["DEL", mark]).await;
        let slot = slot_of(mark.as_bytes());
        cluster.move_slot(slot, 0, other).await;
    }
    for replica in &gateway.replicas {
        let at_risk = |value: f64| value == 1.0;
        replica
            .metric("lockgate_denylist_at_risk", &[], at_risk)
            .await;
    }
}

/// Sends an event to the group with a history.
async fn sends(gateway: &Gateway, shard: &Shard, n: u32) -> Response {
    sends_to(gateway, &format!("kept_{}", shard.kept_room), n).await
}

async fn sends_to(gateway: &Gateway, group: &str, n: u32) -> Response {
    let path = format!("/v1/tenants/{}/groups/{group}/send", gateway.tenant().name);
    let event = json!({"type": "x", "n": n}).to_string();
    let replica = gateway.replica();
    replica.api(&gateway.api_key, "POST", &path, &event).await
}
