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
/// Seconds that the sockets of a trial have been open at least, before events come and memory is read.
const OPENING_SECONDS: f64 = 6.0;
/// Sockets of a replica that are many at once.
const MANY_SOCKETS: f64 = 50.0;
/// The part of `users.cache_ttl` after which users are looked up again (`src/coherence.rs`).
const REVALIDATED_AFTER: f64 = 0.8;
/// Things to do in a second, evenly spread, at which a replica finds its memory warm for every second one: each within 2 ms of another.
const WARM_PER_SECOND: f64 = 500.0;
/// The times that a replica has something to do for a connect: the request, an answer of Redis, the goodbye.
const STEPS_OF_A_CONNECT: f64 = 3.0;
/// The same of Redis: the round of reads, and what follows from it.
const STEPS_IN_REDIS: f64 = 2.0;
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

    /// Returns what [`Model::cost`] is more than that of the same fleet with next to no sockets.
    pub(crate) fn growth(&self, units: &Units, meter: Meter) -> Result<f64> {
        let mut work = self.work(meter);
        for base in ["replica", "tenant", "server", "cluster_node", "link"] {
            work.remove(base);
        }
        units.cost(meter, &work)
    }

    /// Returns the numbers of things that this meter counts.
    pub(crate) fn work(&self, meter: Meter) -> Work {
        match meter {
            Meter::GatewayCpu => self.gateway_cpu(),
            Meter::RedisCpu => self.redis_cpu(),
            Meter::GatewayMemory => self.gateway_memory(),
            Meter::RedisMemory => self.redis_memory(),
            Meter::RedisClients => {
                let links = self.fleet.replicas * self.fleet.shards;
                Work::from([("link", links), ("waiting", self.waiting(links))])
            }
        }
    }

    fn gateway_cpu(&self) -> Work {
        let (deployment, Fleet { replicas, shards }) = (self.deployment, self.fleet);
        let connects = deployment.reconnects_per_second;
        let asleep = self.asleep(Meter::GatewayCpu);
        let mut work = Work::from([
            ("replica", replicas),
            ("link", replicas * shards),
            ("tenant", replicas * (deployment.tenants - 1.0)),
            ("ping", deployment.sockets / deployment.heartbeat_seconds),
            ("event", self.copies(|_| true)),
            ("wake", asleep * self.sendings(|_| true)),
            ("recorded_wake", asleep * self.sendings(has_history)),
            ("connect_wake", asleep * connects),
            ("recorded", self.copies(has_history)),
            ("frame", self.frames(|_| 1.0)),
            ("write", self.frames(|kind| kind.burst)),
            (
                "membership",
                connects * (deployment.groups_per_socket() - 1.0),
            ),
        ]);
        work.extend(self.on_both());
        work
    }

    fn redis_cpu(&self) -> Work {
        let Fleet { replicas, shards } = self.fleet;
        let asleep = self.asleep(Meter::RedisCpu);
        let mut work = Work::from([
            ("server", shards),
            ("cluster_node", self.cluster_nodes()),
            ("link", replicas * shards),
            ("wake", asleep * self.arrivals(|_| true)),
            ("record_wake", asleep * self.arrivals(has_history)),
            (
                "connect_wake",
                asleep * self.deployment.reconnects_per_second,
            ),
            ("arrival", self.arrivals(|_| true)),
            ("publish", self.events(|kind| !has_history(kind))),
            ("record", self.events(has_history)),
            ("copy", self.copies(|_| true)),
            ("sending", self.sendings(|_| true)),
            ("replicated", self.replicated()),
        ]);
        work.extend(self.on_both());
        work
    }

    /// Returns what costs both a replica and Redis something.
    fn on_both(&self) -> [(&'static str, f64); 12] {
        let (deployment, replicas) = (self.deployment, self.fleet.replicas);
        let revocations = deployment.revocations_per_second;
        [
            ("connect", deployment.reconnects_per_second),
            ("subscribing", self.subscribing()),
            ("subscription", self.subscriptions()),
            ("presence_write", self.presence_writes() + self.renewals()),
            ("revocation", revocations),
            ("confirmed", revocations * deployment.denylist_replicas),
            ("control", revocations * replicas),
            ("recheck", self.rechecks()),
            ("state", self.state_reads()),
            ("revalidation", self.revalidations()),
            ("resume", self.resumes()),
            (
                "missed",
                self.missed(deployment.reconnects_per_second, deployment.away_seconds),
            ),
        ]
    }

    fn gateway_memory(&self) -> Work {
        let (deployment, replicas) = (self.deployment, self.fleet.replicas);
        Work::from([
            ("replica", replicas),
            ("tenant", replicas * (deployment.tenants - 1.0)),
            ("in_use", self.in_use()),
            ("looking_up", self.looking_up()),
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
            ("cluster_node", self.cluster_nodes()),
            ("link", replicas * shards),
            ("tenant", replicas * (deployment.tenants - 1.0)),
            (
                "backlog",
                match deployment.redis_replicas > 0.0 {
                    true => shards,
                    false => 0.0,
                },
            ),
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

    /// Returns the replicas that have had many sockets at once: the buffers of that stay.
    fn in_use(&self) -> f64 {
        let replicas = self.fleet.replicas;
        match self.deployment.sockets / replicas >= MANY_SOCKETS {
            true => replicas,
            false => 0.0,
        }
    }

    /// Returns the replicas that have looked up users of open sockets again, which takes buffers.
    fn looking_up(&self) -> f64 {
        let age = self.age.max(OPENING_SECONDS);
        match age >= REVALIDATED_AFTER * self.deployment.cache_ttl_seconds {
            true => self.in_use(),
            false => 0.0,
        }
    }

    /// Returns these links, if a revocation waits for the replicas of its server on links of its own.
    fn waiting(&self, links: f64) -> f64 {
        match self.deployment.denylist_replicas > 0.0 {
            true => links,
            false => 0.0,
        }
    }

    /// Returns the masters, if they are those of a cluster.
    fn cluster_nodes(&self) -> f64 {
        match self.fleet.shards > 1.0 {
            true => self.fleet.shards,
            false => 0.0,
        }
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

    /// Returns the writes in a second by which these events reach Redis: those of a burst come in one.
    fn arrivals(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        let writes = |kind: &Kind| kind.groups * kind.events_per_second / kind.burst;
        self.kinds(wanted).map(writes).sum()
    }

    /// Returns the writes in a second by which Redis sends them to replicas.
    fn sendings(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        let writes = |kind: &Kind| kind.events_per_second * self.heard_of(kind) / kind.burst;
        self.kinds(wanted).map(writes).sum()
    }

    /// Returns the writes in a second that a server passes on to its replicas. Published events are among them.
    fn replicated(&self) -> f64 {
        let writes = self.events(|_| true)
            + self.presence_writes()
            + self.renewals()
            + self.revalidations()
            + self.deployment.revocations_per_second;
        writes * self.deployment.redis_replicas
    }

    /// Returns the copies of events that Redis sends to replicas in a second.
    pub(crate) fn copies(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
        let copies = |kind: &Kind| kind.events_per_second * self.heard_of(kind);
        self.kinds(wanted).map(copies).sum()
    }

    /// Returns the part of things to do that find a replica, or a server of Redis, asleep.
    fn asleep(&self, meter: Meter) -> f64 {
        let (deployment, Fleet { replicas, shards }) = (self.deployment, self.fleet);
        let connects = deployment.reconnects_per_second;
        let revocations = deployment.revocations_per_second * (1.0 + replicas);
        let (all, machines) = match meter {
            Meter::RedisCpu => {
                let written = self.presence_writes() + self.renewals();
                let all = self.arrivals(|_| true) + connects * STEPS_IN_REDIS;
                (all + revocations + written, shards)
            }
            _ => {
                let pings = deployment.sockets / deployment.heartbeat_seconds;
                let all = self.sendings(|_| true) + connects * STEPS_OF_A_CONNECT;
                (all + revocations + pings, replicas)
            }
        };
        1.0 / (1.0 + all / machines / WARM_PER_SECOND)
    }

    /// Returns the pairs of a group and a replica that hears it.
    pub(crate) fn heard(&self, wanted: impl Fn(&Kind) -> bool) -> f64 {
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

    /// Returns the connects in a second that make a replica subscribe to at least one group.
    fn subscribing(&self) -> f64 {
        let other = 1.0 - 1.0 / self.fleet.replicas;
        let kinds = self.deployment.kinds.iter();
        // Given that the socket has come to another replica than before.
        let heard = |kind: &Kind| {
            let others = (kind.members(self.deployment.sockets) - 1.0).max(0.0);
            (1.0 - other.powf(others)).powf(kind.per_socket)
        };
        let all_heard: f64 = kinds.map(heard).product();
        self.deployment.reconnects_per_second * other * (1.0 - all_heard)
    }

    /// Returns the sockets in a second whose token and user are read from the denylist again.
    pub(crate) fn rechecks(&self) -> f64 {
        self.deployment.sockets / self.deployment.recheck_seconds
    }

    /// Returns the reads of a tenant's state in a second, which each replica does with the recheck.
    fn state_reads(&self) -> f64 {
        self.fleet.replicas * self.deployment.tenants / self.deployment.recheck_seconds
    }

    /// Returns the users in a second who are looked up in the database again (`EVERY` in `src/coherence.rs`).
    pub(crate) fn revalidations(&self) -> f64 {
        self.deployment.sockets / (REVALIDATED_AFTER * self.deployment.cache_ttl_seconds)
    }

    /// Returns the histories in a second that a socket that comes back asks for.
    fn resumes(&self) -> f64 {
        self.deployment.reconnects_per_second * self.resuming_groups()
    }

    /// Returns the groups for which a socket comes back with its position.
    pub(crate) fn resuming_groups(&self) -> f64 {
        self.kinds(|kind| kind.resume)
            .map(|kind| kind.per_socket)
            .sum()
    }

    /// Returns the events that so many sockets have missed and are sent, each away for so long.
    pub(crate) fn missed(&self, sockets: f64, away: f64) -> f64 {
        let missed = |kind: &Kind| kind.per_socket * kind.missed(away);
        sockets * self.kinds(|kind| kind.resume).map(missed).sum::<f64>()
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
