//! The tenant that a command works on: one of the files, or else one of the registry.

use std::process::ExitCode;

use super::registry::wait_for;
use crate::config::Config;
use crate::ids::TenantId;
use crate::tenant::Makings;
use crate::{registry, validation};

/// The most names of tenants that an error lists.
const MOST_NAMES: usize = 10;
/// The exit status of a command whose dependency does not answer.
const NOT_KNOWN: u8 = 3;

/// A tenant that was not found, or cannot be served.
pub(super) struct NoTenant {
    /// The text for a person.
    pub(super) text: String,
    /// True if the registry could not be read, so that the tenant may be there.
    is_outage: bool,
}

impl NoTenant {
    /// Prints the text. Returns the status of a command that tells refusals from outages.
    pub(super) fn tell(&self) -> ExitCode {
        let status = super::fail(&self.text);
        match self.is_outage {
            true => ExitCode::from(NOT_KNOWN),
            false => status,
        }
    }
}

/// Returns the configuration with the tenant in it. The registry is asked only for one that no file has.
///
/// # Errors
/// If there is no such tenant, if it cannot be served as it is stored, or if the registry does not answer.
pub(super) fn with_tenant(mut config: Config, id: &TenantId) -> Result<Config, NoTenant> {
    if config.tenants.contains_key(id) {
        return Ok(config);
    }
    if config.registry.database.is_none() {
        return Err(nowhere(id, &config));
    }
    match wait_for(registry::read_tenant(&config, id)) {
        Ok(Some(Ok(tenant))) => {
            config.tenants.insert(id.clone(), tenant);
            Ok(config)
        }
        Ok(Some(Err(why))) => Err(unserved(id, &why)),
        Ok(None) => Err(nowhere(id, &config)),
        Err(problem) => Err(unread(
            &format!("{}, not {id}", of_files(&config)),
            &problem,
        )),
    }
}

fn unserved(id: &TenantId, why: &str) -> NoTenant {
    NoTenant {
        text: format!("the tenant {id} of the registry cannot be served as it is stored: {why}"),
        is_outage: false,
    }
}

fn nowhere(id: &TenantId, config: &Config) -> NoTenant {
    let of_registry = match config.registry.database {
        Some(_) => ", and the registry has none of this name: `lockgate tenant list` names all",
        None => "",
    };
    NoTenant {
        text: format!("there is no tenant {id}; {}{of_registry}", of_files(config)),
        is_outage: false,
    }
}

/// A tenant, and those whose events could meet its own.
pub(super) struct Vicinity {
    /// The configuration with these tenants alone.
    pub(super) config: Config,
    /// The makings of those of the registry.
    pub(super) makings: Makings,
    /// The reason why the registry could not be read. Its tenants are missing then.
    pub(super) unread: Option<String>,
}

/// Returns the tenant with all of files and registry whose events could meet its own.
///
/// # Errors
/// If there is no such tenant, if it cannot be served as it is stored, or if no file has it and the registry does not answer.
pub(super) fn with_vicinity(config: Config, id: &TenantId) -> Result<Vicinity, NoTenant> {
    let is_of_files = config.tenants.contains_key(id);
    let near = |config: &Config, makings, unread| Vicinity {
        config: validation::with_namesakes(config, id),
        makings,
        unread,
    };
    if config.registry.database.is_none() {
        return with_tenant(config, id).map(|config| near(&config, Makings::default(), None));
    }
    match wait_for(registry::read_all(&config)) {
        Ok(all) if all.config.tenants.contains_key(id) => Ok(near(&all.config, all.makings, None)),
        Err(problem) if is_of_files => Ok(near(&config, Makings::default(), Some(problem))),
        Err(problem) => Err(unread(
            &format!("{}, not {id}", of_files(&config)),
            &problem,
        )),
        Ok(all) => match all.degraded.iter().find(|tenant| tenant.id == *id) {
            Some(tenant) => Err(unserved(id, &tenant.why)),
            None => Err(nowhere(id, &config)),
        },
    }
}

/// Returns the error of a command for which the registry could not be read.
pub(super) fn unread(so_far: &str, problem: &str) -> NoTenant {
    NoTenant {
        text: format!("{so_far}, and the registry could not be read: {problem}"),
        is_outage: true,
    }
}

fn of_files(config: &Config) -> String {
    let names = config.tenants.keys().take(MOST_NAMES);
    let names: Vec<_> = names.map(TenantId::as_str).collect();
    let more = match config.tenants.len() > MOST_NAMES {
        true => ", …",
        false => "",
    };
    match names.is_empty() {
        true => "the files have none".to_owned(),
        false => format!("the files have {}{more}", names.join(", ")),
    }
}
