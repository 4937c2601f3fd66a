//! The form of a row: a fault, the servers that it needs, its length, and what must hold meanwhile.

use std::time::Duration;

use crate::checker::End;
use crate::fault::Fault;
use crate::field::Size;

/// One fault under load.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its number among the faults that the suite knows.
    pub(crate) number: u8,
    /// The fault in words.
    pub(crate) name: &'static str,
    pub(crate) fault: Fault,
    /// Milliseconds between beginning and end of the fault, in the short and in the long form. The long form looks at the calm
    /// tenant for as long as before the fault, however short this is.
    pub(crate) lasts: [u64; 2],
    pub(crate) world: World,
    pub(crate) must: Must,
}

impl Row {
    /// True for the load alone.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.fault, Fault::None)
    }
}

/// The servers of a row. The tenant `hurt` has a Redis and a database of its own, which the fault concerns; the tenant
/// `calm` has others.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) redis: Redis,
    /// `layer.kind` of `hurt`.
    pub(crate) layer: &'static str,
    pub(crate) road: Road,
    pub(crate) users: Users,
    /// Settings of the deployment, and of `hurt`, each with its value as TOML.
    pub(crate) settings: &'static [(&'static str, &'static str)],
    pub(crate) of_hurt: &'static [(&'static str, &'static str)],
    /// Groups that each socket of `hurt` joins beside the one that has events.
    pub(crate) more_groups: usize,
    pub(crate) clocks: Clocks,
    /// The load in the short and in the long form, where it is not that of the form.
    pub(crate) crowd: Option<[Crowd; 2]>,
}

impl World {
    /// The load in this form.
    pub(crate) fn size(&self, form: Size) -> Size {
        let Some(crowds) = self.crowd else {
            return form;
        };
        let Crowd {
            clients,
            groups,
            pace,
        } = crowds[usize::from(form.long)];
        Size {
            clients,
            groups,
            pace: Duration::from_millis(pace),
            ..form
        }
    }
}

/// The load of one tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    /// Clients that stay.
    pub(crate) clients: usize,
    pub(crate) groups: usize,
    /// Milliseconds between two events of a group.
    pub(crate) pace: u64,
}

impl Crowd {
    /// The load of a form.
    pub(crate) const fn of(form: Size) -> Self {
        Self {
            clients: form.clients,
            groups: form.groups,
            pace: form.pace.as_millis() as u64,
        }
    }
}

/// The Redis of `hurt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redis {
    /// One server.
    One,
    /// One server that takes a moment for each key that it loads.
    Loading,
    /// A master with a replica that can take its place.
    Pair,
    /// Three servers and three Sentinels.
    Sentinel,
    /// Two hosts of a layer.
    Hosts,
    /// Three masters, each with a replica.
    Cluster,
}

/// The way that events of `hurt` take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// PUBLISH, as Django does.
    Publish,
    /// The management API.
    Api,
}

/// The database of `hurt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    Sqlite,
    /// PostgreSQL behind a proxy, with records that are stale after a second.
    Postgres,
}

/// The clocks of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clocks {
    /// The machine's.
    Real,
    /// The second replica is as many seconds ahead.
    Ahead(i64),
    /// They can be set.
    Settable,
}

/// What must hold. Always: nothing foreign, nothing twice, nothing out of order, no silent loss, no revoked socket; and
/// after the fault every client gets events and every connect succeeds.
#[derive(Clone, Debug)]
pub(crate) struct Must {
    /// True if events may be missing inside gaps that are told; else none may be missing.
    pub(crate) gaps: bool,
    /// How sockets that the fault concerns may end.
    pub(crate) ends: &'static [End],
    /// Statuses that connects may get while the fault lasts; 0 is no answer.
    pub(crate) refusals: &'static [u16],
    /// True if the fault concerns replicas and so both tenants.
    pub(crate) calm_too: bool,
    /// True if Redis forgets the revocations: their tokens may open sockets again.
    pub(crate) forgets: bool,
    /// The longest time in seconds from the end of the fault to events at every client, and to the end of every revoked socket.
    pub(crate) recovers: u64,
    /// What the first replica's metrics must show before the fault ends.
    pub(crate) shows: &'static [Sign],
}

/// The sum of a metric's samples with a label reaches a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    pub(crate) metric: &'static str,
    pub(crate) label: (&'static str, &'static str),
    pub(crate) at_least: f64,
}

/// The servers that most rows have.
pub(crate) const WORLD: World = World {
    redis: Redis::One,
    layer: "pubsub",
    road: Road::Publish,
    users: Users::Sqlite,
    settings: &[],
    of_hurt: &[],
    more_groups: 0,
    clocks: Clocks::Real,
    crowd: None,
};

/// The strictest demand: nothing is lost, and every connect succeeds.
pub(crate) const NOTHING: Must = Must {
    gaps: false,
    ends: &[],
    refusals: &[],
    calm_too: false,
    forgets: false,
    recovers: 20,
    shows: &[],
};

/// The demand where the Redis of `hurt` cannot be reached for a time.
pub(crate) const TOLD: Must = Must {
    gaps: true,
    refusals: &[503],
    ..NOTHING
};

/// A fault that is held elsewhere, or that this version cannot have.
pub(crate) struct Absent {
    pub(crate) number: u8,
    pub(crate) name: &'static str,
    /// The test that holds it, as `file::name`, or the reason for which there is none.
    pub(crate) why: Why,
}

/// See [`Absent::why`].
pub(crate) enum Why {
    Held(&'static str),
    Left(&'static str),
}
