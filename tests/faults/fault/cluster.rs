//! Faults of a Redis Cluster, and changes that an operator makes of one.
//!
//! Each concerns the groups of one shard, that of the first group. The groups of other shards must notice nothing.

use std::collections::BTreeSet;

use lockgate::stores::redis::cluster::slot_of;
use redis::aio::MultiplexedConnection;

use crate::field::Field;
use crate::stage::Stage;
use crate::support::cluster::{Cluster, ranges_in};
use crate::support::redis::RedisServer;

/// Slots that move at once.
const MANY: usize = 4_000;

/// What goes wrong with a cluster, or is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClusterFault {
    /// The slots of a shard's groups go to another master, one by one.
    SlotsMove,
    /// 4,000 slots of a shard go to another master at once.
    ManySlotsMove,
    /// A node joins, takes the slots of a shard's groups, gives them back, and leaves.
    NodeComesAndGoes,
    /// A master is killed, and its replica takes over.
    MasterKilled,
    /// A replica takes over by order.
    ReplicaPromoted,
    /// A master is frozen, its replica takes over, and the old master comes back as a replica.
    MasterFrozen,
    /// The memory of a master is full.
    MasterFull,
}

/// The shard that a fault concerns.
struct Shard {
    /// The place of its master among the nodes at the start.
    master: usize,
    /// Its groups by their slots.
    groups: Vec<(u16, usize)>,
}

impl Shard {
    /// The shard of the first group. Before any fault all nodes agree on it.
    async fn of(stage: &Stage) -> Self {
        let cluster = stage.stores.cluster.as_ref().expect("the row has one");
        let master = cluster.owner(slot_of_group(stage, 0)).await;
        let slots = slots_of(cluster, master).await;
        let all = (0..stage.field.size.groups).map(|group| (slot_of_group(stage, group), group));
        Self {
            master,
            groups: all.filter(|(slot, _)| slots.contains(slot)).collect(),
        }
    }

    fn slots(&self) -> BTreeSet<u16> {
        self.groups.iter().map(|(slot, _)| *slot).collect()
    }

    /// The groups whose slots are among these.
    fn groups_in(&self, slots: &BTreeSet<u16>) -> BTreeSet<usize> {
        let there = self.groups.iter().filter(|(slot, _)| slots.contains(slot));
        there.map(|(_, group)| *group).collect()
    }
}

/// The slot of a group of `hurt` on the layer `sharded`.
fn slot_of_group(stage: &Stage, group: usize) -> u16 {
    let prefix = &stage.gateway.named("hurt").prefix;
    let name = Field::group_name(group);
    slot_of(format!("{prefix}__group__{name}").as_bytes())
}

impl ClusterFault {
    pub(super) async fn begin(self, stage: &mut Stage) {
        let shard = Shard::of(stage).await;
        let slots = match self {
            Self::ManySlotsMove => many_slots(stage, &shard).await,
            Self::MasterFull => BTreeSet::new(),
            _ => shard.slots(),
        };
        *stage.field.concerned.lock() = Some(shard.groups_in(&slots));
        let cluster = stage.stores.cluster.as_mut().expect("the row has one");
        let (master, other) = (shard.master, (shard.master + 1) % 3);
        match self {
            Self::SlotsMove => move_one_by_one(cluster, &slots, master, other).await,
            Self::ManySlotsMove => move_at_once(cluster, &slots, master, other).await,
            Self::NodeComesAndGoes => {
                let new = cluster.add_node().await;
                move_one_by_one(cluster, &slots, master, new).await;
            }
            Self::MasterKilled => cluster.nodes[master].kill(),
            Self::ReplicaPromoted => {
                cluster.promote_replica_of(master).await;
            }
            Self::MasterFrozen => cluster.nodes[master].freeze(),
            Self::MasterFull => {
                let policy = ["CONFIG", "SET", "maxmemory-policy", "noeviction"];
                let () = cluster.nodes[master].command(&policy).await;
                set_memory(cluster, master, "1").await;
            }
        }
        stage.stores.shard = Some(master);
    }

    pub(super) async fn end(self, stage: &mut Stage) {
        let slot = slot_of_group(stage, 0);
        let master = stage.stores.shard.take().expect("the fault has begun");
        let cluster = stage.stores.cluster.as_mut().expect("the row has one");
        match self {
            Self::SlotsMove | Self::ManySlotsMove => {}
            Self::NodeComesAndGoes => {
                let new = cluster.nodes.len() - 1;
                let slots = slots_of(cluster, new).await;
                move_one_by_one(cluster, &slots, new, master).await;
                cluster.remove_last().await;
            }
            Self::MasterKilled | Self::ReplicaPromoted => cluster.taken_over(slot, master).await,
            Self::MasterFrozen => {
                cluster.taken_over(slot, master).await;
                cluster.nodes[master].thaw();
            }
            Self::MasterFull => set_memory(cluster, master, "0").await,
        }
    }
}

/// Slots of the shard, with that of the first group among them.
async fn many_slots(stage: &Stage, shard: &Shard) -> BTreeSet<u16> {
    let cluster = stage.stores.cluster.as_ref().expect("the row has one");
    let all = slots_of(cluster, shard.master).await;
    let first = slot_of_group(stage, 0);
    let (before, after): (Vec<u16>, Vec<u16>) = all.iter().partition(|slot| **slot < first);
    after.into_iter().chain(before).take(MANY).collect()
}

async fn move_one_by_one(cluster: &Cluster, slots: &BTreeSet<u16>, from: usize, to: usize) {
    for slot in slots {
        cluster.move_slot(*slot, from, to).await;
    }
}

async fn set_memory(cluster: &Cluster, node: usize, most: &str) {
    let command = ["CONFIG", "SET", "maxmemory", most];
    let () = cluster.nodes[node].command(&command).await;
}

/// The slots that a node has, as it knows itself.
async fn slots_of(cluster: &Cluster, node: usize) -> BTreeSet<u16> {
    let nodes: String = cluster.nodes[node].command(&["CLUSTER", "NODES"]).await;
    let own = nodes.lines().find(|line| line.contains("myself"));
    ranges_in(own.expect("a node knows itself"))
        .flatten()
        .collect()
}

/// Gives slots to another master. Those without a key change hands by a command each, the others one by one.
async fn move_at_once(cluster: &Cluster, slots: &BTreeSet<u16>, from: usize, to: usize) {
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    let id: String = target.command(&["CLUSTER", "MYID"]).await;
    let give = async |link: &MultiplexedConnection, slot: u16| {
        let mut set = redis::cmd("CLUSTER");
        set.arg("SETSLOT").arg(slot).arg("NODE").arg(&id);
        set.query_async::<()>(&mut link.clone()).await
    };
    let [source, target] = [source, target].map(RedisServer::connection);
    let [source, target] = [source.await.unwrap(), target.await.unwrap()];
    for slot in slots {
        // The old owner refuses while it has a key of the slot. Once it agrees it sends askers to the new one.
        match give(&source, *slot).await {
            Ok(()) => give(&target, *slot).await.unwrap(),
            Err(_) => cluster.move_slot(*slot, from, to).await,
        }
    }
    // Other nodes believe the claim with the highest epoch.
    let _: String = cluster.nodes[to].command(&["CLUSTER", "BUMPEPOCH"]).await;
}
