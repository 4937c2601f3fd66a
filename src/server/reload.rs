//! Reloads: a new configuration is applied as a whole or not at all.
//!
//! SIGHUP, a changed file or the API starts one. Everything is read, checked and built before anything is replaced.
//! Sockets of unchanged tenants are not touched.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::api::ApiKeys;
use crate::clock::UnixTime;
use crate::config::{Config, ConfigErrors};
use crate::fleet::Fleet;
use crate::hosts::HostTable;
use crate::ids::TenantId;
use crate::metrics;
use crate::registry::{RegistryProblem, TenantRegistry, Unserved};
use crate::tenant::build::{Builder, NotBuilt};
use crate::tenant::{Tenancy, Tenant, Tenants};
use crate::validation::{self, Loaded};

/// Interval at which `watch` checks the files.
const LOOK: Duration = Duration::from_secs(1);

/// Reads the configuration again.
pub type Load = Arc<dyn Fn() -> Result<Loaded, ConfigErrors> + Send + Sync>;

/// The reason why a configuration was not applied. The previous one is still served.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The gateway was not started from files.
    #[error("the configuration was given by the program, which has nothing to read again")]
    NoSource,
    /// The configuration has mistakes, which are in the log.
    #[error("the configuration has {0} mistakes; the log names them")]
    Mistakes(usize),
    /// Keys changed that a running process cannot change.
    #[error("these keys need a restart: {}", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    /// A part that only exists at run time could not be made.
    #[error("{0}")]
    NotServable(String),
}

/// Applies new configurations.
pub(super) struct Reloader {
    pub(super) load: Option<Load>,
    pub(super) state: Mutex<Applied>,
    pub(super) builder: Arc<Mutex<Builder>>,
    /// The tenants beside those of the files.
    pub(super) registry: Option<Arc<TenantRegistry>>,
    pub(super) tenants: Arc<Tenants>,
    pub(super) tenancy: Arc<Tenancy>,
    pub(super) api_keys: Arc<ApiKeys>,
    pub(super) fleet: Arc<Fleet>,
    /// Serializes reloads.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Held while tenants are made and put in place.
    pub(super) making: tokio::sync::Mutex<()>,
}

/// The configuration of the files that is served.
pub(super) struct Applied {
    pub(super) config: Config,
    /// The files that it was read from.
    pub(super) sources: Vec<PathBuf>,
}

impl Reloader {
    /// Reads the configuration again and applies it.
    ///
    /// # Errors
    /// [`ReloadError`]. Nothing has changed then, and the log has the reason.
    pub(super) async fn reload(&self) -> Result<(), ReloadError> {
        let _turn = self.turn.lock().await;
        let outcome = self.try_reload().await;
        metrics::config_reload(outcome.is_ok(), UnixTime::now().0);
        match &outcome {
            Ok(()) => tracing::info!(tenants = self.tenants.count(), "Applied the configuration"),
            Err(error) => tracing::error!(
                error = %error,
                "Did not apply the configuration; the one before is still served"
            ),
        }
        outcome
    }

    async fn try_reload(&self) -> Result<(), ReloadError> {
        let load = self.load.clone().ok_or(ReloadError::NoSource)?;
        let served = self.state.lock().config.clone();
        // Reading a thousand tenants takes long enough to block a worker thread.
        let loaded = tokio::task::spawn_blocking(move || {
            let loaded = load().map_err(|errors| tell(&errors))?;
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            let fixed = needs_restart(&served, &loaded.config);
            match fixed.is_empty() {
                true => Ok(loaded),
                false => Err(ReloadError::NeedsRestart(fixed)),
            }
        });
        let failed = |_| ReloadError::NotServable("reading the configuration failed".to_owned());
        let loaded = loaded.await.map_err(failed)??;
        let Loaded {
            config,
            files,
            secret_files,
            ..
        } = loaded;
        self.build_and_serve(&config)
            .await
            .ok_or_else(|| ReloadError::NotServable("building the tenants failed".to_owned()))?
            .map_err(|error| ReloadError::NotServable(error.to_string()))?;
        self.fleet.set_timeout(config.api.timeout);
        let sources = files.into_iter().chain(secret_files).collect();
        *self.state.lock() = Applied { config, sources };
        Ok(())
    }

    /// Looks for changes of the registry, and serves them. Touches no tenant but those that have changed.
    ///
    /// # Errors
    /// [`RegistryProblem`]; what was served before is still served.
    pub(super) async fn look(&self) -> Result<(), RegistryProblem> {
        let Some(registry) = self.registry.clone() else {
            return Ok(());
        };
        registry.refresh().await?;
        // Not before: a database that hangs must not keep a reload waiting.
        self.serve_news(&registry).await;
        Ok(())
    }

    /// Serves what was read of the registry and is not served yet.
    pub(super) async fn serve_news(&self, registry: &TenantRegistry) {
        let _turn = self.turn.lock().await;
        if !registry.has_news() {
            return;
        }
        let files = self.state.lock().config.clone();
        match self.build_and_serve(&files).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!(error = %error, "The tenants of the registry could not be served");
                registry.was_not_served();
            }
            // The panic is logged.
            None => registry.was_not_served(),
        }
    }

    /// Builds the tenants of the files and of the registry, and serves them. `None`: it panicked.
    async fn build_and_serve(&self, files: &Config) -> Option<Result<(), NotBuilt>> {
        let _making = self.making.lock().await;
        let (builder, before) = (self.builder.clone(), self.tenants.clone());
        let (registry, files) = (self.registry.clone(), files.clone());
        let built = tokio::task::spawn_blocking(move || {
            build(&builder, registry.as_deref(), &files, &before)
        });
        match built.await.ok()? {
            Ok(built) => self.serve(built),
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(()))
    }

    fn serve(&self, built: BuiltTenants) {
        let mut builder = self.builder.lock();
        self.tenancy.serve(built.serving, &builder, &built.config);
        builder.forget_unused();
        drop(builder);
        metrics::unchecked_servers(validation::unchecked(&built.config).len());
        self.api_keys.replace(&built.config);
    }

    /// Applies changes of the files while `watch` is on. Never returns.
    ///
    /// The files are polled: a mounted ConfigMap changes by a replaced symbolic link, and network file systems send no
    /// notifications.
    pub(super) async fn watch(self: Arc<Self>) -> Infallible {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut applied = self.marks();
        let mut last = applied.clone();
        loop {
            look.tick().await;
            if !self.state.lock().config.watch {
                applied = self.marks();
                last.clone_from(&applied);
                continue;
            }
            let now = self.marks();
            // Two equal looks in a row: the writer has finished.
            if now != applied && now == last {
                tracing::info!("The configuration's files have changed");
                drop(self.reload().await);
                applied = self.marks();
            }
            last = now;
        }
    }

    /// The marks of all files: they differ if the configuration may have changed.
    fn marks(&self) -> Vec<(PathBuf, Option<FileMark>)> {
        let state = self.state.lock();
        let mut paths = state.sources.clone();
        if let Some(main) = state.sources.first() {
            paths.extend(included(main, &state.config.include));
        }
        paths.sort_unstable();
        paths.dedup();
        paths
            .into_iter()
            .map(|path| {
                let mark = FileMark::of(&path);
                (path, mark)
            })
            .collect()
    }
}

/// The tenants of files and registry, ready to be served.
pub(super) struct BuiltTenants {
    /// The configuration of all of them.
    pub(super) config: Arc<Config>,
    pub(super) serving: (HostTable, Vec<Arc<Tenant>>),
}

/// Builds the tenants of the files, and those of the registry that are in use. One of the registry whose parts cannot be made
/// is left out.
///
/// # Errors
/// [`NotBuilt`] of a tenant of the files.
pub(super) fn build(
    builder: &Mutex<Builder>,
    registry: Option<&TenantRegistry>,
    files: &Config,
    before: &Tenants,
) -> Result<BuiltTenants, NotBuilt> {
    loop {
        let (config, unserved) = match registry {
            Some(registry) => registry.together(files),
            None => (files.clone(), Unserved::default()),
        };
        let is_on_demand = |id: &TenantId| !files.tenants.contains_key(id);
        let built = builder.lock().serving(&config, before, &is_on_demand);
        let (mut hosts, tenants) = match built {
            Ok(built) => built,
            Err(error) => {
                let is_left_out =
                    registry.is_some_and(|registry| leave_out(registry, &config, &error));
                match is_left_out {
                    true => continue,
                    false => return Err(error),
                }
            }
        };
        for (id, names) in &unserved.hosts {
            hosts.reserve(id, names);
        }
        if unserved.is_incomplete {
            hosts.set_incomplete();
        }
        return Ok(BuiltTenants {
            config: Arc::new(config),
            serving: (hosts, tenants),
        });
    }
}

/// Tells the registry that a tenant of it cannot be built. Returns false if it is none of it.
fn leave_out(registry: &TenantRegistry, config: &Config, error: &NotBuilt) -> bool {
    let tenant = error.tenant.as_ref();
    let found = tenant.and_then(|id| Some((id, config.tenants.get(id)?)));
    found.is_some_and(|(id, tenant)| {
        registry.cannot_be_built(id, tenant, &format!("{:#}", error.why))
    })
}

/// The metadata by which a change of a file is detected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileMark {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl FileMark {
    /// Reads the mark of a file, following links. `None`: there is no such file.
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

/// Returns the files that `include` matches now, including new ones.
fn included(main: &Path, patterns: &[String]) -> Vec<PathBuf> {
    let folder = main.parent().unwrap_or(Path::new(""));
    let folder = glob::Pattern::escape(&folder.to_string_lossy());
    let found = patterns.iter().filter_map(|pattern| {
        let whole = Path::new(&folder).join(pattern);
        glob::glob(&whole.to_string_lossy()).ok()
    });
    found.flatten().filter_map(Result::ok).collect()
}

/// Logs every mistake, and returns their number as an error.
fn tell(errors: &ConfigErrors) -> ReloadError {
    for mistake in errors.mistakes() {
        tracing::error!("{mistake}");
    }
    ReloadError::Mistakes(errors.mistakes().len())
}

/// Returns the changed keys that need a restart.
fn needs_restart(served: &Config, new: &Config) -> Vec<&'static str> {
    let mut server = new.server.clone();
    server.drain = served.server.drain;
    let server_listen = served.server.listen == server.listen;
    server.listen = served.server.listen;
    let fixed = [
        ("server.listen", server_listen),
        ("[server] other than drain", served.server == server),
        ("admin.listen", served.admin == new.admin),
        ("api.listen", served.api.listen == new.api.listen),
        ("[registry]", served.registry == new.registry),
        ("[log]", served.log == new.log),
        ("[metrics]", served.metrics == new.metrics),
    ];
    let changed = fixed.iter().filter(|(_, same)| !same);
    changed.map(|(key, _)| *key).collect()
}
