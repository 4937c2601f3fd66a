//! The tenants of this replica: found by host or by name, replaced all at once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

use super::Tenant;
use super::neighbours::Neighbours;
use crate::hosts::HostTable;

/// The tenants of this replica.
///
/// A tenant may be here more than once: as it is served, and as it was before a reload moved it to another layer or
/// Redis, until the last socket from that time has closed. What acts on a tenant acts on all of them
/// ([`Tenants::all_of`]).
#[derive(Default)]
pub struct Tenants {
    now: ArcSwap<Serving>,
    /// Tenants that are gone or moved, and still have sockets; oldest first.
    leaving: Mutex<Vec<Arc<Tenant>>>,
    turn: Mutex<()>,
    /// Where the layers of those that are served stand.
    pub(super) neighbours: Neighbours,
}

/// The tenants of one configuration.
#[derive(Default)]
pub(super) struct Serving {
    hosts: HostTable,
    /// By name.
    all: Arc<[Arc<Tenant>]>,
}

impl Serving {
    /// The tenants, found by `hosts`; `all` in the order of their names.
    pub(super) fn new(hosts: HostTable, all: Vec<Arc<Tenant>>) -> Self {
        let all = all.into();
        Self { hosts, all }
    }

    fn by_id(&self, id: &str) -> Option<&Arc<Tenant>> {
        tenant_of(&self.all, id)
    }
}

/// The tenant of this name among `all`, which are in the order of their names.
pub(super) fn tenant_of<'t>(all: &'t [Arc<Tenant>], id: &str) -> Option<&'t Arc<Tenant>> {
    let found = all.binary_search_by(|tenant| tenant.id.as_str().cmp(id));
    all.get(found.ok()?)
}

impl Tenants {
    /// Taken by what must see no tenant replaced meanwhile, and by what replaces them. Held for a moment only.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Puts other tenants in place; those of `leaving` stay known until [`Tenants::forget`].
    pub(super) fn replace(&self, serving: Serving, leaving: impl IntoIterator<Item = Arc<Tenant>>) {
        // First those that leave: somebody who looks meanwhile finds a tenant twice, and not missing.
        self.leaving.lock().extend(leaving);
        self.now.store(Arc::new(serving));
    }

    /// The last socket of a tenant that left has closed.
    pub(super) fn forget(&self, gone: &Arc<Tenant>) {
        let mut leaving = self.leaving.lock();
        leaving.retain(|tenant| !Arc::ptr_eq(tenant, gone));
    }

    /// The tenant that is served under a `Host` header.
    pub fn by_host(&self, host: &str) -> Option<Arc<Tenant>> {
        let now = self.now.load();
        let id = now.hosts.find(host)?;
        now.by_id(id.as_str()).cloned()
    }

    /// The tenant of this name that is served.
    pub fn by_id(&self, id: &str) -> Option<Arc<Tenant>> {
        self.now.load().by_id(id).cloned()
    }

    /// The tenant of this name: as it is served, else as it was last while it still has sockets.
    pub fn named(&self, id: &str) -> Option<Arc<Tenant>> {
        let leaving = || {
            let leaving = self.leaving.lock();
            let newest_first = leaving.iter().rev();
            newest_first
                .into_iter()
                .find(|tenant| tenant.id.as_str() == id)
                .cloned()
        };
        self.by_id(id).or_else(leaving)
    }

    /// The tenant of this name with all its sockets: as it is served, and as it was while it still has sockets.
    pub fn all_of(&self, id: &str) -> Vec<Arc<Tenant>> {
        let leaving = self.leaving.lock();
        let mut all: Vec<_> = self.by_id(id).into_iter().collect();
        let of_this_name = leaving.iter().filter(|tenant| tenant.id.as_str() == id);
        // One that a reload moves just now is in both lists.
        all.extend(of_this_name.filter(|tenant| !self.serves(tenant)).cloned());
        all
    }

    /// All tenants that are served, by name.
    pub fn all(&self) -> Arc<[Arc<Tenant>]> {
        self.now.load().all.clone()
    }

    /// All tenants that may have sockets, those that leave included.
    pub fn with_sockets(&self) -> Vec<Arc<Tenant>> {
        let leaving = self.leaving.lock();
        let mut all = self.all().to_vec();
        // One that a reload moves just now would be here twice.
        all.extend(
            leaving
                .iter()
                .filter(|tenant| !self.serves(tenant))
                .cloned(),
        );
        all
    }

    /// Whether this very tenant is served.
    fn serves(&self, tenant: &Arc<Tenant>) -> bool {
        let now = self.now.load();
        let served = now.by_id(tenant.id.as_str());
        served.is_some_and(|served| Arc::ptr_eq(served, tenant))
    }

    /// Open sockets of all tenants.
    pub fn open_connections(&self) -> usize {
        let tenants = self.with_sockets();
        tenants.iter().map(|tenant| tenant.relay.hub().len()).sum()
    }
}
