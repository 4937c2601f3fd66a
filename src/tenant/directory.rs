//! The tenants of this replica: found by host or by name, replaced all at once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Tenant;
use crate::hosts::HostTable;
use crate::relay::Relay;

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
