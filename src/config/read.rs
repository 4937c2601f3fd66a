//! Reads a document by the declared tables. It records every mistake with its place and continues.

use super::document::{Node, Table};
use super::environment::Environment;
use super::file::FileMarks;
use super::key::Inner;
use super::problem::{ConfigReport, Source};

/// The written form of a key's value.
pub(crate) trait Form {
    /// The type that is read.
    type Value;

    /// Describes the allowed values, as in "found X, expected …".
    fn expected(&self) -> String;

    /// Reads a value. Reports a mistake and returns `None` if it is wrong.
    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value>;

    /// Prints the value as TOML. `None`: it is not set, or the keys below it are printed instead.
    fn print(&self, value: &Self::Value) -> Option<String>;

    /// Returns the keys below the key.
    fn inner(&self) -> Inner {
        Inner::Value
    }
}

/// The state of one reading.
pub(crate) struct Reader<'a> {
    pub(super) report: ConfigReport,
    pub(super) environment: &'a Environment,
    /// The names of the Rust consumers that routes may use.
    pub(super) registered_consumers: &'a [&'a str],
    /// The files that secrets were read from.
    pub(super) secret_files: Vec<std::path::PathBuf>,
    /// The marks that they had before they were read.
    pub(super) marks: FileMarks,
    /// The keys of the secrets that a tenant of the registry holds, as their segments.
    pub(super) secret_keys: Vec<Vec<String>>,
    path: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment, registered_consumers: &'a [&'a str]) -> Self {
        Self {
            report: ConfigReport::new(),
            environment,
            registered_consumers,
            secret_files: Vec::new(),
            marks: FileMarks::new(),
            secret_keys: Vec::new(),
            path: Vec::new(),
        }
    }

    /// Reads a key of `table`. `None`: it is missing or wrong.
    pub(super) fn key<F: Form>(&mut self, table: &Table, name: &str, form: &F) -> Option<F::Value> {
        let node = table.get(name)?;
        self.below(name, |reader| form.read(node, reader))
    }

    /// Reads a value below the current key.
    pub(super) fn below<T>(
        &mut self,
        segment: impl Into<String>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.path.push(segment.into());
        let result = read(self);
        self.path.pop();
        result
    }

    /// Returns true if the value stands in a tenant of the registry.
    pub(super) fn is_registered(&self, node: &Node) -> bool {
        matches!(self.report.source(node.place), Source::Registry)
    }

    /// Notes that the value of the current key is a secret of a tenant of the registry.
    pub(super) fn note_secret(&mut self) {
        self.secret_keys.push(self.path.clone());
    }

    /// Returns the path of the current key.
    pub(super) fn path(&self) -> String {
        let mut path = String::new();
        for segment in &self.path {
            if !path.is_empty() && !segment.starts_with('[') {
                path.push('.');
            }
            path.push_str(segment);
        }
        path
    }

    /// Records that `form` does not allow the value, and shows the value unless it may be a secret.
    pub(super) fn wrong<T>(&mut self, node: &Node, form: &impl Form, advice: &str) -> Option<T> {
        self.mistake(node, node.shown(), form.expected(), advice)
    }

    /// Records that `form` does not allow the value, and shows only its type.
    pub(super) fn wrong_type<T>(
        &mut self,
        node: &Node,
        form: &impl Form,
        advice: &str,
    ) -> Option<T> {
        self.mistake(node, node.type_name(), form.expected(), advice)
    }

    /// Records a mistake at the current key. Always returns `None`, as a convenience for forms.
    pub(super) fn mistake<T>(
        &mut self,
        node: &Node,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> Option<T> {
        let path = self.path();
        self.report
            .mistake(node.place, &path, found, expected, advice);
        None
    }

    /// Records a warning at the current key.
    pub(super) fn warn(&mut self, node: &Node, text: impl Into<String>) {
        let path = self.path();
        self.report.warning(node.place, &path, text);
    }

    /// Records a mistake for every key of `table` that is not in `known`.
    pub(super) fn refuse_unknown(&mut self, table: &Table, known: &[&str]) {
        for (name, node) in table {
            if known.contains(&name.as_str()) {
                continue;
            }
            let advice = match nearest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "remove it".to_owned(),
            };
            let shown = bare(name);
            self.below(shown, |reader| {
                let expected = format!("one of {}", known.join(", "));
                reader.mistake::<()>(node, "an unknown key", expected, advice)
            });
        }
    }
}

/// Writes a key for TOML, quoted if needed.
pub(super) fn bare(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !name.is_empty() && name.bytes().all(plain) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

/// Returns the known name that is closest to a misspelt `name`.
pub(crate) fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
