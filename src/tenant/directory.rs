//! The tenants of this replica, found by host or by name. A new configuration replaces them all at once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

use super::Tenant;
use super::neighbours::Neighbours;
use crate::error::Refusal;
use crate::hosts::HostTable;

/// The tenants of this replica.
///
/// A tenant may be here more than once. A reload that moves it to another layer or Redis puts a new [`Tenant`] in its
/// place; the old one stays until its last socket has closed. Every action on a tenant acts on all of them
/// ([`Tenants::all_of`]).
#[derive(Default)]
pub struct Tenants {
    now: ArcSwap<Serving>,
    /// Tenants that are removed or moved and still have sockets, oldest first.
    leaving: Mutex<Vec<Arc<Tenant>>>,
    /// Serializes replacement and suspension, see [`Tenants::turn`].
    turn: Mutex<()>,
    /// The Redis servers behind the layers of the tenants that are served.
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
    /// Makes the set of tenants. `all` is sorted by name.
    pub(super) fn new(hosts: HostTable, all: Vec<Arc<Tenant>>) -> Self {
        let all = all.into();
        Self { hosts, all }
    }

    fn by_id(&self, id: &str) -> Option<&Arc<Tenant>> {
        tenant_of(&self.all, id)
    }
}

/// Finds a tenant by name in `all`, which is sorted by name.
pub(super) fn tenant_of<'t>(all: &'t [Arc<Tenant>], id: &str) -> Option<&'t Arc<Tenant>> {
    let found = all.binary_search_by(|tenant| tenant.id.as_str().cmp(id));
    all.get(found.ok()?)
}

impl Tenants {
    /// Locks out the replacement of tenants: held while tenants are replaced, and while a suspension is applied to every
    /// tenant of a name. Hold it briefly.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Replaces the tenants that are served. Those of `leaving` stay known until [`Tenants::forget`].
    pub(super) fn replace(&self, serving: Serving, leaving: impl IntoIterator<Item = Arc<Tenant>>) {
        // In this order a concurrent reader finds a tenant twice, never not at all.
        self.leaving.lock().extend(leaving);
        self.now.store(Arc::new(serving));
    }

    /// Removes a tenant whose last socket has closed.
    pub(super) fn forget(&self, gone: &Arc<Tenant>) {
        let mut leaving = self.leaving.lock();
        leaving.retain(|tenant| !Arc::ptr_eq(tenant, gone));
    }

    /// Finds the served tenant of a `Host` header.
    ///
    /// # Errors
    /// The refusal: no tenant has the host, or the one that has it cannot be served, or it cannot be known yet.
    pub fn by_host(&self, host: &str) -> Result<Arc<Tenant>, Refusal> {
        let now = self.now.load();
        match now.hosts.find(host) {
            Some(id) => now.by_id(id.as_str()).cloned().ok_or(Refusal::Unavailable),
            None if now.hosts.is_incomplete() => Err(Refusal::Unavailable),
            None => Err(Refusal::TenantNotFound),
        }
    }

    /// Finds the served tenant of this name.
    pub fn by_id(&self, id: &str) -> Option<Arc<Tenant>> {
        self.now.load().by_id(id).cloned()
    }

    /// Finds the served tenant of this name, else the newest one that still has sockets.
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

    /// Returns every tenant of this name that can have sockets: the served one first, then those that leave.
    pub fn all_of(&self, id: &str) -> Vec<Arc<Tenant>> {
        let leaving = self.leaving.lock();
        let mut all: Vec<_> = self.by_id(id).into_iter().collect();
        let of_this_name = leaving.iter().filter(|tenant| tenant.id.as_str() == id);
        // A tenant that a reload is moving is in both lists for a moment.
        all.extend(of_this_name.filter(|tenant| !self.serves(tenant)).cloned());
        all
    }

    /// Returns the served tenants, sorted by name.
    pub fn all(&self) -> Arc<[Arc<Tenant>]> {
        self.now.load().all.clone()
    }

    /// Returns every tenant that can have sockets, including those that leave.
    pub fn with_sockets(&self) -> Vec<Arc<Tenant>> {
        let leaving = self.leaving.lock();
        let mut all = self.all().to_vec();
        // A tenant that a reload is moving is in both lists for a moment.
        all.extend(
            leaving
                .iter()
                .filter(|tenant| !self.serves(tenant))
                .cloned(),
        );
        all
    }

    /// Returns true if this instance, not only one of its name, is served.
    fn serves(&self, tenant: &Arc<Tenant>) -> bool {
        let now = self.now.load();
        let served = now.by_id(tenant.id.as_str());
        served.is_some_and(|served| Arc::ptr_eq(served, tenant))
    }

    /// Counts the open sockets of all tenants.
    pub fn open_connections(&self) -> usize {
        let tenants = self.with_sockets();
        tenants.iter().map(|tenant| tenant.relay.hub().len()).sum()
    }
}
