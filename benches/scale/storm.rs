//! The storm after the loss of a zone: its sockets come back to the other replicas of their cell, and what its Redis servers had
//! is heard, asked and written again.

use anyhow::Result;

use crate::deployment::{Deployment, Fleet, Kind};
use crate::model::Model;
use crate::plan::{Usage, Use, survivors};
use crate::units::{Meter, Units, Work};

/// The return of the sockets of a lost zone.
pub(crate) struct Storm {
    /// Sockets of the zone, and the connects in a second if they come within the deployment's time.
    pub(crate) sockets: f64,
    pub(crate) connects: f64,
    /// Seconds that survivors and shards need at least, with a whole core each; none if they are busy without them.
    pub(crate) replica_seconds: Option<f64>,
    pub(crate) shard_seconds: Option<f64>,
    /// Use of the survivors once all are back.
    pub(crate) after: Use,
    /// Keys of the denylist that connects and the recheck read, in all.
    pub(crate) denylist: f64,
    /// Presence scripts: of connects, and of what every survivor writes again.
    pub(crate) presence: f64,
    /// Groups that survivors subscribe to again, since their shards have failed over.
    pub(crate) resubscribed: f64,
    /// Events that sockets have missed and are sent.
    pub(crate) missed: f64,
}

impl Storm {
    /// Keys of the denylist that a connect reads: the token's, the user's and the tenant's. A recheck reads the first two.
    pub(crate) const DENYLIST_KEYS: f64 = 3.0;
    pub(crate) const RECHECKED_KEYS: f64 = 2.0;

    /// Returns none if nothing survives.
    pub(crate) fn of(units: &Units, cell: &Deployment, fleet: Fleet) -> Result<Option<Self>> {
        let Some(left) = survivors(cell, fleet) else {
            return Ok(None);
        };
        let sockets = cell.sockets / cell.zones;
        let stayed = cell.sockets - sockets;
        let model = Model::settled(cell, left);
        // A part of the shards as large as the zone fails over, if they have replicas.
        let failed = match cell.redis_replicas > 0.0 {
            true => 1.0 / cell.zones,
            false => 0.0,
        };
        let heard = |sockets, wanted: Wanted| heard(cell, sockets, left.replicas, wanted);
        let all = |_: &Kind| true;
        let resubscribed = heard(stayed, all) * failed;
        let new = (heard(cell.sockets, all) - heard(stayed, all)).max(0.0);
        let present: f64 = { cell.kinds.iter() }
            .filter(|kind| kind.presence)
            .map(|kind| kind.per_socket)
            .sum();
        let presence = sockets * present + heard(stayed, |kind| kind.presence);
        let rechecked = match failed > 0.0 {
            true => stayed,
            false => 0.0,
        };
        let reread = heard(stayed, |kind| kind.history > 0.0) * failed;
        let missed = model.missed(sockets, cell.away_seconds.max(cell.return_seconds / 2.0));
        let work = Work::from([
            ("connect", sockets),
            ("subscribing", new.min(sockets)),
            ("subscription", new + resubscribed),
            ("presence_write", presence),
            ("recheck", rechecked),
            ("resume", sockets * model.resuming_groups() + reread),
            ("missed", missed),
        ]);
        let mut at_gateway = work.clone();
        at_gateway.insert("membership", sockets * (cell.groups_per_socket() - 1.0));
        let after = Usage::of(units, cell, left)?;
        let seconds = |meter, work: &Work, machines: f64, busy: f64| {
            let cost = units.cost(meter, work)?;
            Ok::<_, anyhow::Error>((busy < 1.0).then(|| cost / (machines * (1.0 - busy) * 1e6)))
        };
        let busy = [after.replica[0], after.shard[0]];
        Ok(Some(Self {
            sockets,
            connects: sockets / cell.return_seconds,
            replica_seconds: seconds(Meter::GatewayCpu, &at_gateway, left.replicas, busy[0])?,
            shard_seconds: seconds(Meter::RedisCpu, &work, fleet.shards, busy[1])?,
            after: after.tightest(),
            denylist: sockets * Self::DENYLIST_KEYS + rechecked * Self::RECHECKED_KEYS,
            presence,
            resubscribed,
            missed,
        }))
    }

    /// Returns the seconds until all are back; none if that never is.
    pub(crate) fn lasts(&self, given: f64) -> Option<f64> {
        Some(given.max(self.replica_seconds?).max(self.shard_seconds?))
    }
}

type Wanted = fn(&Kind) -> bool;

/// Returns the pairs of a group of these kinds and a replica that has one of its sockets, where a cell has only so many.
fn heard(cell: &Deployment, sockets: f64, replicas: f64, wanted: Wanted) -> f64 {
    let kinds = cell.kinds.iter().filter(|kind| wanted(kind));
    kinds.map(|kind| kind.heard(sockets, replicas)).sum()
}
