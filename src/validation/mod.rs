//! Looks at a configuration as a whole: what is well formed key by key, and still cannot be served.
//!
//! Runs after reading, over the same report, so that an operator sees every mistake at once. Where a part of the
//! gateway is made from a part of the configuration (a key, a URL, a statement, a route, a consumer), the check makes it
//! and reports why it could not be made. What is checked here beside that concerns several parts at once. Touches no network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::{
    Config, ConfigErrors, ConfigReport, Draft, Environment, Fault, Faults, Places, Warning,
};
use crate::consumer::Registry;
use crate::ids::TenantId;

mod deployment;
mod layers;
mod routes;
mod tenants;
mod token;
mod workers;

/// What reading a configuration depends on, beside the file.
#[derive(Clone)]
pub struct LoadOptions {
    /// The Rust consumers that routes may use as `kind`, each with what it says of its options.
    pub consumers: Registry,
    /// Where overrides and `{ env = "…" }` secrets are looked up; by default the environment of this process.
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

/// Tenants by endpoint, each once with its prefix.
type Shared<'c> = BTreeMap<String, BTreeSet<(&'c str, &'c TenantId)>>;

/// A configuration that can be served.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but an operator should know of.
    pub warnings: Vec<Warning>,
    /// Every file that was read, the main one first; files with secrets are not among them.
    pub files: Vec<PathBuf>,
    /// The files that secrets were read from.
    pub secret_files: Vec<PathBuf>,
}

impl Config {
    /// Reads a configuration from a file, what it includes and the environment, and checks it as a whole. Without a
    /// file there are only defaults and the environment, which make no tenant.
    ///
    /// # Errors
    /// Every mistake at once, each with its place.
    pub fn load(path: Option<&Path>, options: &LoadOptions) -> Result<Loaded, ConfigErrors> {
        let LoadOptions {
            consumers,
            environment,
        } = options;
        let mut draft = Draft::read(path, environment, &consumers.names());
        // What is missing may stand in the file that could not be read.
        if draft.complete {
            let reading_mistakes = draft.report.count();
            let mut checker = Checker {
                report: &mut draft.report,
                places: &draft.places,
                reading_mistakes,
            };
            check(&draft.config, consumers, &mut checker);
        }
        let warnings = draft.report.finish()?;
        Ok(Loaded {
            config: draft.config,
            warnings,
            files: draft.files,
            secret_files: draft.secret_files,
        })
    }
}

fn check(config: &Config, consumers: &Registry, checker: &mut Checker<'_>) {
    deployment::check(config, checker);
    tenants::check(config, checker);
    layers::check(config, checker);
    for (id, tenant) in &config.tenants {
        token::check(id, tenant, checker);
        routes::check(id, tenant, consumers, checker);
    }
}

/// Takes down what is wrong, at the place of the key.
struct Checker<'a> {
    report: &'a mut ConfigReport,
    places: &'a Places,
    /// The mistakes of reading come first; what they made a default of is not judged again.
    reading_mistakes: usize,
}

impl Checker<'_> {
    /// Notes a mistake at `key`, but where reading found one at, below or above it.
    fn mistake(
        &mut self,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) {
        if !self.report.touches(key, self.reading_mistakes) {
            let place = self.places.of(key);
            self.report.mistake(place, key, found, expected, advice);
        }
    }

    /// Notes what a part of the gateway said of the table or value at `key`.
    fn fault(&mut self, key: &str, fault: Fault) {
        let Fault {
            key,
            found,
            expected,
            advice,
        } = fault.below(key);
        self.mistake(&key, found, expected, advice);
    }

    /// As [`Checker::fault`], for what may be several.
    fn faults<T>(&mut self, key: &str, made: Result<T, Faults>) -> Option<T> {
        match made {
            Ok(made) => Some(made),
            Err(Faults(faults)) => {
                faults.into_iter().for_each(|fault| self.fault(key, fault));
                None
            }
        }
    }

    /// Notes a warning at `key`.
    fn warn(&mut self, key: &str, text: impl Into<String>) {
        self.report.warning(self.places.of(key), key, text);
    }

    /// Whether the key stands in the configuration.
    fn has(&self, key: &str) -> bool {
        self.places.has(key)
    }

    /// `FILE:LINE:COLUMN` of a key, for a text about another.
    fn place_of(&self, key: &str) -> String {
        self.report.name_of(self.places.of(key))
    }
}
