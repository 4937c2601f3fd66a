//! What handlers may reach: the tenants of this replica with everything that serves them, and whether it drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::Authenticator;
use crate::config::TenantConfig;
use crate::consumer::{Place, RouteConsumer};
use crate::ids::TenantId;
use crate::metrics::{self, TenantMetrics};
use crate::origin::OriginPolicy;
use crate::relay::Relay;
use crate::templates::Template;
use crate::tenants::HostTable;
use crate::users::Permissions;

/// One tenant, ready to serve.
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// What its operator configured.
    pub config: Arc<TenantConfig>,
    /// From path to route, and what else all its sockets share.
    pub place: Arc<Place>,
    /// What each route does, by the index that its routes give.
    pub parts: Vec<RouteParts>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Tokens and users.
    pub authenticator: Arc<Authenticator>,
    /// Who may join which groups.
    pub permissions: Permissions,
    /// Groups and events.
    pub relay: Arc<Relay>,
    /// Handles of its metrics.
    pub metrics: Arc<TenantMetrics>,
    /// Why it cannot be served at the moment.
    pub degraded: Mutex<Option<String>>,
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

/// The tenants of this replica.
pub struct Tenants {
    hosts: HostTable,
    all: Vec<Arc<Tenant>>,
}

impl Tenants {
    /// The tenants, found by `hosts`.
    pub fn new(hosts: HostTable, all: Vec<Arc<Tenant>>) -> Self {
        Self { hosts, all }
    }

    /// The tenant that is served under a `Host` header.
    pub fn by_host(&self, host: &str) -> Option<&Arc<Tenant>> {
        let id = self.hosts.find(host)?;
        self.by_id(id.as_str())
    }

    /// The tenant of this name.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Tenant>> {
        let at = self
            .all
            .binary_search_by(|tenant| tenant.id.as_str().cmp(id))
            .ok()?;
        self.all.get(at)
    }

    /// All tenants, by name.
    pub fn all(&self) -> &[Arc<Tenant>] {
        &self.all
    }

    /// Open sockets of all tenants.
    pub fn open_connections(&self) -> usize {
        self.all.iter().map(|tenant| tenant.relay.hub().len()).sum()
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
