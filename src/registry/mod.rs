//! The registry: tenants in a database, beside those of the files.
//!
//! It reads the rows that have changed, checks each tenant by the code for those of files, and says which configuration is
//! to be served ([`TenantRegistry::together`]). [`crate::server`] serves it, and calls again when something has changed.
//! `calls` has what the management API does with one tenant, `document` the forms of a tenant's JSON, `book` the choice of
//! what can be served, `reading` the reads of what has changed; `upkeep` and `at_terminal` are what the command line does
//! with the tables.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::api::TenantOfBook;
use crate::clock::UnixTime;
use crate::config::{Config, TenantConfig, TenantFiles};
use crate::consumer::Registry;
use crate::error::StoreError;
use crate::ids::TenantId;
use crate::metrics;
use crate::sealing::SealingKeys;
use crate::stores::database::tenant_table::{NEWEST, SchemaVersion, TenantTable};
use crate::tenant::Makings;
use crate::validation::Successions;

use book::IN_FILES;
pub use book::{BookPage, Judge, ReadTenant, StoredState, TenantPages};

mod at_terminal;
mod book;
mod calls;
mod document;
mod reading;
mod upkeep;

pub use at_terminal::{AllTenants, DegradedTenant, read_all, read_tenant};
pub use upkeep::{Resealed, migrate, reseal};

/// The reason why a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryProblem {
    /// The configuration has no registry.
    #[error("there is no registry.database in the configuration")]
    NotConfigured,
    /// Its keys cannot be used.
    #[error("registry.key: {0}")]
    Keys(crate::config::Faults),
    /// The tables are older than this binary needs.
    #[error(
        "the tables of the registry have version {0}, and this binary needs {NEWEST}: run `lockgate registry migrate`, or set registry.migrate = true"
    )]
    Behind(i64),
    /// The tables are so new that this binary cannot work with them.
    #[error(
        "the tables of the registry have version {0}, which needs a newer binary: this one knows {NEWEST}"
    )]
    Ahead(i64),
    /// The database does not answer, or refuses.
    #[error("the registry: {0}")]
    Store(#[from] StoreError),
}

impl RegistryProblem {
    /// Returns true if it may end without anyone's action.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Store(_))
    }
}

/// The tenants of the registry, as this replica knows them.
pub struct TenantRegistry {
    table: TenantTable,
    keys: SealingKeys,
    migrate: bool,
    consumers: Registry,
    /// The deployment without its tenants, for the check of one.
    deployment: Mutex<Arc<Config>>,
    known: Mutex<KnownTenants>,
    /// The standings when the configuration was last put together, for readers that must not wait.
    standings: ArcSwap<Vec<TenantOfBook>>,
    /// The configuration that was put together last.
    served: ArcSwap<Config>,
    /// The number of the last change that is in `served`.
    served_at: AtomicI64,
    /// The tenants that the files had then.
    of_files: ArcSwap<BTreeSet<TenantId>>,
    /// Held while a configuration is put together.
    judging: Mutex<Successions>,
    /// Serializes readings.
    turn: tokio::sync::Mutex<()>,
    /// True once everything was read.
    is_read: watch::Sender<bool>,
    /// True once that was served.
    is_served: watch::Sender<bool>,
}

#[derive(Default)]
struct KnownTenants {
    pages: TenantPages,
    /// The number of the last change that was read.
    seen: i64,
    compared_at: Option<Instant>,
    /// The troubles that the log knows.
    told: BTreeMap<TenantId, String>,
    /// True while something was read that no configuration has yet.
    is_new: bool,
}

/// The tenants that are put together to a configuration.
struct Beginning {
    /// The rows that are known now.
    pages: TenantPages,
    /// The number of the last change in it.
    seen: i64,
    is_other_deployment: bool,
    /// True if all tenants had been read.
    is_complete: bool,
}

/// The registry beside the tenants of the files.
#[derive(Clone, Debug, Default)]
pub struct BesideFiles {
    /// The makings of its tenants that are served.
    pub makings: Makings,
    /// The hosts of those that cannot be served, as far as their documents name them.
    pub unserved: Vec<(TenantId, Vec<String>)>,
    /// True while the registry was never read, so that any host may be one of its tenants'.
    pub is_incomplete: bool,
}

impl TenantRegistry {
    /// Makes the registry of a configuration that was checked; `None` if it has none. Connects nothing yet.
    ///
    /// # Errors
    /// [`RegistryProblem`]
    pub fn of(config: &Config, consumers: Registry) -> Result<Option<Arc<Self>>, RegistryProblem> {
        let Some(url) = &config.registry.database else {
            return Ok(None);
        };
        let registry = Self {
            keys: SealingKeys::new(&config.registry.key).map_err(RegistryProblem::Keys)?,
            table: TenantTable::connect_lazy(url, &config.registry_trust())?,
            migrate: config.registry.migrate,
            consumers,
            deployment: Mutex::new(Arc::new(config.without_tenants())),
            known: Mutex::default(),
            standings: ArcSwap::default(),
            served: ArcSwap::from_pointee(config.clone()),
            served_at: AtomicI64::default(),
            of_files: ArcSwap::default(),
            judging: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            is_read: watch::Sender::default(),
            is_served: watch::Sender::default(),
        };
        metrics::registry_read(UnixTime::now().0);
        Ok(Some(Arc::new(registry)))
    }

    /// Returns the tenants of the files with those of the registry that can be served beside them. Logs each trouble that
    /// is new. `names` are the tenants of included files, which have their names also where they cannot be served.
    pub fn together(&self, files: &Config, names: &TenantFiles) -> (Config, BesideFiles) {
        let mut judging = self.judging.lock();
        let Beginning {
            mut pages,
            seen,
            is_other_deployment,
            is_complete,
        } = self.begin(files);
        if is_other_deployment {
            judging.forget();
        }
        let judging = RefCell::new(&mut *judging);
        let judge = |config: &Config| {
            let checked = judging.borrow_mut().check(config);
            checked.map_err(|errors| errors.in_one_line())
        };
        // With no lock that a call of the API takes: beside many conflicts it lasts seconds.
        let config = pages.together_without(names, files, &judge);
        let mut known = self.known.lock();
        known.pages.adopt(&pages);
        let standings: Vec<_> = pages.iter().map(standing).collect();
        tell(&known.told, &standings);
        let troubles = { standings.iter() }
            .filter_map(|tenant| Some((tenant.id.clone(), tenant.trouble.clone()?)));
        known.told = troubles.collect();
        drop(known);
        let of_files: BTreeSet<_> = files.tenants.keys().chain(names.keys()).cloned().collect();
        let is_of_files = |id: &TenantId| of_files.contains(id);
        let standings = standings.into_iter();
        // Those whose names stand in a file are the file's.
        let standings: Vec<_> = standings
            .filter(|tenant| !is_of_files(&tenant.id))
            .collect();
        let degraded = { standings.iter() }
            .filter(|tenant| tenant.trouble.is_some())
            .count();
        metrics::registry_tenants(standings.len() - degraded, degraded);
        self.standings.store(Arc::new(standings));
        let beside = beside(&pages, is_complete, is_of_files);
        self.of_files.store(Arc::new(of_files));
        self.served.store(Arc::new(config.clone()));
        // In this order a check beside `served` is never older than the number that it claims.
        self.served_at.store(seen, Ordering::Release);
        (config, beside)
    }

    fn begin(&self, files: &Config) -> Beginning {
        let mut known = self.known.lock();
        let deployment = Arc::new(files.without_tenants());
        let has_changed = **self.deployment.lock() != *deployment;
        *self.deployment.lock() = deployment;
        if has_changed {
            // What is right beside other tables of the deployment may be wrong beside these; it is read again.
            known.compared_at = None;
        }
        known.is_new = false;
        Beginning {
            pages: known.pages.clone(),
            seen: known.seen,
            is_other_deployment: has_changed,
            is_complete: self.is_read(),
        }
    }

    /// Records that the parts of a tenant's configuration could not be made. Returns false if the tenant is not one of the
    /// registry's.
    pub fn cannot_be_built(&self, id: &TenantId, config: &Arc<TenantConfig>, why: &str) -> bool {
        let mut known = self.known.lock();
        known.pages.cannot_be_built(id, config, why)
    }

    /// Returns true if a file has a tenant of this name.
    fn is_of_files(&self, id: &TenantId) -> bool {
        self.of_files.load().contains(id)
    }

    /// Returns true if something was read that is not in what [`TenantRegistry::together`] returned last.
    pub fn has_news(&self) -> bool {
        self.known.lock().is_new
    }

    /// Notes that what [`TenantRegistry::together`] returned last could not be served.
    pub fn was_not_served(&self) {
        self.known.lock().is_new = true;
    }

    /// Returns true if all tenants were read once.
    pub fn is_read(&self) -> bool {
        *self.is_read.borrow()
    }

    /// Notes that what [`TenantRegistry::together`] returned last is served. `is_complete`: the tenants had been read.
    pub fn was_served(&self, is_complete: bool) {
        if is_complete {
            self.is_served.send_replace(true);
        }
    }

    /// Waits until all tenants that can be served were served once.
    pub async fn serves(&self) {
        let mut is_served = self.is_served.subscribe();
        // Cannot fail: `self` holds the sender.
        drop(is_served.wait_for(|served| *served).await.map(drop));
    }

    /// Returns the standing of every tenant of the registry that no file has, by name.
    pub fn standings(&self) -> Arc<Vec<TenantOfBook>> {
        self.standings.load_full()
    }
}

fn beside(
    pages: &TenantPages,
    is_complete: bool,
    is_of_files: impl Fn(&TenantId) -> bool,
) -> BesideFiles {
    let mut beside = BesideFiles {
        is_incomplete: !is_complete,
        ..BesideFiles::default()
    };
    for (id, page) in pages.iter().filter(|(id, _)| !is_of_files(id)) {
        match page.good.is_some() {
            true => drop(beside.makings.insert(id.clone(), page.stored.making)),
            false => beside.unserved.push((id.clone(), page.hosts().to_vec())),
        }
    }
    beside
}

fn standing((id, page): (&TenantId, &book::BookPage)) -> TenantOfBook {
    TenantOfBook {
        id: id.clone(),
        is_served: page.good.is_some(),
        trouble: page.trouble.clone(),
    }
}

/// Logs the troubles that begin and end.
fn tell(before: &BTreeMap<TenantId, String>, after: &[TenantOfBook]) {
    for now in after {
        match (before.get(&now.id), &now.trouble) {
            (then, Some(why)) if then != Some(why) && why == IN_FILES => {
                tracing::warn!(tenant.id = %now.id, "Ignored a tenant of the registry: {why}");
            }
            (then, Some(why)) if then != Some(why) => tracing::error!(
                tenant.id = %now.id, error = why, last_good = now.is_served,
                "A tenant of the registry cannot be served as it is stored"
            ),
            (Some(_), None) => {
                tracing::info!(tenant.id = %now.id, "The tenant of the registry is served as it is stored");
            }
            _ => {}
        }
    }
}

fn usable(schema: SchemaVersion) -> Result<(), RegistryProblem> {
    if schema.version < NEWEST {
        return Err(RegistryProblem::Behind(schema.version));
    }
    if schema.readable_by > NEWEST {
        return Err(RegistryProblem::Ahead(schema.version));
    }
    Ok(())
}

/// Unix seconds, as the tables have them.
fn now() -> i64 {
    UnixTime::now().0 as i64
}

/// Returns the table and the keys of a configuration, for the work of the command line.
fn parts(config: &Config) -> Result<(TenantTable, SealingKeys), RegistryProblem> {
    let url = config
        .registry
        .database
        .as_ref()
        .ok_or(RegistryProblem::NotConfigured)?;
    let keys = SealingKeys::new(&config.registry.key).map_err(RegistryProblem::Keys)?;
    let table = TenantTable::connect_lazy(url, &config.registry_trust())?;
    Ok((table, keys))
}
