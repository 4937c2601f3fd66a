//! The files of a configuration: the main one, and those with tenants that its `include` names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::collection::List;
use super::document::{self, Node, Place, Table, TomlValue};
use super::file::{self, FileMark, FileMarks};
use super::form::Text;
use super::problem::{ConfigReport, Mistake, Source};
use super::read::{Form, Reader};
use crate::ids::TenantId;

/// Largest file of a configuration, in bytes: several ten thousand tenants.
const LARGEST_FILE: u64 = 64 << 20;

/// The included file of each tenant that one defines.
pub type TenantFiles = BTreeMap<TenantId, PathBuf>;

/// The included files of one configuration, and their tenants.
#[derive(Default)]
pub(crate) struct IncludedFiles {
    /// The paths by their sources.
    paths: BTreeMap<usize, PathBuf>,
    /// The sources that could not be read or parsed, the main file's among them.
    unread: BTreeSet<usize>,
    /// The tenants that they define, each with its source.
    tenants: BTreeMap<String, usize>,
}

/// The subject of a mistake.
pub(crate) enum Concerned<'c> {
    /// The deployment, or a tenant of the main file.
    Deployment,
    /// One tenant of an included file.
    Tenant(TenantId),
    /// An included file as a whole: all of its tenants.
    File(&'c Path),
    /// A tenant of an included file that another file has.
    Newcomer(&'c Path),
}

impl IncludedFiles {
    /// Returns true if every file could be read and parsed. If not, seemingly missing keys may stand in the others.
    pub(crate) fn is_complete(&self) -> bool {
        self.unread.is_empty()
    }

    /// Returns true if the main file could be read and parsed.
    pub(crate) fn has_main(&self) -> bool {
        self.unread
            .iter()
            .all(|source| self.paths.contains_key(source))
    }

    /// Returns true if the tenant is one of an included file.
    pub(crate) fn has(&self, id: &TenantId) -> bool {
        self.tenants.contains_key(id.as_str())
    }

    /// Returns true if this file could not be read or parsed.
    pub(crate) fn is_unread(&self, path: &Path) -> bool {
        let mut unread = self.unread.iter();
        unread.any(|source| self.paths.get(source).is_some_and(|known| known == path))
    }

    /// Returns the file of each tenant.
    pub(crate) fn tenant_files(&self) -> TenantFiles {
        let files = self.tenants.iter();
        let files = files.filter_map(|(name, source)| {
            Some((name.parse().ok()?, self.paths.get(source)?.clone()))
        });
        files.collect()
    }

    /// Returns what a mistake is about.
    pub(crate) fn concerned(&self, mistake: &Mistake) -> Concerned<'_> {
        let file = self.paths.get(&mistake.source());
        let tenant = mistake.tenant();
        let owner = tenant.as_ref().and_then(|id| self.tenants.get(id.as_str()));
        match (file, tenant, owner) {
            (Some(path), Some(_), owner) if owner.is_none_or(|own| *own != mistake.source()) => {
                Concerned::Newcomer(path)
            }
            (_, Some(id), Some(_)) => Concerned::Tenant(id),
            (Some(path), _, _) => Concerned::File(path),
            (None, _, _) => Concerned::Deployment,
        }
    }
}

/// The files of one configuration.
#[derive(Default)]
pub(super) struct Files {
    pub(super) read: Vec<PathBuf>,
    /// The marks that they had before they were read.
    pub(super) marks: FileMarks,
    pub(super) included: IncludedFiles,
    /// The files that were read, as [`identity`] names them.
    known: BTreeSet<PathBuf>,
}

impl Files {
    /// Reads and parses one file. `key` names it if it is an included one.
    pub(super) fn read(
        &mut self,
        path: &Path,
        key: &str,
        report: &mut ConfigReport,
    ) -> Option<Node> {
        let source = report.add_source(Source::File(path.to_owned()));
        let start = Place {
            source,
            line: 0,
            column: 0,
        };
        self.read.push(path.to_owned());
        self.marks.insert(path.to_owned(), FileMark::of(path));
        if !key.is_empty() {
            self.included.paths.insert(source, path.to_owned());
        }
        self.known.insert(identity(path));
        let bytes = match file::read(path, LARGEST_FILE) {
            Ok((_, bytes)) => bytes,
            Err(error) => {
                self.included.unread.insert(source);
                let found = error.to_string();
                report.mistake(start, key, found, "a file that can be read", "");
                return None;
            }
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                self.included.unread.insert(source);
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
                self.included.unread.insert(source);
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
    pub(super) fn include(
        &mut self,
        main: &Path,
        table: &mut Table,
        reader: &mut Reader<'_>,
        before: &TenantFiles,
    ) {
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
        let mut files = Vec::new();
        for (index, (pattern, place)) in globs.iter().zip(places).enumerate() {
            let key = format!("include[{index}]");
            for path in found(folder, pattern, place, &key, &mut reader.report) {
                if self.known.contains(&identity(&path)) {
                    continue;
                }
                if let Some(root) = self.read(&path, &key, &mut reader.report) {
                    files.push(tenants_of(root, &mut reader.report));
                }
            }
        }
        // A newcomer does not take the name of a tenant that is there.
        for tenants in &mut files {
            let mine = |name: &str, node: &Node| {
                let path = self.included.paths.get(&node.place.source);
                path.is_some() && before.get(name) == path
            };
            let (first, rest) = std::mem::take(tenants)
                .into_iter()
                .partition(|(name, node)| mine(name, node));
            *tenants = rest;
            self.adopt(first, table, &mut reader.report);
        }
        for tenants in files {
            let rest = self.without_kept(tenants, before, &mut reader.report);
            self.adopt(rest, table, &mut reader.report);
        }
    }

    /// Takes the tenants out whose own files cannot be read now: their names are kept for them.
    fn without_kept(
        &self,
        tenants: Table,
        before: &TenantFiles,
        report: &mut ConfigReport,
    ) -> Table {
        let mut rest = Table::new();
        for (name, node) in tenants {
            let own = before.get(name.as_str());
            let Some(own) = own.filter(|path| self.included.is_unread(path)) else {
                rest.insert(name, node);
                continue;
            };
            let found = format!(
                "the tenant a second time, first in {}, which cannot be read",
                own.display()
            );
            let key = format!("tenants.{}", super::read::bare(&name));
            let advice = "mend or remove the other file";
            report.mistake_aside(node.place, &key, found, "every tenant once", advice);
        }
        rest
    }

    /// Moves the tenants of an included file to the main table.
    fn adopt(&mut self, tenants: Table, main: &mut Table, report: &mut ConfigReport) {
        for (tenant, node) in tenants {
            let all = main
                .entry("tenants".to_owned())
                .or_insert_with(|| Node::empty_table(node.place));
            // A value that is no table is reported later, when the key itself is read.
            let TomlValue::Table(all) = &mut all.value else {
                return;
            };
            match all.get(&tenant).map(|first| first.place) {
                None => {
                    let source = node.place.source;
                    self.included.tenants.insert(tenant.clone(), source);
                    all.insert(tenant, node);
                }
                Some(first) => {
                    let found = format!(
                        "the tenant a second time, first at {}",
                        report.name_of(first)
                    );
                    let key = format!("tenants.{}", super::read::bare(&tenant));
                    report.mistake_aside(
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

/// Returns the tenants of an included file. Any other key in it is a mistake.
fn tenants_of(root: Node, report: &mut ConfigReport) -> Table {
    let TomlValue::Table(entries) = root.value else {
        return Table::new();
    };
    let mut tenants = Table::new();
    for (name, node) in entries {
        match node.value {
            TomlValue::Table(entries) if name == "tenants" => tenants = entries,
            _ => {
                let expected = "only [tenants.NAME] tables in an included file";
                report.mistake_aside(
                    node.place,
                    &name,
                    "another key",
                    expected,
                    "move it to the main file",
                );
            }
        }
    }
    tenants
}
