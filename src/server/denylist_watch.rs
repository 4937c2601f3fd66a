//! Watches the Redis servers that hold a denylist, and warns if one could lose a revocation or has lost its data.
//!
//! It checks eviction, role, replicas, clock and the mark [`EPOCH`] at the start, after every reconnect and once a minute. The mark is an
//! ordinary key: if it is missing, the server lost its data. Each change is logged once, with the action to take.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::denylist_risk::Risk;
use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};
use crate::metrics;
use crate::replica::Remarks;
use crate::stores::inspection::{self, DataMark, Facts};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys::{EPOCH, LOST};
use crate::tasks::{self, Task};
use crate::tenant::Tenants;

/// Pause between checks of a server.
const EVERY: Duration = Duration::from_secs(60);
/// Pause after a failed check.
const AGAIN: Duration = Duration::from_secs(5);

/// The time after which a server that is a replica is told as a risk. A failover is over before.
const FAILOVER: Duration = Duration::from_secs(5);

/// Interval at which the list of servers is refreshed: a reload may add some.
const SERVERS: Duration = Duration::from_secs(5);

/// The watch over the denylist servers of all tenants.
pub(super) struct DenylistWatch {
    tenants: Arc<Tenants>,
    /// The number of servers at risk.
    at_risk: Arc<AtomicUsize>,
    remarks: Arc<Remarks>,
}

/// A watched server. Dropping it ends its task.
struct Watched {
    server: DenylistServer,
    _task: Task,
}

/// A Redis with denylists.
#[derive(Clone)]
struct DenylistServer {
    store: Arc<RedisStore>,
    /// The replicas that must acknowledge a revocation (`denylist.replicas`).
    acknowledged: u32,
}

impl PartialEq for DenylistServer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store) && self.acknowledged == other.acknowledged
    }
}

impl DenylistWatch {
    /// Makes the watch over the denylists of `tenants`. Tenants that share a server cost one task.
    pub(super) fn new(tenants: Arc<Tenants>, remarks: Arc<Remarks>) -> Self {
        Self {
            tenants,
            at_risk: Arc::default(),
            remarks,
        }
    }

    /// Starts and ends the tasks as servers come and go. Never returns.
    pub(super) async fn run(self) -> Infallible {
        metrics::denylist_at_risk(false);
        let mut watched: Vec<Watched> = Vec::new();
        loop {
            let servers = self.servers();
            watched.retain(|old| servers.contains(&old.server));
            for server in servers {
                if !watched.iter().any(|known| known.server == server) {
                    let told = Told {
                        subject: format!("the denylist on {}", server.store.endpoint()),
                        remarks: self.remarks.clone(),
                    };
                    let standing = Standing::new(self.at_risk.clone());
                    let watch = watch(server.clone(), standing, told);
                    let _task = tasks::lasting("the watch over a denylist", watch);
                    watched.push(Watched { server, _task });
                }
            }
            tokio::time::sleep(SERVERS).await;
        }
    }

    fn servers(&self) -> Vec<DenylistServer> {
        let mut distinct = Vec::new();
        for tenant in self.tenants.all().iter() {
            let Some(store) = tenant.authenticator.denylist.store.redis() else {
                continue;
            };
            let server = DenylistServer {
                store: store.clone(),
                acknowledged: tenant.revocations.config().replicas,
            };
            if !distinct.contains(&server) {
                distinct.push(server);
            }
        }
        distinct
    }
}

/// The share of one server in the count of servers at risk. Dropping it removes the share.
struct Standing {
    at_risk: bool,
    all: Arc<AtomicUsize>,
}

impl Standing {
    fn new(all: Arc<AtomicUsize>) -> Self {
        let at_risk = false;
        Self { at_risk, all }
    }

    fn set(&mut self, at_risk: bool) {
        let others = match (std::mem::replace(&mut self.at_risk, at_risk), at_risk) {
            (false, true) => self.all.fetch_add(1, Ordering::AcqRel) + 1,
            (true, false) => self.all.fetch_sub(1, Ordering::AcqRel) - 1,
            _ => self.all.load(Ordering::Acquire),
        };
        metrics::denylist_at_risk(others > 0);
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// The risk of one server, as operators are told of it. Dropping it takes it back.
struct Told {
    subject: String,
    remarks: Arc<Remarks>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.remarks.set(&self.subject, Vec::new());
    }
}

async fn watch(server: DenylistServer, mut standing: Standing, told: Told) -> Infallible {
    let store = server.store.clone();
    let mut server = WatchedServer::new(server);
    // A server that is a replica gives no link, and is looked at as well.
    let first = tokio::time::timeout(AGAIN, store.link_after(0)).await;
    let mut link = first.unwrap_or(0);
    loop {
        let pause = match server.look().await {
            Ok(()) => EVERY,
            // The store itself logs an outage.
            Err(_) => {
                if store.is_replica_for().is_some_and(|time| time > FAILOVER) {
                    server.see_replica();
                }
                AGAIN
            }
        };
        let risks = server.risks.iter().map(Risk::text).collect();
        told.remarks.set(&told.subject, risks);
        standing.set(server.is_at_risk());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A server that restarted may be empty: check at once.
            newer = store.link_after(link) => {
                link = newer;
                server.uninformed = false;
                server.timeless = false;
            }
        }
    }
}

/// One server and its last known state.
struct WatchedServer {
    store: Arc<RedisStore>,
    acknowledged: u32,
    /// The mark that was last seen or set.
    known: Option<String>,
    risks: Vec<Risk>,
    /// The mark cannot be read or written, and the log says so.
    blind: bool,
    /// The login may not read eviction and role. They are read again only after a reconnect, since Redis counts each
    /// refusal as an error.
    uninformed: bool,
    /// The login may not read the time. It is read again only after a reconnect.
    timeless: bool,
}

/// The meaning of a mark.
#[derive(Debug, PartialEq, Eq)]
enum MarkStep {
    /// There is no mark and none is known: set one.
    Begin,
    /// Nothing was lost. Remember this mark.
    Fine,
    /// Another replica has recorded a loss. Remember this mark.
    KnownLost,
    /// The known mark is gone or replaced: the data was lost.
    Lost,
}

fn step(found: Option<&str>, known: Option<&str>) -> MarkStep {
    match (DataMark::of(found), known) {
        (DataMark::Lost(_), _) => MarkStep::KnownLost,
        (DataMark::Acknowledged, _) | (DataMark::Whole, None) => MarkStep::Fine,
        (DataMark::Absent, None) => MarkStep::Begin,
        (DataMark::Whole, known) if found == known => MarkStep::Fine,
        (DataMark::Absent | DataMark::Whole, Some(_)) => MarkStep::Lost,
    }
}

impl WatchedServer {
    fn new(server: DenylistServer) -> Self {
        Self {
            store: server.store,
            acknowledged: server.acknowledged,
            known: None,
            risks: Vec::new(),
            blind: false,
            uninformed: false,
            timeless: false,
        }
    }

    fn is_at_risk(&self) -> bool {
        self.risks.iter().any(Risk::may_forget)
    }

    /// Checks the server once.
    ///
    /// # Errors
    /// [`StoreError`] if the check is incomplete: check again soon. A known loss stays known.
    async fn look(&mut self) -> Result<(), StoreError> {
        let facts = match self.uninformed {
            true => Facts::default(),
            false => Facts::ask(&self.store).await?,
        };
        self.uninformed = facts == Facts::default();
        let mut risks = Risk::of(&facts, self.acknowledged);
        if !self.timeless {
            let offset = inspection::clock_offset(&self.store).await?;
            self.timeless = offset.is_none();
            risks.extend(offset.and_then(Risk::of_clock));
        }
        let is_replica = risks.contains(&Risk::Replica);
        let lost = self.is_lost(is_replica).await;
        let known_lost = self.risks.contains(&Risk::Lost);
        let seen = match lost {
            Ok(lost) => {
                risks.extend(lost.then_some(Risk::Lost));
                self.see(None);
                Ok(())
            }
            Err(error) if error.kind.is_outage() => return Err(error),
            // An unreadable mark does not clear a known loss.
            Err(error) => {
                risks.extend(known_lost.then_some(Risk::Lost));
                if error.kind == ErrorKind::Permission {
                    self.see(Some(&error));
                    Ok(())
                } else {
                    // The server loads its data, or refuses writes for the moment.
                    Err(error)
                }
            }
        };
        self.tell(risks);
        seen
    }

    /// Notes that the server is a replica, so that the gateway has no link to it. A known loss stays known.
    fn see_replica(&mut self) {
        let mut risks = self.risks.clone();
        risks.retain(|risk| *risk == Risk::Lost);
        risks.push(Risk::Replica);
        self.tell(risks);
    }

    /// Returns true if the data was lost. Sets a first mark where none is, and records a loss in the mark.
    async fn is_lost(&mut self, is_replica: bool) -> Result<bool, StoreError> {
        let mut found = inspection::epoch(&self.store).await?;
        let mut step_now = step(found.as_deref(), self.known.as_deref());
        if step_now == MarkStep::Begin && !is_replica {
            self.begin().await?;
            // `SET NX` of one replica wins; read back whose mark it is.
            found = inspection::epoch(&self.store).await?;
            step_now = step(found.as_deref(), None);
        }
        match step_now {
            MarkStep::Begin => Ok(false),
            MarkStep::Fine => {
                self.known = found;
                Ok(false)
            }
            MarkStep::KnownLost => {
                self.known = found;
                Ok(true)
            }
            MarkStep::Lost => {
                let mark = format!("{LOST}{:.0}:{}", UnixTime::now().0.floor(), random());
                let mut set = redis::cmd("SET");
                set.arg(EPOCH).arg(&mark);
                if !is_replica {
                    let told: Result<(), StoreError> = self.store.query("epoch", &set).await;
                    // The loss holds even if this write fails; the next check writes it again.
                    if told.is_ok() {
                        self.known = Some(mark);
                    }
                }
                Ok(true)
            }
        }
    }

    async fn begin(&self) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(EPOCH).arg(random()).arg("NX");
        let _set: Option<String> = self.store.query("epoch", &set).await?;
        Ok(())
    }

    /// Logs each change once.
    fn tell(&mut self, risks: Vec<Risk>) {
        let endpoint = self.store.endpoint();
        for risk in risks.iter().filter(|risk| !self.risks.contains(risk)) {
            match risk.may_forget() {
                true => tracing::error!(redis.endpoint = endpoint, "{}", risk.text()),
                false => tracing::warn!(redis.endpoint = endpoint, "{}", risk.text()),
            }
        }
        if risks.is_empty() && !self.risks.is_empty() {
            tracing::info!(
                redis.endpoint = endpoint,
                "Nothing is wrong with the denylist's Redis any more"
            );
        }
        self.risks = risks;
    }

    /// Records an error of the mark, and logs the first of a series.
    fn see(&mut self, error: Option<&StoreError>) {
        match error {
            Some(error) if !self.blind => tracing::warn!(
                redis.endpoint = self.store.endpoint(),
                error.kind = error.kind.label(),
                error = %error.source,
                "The mark {EPOCH} cannot be read or written: a Redis that loses its data will not be noticed; grant the key"
            ),
            _ => {}
        }
        self.blind = error.is_some();
    }
}

/// 16 hexadecimal digits.
fn random() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_gone_or_another_is_lost_data() {
        for (found, known, expected) in [
            (None, None, MarkStep::Begin),
            (Some("a"), None, MarkStep::Fine),
            (Some("a"), Some("a"), MarkStep::Fine),
            (None, Some("a"), MarkStep::Lost),
            (Some("b"), Some("a"), MarkStep::Lost),
            (Some("lost:1:b"), Some("a"), MarkStep::KnownLost),
            (Some("lost:1:b"), None, MarkStep::KnownLost),
            (Some("lost:1:b"), Some("lost:1:b"), MarkStep::KnownLost),
            (None, Some("lost:1:b"), MarkStep::Lost),
            (Some("a"), Some("lost:1:b"), MarkStep::Lost),
            (Some("ack:2"), Some("lost:1:b"), MarkStep::Fine),
            (Some("ack:2"), Some("a"), MarkStep::Fine),
            (Some("ack:2"), Some("ack:2"), MarkStep::Fine),
            (None, Some("ack:2"), MarkStep::Lost),
        ] {
            assert_eq!(step(found, known), expected, "{found:?} {known:?}");
        }
    }

    #[test]
    fn a_server_that_is_not_looked_at_any_more_is_not_at_risk() {
        let all = Arc::new(AtomicUsize::new(0));
        let (mut one, mut other) = (Standing::new(all.clone()), Standing::new(all.clone()));
        one.set(true);
        one.set(true);
        other.set(true);
        assert_eq!(all.load(Ordering::Relaxed), 2);
        drop(one);
        other.set(false);
        drop(other);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
