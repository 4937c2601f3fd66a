//! The tenants of this replica, found by host or by name. A new configuration replaces them all at once.
//!
//! A tenant of the registry is made when it is first asked for. Until then only its configuration and its hosts are here.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

use super::demand::Demand;
use super::neighbours::Neighbours;
use super::{Making, Makings, Tenant};
use crate::config::{Config, TenantConfig};
use crate::error::Refusal;
use crate::hosts::HostTable;
use crate::ids::TenantId;

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
    /// The tenants that are asked for and not made yet.
    demand: Demand,
    /// The tenants and files that are not served as the included files say.
    file_troubles: ArcSwap<Vec<FileTrouble>>,
}

/// A tenant of an included file, or such a file, that is not served as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTrouble {
    /// The tenant; `None` for the file as a whole.
    pub tenant: Option<TenantId>,
    /// The file.
    pub file: PathBuf,
    /// The reason.
    pub why: String,
    /// True if its last good configuration is served.
    pub is_served: bool,
}

impl FileTrouble {
    /// Returns the name of the tenant, or `file PATH`.
    pub fn subject(&self) -> String {
        match &self.tenant {
            Some(id) => id.to_string(),
            None => format!("file {}", self.file.display()),
        }
    }
}

/// The tenants of one configuration.
#[derive(Clone, Default)]
pub(super) struct Serving {
    hosts: Arc<HostTable>,
    /// Those that are made, by name.
    all: Arc<[Arc<Tenant>]>,
    /// The configuration. Its tenants that are not in `all` are made on demand.
    config: Arc<Config>,
    /// The makings of those of the registry.
    makings: Arc<Makings>,
}

impl Serving {
    /// Makes the set of tenants. `all` is sorted by name.
    pub(super) fn new(
        hosts: HostTable,
        all: Vec<Arc<Tenant>>,
        config: Arc<Config>,
        makings: Makings,
    ) -> Self {
        Self {
            hosts: Arc::new(hosts),
            all: all.into(),
            config,
            makings: Arc::new(makings),
        }
    }

    /// Returns the set with other tenants made of the same configuration. `all` is sorted by name.
    pub(super) fn with(&self, all: Vec<Arc<Tenant>>) -> Self {
        Self {
            all: all.into(),
            ..self.clone()
        }
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

    /// Finds the served tenant of a `Host` header. One that is not in use yet is made, and only then this waits.
    ///
    /// # Errors
    /// The refusal: no tenant has the host, or the one that has it cannot be served, or it cannot be known yet.
    pub async fn by_host(&self, host: &str) -> Result<Arc<Tenant>, Refusal> {
        let unmade = {
            let now = self.now.load();
            match now.hosts.find(host) {
                Some(id) => match now.by_id(id.as_str()) {
                    Some(tenant) => {
                        tenant.note_use();
                        return Ok(tenant.clone());
                    }
                    None => id.clone(),
                },
                None if now.hosts.is_incomplete() => return Err(Refusal::Unavailable),
                None => return Err(Refusal::TenantNotFound),
            }
        };
        self.made(&unmade).await
    }

    /// Finds the tenant of this name for a call: the served one, which is made if it is not in use yet, or else the newest
    /// one that still has sockets. `None`: there is none, or it cannot be made.
    pub async fn for_call(&self, id: &str) -> Option<Arc<Tenant>> {
        if let Some(tenant) = self.by_id(id) {
            tenant.note_use();
            return Some(tenant);
        }
        let unmade = self.configured(id).map(|(id, _)| id);
        if let Some(id) = unmade
            && let Ok(made) = self.made(&id).await
        {
            return Some(made);
        }
        self.named(id)
    }

    /// Waits until a tenant of the configuration is made.
    ///
    /// # Errors
    /// The refusal of a handshake.
    async fn made(&self, id: &TenantId) -> Result<Arc<Tenant>, Refusal> {
        if self.configured(id.as_str()).is_none() {
            return Err(Refusal::Unavailable);
        }
        let ends = self.demand.ask(id).ok_or(Refusal::Unavailable)?;
        // It may have been made between the look and the question, which is then answered for nothing.
        if let Some(made) = self.by_id(id.as_str()) {
            return Ok(made);
        }
        ends.wait().await;
        self.by_id(id.as_str()).ok_or(Refusal::Unavailable)
    }

    /// The tenants that are asked for and not made yet.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Returns what is not served as the included files say: tenants by name, then files.
    pub fn file_troubles(&self) -> Arc<Vec<FileTrouble>> {
        self.file_troubles.load_full()
    }

    /// Replaces what is not served as the included files say. Returns what it was before.
    pub fn set_file_troubles(&self, troubles: Vec<FileTrouble>) -> Arc<Vec<FileTrouble>> {
        self.file_troubles.swap(Arc::new(troubles))
    }

    /// Returns the name and the configuration of a tenant that is served, made or not.
    pub fn configured(&self, id: &str) -> Option<(TenantId, Arc<TenantConfig>)> {
        let now = self.now.load();
        let found = now.config.tenants.get_key_value(id);
        found.map(|(id, config)| (id.clone(), config.clone()))
    }

    /// Returns true while the registry was never read, or an included file without known tenants cannot be read: any name may be
    /// one of their tenants'.
    pub fn is_incomplete(&self) -> bool {
        self.now.load().hosts.is_incomplete()
    }

    /// Returns the making of a tenant of the registry.
    pub fn making(&self, id: &TenantId) -> Option<Making> {
        self.now.load().makings.get(id).copied()
    }

    /// Returns the number of tenants that are served, made or not.
    pub fn count(&self) -> usize {
        self.now.load().config.tenants.len()
    }

    /// Returns the configuration of the tenants that are served.
    pub fn config(&self) -> Arc<Config> {
        self.now.load().config.clone()
    }

    /// Returns the set of tenants that is served.
    pub(super) fn serving(&self) -> Arc<Serving> {
        self.now.load_full()
    }

    /// Finds the served tenant of this name, if it is made.
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

    /// Returns the served tenants that are made, sorted by name.
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
}
