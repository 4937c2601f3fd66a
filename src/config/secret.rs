//! A configured secret. It cannot be printed, and its memory is wiped when it is dropped.
//!
//! In the file a secret is a text, `{ file = "…" }` or `{ env = "…" }`. No error shows its value.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::collection::List;
use super::document::{Node, Table, TomlValue};
use super::file::{self, FileMark};
use super::problem::Source;
use super::read::{Form, Reader};

/// Text that no log line, error or `Debug` output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    /// Returns the text. Callers must not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Largest file of a secret, in bytes. A key with its certificate chain has a few KiB.
const LARGEST_FILE: u64 = 1 << 20;

/// The written form of a secret.
pub(super) struct SecretText;

impl Form for SecretText {
    type Value = Secret;

    fn expected(&self) -> String {
        "a secret: text, { file = \"…\" } or { env = \"…\" }".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Secret> {
        let is_registered = reader.is_registered(node);
        let text = match (&node.value, &node.raw) {
            (TomlValue::Text(text), _) => text.clone(),
            (TomlValue::Table(_), _) if is_registered => {
                let expected = "the secret as text, or { \"set\": true } where the stored tenant has it, in a list with the id that is shown";
                let advice = "files and variables differ between machines, so a tenant of the registry holds its secrets itself";
                return reader.mistake(node, "an object", expected, advice);
            }
            (TomlValue::Table(table), _) => return read_elsewhere(node, table, reader),
            // A variable's `123` was parsed as TOML, but a secret takes it as text.
            (_, Some(raw)) if !raw.is_empty() => raw.to_string(),
            _ => return reader.wrong_type(node, self, ""),
        };
        if text.is_empty() {
            return reader.mistake(node, "an empty text", self.expected(), "");
        }
        if is_registered {
            reader.note_secret();
        }
        Some(Secret::new(text))
    }

    fn print(&self, _: &Secret) -> Option<String> {
        None
    }
}

/// A secret or a list of secrets.
pub(super) struct OneOrMoreSecrets;

impl Form for OneOrMoreSecrets {
    type Value = Vec<Secret>;

    fn expected(&self) -> String {
        format!("{}, or a list of them", SecretText.expected())
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Vec<Secret>> {
        match node.value {
            TomlValue::List(_) => List(SecretText).read(node, reader),
            _ => SecretText.read(node, reader).map(|secret| vec![secret]),
        }
    }

    fn print(&self, _: &Vec<Secret>) -> Option<String> {
        None
    }
}

/// Reads `{ file = "…" }` or `{ env = "…" }`.
fn read_elsewhere(node: &Node, table: &Table, reader: &mut Reader<'_>) -> Option<Secret> {
    let expected = ("a variable with the secret", SecretText.expected());
    let text = match elsewhere(node, table, expected, reader)? {
        Elsewhere::File(file) => read_file(node, file, reader)?,
        Elsewhere::Variable(_, value) => value,
    };
    Some(Secret::new(text))
}

/// A text outside of the configuration.
pub(super) enum Elsewhere<'t> {
    /// `{ file = "…" }`: the name of a file.
    File(&'t str),
    /// `{ env = "…" }`: the name of a variable, and its value.
    Variable(&'t str, String),
}

/// Returns what `{ file = "…" }` or `{ env = "…" }` names. A mistake is told with what is expected: of the variable, and in
/// place of another table.
pub(super) fn elsewhere<'t>(
    node: &Node,
    table: &'t Table,
    (of_variable, of_table): (&str, String),
    reader: &mut Reader<'_>,
) -> Option<Elsewhere<'t>> {
    let text = |key: &str| match table.get(key).map(|node| &node.value) {
        Some(TomlValue::Text(text)) if table.len() == 1 => Some(text.as_str()),
        _ => None,
    };
    if let Some(file) = text("file") {
        return Some(Elsewhere::File(file));
    }
    let Some(variable) = text("env") else {
        let advice = "one key, and its value is text";
        return reader.mistake(node, "another table", of_table, advice);
    };
    match reader.environment.get(variable) {
        Some(value) => Some(Elsewhere::Variable(variable, value.to_owned())),
        None => {
            let found = format!("the variable {variable}, which is not set or empty");
            reader.mistake(node, found, of_variable, "")
        }
    }
}

/// Returns the path of a named file, relative to the file that names it, and notes it as a source of the configuration.
pub(super) fn located(node: &Node, name: &str, reader: &mut Reader<'_>) -> PathBuf {
    let path = match reader.report.source(node.place) {
        Source::File(naming) => naming.parent().unwrap_or(Path::new("")).join(name),
        _ => PathBuf::from(name),
    };
    let mark = FileMark::of(&path);
    // A file may be named by several keys; the first reading counts, so that no change after it is missed.
    reader.marks.entry(path.clone()).or_insert(mark);
    reader.secret_files.push(path.clone());
    path
}

fn read_file(node: &Node, name: &str, reader: &mut Reader<'_>) -> Option<String> {
    let path = located(node, name, reader);
    let shown = path.display();
    let unreadable = |error: &io::Error| format!("the file {shown}: {error}");
    let expected = "a file with the secret";
    let read = file::read(&path, LARGEST_FILE).and_then(|(metadata, bytes)| {
        // Wiped like the text, also when it is no text.
        let bytes = Zeroizing::new(bytes);
        let text = str::from_utf8(&bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))?;
        Ok((metadata, text.to_owned()))
    });
    let (metadata, mut text) = match read {
        Ok(read) => read,
        Err(error) => return reader.mistake(node, unreadable(&error), expected, ""),
    };
    // Only one newline is removed: the secret itself may end in another.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return reader.mistake(
            node,
            format!("the file {shown}, which is empty"),
            expected,
            "",
        );
    }
    if metadata.permissions().mode() & 0o004 != 0 && !is_public_key(&text) {
        let text =
            format!("every user of this machine can read {shown}; take the right away: chmod o-r");
        reader.warn(node, text);
    }
    Some(text)
}

/// True for a public key, in PEM or as a line of OpenSSH: a `verifying_key` is no secret, and everyone may read its file.
fn is_public_key(text: &str) -> bool {
    [
        "-----BEGIN PUBLIC KEY-----",
        "-----BEGIN RSA PUBLIC KEY-----",
        "ssh-rsa ",
        "ssh-ed25519 ",
        "ecdsa-sha2-nistp",
    ]
    .iter()
    .any(|beginning| text.trim_start().starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::from("hunter2")), "[redacted]");
    }
}
