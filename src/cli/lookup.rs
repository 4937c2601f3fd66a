//! The tenant that a command works on: one of the files, or else one of the registry.

use std::process::ExitCode;

use super::registry::wait_for;
use crate::config::Config;
use crate::ids::TenantId;
use crate::registry;

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
    let not_there = |text| NoTenant {
        text,
        is_outage: false,
    };
    let of_files = of_files(&config);
    if config.registry.database.is_none() {
        return Err(not_there(format!("there is no tenant {id}; {of_files}")));
    }
    match wait_for(registry::read_tenant(&config, id)) {
        Ok(Some(Ok(tenant))) => {
            config.tenants.insert(id.clone(), tenant);
            Ok(config)
        }
        Ok(Some(Err(why))) => Err(not_there(format!(
            "the tenant {id} of the registry cannot be served as it is stored: {why}"
        ))),
        Ok(None) => Err(not_there(format!(
            "there is no tenant {id}; {of_files}, and the registry has none of this name: `lockgate tenant list` names all"
        ))),
        Err(problem) => Err(unread(&format!("{of_files}, not {id}"), &problem)),
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
