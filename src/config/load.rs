//! Reads a configuration from files and environment. [`crate::validation`] checks it as a whole.

use std::path::{Path, PathBuf};

use super::Config;
use super::document::{self, Node, Place, TomlValue};
use super::environment::Environment;
use super::file::FileMarks;
use super::include::{Files, IncludedFiles, TenantFiles};
use super::overrides;
use super::problem::{ConfigReport, Source};
use super::read::Reader;
use super::table::Keyed;
use super::tenant::TenantTables;
use crate::ids::TenantId;

/// A configuration that was read but not yet checked as a whole, with the mistakes so far.
pub(crate) struct Draft {
    /// The configuration. Missing and wrong keys have their defaults.
    pub(crate) config: Config,
    /// The mistakes so far.
    pub(crate) report: ConfigReport,
    /// The files that were read.
    pub(crate) files: Vec<PathBuf>,
    /// Those among them that `include` names, and their tenants.
    pub(crate) included: IncludedFiles,
    /// The files that secrets were read from.
    pub(crate) secret_files: Vec<PathBuf>,
    /// The marks that all of them had before they were read.
    pub(crate) marks: FileMarks,
    /// The places of all keys.
    pub(crate) places: Places,
}

/// A tenant of the registry that was read but not yet checked, with the mistakes so far.
pub(crate) struct TenantDraft {
    /// The deployment with this tenant alone.
    pub(crate) config: Config,
    /// The mistakes so far.
    pub(crate) report: ConfigReport,
    /// The places of all keys.
    pub(crate) places: Places,
    /// The keys of its secrets below the tenant, as their segments.
    pub(crate) secret_keys: Vec<Vec<String>>,
}

impl TenantDraft {
    /// Reads the tables of a tenant from JSON, as those of a file. `deployment` has no tenants.
    pub(crate) fn read(
        deployment: &Config,
        id: &TenantId,
        document: &serde_json::Value,
        registered_consumers: &[&str],
    ) -> Self {
        // Another machine has other variables, so a tenant of the registry uses none.
        let environment = Environment::default();
        let mut reader = Reader::new(&environment, registered_consumers);
        let source = reader.report.add_source(Source::Registry);
        let mut place = Place {
            source,
            line: 0,
            column: 0,
        };
        let tenant = document::from_json(document, &mut place);
        let mut tenants = Node::empty_table(place);
        if let TomlValue::Table(table) = &mut tenants.value {
            table.insert(id.to_string(), tenant);
        }
        let mut root = Node::empty_table(place);
        let mut config = deployment.clone();
        if let TomlValue::Table(table) = &mut root.value {
            table.insert("tenants".to_owned(), tenants);
            let read = reader.key(table, "tenants", &TenantTables);
            config.tenants = read.unwrap_or_default();
        }
        let below = reader.secret_keys.into_iter();
        Self {
            config,
            report: reader.report,
            places: Places(root),
            // Without `tenants` and the name.
            secret_keys: below.map(|key| key[2..].to_vec()).collect(),
        }
    }
}

/// The document, reduced to its places: its values may be secrets.
pub(crate) struct Places(Node);

impl Places {
    /// Returns the places of tenants of several sources together, with the report for their mistakes.
    pub(crate) fn together() -> (Self, ConfigReport) {
        let mut report = ConfigReport::new();
        (Self::together_in(&mut report), report)
    }

    /// Returns the places of tenants of several sources together, for mistakes that join those of `report`.
    pub(crate) fn together_in(report: &mut ConfigReport) -> Self {
        let source = report.add_source(Source::Together);
        let place = Place {
            source,
            line: 0,
            column: 0,
        };
        Self(Node::empty_table(place))
    }

    /// Returns the place of a key path like `tenants.acme.routes[1].path`, or of the nearest existing table above it.
    pub(crate) fn of(&self, path: &str) -> Place {
        self.0.deepest(path).place
    }

    /// Returns true if the document sets the key.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.at(path).is_some()
    }
}

impl Draft {
    /// Reads the file, its included files, and the overrides of the environment. Without a file only defaults and overrides
    /// count. Routes may use the names in `registered_consumers` as `kind`, beside the built-in ones. Of two included files with
    /// one tenant the one counts that has it in `before`, else the first by name.
    pub(crate) fn read(
        path: Option<&Path>,
        environment: &Environment,
        registered_consumers: &[&str],
        before: &TenantFiles,
    ) -> Self {
        let mut reader = Reader::new(environment, registered_consumers);
        let mut files = Files::default();
        let mut root = match path {
            Some(path) => files.read(path, "", &mut reader.report),
            None => None,
        }
        .unwrap_or_else(|| Node::empty_table(Place::default()));
        if let (Some(path), TomlValue::Table(table)) = (path, &mut root.value) {
            files.include(path, table, &mut reader, before);
            overrides::apply(table, &mut reader, files.included.is_complete());
        } else if let TomlValue::Table(table) = &mut root.value {
            overrides::apply(table, &mut reader, true);
        }
        let mut config = Config::default();
        if let TomlValue::Table(table) = &root.value {
            reader.refuse_unknown(table, Config::NAMES);
            config = Config::read_keys(table, &mut reader);
        }
        files.marks.extend(reader.marks);
        Self {
            config,
            secret_files: reader.secret_files,
            marks: files.marks,
            report: reader.report,
            files: files.read,
            included: files.included,
            places: Places(root),
        }
    }
}
