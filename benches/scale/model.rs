//! The model: the work of a deployment on a fleet, as numbers of things whose unit costs are measured.
//!
//! Every meter is linear in its work. What is not linear (the replicas that hear a group, the gathering of presence) is in
//! the counts, with its source.

use anyhow::Result;

use crate::deployment::{Deployment, Fleet, Kind};
use crate::units::{Meter, Units, Work};

/// The time for which the history of a trial keeps events, and that of the plans.
pub(crate) const HISTORY_SECONDS: f64 = 600.0;
/// Seconds between two renewals of a replica's presence on a server (`src/presence/census.rs`).
const RENEWAL_SECONDS: f64 = 5.0;
/// Seconds within which each group with presence is looked at (`src/presence/writer.rs`).
const WALK_SECONDS: f64 = 600.0;
/// Events in a second, evenly spread, at which a replica finds its memory warm for every second one: each within 2 ms of another.
const WARM_PER_SECOND: f64 = 500.0;
/// The most writes of one group's presence by one replica in a second (`src/presence/keeper.rs`).
const WRITES_PER_SECOND: f64 = 10.0;

/// A deployment on a fleet, `age` seconds after it was empty.
pub(crate) struct Model<'a> {
    pub(crate) deployment: &'a Deployment,
    pub(crate) fleet: Fleet,
    pub(crate) age: f64,
}

impl<'a> Model<'a> {
    /// A deployment that has run for so long that histories and denylist are full.
    pub(crate) fn settled(deployment: &'a Deployment, fleet: Fleet) -> Self {
        Self {
            deployment,
            fleet,
            age: f64::INFINITY,
        }
    }

    /// Returns the cost of the whole fleet.
    pub(crate) fn cost(&self, units: &Units, meter: Meter) -> Result<f64> {
        units.cost(meter, &self.work(meter))
    }

    /// Returns the numbers of things that this meter counts.
    pub(crate) fn work(&self, meter: Meter) -> Work {
        match meter {
            Meter::GatewayCpu => self.gateway_cpu(),
            Meter::RedisCpu => self.redis_cpu(),
            Meter::GatewayMemory => self.gateway_memory(),
            Meter::RedisMemory => self.redis_memory(),
            Meter::RedisClients => {
                Work::from([("replica", self.fleet.replicas * self.fleet.shards)])
            }
        }
    }

    fn gateway_cpu(&self) -> Work {
        let (deployment, replicas) = (self.deployment, self.fleet.replicas);
        let connects = deployment.reconnects_per_second;
        Work::from([
            ("replica", replicas),
            ("tenant", replicas * (deployment.tenants - 1.0)),
            ("ping", deployment.sockets / deployment.heartbeat_seconds),
            ("event", self.copies(|_| true)),
            ("cold_event", self.cold_copies()),
            ("recorded", self.copies(has_history)),
            ("frame", self.frames(|_| 1.0)),
            ("write", self.frames(|kind| kind.burst)),
            ("connect", connects),
            (
                "membership",
                connects * (deployment.groups_per_socket() - 1.0),
            ),
            ("subscription", self.subscriptions()),
            ("presence_write", self.presence_writes() + self.renewals()),
            ("revocation", deployment.revocations_per_second),
            ("control", deployment.revocations_per_second * replicas),
        ])
    }

    fn redis_cpu(&self) -> Work {
        let (deployment, Fleet { replicas, shards }) = (self.deployment, self.fleet);
        Work::from([
            ("server", shards),
            ("cluster_node", if shards > 1.0 { shards } else { 0.0 }),
            ("replica", replicas * shards),
            ("publish", self.bursts(|kind| !has_history(kind))),
            ("record", self.events(has_history)),
            ("copy", self.copies(|_| true)),
            ("connect", deployment.reconnects_per_second),
            ("subscription", self.subscriptions()),
            ("presence_write", self.presence_writes() + self.renewals()),
            ("revocation", deployment.revocations_per_second),
            ("control", deployment.revocations_per_second * replicas),
        ])
    }

    fn gateway_memory(&self) -> Work {
        let (deployment, replicas) = (self.deployment, self.fleet.replicas);
        Work::from([
            ("replica", replicas),
            ("tenant", replicas * (deployment.tenants - 1.0)),
            ("socket", deployment.sockets),
            (
                "membership",
                deployment.sockets * (deployment.groups_per_socket() - 1.0),
            ),
            ("subscription", self.heard(|_| true)),
            ("presence", self.present()),
        ])
    }

    fn redis_memory(&self) -> Work {
        let (deployment, Fleet { replicas, shards }) = (self.deployment, self.fleet);
        let kept = |kind: &Kind| {
            let published = kind.events_per_second * self.age.min(HISTORY_SECONDS);
            kind.groups * kind.history.min(published)
        };
        Work::from([
            ("server", shards),
            ("cluster_node", if shards > 1.0 { shards } else { 0.0 }),
            ("replica", replicas * shards),
            ("user", deployment.sockets),
            ("subscription", self.heard(|_| true)),
            ("presence", self.present()),
            ("history", deployment.kinds.iter().map(kept).sum()),
            (
                "denied",
                deployment.revocations_per_second * self.age.min(deployment.token_seconds),
            ),
        ])
    }

    fn kinds(&self, wanted: impl Fn(&Kind) -> bool) -> impl Iterator<Item = &Kind> {
        self.deployment
            .kinds
            .iter()
            .filter(move |kind| wanted(kind))
    }

    /// Returns the events published in a second.
    pub(crate) fn events(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        let events = |kind: &Kind| kind.groups * kind.events_per_second;
        self.kinds(wanted).map(events).sum()
    }

    /// Returns the writes in a second by which these events are published: those of a burst come in one.
    fn bursts(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        let writes = |kind: &Kind| kind.groups * kind.events_per_second / kind.burst;
        self.kinds(wanted).map(writes).sum()
    }

    /// Returns the copies of events that Redis sends to replicas in a second.
    pub(crate) fn copies(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        let copies = |kind: &Kind| kind.events_per_second * self.heard_of(kind);
        self.kinds(wanted).map(copies).sum()
    }

    /// Returns the copies in a second that find the memory of their replica cold, since it has slept.
    fn cold_copies(&self) -> f64 {
        let copies = self.copies(|_| true);
        copies / (1.0 + copies / self.fleet.replicas / WARM_PER_SECOND)
    }

    /// Returns the pairs of a group and a replica that hears it.
    fn heard(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        self.kinds(wanted).map(|kind| self.heard_of(kind)).sum()
    }

    fn heard_of(&self, kind: &Kind) -> f64 {
        kind.heard(self.deployment.sockets, self.fleet.replicas)
    }

    /// Returns the frames to sockets in a second, those of each kind divided by `at_once`.
    pub(crate) fn frames(&self, at_once: impl Fn(&Kind) -> f64) -> f64 {
        let sockets = self.deployment.sockets;
        let kinds = self.deployment.kinds.iter();
        kinds
            .map(|kind| kind.events_per_second * sockets * kind.per_socket / at_once(kind))
            .sum()
    }

    /// Returns the groups in a second that a replica begins to hear, since a socket came back to another one than before. A
    /// replica goes on hearing a group for a second.
    fn subscriptions(&self) -> f64 {
        let other = 1.0 - 1.0 / self.fleet.replicas;
        let connects = self.deployment.reconnects_per_second;
        let new = |kind: &Kind| {
            connects * kind.per_socket * other.powf(kind.members(self.deployment.sockets))
        };
        self.deployment.kinds.iter().map(new).sum()
    }

    /// Returns the pairs of a socket and a group with presence.
    fn present(&self) -> f64 {
        let present = self.kinds(|kind| kind.presence).map(|kind| kind.per_socket);
        self.deployment.sockets * present.sum::<f64>()
    }

    /// Returns the scripts in a second that write the presence of one group on one replica: one for a socket that comes back to
    /// its replica, two for one that comes back to another, and those of the walk through all groups.
    pub(crate) fn presence_writes(&self) -> f64 {
        let connects = self.deployment.reconnects_per_second;
        let by_one = 2.0 - 1.0 / self.fleet.replicas;
        let writes = |kind: &Kind| {
            let heard = self.heard_of(kind);
            let changed = connects * kind.per_socket * by_one;
            changed.min(heard * WRITES_PER_SECOND) + heard / WALK_SECONDS
        };
        self.kinds(|kind| kind.presence).map(writes).sum()
    }

    /// Returns the scripts in a second by which replicas renew their life, each for each tenant with presence here.
    pub(crate) fn renewals(&self) -> f64 {
        let (deployment, replicas) = (self.deployment, self.fleet.replicas);
        if !deployment.kinds.iter().any(|kind| kind.presence) {
            return 0.0;
        }
        let elsewhere = (1.0 - 1.0 / replicas).powf(deployment.sockets / deployment.tenants);
        deployment.tenants * replicas * (1.0 - elsewhere) / RENEWAL_SECONDS
    }
}

fn has_history(kind: &Kind) -> bool {
    kind.history > 0.0
}
