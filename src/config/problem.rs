//! What is wrong with a configuration: collected while reading, reported all at once.

use std::fmt;
use std::path::PathBuf;

use super::document::Place;

/// Where values come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Neither file nor variable: the defaults.
    Defaults,
    /// A file, as it was named.
    File(PathBuf),
    /// A variable of the environment, by name.
    Variable(String),
}

/// One mistake: where it is, what stands there, what should, and what to do.
#[derive(Clone, Debug)]
pub struct Mistake {
    at: Place,
    /// `FILE:LINE:COLUMN`, or the name of the variable.
    pub place: String,
    /// The path of the key, like `tenants.acme.routes[0].path`; empty where there is none.
    pub key: String,
    /// What stands there; never a secret.
    pub found: String,
    /// What may stand there.
    pub expected: String,
    /// What to do; may be empty.
    pub advice: String,
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

/// Something that works, but that an operator should know of.
#[derive(Clone, Debug)]
pub struct Warning {
    at: Place,
    /// `FILE:LINE:COLUMN`, or the name of the variable.
    pub place: String,
    /// The path of the key.
    pub key: String,
    /// What there is to know; never a secret.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.key, self.text)
    }
}

/// Every mistake of a configuration, in the order of the files; prints one line for each.
#[derive(Clone, Debug)]
pub struct ConfigErrors(Vec<Mistake>);

impl ConfigErrors {
    /// The mistakes; at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
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
    /// Nothing found yet; source 0 are the defaults.
    pub(super) fn new() -> Self {
        Self {
            sources: vec![Source::Defaults],
            mistakes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Makes a source known; the number stands in [`Place`].
    pub(super) fn add_source(&mut self, source: Source) -> usize {
        self.sources.push(source);
        self.sources.len() - 1
    }

    /// The source that a place lies in.
    pub(super) fn source(&self, place: Place) -> &Source {
        &self.sources[place.source]
    }

    /// `FILE:LINE:COLUMN`, or the name of the variable.
    pub(crate) fn name_of(&self, place: Place) -> String {
        match self.source(place) {
            Source::Defaults => "configuration".to_owned(),
            Source::File(path) if place.line == 0 => path.display().to_string(),
            Source::File(path) => {
                format!("{}:{}:{}", path.display(), place.line, place.column)
            }
            Source::Variable(name) => name.clone(),
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
        });
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

    /// How many mistakes there are so far.
    pub(crate) fn count(&self) -> usize {
        self.mistakes.len()
    }

    /// Whether one of the first `count` mistakes lies at `key`, below or above it: its value is then not what was meant.
    pub(crate) fn touches(&self, key: &str, count: usize) -> bool {
        let within = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.mistakes[..count]
            .iter()
            .any(|mistake| within(key, &mistake.key) || within(&mistake.key, key))
    }

    /// The warnings, or every mistake; both in the order of the files.
    pub(crate) fn finish(mut self) -> Result<Vec<Warning>, ConfigErrors> {
        if self.mistakes.is_empty() {
            self.warnings.sort_by_key(|warning| warning.at);
            return Ok(self.warnings);
        }
        self.mistakes.sort_by_key(|mistake| mistake.at);
        Err(ConfigErrors(self.mistakes))
    }
}
