//! The reads of the command line: what is stored, judged by the code of a replica. It changes nothing, and keeps nothing.

use std::sync::Arc;

use super::{RegistryProblem, TenantRegistry, usable};
use crate::config::{Config, TenantConfig, TenantFiles};
use crate::consumer::Registry;
use crate::ids::TenantId;
use crate::tenant::Makings;
use crate::validation::check_newcomer;

/// All tenants of files and registry.
pub struct AllTenants {
    /// Those that can be served, as a replica would serve them that starts now.
    pub config: Config,
    /// The makings of those of the registry among them.
    pub makings: Makings,
    /// The number of tenants of the registry that no file has.
    pub registered: usize,
    /// Those of the registry that cannot be served as they are stored.
    pub degraded: Vec<DegradedTenant>,
}

/// A tenant of the registry that cannot be served as it is stored.
pub struct DegradedTenant {
    /// Its name.
    pub id: TenantId,
    /// The reason.
    pub why: String,
    /// Its hosts, as far as its document names them.
    pub hosts: Vec<String>,
}

/// Reads one tenant of the registry and checks it beside those of the files; `None` if there is none of this name.
///
/// # Errors
/// [`RegistryProblem`]
pub async fn read_tenant(
    config: &Config,
    id: &TenantId,
) -> Result<Option<Result<Arc<TenantConfig>, String>>, RegistryProblem> {
    let registry = registry_of(config)?;
    usable(registry.table.schema().await?)?;
    let row = registry.table.one(id.as_str()).await?;
    let deployment = registry.deployment.lock().clone();
    let found = row.and_then(|row| registry.read(&row, &deployment));
    // A database may find names without their case.
    let found = found.filter(|found| found.id == *id);
    Ok(found.map(|found| {
        let tenant = found.read.map_err(|wrong| wrong.why)?;
        let mut beside = config.clone();
        beside.tenants.insert(id.clone(), tenant.clone());
        let checked = check_newcomer(&beside, id);
        checked
            .map(|_| tenant)
            .map_err(|errors| errors.in_one_line())
    }))
}

/// Reads all tenants of the registry beside those of the files.
///
/// # Errors
/// [`RegistryProblem`]
pub async fn read_all(config: &Config) -> Result<AllTenants, RegistryProblem> {
    let registry = registry_of(config)?;
    registry.refresh().await?;
    let (config, beside) = registry.together(config, &TenantFiles::new());
    let standings = registry.standings();
    let hosts_of = |id: &TenantId| {
        let unserved = beside.unserved.iter().find(|(unserved, _)| unserved == id);
        unserved.map_or_else(Vec::new, |(_, hosts)| hosts.clone())
    };
    let degraded = standings.iter().filter_map(|tenant| {
        Some(DegradedTenant {
            id: tenant.id.clone(),
            why: tenant.trouble.clone()?,
            hosts: hosts_of(&tenant.id),
        })
    });
    Ok(AllTenants {
        registered: standings.len(),
        degraded: degraded.collect(),
        makings: beside.makings.clone(),
        config,
    })
}

/// Returns the registry of a configuration, which leaves its tables as they are.
fn registry_of(config: &Config) -> Result<Arc<TenantRegistry>, RegistryProblem> {
    let mut config = config.clone();
    config.registry.migrate = false;
    let registry = TenantRegistry::of(&config, Registry::default())?;
    registry.ok_or(RegistryProblem::NotConfigured)
}
