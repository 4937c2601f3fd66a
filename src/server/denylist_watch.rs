//! Watches the Redis servers that hold a denylist, and warns if one could lose a revocation or has lost its data.
//!
//! It checks eviction, role, replicas, clock and the mark [`redis_keys::EPOCH`] at the start, after every reconnect and once
//! a minute. The mark is an ordinary key: if it is missing, the server lost its data. Each change is logged once, with the action to take.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::denylist_risk::Risk;
use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};
use crate::metrics;
use crate::replica::Remarks;
use crate::stores::inspection::{self, DataMark, Facts};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys::{self, LOST};
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
    known: KnownMarks,
}

/// The marks that were last seen or set, by their places. They outlive the watch over a node: in a cluster the mark of a shard
/// is looked for on the replica that took over.
type KnownMarks = Arc<Mutex<HashMap<MarkPlace, String>>>;

/// The `host:port` of a server, or the name of a cluster, and the key of the mark there.
type MarkPlace = (String, String);

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
    place: MarkPlace,
    /// Only the mark is looked at: another entry has the server.
    mark_alone: bool,
}

impl PartialEq for DenylistServer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store)
            && (self.acknowledged, &self.place, self.mark_alone)
                == (other.acknowledged, &other.place, other.mark_alone)
    }
}

impl DenylistWatch {
    /// Makes the watch over the denylists of `tenants`. Tenants that share a server cost one task.
    pub(super) fn new(tenants: Arc<Tenants>, remarks: Arc<Remarks>) -> Self {
        Self {
            tenants,
            at_risk: Arc::default(),
            remarks,
            known: KnownMarks::default(),
        }
    }

    /// Starts and ends the tasks as servers come and go. Never returns.
    pub(super) async fn run(self) -> Infallible {
        metrics::denylist_at_risk(false);
        let mut watched: Vec<Watched> = Vec::new();
        loop {
            let servers = self.servers().await;
            watched.retain(|old| servers.contains(&old.server));
            for server in servers {
                if !watched.iter().any(|known| known.server == server) {
                    let endpoint = server.store.endpoint();
                    let told = Told {
                        subject: match server.mark_alone {
                            false => format!("the denylist on {endpoint}"),
                            true => format!("the denylist on {endpoint}, {}", server.place.1),
                        },
                        remarks: self.remarks.clone(),
                    };
                    let standing = Standing::new(self.at_risk.clone());
                    let of_server = WatchedServer::new(&server, &self.known);
                    let watch = watch(of_server, standing, told);
                    let _task = tasks::lasting("the watch over a denylist", watch);
                    watched.push(Watched { server, _task });
                }
            }
            tokio::time::sleep(SERVERS).await;
        }
    }

    /// Returns the servers of all denylists, each once. The masters of a cluster are servers of their own.
    async fn servers(&self) -> Vec<DenylistServer> {
        let mut denylists: Vec<(Arc<RedisStore>, u32)> = Vec::new();
        for tenant in self.tenants.all().iter() {
            let Some(store) = tenant.authenticator.denylist.store.redis() else {
                continue;
            };
            let acknowledged = tenant.revocations.config().replicas;
            let is_known = |(known, count): &(Arc<RedisStore>, u32)| {
                Arc::ptr_eq(known, store) && *count == acknowledged
            };
            if !denylists.iter().any(is_known) {
                denylists.push((store.clone(), acknowledged));
            }
        }
        let mut servers = Vec::new();
        for (denylist, acknowledged) in denylists {
            for (store, shard) in denylist.numbered_servers().await {
                let place = (denylist.endpoint().to_owned(), redis_keys::epoch(shard));
                servers.push(DenylistServer {
                    store,
                    acknowledged,
                    place,
                    mark_alone: false,
                });
            }
            self.add_marks(&denylist, acknowledged, &mut servers).await;
        }
        servers
    }

    /// Adds the marks of a cluster that were set for shards as they were before. Where the slot of one was given to another
    /// node without its keys, the mark is missing there.
    async fn add_marks(
        &self,
        denylist: &Arc<RedisStore>,
        acknowledged: u32,
        servers: &mut Vec<DenylistServer>,
    ) {
        let mut places: Vec<MarkPlace> = self.known.lock().keys().cloned().collect();
        let is_new = |place: &MarkPlace| {
            place.0 == denylist.endpoint() && !servers.iter().any(|known| known.place == *place)
        };
        places.retain(is_new);
        for place in places {
            if let Some(store) = denylist.server_of(&place.1).await {
                servers.push(DenylistServer {
                    store,
                    acknowledged,
                    place,
                    mark_alone: true,
                });
            }
        }
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

async fn watch(mut server: WatchedServer, mut standing: Standing, told: Told) -> Infallible {
    let store = server.store.clone();
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
        let mark = &server.place.1;
        let risks = server.risks.iter().map(|risk| risk.text(mark)).collect();
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
    place: MarkPlace,
    mark_alone: bool,
    known: KnownMarks,
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
    fn new(server: &DenylistServer, known: &KnownMarks) -> Self {
        Self {
            store: server.store.clone(),
            acknowledged: server.acknowledged,
            place: server.place.clone(),
            mark_alone: server.mark_alone,
            known: known.clone(),
            risks: Vec::new(),
            blind: false,
            uninformed: false,
            timeless: false,
        }
    }

    /// Remembers the mark.
    fn know(&self, mark: Option<String>) {
        let mut known = self.known.lock();
        match mark {
            Some(mark) => known.insert(self.place.clone(), mark),
            None => known.remove(&self.place),
        };
    }

    fn is_at_risk(&self) -> bool {
        self.risks.iter().any(Risk::may_forget)
    }

    /// Checks the server once.
    ///
    /// # Errors
    /// [`StoreError`] if the check is incomplete: check again soon. A known loss stays known.
    async fn look(&mut self) -> Result<(), StoreError> {
        let mut risks = match self.mark_alone {
            true => Vec::new(),
            false => self.server_risks().await?,
        };
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

    /// Returns the risks that do not come from the mark.
    async fn server_risks(&mut self) -> Result<Vec<Risk>, StoreError> {
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
        Ok(risks)
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
        let key = &self.place.1;
        let mut found = inspection::epoch(&self.store, key).await?;
        let known = self.known.lock().get(&self.place).cloned();
        let mut step_now = step(found.as_deref(), known.as_deref());
        if step_now == MarkStep::Begin && !is_replica {
            self.begin().await?;
            // `SET NX` of one replica wins; read back whose mark it is.
            found = inspection::epoch(&self.store, key).await?;
            step_now = step(found.as_deref(), None);
        }
        match step_now {
            MarkStep::Begin => Ok(false),
            MarkStep::Fine => {
                self.know(found);
                Ok(false)
            }
            MarkStep::KnownLost => {
                self.know(found);
                Ok(true)
            }
            MarkStep::Lost => {
                let mark = format!("{LOST}{:.0}:{}", UnixTime::now().0.floor(), random());
                let mut set = redis::cmd("SET");
                set.arg(key).arg(&mark);
                if !is_replica {
                    let told: Result<(), StoreError> = self.store.query("epoch", &set).await;
                    // The loss holds even if this write fails; the next check writes it again.
                    if told.is_ok() {
                        self.know(Some(mark));
                    }
                }
                Ok(true)
            }
        }
    }

    async fn begin(&self) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(&self.place.1).arg(random()).arg("NX");
        let _set: Option<String> = self.store.query("epoch", &set).await?;
        Ok(())
    }

    /// Logs each change once.
    fn tell(&mut self, risks: Vec<Risk>) {
        let endpoint = self.store.endpoint();
        for risk in risks.iter().filter(|risk| !self.risks.contains(risk)) {
            let text = risk.text(&self.place.1);
            match risk.may_forget() {
                true => tracing::error!(redis.endpoint = endpoint, "{text}"),
                false => tracing::warn!(redis.endpoint = endpoint, "{text}"),
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
                redis.key = self.place.1,
                redis.endpoint = self.store.endpoint(),
                error.kind = error.kind.label(),
                error = %error.source,
                "The mark of the denylist's Redis cannot be read or written: a Redis that loses its data will not be noticed; grant the key"
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
