//! Checks a configuration as a whole: each key may be well formed, and the whole still cannot be served.
//!
//! The check runs after reading and adds to the same report, so that an operator sees every mistake at once. It
//! constructs each part that the gateway makes from the configuration (a key, a URL, a statement, a route, a consumer)
//! and reports the reason of a failure. The other checks here compare several parts. It uses no network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{
    Config, ConfigErrors, ConfigReport, Draft, Environment, Fault, Faults, FileMarks, Places,
    TenantConfig, TenantDraft, TenantFiles, Warning,
};
use crate::consumer::Registry;
use crate::ids::TenantId;

mod claims;
mod deployment;
mod each;
mod issuers;
mod layers;
mod namespaces;
mod near;
mod routes;
mod tenants;
mod tls;
mod token;
mod user_fields;
mod workers;

pub use each::{Included, WrongFile, WrongTenant};
pub use near::{Successions, check_newcomer, with_namesakes};
pub use tls::{authorities, expired, expired_authority, unchecked};

/// The inputs of reading a configuration, beside the file.
#[derive(Clone)]
pub struct LoadOptions {
    /// The Rust consumers that routes may use as `kind`, each with the check of its options.
    pub consumers: Registry,
    /// The source of overrides and `{ env = "…" }` secrets. Default: the environment of this process.
    pub environment: Environment,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            consumers: Registry::default(),
            environment: Environment::of_process(),
        }
    }
}

/// The layers at each endpoint.
type Shared<'c> = BTreeMap<String, BTreeSet<SharedLayer<'c>>>;

/// The prefix and the namespace of a tenant's layer, and the tenant.
type SharedLayer<'c> = ((&'c str, &'c str), &'c TenantId);

/// A configuration that can be served.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Valid settings that an operator should know of.
    pub warnings: Vec<Warning>,
    /// Every file that was read, the main one first, without the files of secrets.
    pub files: Vec<PathBuf>,
    /// The files that secrets were read from.
    pub secret_files: Vec<PathBuf>,
    /// The marks that all of these had before they were read.
    pub marks: FileMarks,
    /// The tenants of included files, and what is wrong with them.
    pub included: Included,
}

impl Config {
    /// Reads a configuration from a file, its included files and the environment, and checks it as a whole. Without a
    /// file only defaults and the environment count, which make no tenant.
    ///
    /// # Errors
    /// Every mistake at once, each with its place.
    pub fn load(path: Option<&Path>, options: &LoadOptions) -> Result<Loaded, ConfigErrors> {
        let mut draft = Draft::of(path, options, &TenantFiles::new());
        // A file that could not be read may hold the keys that seem to be missing.
        if draft.included.is_complete() {
            draft.check(&options.consumers);
        }
        let warnings = draft.report.finish()?;
        Ok(Loaded {
            config: draft.config,
            warnings,
            files: draft.files,
            secret_files: draft.secret_files,
            marks: draft.marks,
            included: Included::all_right(&draft.included),
        })
    }
}

impl Draft {
    fn of(path: Option<&Path>, options: &LoadOptions, before: &TenantFiles) -> Self {
        let consumers = options.consumers.names();
        Self::read(path, &options.environment, &consumers, before)
    }

    /// Checks the whole. Every mistake so far is one of reading.
    fn check(&mut self, consumers: &Registry) {
        let reading_mistakes = self.report.count();
        let mut checker = Checker {
            report: &mut self.report,
            places: &self.places,
            reading_mistakes,
            newcomer: None,
        };
        check(&self.config, consumers, &mut checker);
    }
}

/// A tenant of the registry that could be served beside no other.
#[derive(Clone, Debug)]
pub struct CheckedTenant {
    /// Its configuration.
    pub config: Arc<TenantConfig>,
    /// Valid settings that an operator should know of.
    pub warnings: Vec<Warning>,
    /// The keys of its secrets, as their segments: a name, or `[INDEX]`.
    pub secret_keys: Vec<Vec<String>>,
}

/// Reads the tables of a tenant from JSON and checks them by the code for those of files. `deployment` is a configuration
/// without tenants.
///
/// # Errors
/// Every mistake at once, with its key.
pub fn check_tenant(
    deployment: &Config,
    id: &TenantId,
    document: &serde_json::Value,
    consumers: &Registry,
) -> Result<CheckedTenant, ConfigErrors> {
    finished(draft_of(deployment, id, document, consumers), id)
}

/// Checks a tenant as [`check_tenant`], and beside the tenants that are `served` and right without it.
///
/// # Errors
/// Every mistake of both checks at once, with its key.
pub fn check_tenant_beside(
    served: &Config,
    deployment: &Config,
    (id, document): (&TenantId, &serde_json::Value),
    consumers: &Registry,
) -> Result<CheckedTenant, ConfigErrors> {
    let mut draft = draft_of(deployment, id, document, consumers);
    if let Some(tenant) = draft.config.tenants.get(id) {
        let mut together = served.clone();
        together.tenants.insert(id.clone(), tenant.clone());
        near::report_newcomer(&together, id, &mut draft.report);
    }
    finished(draft, id)
}

/// Reads the tables of a tenant, and checks them by themselves.
fn draft_of(
    deployment: &Config,
    id: &TenantId,
    document: &serde_json::Value,
    consumers: &Registry,
) -> TenantDraft {
    let mut draft = TenantDraft::read(deployment, id, document, &consumers.names());
    let reading_mistakes = draft.report.count();
    let mut checker = Checker {
        report: &mut draft.report,
        places: &draft.places,
        reading_mistakes,
        newcomer: None,
    };
    if let Some(tenant) = draft.config.tenants.get(id) {
        tenants::check_registered(id, tenant, &mut checker);
        tenants::files_of_machine(id, tenant, &mut checker);
        deployment::api_keys(&draft.config, &mut checker);
        check_tenants(&draft.config, consumers, &mut checker);
    }
    draft
}

fn finished(mut draft: TenantDraft, id: &TenantId) -> Result<CheckedTenant, ConfigErrors> {
    // Those about the deployment are told at its start, and those about another tenant were at its own change.
    let warnings = near::own_warnings(draft.report.finish()?, id);
    let config = draft.config.tenants.remove(id);
    Ok(CheckedTenant {
        config: config.unwrap_or_default(),
        warnings,
        secret_keys: draft.secret_keys,
    })
}

/// Returns the keys at which the document of a tenant, right or wrong, has secrets as plain text, as their segments.
pub fn plain_secrets(
    deployment: &Config,
    id: &TenantId,
    document: &serde_json::Value,
    consumers: &Registry,
) -> Vec<Vec<String>> {
    TenantDraft::read(deployment, id, document, &consumers.names()).secret_keys
}

/// Checks tenants that are right one by one for what they may not share: hosts, keys of the API, names on one Redis. Returns the
/// warnings.
///
/// # Errors
/// Every mistake at once, with its key.
pub fn check_together(config: &Config) -> Result<Vec<Warning>, ConfigErrors> {
    let (places, mut report) = Places::together();
    let mut checker = Checker {
        report: &mut report,
        places: &places,
        reading_mistakes: 0,
        newcomer: None,
    };
    report_together(config, &mut checker);
    report.finish()
}

fn report_together(config: &Config, checker: &mut Checker<'_>) {
    tenants::hosts(config, checker);
    deployment::api_keys(config, checker);
    layers::check(config, checker);
    namespaces::check(config, checker);
}

fn check(config: &Config, consumers: &Registry, checker: &mut Checker<'_>) {
    deployment::check(config, checker);
    tenants::check(config, config.registry.database.is_some(), checker);
    check_tenants(config, consumers, checker);
}

fn check_tenants(config: &Config, consumers: &Registry, checker: &mut Checker<'_>) {
    tls::check(config, checker);
    tenants::check_each(config, checker);
    layers::check(config, checker);
    namespaces::check(config, checker);
    for (id, tenant) in &config.tenants {
        token::check(id, tenant, checker);
        routes::check(id, tenant, consumers, checker);
        user_fields::check(id, tenant, checker);
    }
}

/// Records mistakes at the places of their keys.
struct Checker<'a> {
    report: &'a mut ConfigReport,
    places: &'a Places,
    /// The number of mistakes from reading, which come first. Their keys hold defaults and are not checked again.
    reading_mistakes: usize,
    /// The tenant that is told what it and another may not share. Without one it is the second of the two.
    newcomer: Option<&'a TenantId>,
}

impl Checker<'_> {
    /// Returns the tenants by name, and the newcomer behind all others.
    fn in_order<'c>(&self, config: &'c Config) -> Vec<(&'c TenantId, &'c Arc<TenantConfig>)> {
        let (last, mut all): (Vec<_>, Vec<_>) =
            { config.tenants.iter() }.partition(|(id, _)| Some(*id) == self.newcomer);
        all.extend(last);
        all
    }

    /// Returns true if the newcomer is another one of these tenants of a server. It is told then that `id` needs the server
    /// alone, and `id`, which was right without it, is not.
    fn tells_newcomer_beside(&self, id: &TenantId, tenants: &BTreeSet<SharedLayer<'_>>) -> bool {
        let is_here = |newcomer| tenants.iter().any(|(_, there)| *there == newcomer);
        self.newcomer
            .is_some_and(|newcomer| newcomer != id && is_here(newcomer))
    }

    /// Records a mistake at `key`, unless reading found one at, below or above it.
    fn mistake(
        &mut self,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) {
        if !self.is_wrong(key) {
            let place = self.places.of(key);
            self.report.mistake(place, key, found, expected, advice);
        }
    }

    /// Returns true if reading found a mistake at, below or above the key, which then has its default.
    fn is_wrong(&self, key: &str) -> bool {
        self.report.touches(key, self.reading_mistakes)
    }

    /// Records the fault of a constructor at the table or value `key`.
    fn fault(&mut self, key: &str, fault: Fault) {
        let Fault {
            key,
            found,
            expected,
            advice,
        } = fault.below(key);
        self.mistake(&key, found, expected, advice);
    }

    /// Records every fault of a constructor. Returns the constructed part.
    fn faults<T>(&mut self, key: &str, made: Result<T, Faults>) -> Option<T> {
        match made {
            Ok(made) => Some(made),
            Err(Faults(faults)) => {
                faults.into_iter().for_each(|fault| self.fault(key, fault));
                None
            }
        }
    }

    /// Records a warning at `key`.
    fn warn(&mut self, key: &str, text: impl Into<String>) {
        self.report.warning(self.places.of(key), key, text);
    }

    /// Returns true if the configuration sets the key.
    fn has(&self, key: &str) -> bool {
        self.places.has(key)
    }

    /// Returns `FILE:LINE:COLUMN` of a key, for the text about another key.
    fn place_of(&self, key: &str) -> String {
        self.report.name_of(self.places.of(key))
    }
}
