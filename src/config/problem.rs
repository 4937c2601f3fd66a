//! Mistakes and warnings of a configuration, collected while it is read and reported all at once.

use std::fmt;
use std::path::PathBuf;

use super::document::Place;
use crate::ids::TenantId;

/// The source of a value.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Neither file nor variable: the defaults.
    Defaults,
    /// A file, by the path that was given.
    File(PathBuf),
    /// A variable of the environment, by name.
    Variable(String),
    /// The document of a tenant of the registry.
    Registry,
    /// The tenants of files and registry together.
    Together,
}

/// One mistake: its place, the value found, the value expected, and the action to take.
#[derive(Clone, Debug)]
pub struct Mistake {
    at: Place,
    /// `FILE:LINE:COLUMN`, or the name of the variable.
    pub place: String,
    /// The path of the key, like `tenants.acme.routes[0].path`. Empty if no key is concerned.
    pub key: String,
    /// A description of the value; never a secret.
    pub found: String,
    /// The values that are allowed.
    pub expected: String,
    /// The action to take. May be empty.
    pub advice: String,
    /// True if another value is read at this key, which is right or wrong by itself.
    is_aside: bool,
}

impl Mistake {
    /// Returns the number of its source.
    pub(super) fn source(&self) -> usize {
        self.at.source
    }

    /// Returns the tenant whose key it is about.
    pub(crate) fn tenant(&self) -> Option<TenantId> {
        let name = self.key.strip_prefix("tenants.")?;
        name.split(['.', '[']).next()?.parse().ok()
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

/// A valid setting that an operator should know of.
#[derive(Clone, Debug)]
pub struct Warning {
    at: Place,
    /// `FILE:LINE:COLUMN`, or the name of the variable.
    pub place: String,
    /// The path of the key.
    pub key: String,
    /// The text of the warning; never a secret.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.key, self.text)
    }
}

/// Every mistake of a configuration, in the order of the files. `Display` prints one line for each.
#[derive(Clone, Debug)]
pub struct ConfigErrors(Vec<Mistake>);

impl ConfigErrors {
    /// The mistakes; at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
    }

    /// Writes the mistakes into one line, as the reason for which a tenant is not served; those beyond a bound are counted.
    pub(crate) fn in_one_line(&self) -> String {
        let mut line = String::new();
        for (index, mistake) in self.0.iter().enumerate() {
            let text = mistake.to_string();
            if line.len() + text.len() > LONGEST_REASON {
                let cut = text.floor_char_boundary(LONGEST_REASON.saturating_sub(line.len()));
                let more = self.0.len() - index - 1;
                line.push_str(&format!("{}… and {more} more mistakes", &text[..cut]));
                break;
            }
            line.push_str(if index == 0 { "" } else { "; " });
            line.push_str(&text);
        }
        line
    }
}

/// The most bytes of a reason. Each list of tenants shows it, and `/readyz` does.
const LONGEST_REASON: usize = 4096;

impl From<Vec<Mistake>> for ConfigErrors {
    /// Puts the mistakes, at least one, into the order of the files.
    fn from(mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.at);
        Self(mistakes)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The mistakes and warnings so far.
#[derive(Debug)]
pub(crate) struct ConfigReport {
    sources: Vec<Source>,
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl ConfigReport {
    /// Makes an empty report. Source 0 stands for the defaults.
    pub(super) fn new() -> Self {
        Self {
            sources: vec![Source::Defaults],
            mistakes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds a source and returns its number for [`Place`].
    pub(super) fn add_source(&mut self, source: Source) -> usize {
        self.sources.push(source);
        self.sources.len() - 1
    }

    /// Returns the source of a place.
    pub(super) fn source(&self, place: Place) -> &Source {
        &self.sources[place.source]
    }

    /// Returns `FILE:LINE:COLUMN`, or the name of the variable.
    pub(crate) fn name_of(&self, place: Place) -> String {
        match self.source(place) {
            Source::Defaults => "configuration".to_owned(),
            Source::File(path) if place.line == 0 => path.display().to_string(),
            Source::File(path) => {
                format!("{}:{}:{}", path.display(), place.line, place.column)
            }
            Source::Variable(name) => name.clone(),
            Source::Registry => "the registry".to_owned(),
            Source::Together => "this deployment".to_owned(),
        }
    }

    /// Adds a mistake.
    pub(crate) fn mistake(
        &mut self,
        at: Place,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.mistakes.push(Mistake {
            at,
            place: self.name_of(at),
            key: key.to_owned(),
            found: found.into(),
            expected: expected.into(),
            advice: advice.into(),
            is_aside: false,
        });
    }

    /// Adds a mistake of a value that is not the one that is read at this key.
    pub(crate) fn mistake_aside(
        &mut self,
        at: Place,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.mistake(at, key, found, expected, advice);
        if let Some(last) = self.mistakes.last_mut() {
            last.is_aside = true;
        }
    }

    /// Adds a warning.
    pub(crate) fn warning(&mut self, at: Place, key: &str, text: impl Into<String>) {
        self.warnings.push(Warning {
            at,
            place: self.name_of(at),
            key: key.to_owned(),
            text: text.into(),
        });
    }

    /// Returns the mistakes so far.
    pub(crate) fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Takes the mistakes after the first `count` away.
    pub(crate) fn take_after(&mut self, count: usize) -> Vec<Mistake> {
        self.mistakes.split_off(count)
    }

    /// Returns the number of warnings so far.
    pub(crate) fn warned(&self) -> usize {
        self.warnings.len()
    }

    /// Forgets the warnings after the first `count`: those of a check that was made before.
    pub(crate) fn keep_warnings(&mut self, count: usize) {
        self.warnings.truncate(count);
    }

    /// Returns the warnings, and drops the mistakes.
    pub(crate) fn into_warnings(mut self) -> Vec<Warning> {
        self.warnings.sort_by_key(|warning| warning.at);
        self.warnings
    }

    /// Returns the number of mistakes so far.
    pub(crate) fn count(&self) -> usize {
        self.mistakes.len()
    }

    /// Returns true if one of the first `count` mistakes lies at, below or above `key`, whose value is then a default.
    pub(crate) fn touches(&self, key: &str, count: usize) -> bool {
        let within = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.mistakes[..count]
            .iter()
            .filter(|mistake| !mistake.is_aside)
            .any(|mistake| within(key, &mistake.key) || within(&mistake.key, key))
    }

    /// Returns the warnings, or else every mistake, in the order of the files.
    pub(crate) fn finish(self) -> Result<Vec<Warning>, ConfigErrors> {
        if self.mistakes.is_empty() {
            return Ok(self.into_warnings());
        }
        Err(self.mistakes.into())
    }
}
