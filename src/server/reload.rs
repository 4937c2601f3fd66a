//! Reloads: a new configuration is applied as a whole or not at all, but for a tenant of an included file that is wrong: it keeps
//! its last good configuration, and the others go on. With `strict` it refuses the whole.
//!
//! SIGHUP, a changed file or the API starts one. Everything is read, checked and built before anything is replaced.
//! Sockets of unchanged tenants are not touched.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::api::ApiKeys;
use crate::clock::UnixTime;
use crate::config::{Config, ConfigErrors, FileMarks, TenantFiles};
use crate::fleet::{DeploymentLine, Fleet};
use crate::heavy::spawn_nicely;
use crate::hosts::HostTable;
use crate::metrics;
use crate::registry::{BesideFiles, RegistryProblem, TenantRegistry};
use crate::tenant::build::{Builder, NotBuilt};
use crate::tenant::{FileTrouble, Makings, Tenancy, Tenant, Tenants};
use crate::validation::{self, Loaded};

use super::file_tenants::{FileTenants, tell_troubles};

/// Reads the configuration again. It is told which file had each tenant of the included files until now.
pub type Load = Arc<dyn Fn(&TenantFiles) -> Result<Loaded, ConfigErrors> + Send + Sync>;

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

/// The time between two looks at links and pools without a tenant. A reload leaves some behind: the parts of a tenant that it
/// replaces live on until its last socket has left, and its last question is answered.
const LINKS_LOOK: Duration = Duration::from_secs(30);

/// Ends the links and pools that no tenant uses any more.
pub(super) async fn let_links_go(builder: Arc<Mutex<Builder>>) -> Infallible {
    let mut tick = tokio::time::interval(LINKS_LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        builder.lock().forget_unused();
    }
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
    pub(super) files: FileTenants,
    /// The files that it was read from, the main one first.
    pub(super) sources: Vec<PathBuf>,
    /// The marks that they had before they were read.
    pub(super) marks: FileMarks,
}

impl Reloader {
    /// Reads the configuration again and applies it. Returns what is not served as the included files say.
    ///
    /// # Errors
    /// [`ReloadError`]. Nothing has changed then, and the log has the reason.
    pub(super) async fn reload(&self) -> Result<Arc<Vec<FileTrouble>>, ReloadError> {
        let _turn = self.turn.lock().await;
        let outcome = self.try_reload().await;
        metrics::config_reload(outcome.is_ok(), UnixTime::now().0);
        match &outcome {
            Ok(()) => tracing::info!(
                tenants = self.tenants.count(),
                degraded = self.tenants.file_troubles().len(),
                "Applied the configuration"
            ),
            Err(error) => tracing::error!(
                error = %error,
                "Did not apply the configuration; the one before is still served"
            ),
        }
        outcome.map(|()| self.tenants.file_troubles())
    }

    async fn try_reload(&self) -> Result<(), ReloadError> {
        let load = self.load.clone().ok_or(ReloadError::NoSource)?;
        let (served, before) = {
            let state = self.state.lock();
            (state.config.clone(), state.files.clone())
        };
        let owners = before.files();
        // Reading a thousand tenants takes long enough to block a worker thread.
        let loaded = spawn_nicely(move || {
            let loaded = load(&owners).map_err(|errors| tell(&errors))?;
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
            marks,
            included,
            ..
        } = loaded;
        let sources = files.into_iter().chain(secret_files).collect();
        let sources = Some((sources, marks));
        self.build_and_serve(before.followed_by(&config, included), sources)
            .await
            .ok_or_else(|| ReloadError::NotServable("building the tenants failed".to_owned()))?
            .map_err(|error| ReloadError::NotServable(error.to_string()))?;
        self.fleet.set_timeout(config.api.timeout);
        Ok(())
    }

    /// Looks for changes of the registry, and serves them. Touches no tenant but those that have changed.
    ///
    /// # Errors
    /// [`RegistryProblem`]; what was served before is still served. Without a registry too: such a replica must not count among
    /// those that serve a change, and a rollout turns the registry on replica by replica.
    pub(super) async fn look(&self) -> Result<(), RegistryProblem> {
        let registry = { self.registry.clone() }.ok_or(RegistryProblem::NotConfigured)?;
        let read = registry.refresh().await;
        // Not before: a database that hangs must not keep a reload waiting. What was read before it failed is served, too.
        self.serve_news(&registry).await;
        read
    }

    /// Serves what was read of the registry and is not served yet.
    pub(super) async fn serve_news(&self, registry: &TenantRegistry) {
        let _turn = self.turn.lock().await;
        if !registry.has_news() {
            return;
        }
        let files = self.state.lock().files.clone();
        // A panic is logged where it happens.
        if let Some(Err(error)) = self.build_and_serve(files, None).await {
            tracing::error!(error = %error, "The tenants of the registry could not be served");
        }
    }

    /// Builds the tenants of the files and of the registry, and serves them. `sources` are the files of a reload. `None`: it
    /// panicked.
    async fn build_and_serve(
        &self,
        files: FileTenants,
        sources: Option<(Vec<PathBuf>, FileMarks)>,
    ) -> Option<Result<(), NotBuilt>> {
        let _making = self.making.lock().await;
        let (builder, before) = (self.builder.clone(), self.tenants.clone());
        let registry = self.registry.clone();
        let applied = { sources.is_some() }.then(|| self.state.lock().files.clone());
        let lines = self.tenancy.deployment();
        let built = tokio::task::spawn_blocking(move || {
            let built = build(&builder, registry.as_deref(), files, &before)?;
            if let Some(lost) = applied.and_then(|applied| built.files.lost_since(&applied)) {
                return Err(lost);
            }
            let line = builder.lock().deployment(&built.of_files, &lines)?;
            Ok((built, line))
        });
        let built = built
            .await
            .ok()
            .map(|built| built.map(|(built, line)| self.serve(built, line, sources)));
        if !matches!(built, Some(Ok(())))
            && let Some(registry) = &self.registry
        {
            // What was read of it waits for the next look, also where a reload of the files has failed.
            registry.was_not_served();
        }
        built
    }

    fn serve(
        &self,
        built: BuiltTenants,
        line: Option<Arc<DeploymentLine>>,
        sources: Option<(Vec<PathBuf>, FileMarks)>,
    ) {
        let is_complete = !built.is_incomplete;
        record_troubles(&built.files, &self.tenants);
        {
            let mut state = self.state.lock();
            if let Some(sources) = sources {
                (state.sources, state.marks) = sources;
            }
            (state.config, state.files) = (built.of_files, built.files);
        }
        let mut builder = self.builder.lock();
        self.tenancy.take_part(line, &builder);
        self.tenancy.serve(built.serving, &builder, &built.config);
        builder.forget_unused();
        drop(builder);
        metrics::unchecked_servers(validation::unchecked(&built.config).len());
        self.api_keys.replace(&built.config);
        if let Some(registry) = &self.registry {
            registry.was_served(is_complete);
        }
    }
}

/// The tenants of files and registry, ready to be served.
pub(super) struct BuiltTenants {
    /// The configuration of all of them.
    pub(super) config: Arc<Config>,
    pub(super) serving: (HostTable, Vec<Arc<Tenant>>, Makings),
    /// The configuration of those of the files.
    pub(super) of_files: Config,
    pub(super) files: FileTenants,
    /// True while the registry was never read.
    pub(super) is_incomplete: bool,
}

/// Puts what is not served as the included files say where it is shown, and logs what is new.
pub(super) fn record_troubles(files: &FileTenants, tenants: &Tenants) {
    let troubles = files.troubles();
    let names = troubles.iter().map(|trouble| trouble.tenant.as_ref());
    metrics::config_degraded(names);
    let before = tenants.set_file_troubles(troubles);
    tell_troubles(&before, &tenants.file_troubles());
}

/// Builds the tenants of the files, and those of the registry that are in use. One of the registry or of an included file whose
/// parts cannot be made is left out.
///
/// # Errors
/// [`NotBuilt`] of a tenant of the main file.
pub(super) fn build(
    builder: &Mutex<Builder>,
    registry: Option<&TenantRegistry>,
    mut files: FileTenants,
    before: &Tenants,
) -> Result<BuiltTenants, NotBuilt> {
    loop {
        let of_files = files.together();
        let (config, beside) = match registry {
            Some(registry) => registry.together(&of_files, &files.files()),
            None => (of_files.clone(), BesideFiles::default()),
        };
        let built = builder.lock().serving(&config, before, &beside.makings);
        let (mut hosts, tenants) = match built {
            Ok(built) => built,
            Err(error) => match leave_out(registry, &mut files, &config, &error) {
                true => continue,
                false => return Err(error),
            },
        };
        files.reserve(&mut hosts);
        for (id, names) in &beside.unserved {
            hosts.reserve(id, names);
        }
        if beside.is_incomplete {
            hosts.set_incomplete();
        }
        return Ok(BuiltTenants {
            config: Arc::new(config),
            serving: (hosts, tenants, beside.makings),
            of_files,
            files,
            is_incomplete: beside.is_incomplete,
        });
    }
}

/// Notes that a tenant of the registry or of an included file cannot be built. Returns false if it is neither's.
fn leave_out(
    registry: Option<&TenantRegistry>,
    files: &mut FileTenants,
    config: &Config,
    error: &NotBuilt,
) -> bool {
    let tenant = error.tenant.as_ref();
    let Some((id, tenant)) = tenant.and_then(|id| Some((id, config.tenants.get(id)?))) else {
        return false;
    };
    let why = format!("{:#}", error.why);
    files.cannot_be_built(id, tenant, &why)
        || registry.is_some_and(|registry| registry.cannot_be_built(id, tenant, &why))
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
