//! A described deployment: its sockets, groups, events, reconnects and limits, as a file of TOML tells them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The file of one or several deployments.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    deployments: Vec<Deployment>,
}

/// One deployment at its peak.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Deployment {
    pub(crate) name: String,
    pub(crate) sockets: f64,
    pub(crate) tenants: f64,
    /// The bytes of a frame's payload.
    pub(crate) event_bytes: f64,
    /// Sockets that go and come back in a second, on any replica.
    pub(crate) reconnects_per_second: f64,
    /// Tokens revoked in a second.
    pub(crate) revocations_per_second: f64,
    /// The time for which the denylist keeps a token.
    pub(crate) token_seconds: f64,
    /// The time between two pings of a socket.
    pub(crate) heartbeat_seconds: f64,
    /// `denylist.recheck`: the time in which the token and the user of each open socket are read again.
    pub(crate) recheck_seconds: f64,
    /// `users.cache_ttl`: the user of each open socket is looked up in the database before it has passed.
    pub(crate) cache_ttl_seconds: f64,
    /// The time for which a socket that comes back was away.
    pub(crate) away_seconds: f64,
    /// Replicas of each Redis server, and `denylist.replicas`: those that confirm a revocation (`WAIT`).
    pub(crate) redis_replicas: f64,
    pub(crate) denylist_replicas: f64,
    pub(crate) zones: f64,
    /// True if the fleet keeps its limits after the loss of a zone; so it is where there are several.
    pub(crate) survive_zone: Option<bool>,
    /// The time over which the sockets of a lost zone come back.
    pub(crate) return_seconds: f64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) limits: Limits,
    /// The fleet of a trial. Without it the program finds one.
    pub(crate) fleet: Option<Fleet>,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            name: String::new(),
            sockets: 0.0,
            tenants: 1.0,
            event_bytes: 200.0,
            reconnects_per_second: 0.0,
            revocations_per_second: 0.0,
            token_seconds: 3_600.0,
            heartbeat_seconds: 25.0,
            recheck_seconds: 60.0,
            cache_ttl_seconds: 300.0,
            away_seconds: 2.0,
            redis_replicas: 0.0,
            denylist_replicas: 0.0,
            zones: 3.0,
            survive_zone: None,
            return_seconds: 30.0,
            kinds: Vec::new(),
            limits: Limits::default(),
            fleet: None,
        }
    }
}

/// Groups of one kind. All have as many sockets, which lie on replicas by chance.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) groups: f64,
    /// The groups of this kind that each socket is in.
    #[serde(default = "one")]
    pub(crate) per_socket: f64,
    /// Events of one group in a second.
    pub(crate) events_per_second: f64,
    /// Events that are published together; each socket gets them in one write.
    #[serde(default = "one")]
    pub(crate) burst: f64,
    /// Events that the group's history keeps; none without one.
    #[serde(default)]
    pub(crate) history: f64,
    /// True if the route has `resume` and clients come back with their position.
    #[serde(default)]
    pub(crate) resume: bool,
    #[serde(default)]
    pub(crate) presence: bool,
    #[serde(default)]
    pub(crate) grows: Grows,
}

/// The growth of a kind with the number of sockets.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grows {
    /// There are more groups of the same size.
    #[default]
    Groups,
    /// The same groups have more sockets.
    Members,
}

/// Replicas, and Redis servers or shards of a cluster.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fleet {
    pub(crate) replicas: f64,
    #[serde(default = "one")]
    pub(crate) shards: f64,
}

/// The bounds of each replica and each shard at the peak.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Cores of a replica that may be busy.
    pub(crate) replica_cores: f64,
    pub(crate) replica_mib: f64,
    pub(crate) replica_sockets: f64,
    /// Bits that a replica, or a shard, sends in a second.
    pub(crate) network_gbit: f64,
    /// The part of its core that a Redis server may be busy.
    pub(crate) redis_core: f64,
    pub(crate) redis_mib: f64,
    /// `maxclients` of a Redis server.
    pub(crate) redis_clients: f64,
    /// The most shards of one cluster.
    pub(crate) shards: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            replica_cores: 0.5,
            replica_mib: 384.0,
            replica_sockets: 12_600.0,
            network_gbit: 1.0,
            redis_core: 0.5,
            redis_mib: 8_192.0,
            redis_clients: 9_000.0,
            shards: 1_000.0,
        }
    }
}

fn one() -> f64 {
    1.0
}

/// Reads the deployments of a file.
///
/// # Errors
/// The file cannot be read, is no such TOML, or describes what cannot be.
pub(crate) fn read(file: &Path) -> Result<Vec<Deployment>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    parse(&text).with_context(|| file.display().to_string())
}

/// Reads the deployments of a text.
///
/// # Errors
/// As [`read`].
pub(crate) fn parse(text: &str) -> Result<Vec<Deployment>> {
    let described: Described = toml::from_str(text)?;
    for deployment in &described.deployments {
        let checked = deployment.check();
        checked.with_context(|| format!("{:?}", deployment.name))?;
    }
    Ok(described.deployments)
}

impl Deployment {
    /// Fails with the key of the first value that cannot be.
    fn check(&self) -> Result<()> {
        let limits = &self.limits;
        let positive = [
            ("sockets", self.sockets),
            ("tenants", self.tenants),
            ("event_bytes", self.event_bytes),
            ("heartbeat_seconds", self.heartbeat_seconds),
            ("recheck_seconds", self.recheck_seconds),
            ("cache_ttl_seconds", self.cache_ttl_seconds),
            ("return_seconds", self.return_seconds),
            ("limits.replica_cores", limits.replica_cores),
            ("limits.replica_mib", limits.replica_mib),
            ("limits.replica_sockets", limits.replica_sockets),
            ("limits.network_gbit", limits.network_gbit),
            ("limits.redis_core", limits.redis_core),
            ("limits.redis_mib", limits.redis_mib),
            ("limits.redis_clients", limits.redis_clients),
            ("limits.shards", limits.shards),
        ];
        for (key, value) in positive {
            ensure!(
                value > 0.0 && value.is_finite(),
                "{key} = {value}: it must be above 0"
            );
        }
        let counts = [
            ("reconnects_per_second", self.reconnects_per_second),
            ("revocations_per_second", self.revocations_per_second),
            ("token_seconds", self.token_seconds),
            ("away_seconds", self.away_seconds),
            ("redis_replicas", self.redis_replicas),
            ("denylist_replicas", self.denylist_replicas),
        ];
        for (key, value) in counts {
            ensure!(
                value >= 0.0 && value.is_finite(),
                "{key} = {value}: it must be 0 or more"
            );
        }
        self.check_zones()?;
        ensure!(
            !self.kinds.is_empty(),
            "kinds: a socket is in at least one group"
        );
        if let Some(fleet) = self.fleet {
            ensure!(
                fleet.replicas >= 1.0,
                "fleet.replicas = {}: at least 1",
                fleet.replicas
            );
            ensure!(
                fleet.shards >= 1.0,
                "fleet.shards = {}: at least 1",
                fleet.shards
            );
        }
        self.kinds
            .iter()
            .try_for_each(|kind| kind.check(self.sockets))
    }

    fn check_zones(&self) -> Result<()> {
        let zones = self.zones;
        ensure!(
            zones >= 1.0 && zones.is_finite(),
            "zones = {zones}: at least 1"
        );
        ensure!(
            zones >= 2.0 || self.survive_zone != Some(true),
            "survive_zone: with zones = {zones} nothing is left after the loss of one; give at least 2 zones"
        );
        ensure!(
            self.denylist_replicas <= self.redis_replicas,
            "denylist_replicas = {}: a server has redis_replicas = {}, so no revocation would be confirmed",
            self.denylist_replicas,
            self.redis_replicas
        );
        Ok(())
    }

    /// Returns true if the fleet is to keep its limits after the loss of a zone.
    pub(crate) fn survives_zone(&self) -> bool {
        self.survive_zone.unwrap_or(self.zones >= 2.0)
    }

    /// Returns the groups that a socket is in.
    pub(crate) fn groups_per_socket(&self) -> f64 {
        self.kinds.iter().map(|kind| kind.per_socket).sum()
    }

    /// Returns the deployment with so many times its sockets and all that they do, or its part if below 1.
    pub(crate) fn times(&self, factor: f64) -> Self {
        let mut grown = self.clone();
        grown.sockets *= factor;
        grown.tenants = (grown.tenants * factor).max(1.0);
        grown.reconnects_per_second *= factor;
        grown.revocations_per_second *= factor;
        for kind in grown
            .kinds
            .iter_mut()
            .filter(|kind| kind.grows == Grows::Groups)
        {
            kind.groups *= factor;
        }
        grown
    }

    /// Returns the deployment in miniature, which shows that a trial works.
    pub(crate) fn in_brief(&self) -> Self {
        const PART: f64 = 1.0 / 20.0;
        let mut small = self.clone();
        small.sockets = (self.sockets * PART).ceil();
        small.reconnects_per_second *= PART;
        small.revocations_per_second *= PART;
        small.tenants = (self.tenants * PART).ceil();
        for kind in &mut small.kinds {
            kind.groups = (kind.groups * PART).ceil();
        }
        small
    }
}

impl Kind {
    fn check(&self, sockets: f64) -> Result<()> {
        let name = &self.name;
        ensure!(
            self.groups >= 1.0,
            "kind {name:?}: groups = {}: at least 1",
            self.groups
        );
        ensure!(
            self.per_socket >= 1.0,
            "kind {name:?}: per_socket = {}: at least 1",
            self.per_socket
        );
        ensure!(
            self.burst >= 1.0,
            "kind {name:?}: burst = {}: at least 1",
            self.burst
        );
        ensure!(
            self.history >= 0.0,
            "kind {name:?}: history = {}: 0 or more",
            self.history
        );
        ensure!(
            self.history > 0.0 || !self.resume,
            "kind {name:?}: resume needs a history: give the number of events that it keeps"
        );
        ensure!(
            self.events_per_second >= 0.0 && self.events_per_second.is_finite(),
            "kind {name:?}: events_per_second = {}: 0 or more",
            self.events_per_second
        );
        ensure!(
            self.members(sockets) >= 1.0,
            "kind {name:?}: groups = {}: that is more than sockets × per_socket; leave out the empty ones",
            self.groups
        );
        Ok(())
    }

    /// Returns the sockets of one group.
    pub(crate) fn members(&self, sockets: f64) -> f64 {
        sockets * self.per_socket / self.groups
    }

    /// Returns the events of one group within `away` seconds, as far as its history has them.
    pub(crate) fn missed(&self, away: f64) -> f64 {
        (self.events_per_second * away).min(self.history)
    }

    /// Returns the number of pairs of a group and a replica that has at least one of its sockets.
    pub(crate) fn heard(&self, sockets: f64, replicas: f64) -> f64 {
        let elsewhere = (1.0 - 1.0 / replicas).powf(self.members(sockets));
        self.groups * replicas * (1.0 - elsewhere)
    }
}
