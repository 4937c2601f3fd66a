//! Rows of a Redis Cluster and the layer `sharded`. Groups of other shards than the one concerned are told of nothing.

use crate::fault::{ClusterFault, Fault};
use crate::row::{Crowd, Must, NOTHING, Redis, Road, Row, TOLD, WORLD, World};

const SHORT: Crowd = Crowd {
    clients: 24,
    groups: 12,
    pace: 100,
};

/// Groups on all shards, each with sockets on both replicas as a rule.
const LONG: Crowd = Crowd {
    clients: 500,
    groups: 200,
    pace: 1_000,
};

const CLUSTER: World = World {
    redis: Redis::Cluster,
    layer: "sharded",
    road: Road::Api,
    crowd: Some([SHORT, LONG]),
    ..WORLD
};

/// Slots move while the cluster is whole: connects go on, and its own groups hear again at once.
const MOVES: Must = Must {
    gaps: true,
    recovers: 4,
    ..NOTHING
};

/// The shard is down until its replica takes over. It is used again within two seconds of that, on a busy machine within four.
const TAKEN_OVER: Must = Must {
    recovers: 4,
    ..TOLD
};

fn of_cluster(number: u8, name: &'static str, fault: ClusterFault, lasts: [u64; 2]) -> Row {
    Row {
        number,
        name,
        fault: Fault::Cluster(fault),
        lasts,
        world: CLUSTER,
        must: MOVES,
    }
}

/// All of them.
pub(super) fn rows() -> Vec<Row> {
    use ClusterFault::*;
    let down = |name, fault, lasts| Row {
        must: TAKEN_OVER,
        ..of_cluster(18, name, fault, lasts)
    };
    let slots_move = "slots of a cluster move one by one, sharded pub/sub";
    let many_move = "4,000 slots of a cluster move at once";
    let comes_and_goes = "a node joins a cluster, takes slots, gives them back and leaves";
    vec![
        of_cluster(17, slots_move, SlotsMove, [500, 2_000]),
        of_cluster(17, many_move, ManySlotsMove, [500, 2_000]),
        of_cluster(17, comes_and_goes, NodeComesAndGoes, [500, 2_000]),
        down("a master of a cluster is killed", MasterKilled, [0, 0]),
        down(
            "a replica of a cluster is promoted by hand",
            ReplicaPromoted,
            [0, 0],
        ),
        down(
            "a master of a cluster is frozen (SIGSTOP)",
            MasterFrozen,
            [4_000, 8_000],
        ),
        Row {
            must: NOTHING,
            ..of_cluster(
                18,
                "the memory of a cluster's master is full",
                MasterFull,
                [1_500, 8_000],
            )
        },
    ]
}
