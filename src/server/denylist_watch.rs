//! Watches the Redis servers that hold a denylist, and warns if one could lose a revocation or has lost its data.
//!
//! It checks eviction, role, replicas, clock and the mark [`redis_keys::EPOCH`] at the start, after every reconnect and once
//! a minute. The mark is an ordinary key: if it is missing, the server lost its data. Each change is logged once, with the action to take.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::Config;
use crate::heavy::{HEAVY_VALUES, heavy};
use crate::metrics;
use crate::replica::Remarks;
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::stores::redis_url::RedisUrl;
use crate::tasks::{self, Task};
use crate::tenant::Tenants;

use watched_server::WatchedServer;

mod watched_server;

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
        let (mut watched, mut config) = (Vec::<Watched>::new(), self.tenants.config());
        loop {
            let served = self.tenants.config();
            if !Arc::ptr_eq(&served, &std::mem::replace(&mut config, served.clone())) {
                keep_marks(&self.known, &served);
            }
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
                    let of_server = WatchedServer::new(server.clone(), self.known.clone());
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

/// Forgets the marks of servers that have no denylist in a configuration. A tenant that is not in use stays configured: its server
/// may lose the mark meanwhile.
fn keep_marks(known: &KnownMarks, config: &Config) {
    if known.lock().is_empty() {
        return;
    }
    let endpoints: HashSet<String> = heavy(config.tenants.len() > HEAVY_VALUES, || {
        let tenants = config.tenants.values();
        let urls = tenants.filter_map(|tenant| config.effective(tenant).denylist_redis());
        let urls = urls.filter_map(|url| RedisUrl::parse(url).ok());
        urls.map(|url| url.endpoint()).collect()
    });
    let mut known = known.lock();
    known.retain(|(endpoint, _), _| endpoints.contains(endpoint));
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
    let store = server.store().clone();
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
        told.remarks.set(&told.subject, server.told());
        standing.set(server.is_at_risk());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A server that restarted may be empty: check at once.
            newer = store.link_after(link) => {
                link = newer;
                server.ask_all_again();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TenantConfig;
    use crate::ids::TenantId;

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

    /// Before, a server that was ever watched kept its mark.
    #[test]
    fn a_mark_goes_with_the_last_tenant_that_is_configured_with_its_server() {
        let known = KnownMarks::default();
        for endpoint in ["own:6379", "gone:6379"] {
            let place = (endpoint.to_owned(), redis_keys::epoch(None));
            known.lock().insert(place, "mark".to_owned());
        }
        let mut config = Config::default();
        let mut tenant = TenantConfig::default();
        tenant.redis.get_or_insert_default().url = Some("redis://own:6379".into());
        let name: TenantId = "acme".parse().unwrap();
        config.tenants.insert(name, Arc::new(tenant));
        keep_marks(&known, &config);
        let left = known.lock();
        assert!(left.len() == 1 && left.keys().all(|(endpoint, _)| endpoint == "own:6379"));
    }
}
