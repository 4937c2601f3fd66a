//! Looks at a configuration as a whole: what is well formed key by key, and still cannot be served.
//!
//! Runs after reading, over the same report, so that an operator sees every mistake at once.

use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigErrors, Draft, LoadOptions, Warning};

/// A configuration that can be served.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but an operator should know of.
    pub warnings: Vec<Warning>,
    /// Every file that was read, the main one first; files with secrets are not among them.
    pub files: Vec<PathBuf>,
}

impl Config {
    /// Reads a configuration from a file, what it includes and the environment, and checks it as a whole. Touches no
    /// network.
    ///
    /// # Errors
    /// Every mistake at once, each with its place.
    pub fn load(path: Option<&Path>, options: &LoadOptions<'_>) -> Result<Loaded, ConfigErrors> {
        let draft = Draft::read(path, options);
        let warnings = draft.report.finish()?;
        Ok(Loaded {
            config: draft.config,
            warnings,
            files: draft.files,
        })
    }
}
