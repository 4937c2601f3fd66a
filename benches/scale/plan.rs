//! The fleet that a deployment needs: replicas, shards and cells, and the bound that stops it from growing.
//!
//! A cell is a fleet with a Redis of its own. Cells share nothing; the users of one cell are not in the groups of another.

use anyhow::{Context, Result};

use crate::deployment::{Deployment, Fleet, Limits};
use crate::model::Model;
use crate::units::{Meter, Units, Work};

/// The most cells that are tried, and how many times the fewest.
const MOST_CELLS: f64 = 1e5;
const MOST_MORE: f64 = 10.0;
/// The bytes that WebSocket, TCP, IP and Ethernet add to a frame, and RESP with the same to a message of Redis.
const FRAME_OVERHEAD: f64 = 4.0 + 78.0;
const MESSAGE_OVERHEAD: f64 = 60.0 + 78.0;

/// A bound of a fleet, by the thing that lifts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    ReplicaCpu,
    ReplicaMemory,
    ReplicaSockets,
    ReplicaNetwork,
    RedisCpu,
    RedisMemory,
    RedisNetwork,
    RedisClients,
    Shards,
}

impl Bound {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReplicaCpu => "CPU of a replica",
            Self::ReplicaMemory => "memory of a replica",
            Self::ReplicaSockets => "sockets of a replica",
            Self::ReplicaNetwork => "network of a replica",
            Self::RedisCpu => "CPU of a shard",
            Self::RedisMemory => "memory of a shard",
            Self::RedisNetwork => "network of a shard",
            Self::RedisClients => "links to a shard",
            Self::Shards => "shards of a cluster",
        }
    }

    fn cure(self) -> Cure {
        match self {
            Self::ReplicaCpu | Self::ReplicaMemory => Cure::Replicas,
            Self::ReplicaSockets | Self::ReplicaNetwork => Cure::Replicas,
            Self::RedisCpu | Self::RedisMemory | Self::RedisNetwork => Cure::Shards,
            Self::RedisClients | Self::Shards => Cure::Cells,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cure {
    Replicas,
    Shards,
    Cells,
}

/// The use of one bound: 1 is the limit.
#[derive(Clone, Copy)]
pub(crate) struct Use {
    pub(crate) bound: Bound,
    pub(crate) part: f64,
}

/// The use of a fleet by one cell.
pub(crate) struct Usage {
    pub(crate) uses: [Use; 9],
    /// Cores, bytes, Gbit/s of one replica.
    pub(crate) replica: [f64; 3],
    /// The same of the busiest shard.
    pub(crate) shard: [f64; 3],
    /// The links to a shard, and the cores that they take while nothing is said.
    pub(crate) links: f64,
    pub(crate) idle: f64,
}

impl Usage {
    pub(crate) fn of(units: &Units, deployment: &Deployment, fleet: Fleet) -> Result<Self> {
        let model = Model::settled(deployment, fleet);
        let Fleet { replicas, shards } = fleet;
        let limits: &Limits = &deployment.limits;
        let cost = |meter| model.cost(units, meter);
        let sent = model.frames(|_| 1.0) * (deployment.event_bytes + FRAME_OVERHEAD);
        let copied = model.copies(|_| true) * (deployment.event_bytes + MESSAGE_OVERHEAD);
        let gbit = |bytes: f64| bytes * 8.0 / 1e9;
        let replica = [
            cost(Meter::GatewayCpu)? / replicas / 1e6,
            cost(Meter::GatewayMemory)? / replicas,
            gbit(sent / replicas),
        ];
        let (hot_cpu, hot_bytes) = hottest(units, &model)?;
        let shard = [
            (cost(Meter::RedisCpu)? / shards + hot_cpu * (1.0 - 1.0 / shards)) / 1e6,
            cost(Meter::RedisMemory)? / shards,
            gbit(copied / shards + hot_bytes * (1.0 - 1.0 / shards)),
        ];
        let links = cost(Meter::RedisClients)? / shards;
        let mib = 1_048_576.0;
        let used = |bound, part| Use { bound, part };
        Ok(Self {
            uses: [
                used(Bound::ReplicaCpu, replica[0] / limits.replica_cores),
                used(Bound::ReplicaMemory, replica[1] / mib / limits.replica_mib),
                used(
                    Bound::ReplicaSockets,
                    deployment.sockets / replicas / limits.replica_sockets,
                ),
                used(Bound::ReplicaNetwork, replica[2] / limits.network_gbit),
                used(Bound::RedisCpu, shard[0] / limits.redis_core),
                used(Bound::RedisMemory, shard[1] / mib / limits.redis_mib),
                used(Bound::RedisNetwork, shard[2] / limits.network_gbit),
                used(Bound::RedisClients, links / limits.redis_clients),
                used(Bound::Shards, shards / limits.shards),
            ],
            replica,
            shard,
            links,
            idle: units.get(Meter::RedisCpu, "link")?.cost * replicas / 1e6,
        })
    }

    /// Returns the bound that is used most.
    pub(crate) fn tightest(&self) -> Use {
        self.most(|_| true)
    }

    fn most(&self, wanted: impl Fn(&Use) -> bool) -> Use {
        let uses = self.uses.into_iter().filter(wanted);
        let most = uses.max_by(|a, b| a.part.total_cmp(&b.part));
        most.unwrap_or(self.uses[0])
    }

    /// Takes the higher use of each bound.
    fn take_higher(&mut self, other: &Self) {
        for (own, other) in self.uses.iter_mut().zip(&other.uses) {
            own.part = own.part.max(other.part);
        }
    }
}

/// Returns microseconds and bytes in a second of what cannot be spread over shards: the busiest group, or what all replicas
/// of one tenant share.
fn hottest(units: &Units, model: &Model<'_>) -> Result<(f64, f64)> {
    let (deployment, replicas) = (model.deployment, model.fleet.replicas);
    let mut most = (0.0_f64, 0.0_f64);
    for kind in &deployment.kinds {
        let heard = kind.heard(deployment.sockets, replicas) / kind.groups;
        let publish = match kind.history > 0.0 {
            true => "record",
            false => "publish",
        };
        let writes = kind.events_per_second / kind.burst;
        let work = Work::from([
            (publish, kind.events_per_second),
            ("arrival", writes),
            ("copy", kind.events_per_second * heard),
            ("sending", writes * heard),
        ]);
        let bytes = kind.events_per_second * heard * (deployment.event_bytes + MESSAGE_OVERHEAD);
        most = (
            most.0.max(units.cost(Meter::RedisCpu, &work)?),
            most.1.max(bytes),
        );
    }
    // A tenant's control channel, and the list of its living replicas.
    let revocations = deployment.revocations_per_second / deployment.tenants;
    let control = Work::from([
        ("revocation", revocations),
        ("confirmed", revocations * deployment.denylist_replicas),
        ("control", revocations * replicas),
    ]);
    let renewals = Work::from([("presence_write", model.renewals() / deployment.tenants)]);
    for work in [control, renewals] {
        most.0 = most.0.max(units.cost(Meter::RedisCpu, &work)?);
    }
    Ok(most)
}

/// A fleet that carries the deployment, as so many equal cells.
pub(crate) struct Plan {
    pub(crate) cells: f64,
    /// The part of the deployment that one cell has.
    pub(crate) cell: Deployment,
    pub(crate) fleet: Fleet,
    /// The use at the calm peak.
    pub(crate) usage: Usage,
    /// The use that decided: the higher one of each bound, calm and after the loss of a zone, if the fleet is to survive it.
    pub(crate) deciding: Usage,
    pub(crate) reason: Option<Reason>,
}

/// The reason for more cells than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A bound that no fleet of fewer cells keeps.
    Bound(Bound),
    /// Fewer cells take more servers.
    Servers,
}

impl Plan {
    /// Returns all servers: replicas, masters, and their own replicas.
    fn servers(&self) -> f64 {
        let of_a_shard = 1.0 + self.cell.redis_replicas;
        self.cells * (self.fleet.replicas + self.fleet.shards * of_a_shard)
    }
}

/// Finds the cells, and for a cell the fewest replicas and shards: so few cells that more of them would save less than a tenth
/// of all servers.
///
/// # Errors
/// No number of cells is enough.
pub(crate) fn plan(units: &Units, deployment: &Deployment) -> Result<Plan> {
    const WORTH: f64 = 1.1;
    let (mut cells, mut wall, mut most) = (1.0_f64, None, MOST_CELLS);
    let mut plans: Vec<Plan> = Vec::new();
    while cells <= most {
        let cell = deployment.times(1.0 / cells);
        match fill(units, &cell)? {
            Ok((fleet, [usage, deciding])) => {
                let reason = match plans.is_empty() {
                    true => wall.map(Reason::Bound),
                    false => Some(Reason::Servers),
                };
                if plans.is_empty() {
                    most = cells * MOST_MORE;
                }
                plans.push(Plan {
                    cells,
                    cell,
                    fleet,
                    usage,
                    deciding,
                    reason,
                });
            }
            Err(bound) => wall = Some(bound),
        }
        cells = (cells * 1.05).ceil().max(cells + 1.0);
    }
    let fewest = plans.iter().map(Plan::servers).min_by(f64::total_cmp);
    let worth = fewest.unwrap_or_default() * WORTH;
    let chosen = plans.into_iter().find(|plan| plan.servers() <= worth);
    chosen.with_context(|| {
        let bound = wall.map_or("nothing", Bound::name);
        let name = &deployment.name;
        format!("{name}: {bound} is over its limit in any number of cells")
    })
}

/// Finds the fleet of one cell with its use, calm and deciding, or the bound that no fleet keeps.
fn fill(units: &Units, cell: &Deployment) -> Result<Result<(Fleet, [Usage; 2]), Bound>> {
    // Beyond this a replica has next to no sockets, and still too much to do.
    const FEWEST_SOCKETS: f64 = 50.0;
    let mut fleet = Fleet {
        replicas: 1.0,
        shards: 1.0,
    };
    loop {
        let mut deciding = Usage::of(units, cell, fleet)?;
        if cell.survives_zone() {
            let Some(left) = survivors(cell, fleet) else {
                fleet.replicas += 1.0;
                continue;
            };
            deciding.take_higher(&Usage::of(units, cell, left)?);
        }
        let [replica, shard, wall] = [Cure::Replicas, Cure::Shards, Cure::Cells]
            .map(|cure| deciding.most(|used| used.bound.cure() == cure));
        if wall.part > 1.0 {
            return Ok(Err(wall.bound));
        }
        if replica.part > 1.0 {
            if fleet.replicas > 2.0 && cell.sockets / fleet.replicas < FEWEST_SOCKETS {
                return Ok(Err(replica.bound));
            }
            fleet.replicas = more(fleet.replicas, replica.part);
        } else if shard.part > 1.0 {
            fleet.shards = more(fleet.shards, shard.part);
        } else {
            return Ok(Ok((fleet, [Usage::of(units, cell, fleet)?, deciding])));
        }
    }
}

/// A cautious step: what grows with the fleet itself makes the ratio too high.
fn more(now: f64, part: f64) -> f64 {
    (now * part.min(1.5)).ceil().max(now + 1.0)
}

/// Returns what is left of a fleet after the loss of a zone; none if that is no replica. Shards go on: their replicas lie in
/// other zones.
pub(crate) fn survivors(cell: &Deployment, fleet: Fleet) -> Option<Fleet> {
    let replicas = fleet.replicas - (fleet.replicas / cell.zones).ceil();
    (replicas >= 1.0).then_some(Fleet { replicas, ..fleet })
}
