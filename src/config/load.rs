//! Reads a configuration from files and environment. [`crate::validation`] checks it as a whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Config;
use super::collection::List;
use super::document::{self, Node, Place, Table, TomlValue};
use super::environment::Environment;
use super::file;
use super::form::Text;
use super::overrides;
use super::problem::{ConfigReport, Source};
use super::read::{Form, Reader};
use super::table::Keyed;
use super::tenant::TenantTables;
use crate::ids::TenantId;

/// Largest file of a configuration, in bytes: several ten thousand tenants.
const LARGEST_FILE: u64 = 64 << 20;

/// A configuration that was read but not yet checked as a whole, with the mistakes so far.
pub(crate) struct Draft {
    /// The configuration. Missing and wrong keys have their defaults.
    pub(crate) config: Config,
    /// The mistakes so far.
    pub(crate) report: ConfigReport,
    /// True if every file could be read and parsed. If not, seemingly missing keys may stand in the others.
    pub(crate) complete: bool,
    /// The files that were read.
    pub(crate) files: Vec<PathBuf>,
    /// The files that secrets were read from.
    pub(crate) secret_files: Vec<PathBuf>,
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
        let source = report.add_source(Source::Together);
        let place = Place {
            source,
            line: 0,
            column: 0,
        };
        (Self(Node::empty_table(place)), report)
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
    /// count. Routes may use the names in `registered_consumers` as `kind`, beside the built-in ones.
    pub(crate) fn read(
        path: Option<&Path>,
        environment: &Environment,
        registered_consumers: &[&str],
    ) -> Self {
        let mut reader = Reader::new(environment, registered_consumers);
        let mut files = Files::default();
        let mut root = match path {
            Some(path) => files.read(path, "", &mut reader.report),
            None => None,
        }
        .unwrap_or_else(|| Node::empty_table(Place::default()));
        if let (Some(path), TomlValue::Table(table)) = (path, &mut root.value) {
            files.include(path, table, &mut reader);
            overrides::apply(table, &mut reader);
        } else if let TomlValue::Table(table) = &mut root.value {
            overrides::apply(table, &mut reader);
        }
        let mut config = Config::default();
        if let TomlValue::Table(table) = &root.value {
            reader.refuse_unknown(table, Config::NAMES);
            config = Config::read_keys(table, &mut reader);
        }
        Self {
            config,
            secret_files: reader.secret_files,
            report: reader.report,
            complete: files.complete,
            files: files.read,
            places: Places(root),
        }
    }
}

/// The files of one configuration.
struct Files {
    read: Vec<PathBuf>,
    /// The files that were read, as [`identity`] names them.
    known: BTreeSet<PathBuf>,
    complete: bool,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            read: Vec::new(),
            known: BTreeSet::new(),
            complete: true,
        }
    }
}

impl Files {
    /// Reads and parses one file. `key` names it if it is an included one.
    fn read(&mut self, path: &Path, key: &str, report: &mut ConfigReport) -> Option<Node> {
        let source = report.add_source(Source::File(path.to_owned()));
        let start = Place {
            source,
            line: 0,
            column: 0,
        };
        self.read.push(path.to_owned());
        self.known.insert(identity(path));
        let bytes = match file::read(path, LARGEST_FILE) {
            Ok((_, bytes)) => bytes,
            Err(error) => {
                self.complete = false;
                let found = error.to_string();
                report.mistake(start, key, found, "a file that can be read", "");
                return None;
            }
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                self.complete = false;
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let place = Place {
                    source,
                    line: 1 + good.iter().filter(|byte| **byte == b'\n').count(),
                    column: 1 + good.iter().rev().take_while(|byte| **byte != b'\n').count(),
                };
                report.mistake(place, "", "a byte that is not UTF-8", "UTF-8 text", "");
                return None;
            }
        };
        match document::parse(&text, source) {
            Ok(root) => Some(root),
            Err(errors) => {
                self.complete = false;
                for error in errors {
                    let found = format!("text that is no TOML ({})", error.message);
                    let advice = "a text stands in quotes, one with a backslash in single quotes";
                    report.mistake(error.place, "", found, "valid TOML", advice);
                }
                None
            }
        }
    }

    /// Reads the files that `include` matches, and moves their tenants into `table`.
    fn include(&mut self, main: &Path, table: &mut Table, reader: &mut Reader<'_>) {
        let Some(globs) = table.get("include") else {
            return;
        };
        // A wrong type is reported later, when the key itself is read.
        let TomlValue::List(items) = &globs.value else {
            return;
        };
        let mut quiet = Reader::new(reader.environment, &[]);
        let Some(globs) = List(Text).read(globs, &mut quiet) else {
            return;
        };
        let places: Vec<Place> = items.iter().map(|item| item.place).collect();
        let folder = main.parent().unwrap_or(Path::new(""));
        for (index, (pattern, place)) in globs.iter().zip(places).enumerate() {
            let key = format!("include[{index}]");
            for path in found(folder, pattern, place, &key, &mut reader.report) {
                if self.known.contains(&identity(&path)) {
                    continue;
                }
                if let Some(root) = self.read(&path, &key, &mut reader.report) {
                    adopt(root, table, &mut reader.report);
                }
            }
        }
    }
}

/// Returns the files that a glob matches, sorted. A name without wildcards must exist.
fn found(
    folder: &Path,
    pattern: &str,
    place: Place,
    key: &str,
    report: &mut ConfigReport,
) -> Vec<PathBuf> {
    let whole = if Path::new(pattern).is_absolute() {
        pattern.to_owned()
    } else {
        let folder = glob::Pattern::escape(&folder.to_string_lossy());
        Path::new(&folder)
            .join(pattern)
            .to_string_lossy()
            .into_owned()
    };
    let paths = match glob::glob(&whole) {
        Ok(paths) => paths,
        Err(error) => {
            report.mistake(
                place,
                key,
                error.msg,
                "a shell glob such as \"tenants.d/*.toml\"",
                "",
            );
            return Vec::new();
        }
    };
    let paths: Vec<PathBuf> = paths.filter_map(Result::ok).collect();
    if paths.is_empty() && !pattern.contains(['*', '?', '[']) {
        report.mistake(
            place,
            key,
            format!("no file {pattern:?}"),
            "a file that exists",
            "",
        );
    }
    paths
}

/// Returns a path that is the same for every name of a file.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Moves the tenants of an included file to the main table. Any other key in it is a mistake.
fn adopt(root: Node, main: &mut Table, report: &mut ConfigReport) {
    let TomlValue::Table(entries) = root.value else {
        return;
    };
    for (name, node) in entries {
        let tenants = match node.value {
            TomlValue::Table(tenants) if name == "tenants" => tenants,
            _ => {
                let expected = "only [tenants.NAME] tables in an included file";
                report.mistake(
                    node.place,
                    &name,
                    "another key",
                    expected,
                    "move it to the main file",
                );
                continue;
            }
        };
        let all = main
            .entry("tenants".to_owned())
            .or_insert_with(|| Node::empty_table(node.place));
        // A value that is no table is reported later, when the key itself is read.
        let TomlValue::Table(all) = &mut all.value else {
            return;
        };
        for (tenant, node) in tenants {
            let first = all.get(&tenant).map(|first| first.place);
            match first {
                None => {
                    all.insert(tenant, node);
                }
                Some(first) => {
                    let found = format!(
                        "the tenant a second time, first at {}",
                        report.name_of(first)
                    );
                    let key = format!("tenants.{}", super::read::bare(&tenant));
                    report.mistake(
                        node.place,
                        &key,
                        found,
                        "every tenant once",
                        "remove or rename one",
                    );
                }
            }
        }
    }
}
