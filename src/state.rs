//! What handlers may reach: the tenants of this replica with everything that serves them, and whether it drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::Authenticator;
use crate::channel_layer::Control;
use crate::coherence::Coherence;
use crate::config::{Secret, TenantConfig};
use crate::consumer::{Place, RouteConsumer};
use crate::ids::TenantId;
use crate::metrics::{self, TenantMetrics};
use crate::origin::OriginPolicy;
use crate::relay::{Relay, Settings};
use crate::revocation::Revocations;
use crate::stores::key_store::KeyStore;
use crate::templates::Template;
use crate::tenants::HostTable;
use crate::users::Permissions;

/// One tenant, ready to serve.
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// What its operator configured.
    pub config: Arc<TenantConfig>,
    /// The Redis of its users, events and control messages; `None`: this process's memory.
    pub redis: Option<Secret>,
    /// From path to route, and what else all its sockets share.
    pub place: Arc<Place>,
    /// What each route does, by the index that its routes give.
    pub parts: Vec<RouteParts>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Tokens and users.
    pub authenticator: Arc<Authenticator>,
    /// Who may join which groups.
    pub permissions: Arc<Permissions>,
    /// Tokens that are taken back.
    pub revocations: Arc<Revocations>,
    /// What open sockets know of their users, held against the database.
    pub coherence: Arc<Coherence>,
    /// Messages between the replicas that serve the tenant.
    pub control: Arc<Control>,
    /// Where the tenant's keys other than the denylist's lie.
    pub keys: KeyStore,
    /// Groups and events.
    pub relay: Arc<Relay>,
    /// What its relay is set to once this tenant is the one that is served.
    pub settings: Arc<Settings>,
    /// Handles of its metrics.
    pub metrics: Arc<TenantMetrics>,
    /// Why it cannot be served at the moment.
    pub degraded: Mutex<Option<String>>,
    /// Whether it is suspended; outlives a reload.
    pub suspended: Arc<AtomicBool>,
    /// A reload has put another one in its place, or none: no socket may open on it any more.
    pub retired: AtomicBool,
}

impl Tenant {
    /// Whether an operator has suspended it.
    pub fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    /// Whether it cannot be served at the moment.
    pub fn is_degraded(&self) -> bool {
        self.degraded.lock().is_some()
    }
}

/// What one route does with its sockets.
pub struct RouteParts {
    /// The groups that a socket joins.
    pub groups: Vec<Template>,
    /// What happens to frames and events.
    pub consumer: RouteConsumer,
    /// The route's index among the relay's deliveries.
    pub delivery: u16,
    /// Subprotocols that a client may choose from.
    pub subprotocols: Vec<String>,
}

/// The tenants of this replica. A reload puts all of them in place at once.
pub struct Tenants {
    now: ArcSwap<Serving>,
    /// Of tenants that are gone or moved to another layer: sockets that still have to close.
    leaving: Mutex<Vec<Arc<Relay>>>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            now: ArcSwap::from_pointee(Serving::default()),
            leaving: Mutex::default(),
        }
    }
}

/// The tenants of one configuration.
#[derive(Default)]
pub struct Serving {
    hosts: HostTable,
    /// By name.
    all: Arc<[Arc<Tenant>]>,
}

impl Serving {
    /// The tenants, found by `hosts`; `all` in the order of their names.
    pub fn new(hosts: HostTable, all: Vec<Arc<Tenant>>) -> Self {
        let all = all.into();
        Self { hosts, all }
    }

    fn by_id(&self, id: &str) -> Option<&Arc<Tenant>> {
        tenant_of(&self.all, id)
    }
}

/// The tenant of this name among `all`, which are in the order of their names.
pub fn tenant_of<'t>(all: &'t [Arc<Tenant>], id: &str) -> Option<&'t Arc<Tenant>> {
    let found = all.binary_search_by(|tenant| tenant.id.as_str().cmp(id));
    all.get(found.ok()?)
}

impl Tenants {
    /// Puts other tenants in place.
    pub fn replace(&self, serving: Serving) {
        self.now.store(Arc::new(serving));
    }

    /// Remembers sockets that belong to no tenant of the configuration any more, until they are closed.
    pub fn see_off(&self, relay: Arc<Relay>) {
        let mut leaving = self.leaving.lock();
        leaving.retain(|relay| !relay.hub().is_empty());
        leaving.push(relay);
    }

    /// The tenant that is served under a `Host` header.
    pub fn by_host(&self, host: &str) -> Option<Arc<Tenant>> {
        let now = self.now.load();
        let id = now.hosts.find(host)?;
        now.by_id(id.as_str()).cloned()
    }

    /// The tenant of this name.
    pub fn by_id(&self, id: &str) -> Option<Arc<Tenant>> {
        self.now.load().by_id(id).cloned()
    }

    /// All tenants, by name.
    pub fn all(&self) -> Arc<[Arc<Tenant>]> {
        self.now.load().all.clone()
    }

    /// What serves the sockets of all tenants, those that are about to go included.
    pub fn relays(&self) -> Vec<Arc<Relay>> {
        let all = self.all();
        let serving = all.iter().map(|tenant| tenant.relay.clone());
        serving.chain(self.leaving.lock().iter().cloned()).collect()
    }

    /// Open sockets of all tenants.
    pub fn open_connections(&self) -> usize {
        let relays = self.relays();
        relays.iter().map(|relay| relay.hub().len()).sum()
    }
}

/// Where this replica is in its life.
#[derive(Debug, Default)]
pub struct Life {
    ready: AtomicBool,
    draining: AtomicBool,
    refusing: AtomicBool,
    became_ready: Notify,
}

impl Life {
    /// Whether `/readyz` answers 200.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_draining()
    }

    /// Whether it was ready once.
    pub fn has_started(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Every tenant's dependencies were reached once, or waited for long enough.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
        self.became_ready.notify_waiters();
        metrics::ready(self.is_ready());
    }

    /// Waits for [`Life::set_ready`].
    pub async fn wait_ready(&self) {
        let ready = self.became_ready.notified();
        if !self.ready.load(Ordering::Acquire) {
            ready.await;
        }
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// A drain begins: readiness falls at once, new sockets are still served.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
        metrics::draining(true);
        metrics::ready(false);
    }

    /// Whether new sockets are refused.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    /// `drain.delay` is over: new sockets are refused from now on.
    pub fn set_refusing(&self) {
        self.refusing.store(true, Ordering::Release);
    }
}
