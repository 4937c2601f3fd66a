//! Builds the parts, starts their tasks, and waits for the end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::api::{
    self,
    health::{self, Progress},
};
use crate::clock::UnixTime;
use crate::config::{Config, ConfigErrors, FileMarks, Warning};
use crate::consumer::Registry;
use crate::fleet;
use crate::metrics;
use crate::registry::TenantRegistry;
use crate::replica::ReplicaLife;
use crate::socket::{Door, accept};
use crate::tasks;
use crate::tenant::Tenants;
pub use crate::tenant::build::SharedMemory;
use crate::validation::{Included, LoadOptions};

use drain::SignalAction;
pub use drain::{Ended, Signals};
use limits::ConnectionBounds;
pub use limits::max_connections_here;
use reload::Reloader;
pub use reload::{Load, ReloadError};
use start::{Critical, Listeners, ServerParts};

/// Longest wait for the tenants of the registry before the listeners serve. A million of them take minutes, and those of the
/// files do not wait for them.
const FIRST_READ: Duration = Duration::from_secs(2);
/// Longest time for an exiting replica to remove itself from the list of replicas.
const LEAVING: Duration = Duration::from_millis(500);
/// Longest time for the last messages to workers.
const LAST_WORDS: Duration = Duration::from_secs(1);

mod admin;

mod denylist_risk;
mod denylist_watch;
mod drain;
mod file_tenants;
mod follow;
mod http;
pub mod limits;
mod listen;
mod loopback;
mod on_demand;
mod readiness;
mod reload;
mod shed;
mod start;

mod upkeep;
mod watch;

/// Options of a program that starts a gateway, beside its configuration.
#[derive(Default)]
pub struct Options {
    /// The program's own consumers.
    pub registry: Registry,
    /// Stop if a tenant cannot be served, instead of serving the others.
    pub strict: bool,
    /// Reads the configuration again for a reload. `None`: there are no reloads.
    pub load: Option<Load>,
    /// The files of the configuration, the main one first.
    pub sources: Vec<PathBuf>,
    /// The marks that they had before they were read, for `watch`. Left empty, it watches from its first look on.
    pub marks: FileMarks,
    /// The tenants of included files, and what is wrong with them, as [`Config::load_each`] found. Left empty, all tenants count as
    /// those of the main file.
    pub included: Included,
    /// Pages on the socket listener, tried before any tenant is looked up. `lockgate dev` serves its page here.
    pub pages: Option<Router>,
    /// Answer no HTTP request whose Host is not this machine: on the pages, the admin listener and the API.
    pub only_loopback: bool,
    /// The memory that replaces the Redis of tenants that have none. Several gateways of one process can share it.
    pub memory: SharedMemory,
}

/// A running gateway.
pub struct Server {
    addresses: Addresses,
    life: Arc<ReplicaLife>,
    tenants: Arc<Tenants>,
    door: Arc<Door>,
    reloader: Arc<Reloader>,
    replicas: Arc<fleet::ReplicaList>,
    /// The tasks whose end stops the process.
    critical: Critical,
}

/// The addresses of the listeners. Port 0 is replaced by the port that the system chose.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// `server.listen`
    pub server: SocketAddr,
    /// `admin.listen`
    pub admin: SocketAddr,
    /// `api.listen`
    pub api: Option<SocketAddr>,
}

impl Server {
    /// Checks a configuration as `lockgate config check` does, with the program's own consumers and their options. It uses
    /// no network. Returns the warnings.
    ///
    /// # Errors
    /// Every mistake at once, each with its place.
    pub fn check(file: Option<&Path>, registry: &Registry) -> Result<Vec<Warning>, ConfigErrors> {
        let options = LoadOptions {
            consumers: registry.clone(),
            ..LoadOptions::default()
        };
        Ok(Config::load(file, &options)?.warnings)
    }

    /// Starts a gateway: binds its listeners and returns as soon as it accepts. [`Server::ready`] waits for readiness.
    ///
    /// # Errors
    /// If the configuration cannot be served or a port is in use.
    pub async fn start(config: Config, mut options: Options) -> anyhow::Result<Self> {
        let recorder = metrics::install().context("the program has metrics of its own")?;
        metrics::build_info();
        let descriptors = limits::raise_descriptors();
        limits::widen_descriptor_table(descriptors);
        let configured = config.server.max_connections;
        let bounds = ConnectionBounds::of(configured, descriptors);
        bounds.tell(configured, descriptors);
        let listeners = Listeners::bind(&config)?;
        let addresses = listeners.addresses;
        let guarded: fn(Router) -> Router = match options.only_loopback {
            true => loopback::only_loopback,
            false => |routes| routes,
        };
        let pages = options.pages.take().map(guarded);
        let registry = open_registry(&config, &options.registry).await?;
        let parts = ServerParts::build(config, options, registry)?;
        metrics::config_reload(true, UnixTime::now().0);
        let door = parts.door(pages, bounds, descriptors);
        let progress = Arc::new(Progress::default());
        let probes = guarded(health::router(parts.admin(recorder.clone(), &progress)));
        admin::start(listeners.admin, probes, recorder, bounds.admin)?;
        let api = listeners
            .api
            .map(|listener| (listener, parts.api(bounds.api)));
        let mut server = Self {
            addresses,
            life: parts.life.clone(),
            tenants: parts.tenants.clone(),
            door: door.clone(),
            reloader: parts.reloader.clone(),
            replicas: parts.replicas.clone(),
            critical: parts.start(&door, progress),
        };
        if let Some((listener, state)) = api {
            let router = guarded(api::router(state));
            let serving = async move { Ok(http::serve(listener, router, bounds.api).await) };
            server.critical.spawn(serving);
        }
        let accepting = async move { Ok(accept::run(listeners.sockets, door).await) };
        server.critical.spawn(accepting);
        server.tell();
        Ok(server)
    }

    fn tell(&self) {
        let Addresses { server, admin, api } = self.addresses;
        let api = api.map(|address| address.to_string());
        tracing::info!(
            server.listen = %server, admin.listen = %admin, api.listen = api,
            tenants = self.tenants.count(), max_connections = self.door.occupancy.most(), "listening"
        );
    }

    /// The addresses of its listeners.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        self.life.wait_ready().await;
    }

    /// Serves until a signal, then drains.
    ///
    /// # Errors
    /// If a critical task ended; with [`Options::strict`] also if a tenant cannot be served.
    pub async fn run(mut self, mut signals: Signals) -> anyhow::Result<Ended> {
        let interrupted = loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    SignalAction::Drain => break false,
                    SignalAction::Interrupt => break true,
                    SignalAction::Reload => {
                        let reloader = self.reloader.clone();
                        // The reload logs its own result. In a task of its own it cannot delay a drain.
                        tasks::brief(async move { drop(reloader.reload().await) });
                    }
                },
                ended = self.critical.join_next() => {
                    let error = unexpected_end(ended);
                    tracing::error!(error = format!("{error:#}"), "The gateway stopped");
                    return Err(error);
                }
            }
        };
        let drain = drain::Drain {
            config: self.reloader.state.lock().config.server.drain,
            interrupted,
            life: &self.life,
            tenants: &self.tenants,
            door: &self.door,
        };
        let ended = drain.run(&mut signals).await;
        // Other replicas stop waiting for answers from this one. If the call fails, the entry expires by itself.
        drop(timeout(LEAVING, self.replicas.leave()).await);
        let tenants = self.tenants.with_sockets();
        // Workers are told of handshakes that ended at the very last. Each message limits its own time.
        let said = tenants.iter().map(|tenant| tenant.relay.last_words_said());
        let said = futures_util::future::join_all(said);
        drop(timeout(LAST_WORDS, said).await);
        // Removes the layers' entries that would stay in Redis. Each layer limits its own time.
        futures_util::future::join_all(tenants.iter().map(|tenant| tenant.relay.close())).await;
        Ok(ended)
    }
}

/// Opens the registry of tenants, and waits a moment for its tenants. One that does not answer is looked for later; one that
/// this binary cannot work with ends the start.
async fn open_registry(
    config: &Config,
    consumers: &Registry,
) -> anyhow::Result<Option<Arc<TenantRegistry>>> {
    let Some(registry) = TenantRegistry::of(config, consumers.clone())? else {
        return Ok(None);
    };
    match registry.prepare().await {
        Ok(()) => {
            let (reading, (ends, end)) = (registry.clone(), oneshot::channel::<()>());
            tasks::brief(async move {
                // A failure is logged by the task that goes on looking.
                drop(reading.refresh().await);
                drop(ends);
            });
            drop(timeout(FIRST_READ, end).await);
        }
        Err(problem) if problem.is_outage() => {}
        Err(problem) => return Err(problem.into()),
    }
    Ok(Some(registry))
}

type TaskEnd = Option<Result<anyhow::Result<Infallible>, tokio::task::JoinError>>;

fn unexpected_end(ended: TaskEnd) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => anyhow::Error::new(error).context("a task of the gateway failed"),
        None | Some(Ok(Ok(_))) => anyhow::anyhow!("the gateway has no task left"),
    }
}
