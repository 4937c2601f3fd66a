//! Builds the parts, starts their tasks, and waits for the end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::api::ApiKeys;
use crate::api::health::{AdminState, Progress};
use crate::api::{ApiState, Deployment};
use crate::clock::UnixTime;
use crate::config::Config;
use crate::consumer::Registry;
use crate::fleet::{self, Fleet};
use crate::ids::ReplicaId;
use crate::metrics;
use crate::replica::ReplicaLife;
use crate::socket::client_address::AddressFinder;
use crate::socket::head::HeadReader;
use crate::socket::heartbeat::Heartbeat;
use crate::socket::per_address::PerAddress;
use crate::socket::registration::Occupancy;
use crate::socket::{Door, accept};
use crate::tenant::build::Builder;
use crate::tenant::{Tenancy, Tenants};

use denylist_watch::DenylistWatch;
use drain::Asked;
pub use drain::{Ended, Signals};
pub use limits::max_connections_here;
use reload::{Applied, Reloader};
pub use reload::{Load, ReloadError};

use upkeep::Upkeep;

/// How long a replica that exits tries to take itself off the list of replicas.
const LEAVING: Duration = Duration::from_millis(500);

mod admin;

mod denylist_watch;
mod drain;
mod http;
pub mod limits;
mod listen;
mod readiness;
mod reload;
mod router;

mod upkeep;

/// What a program adds to the configuration when it starts a gateway.
#[derive(Default)]
pub struct Options {
    /// Its own consumers.
    pub registry: Registry,
    /// Stop instead of serving with a tenant that cannot be served.
    pub strict: bool,
    /// Reads the configuration again, for reloads; without it there are none.
    pub load: Option<Load>,
    /// The files that the configuration was read from, the main one first.
    pub sources: Vec<PathBuf>,
    /// Served on the socket listener before any tenant is looked up; `lockgate dev` has its page here.
    pub pages: Option<Router>,
}

/// A running gateway.
pub struct Server {
    addresses: Addresses,
    life: Arc<ReplicaLife>,
    tenants: Arc<Tenants>,
    occupancy: Arc<Occupancy>,
    /// Tasks of connections, which may end.
    connections: TaskTracker,
    reloader: Arc<Reloader>,
    registry: Arc<fleet::Registry>,
    /// Tasks that may not end before the process does.
    critical: JoinSet<anyhow::Result<Infallible>>,
}

/// Where a gateway listens, with the ports that the system chose for port 0.
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
    /// Starts a gateway: binds its listeners and returns as soon as it accepts; whether it is ready, `/readyz` says.
    ///
    /// # Errors
    /// If the configuration cannot be served, or a port is taken; with [`Options::strict`] also if a tenant cannot
    /// be served.
    pub async fn start(config: Config, options: Options) -> anyhow::Result<Self> {
        let recorder = metrics::install().context("metrics can be installed once in a process")?;
        metrics::build_info();
        let descriptors = limits::raise_descriptors();
        let (sockets, admin) = (
            listen::bind(config.server.listen)?,
            listen::bind_std(config.admin.listen)?,
        );
        let api = config.api.listen.map(listen::bind).transpose()?;
        let addresses = Addresses {
            server: sockets.local_addr()?,
            admin: admin.local_addr()?,
            api: api.as_ref().map(TcpListener::local_addr).transpose()?,
        };
        let replica = ReplicaId::random();
        let mut builder = Builder::new(&config, options.registry, &replica);
        let budget = builder.budget().clone();
        let tenants = Arc::new(Tenants::default());
        let serving = builder.serving(&config, &tenants)?;
        let fleet = Fleet::new(replica.clone(), config.api.timeout);
        let registry = fleet::Registry::new(replica);
        let (failed, mut failures) = mpsc::unbounded_channel();
        let tenancy = Tenancy::new(tenants.clone(), fleet.clone(), registry.clone(), failed);
        tenancy.serve(serving, &builder, &config);
        let keys = Arc::new(ApiKeys::new(&config));
        let deployment = config.redis.url.as_ref();
        let deployment = deployment.map(|url| builder.deployment(url)).transpose()?;
        if let Some((_, keys)) = &deployment {
            registry.set_deployment(keys.clone());
        }
        let reloader = Arc::new(Reloader {
            load: options.load,
            state: Mutex::new(Applied {
                config: config.clone(),
                sources: options.sources,
            }),
            builder: Arc::new(Mutex::new(builder)),
            tenants: tenants.clone(),
            tenancy,
            keys: keys.clone(),
            fleet: fleet.clone(),
            turn: tokio::sync::Mutex::default(),
        });
        metrics::config_reload(true, UnixTime::now().0);
        let life = Arc::new(ReplicaLife::default());
        let occupancy = Occupancy::new(limits::max_connections(
            config.server.max_connections,
            descriptors,
        ));
        let (connections, progress) = (TaskTracker::new(), Arc::new(Progress::default()));
        let door = Arc::new(Door {
            config: config.server.clone(),
            heads: HeadReader::new(&config.server),
            pages: options.pages,
            tenants: tenants.clone(),
            life: life.clone(),
            occupancy: occupancy.clone(),
            address_finder: AddressFinder::new(&config.server),
            addresses: PerAddress::new(config.server.per_address),
            heartbeat: Heartbeat::new(&config.server),
            tasks: connections.clone(),
        });
        admin::start(
            admin,
            AdminState {
                progress: progress.clone(),
                life: life.clone(),
                tenants: tenants.clone(),
                keys: keys.clone(),
                metrics: recorder,
            },
        )?;
        let mut critical = JoinSet::new();
        critical.spawn(async move {
            match failures.recv().await {
                Some(error) => Err(error),
                None => std::future::pending().await,
            }
        });
        let registering = registry.clone();
        critical.spawn(async move { Ok(registering.run().await) });
        let watching = reloader.clone();
        critical.spawn(async move { Ok(watching.watch().await) });
        if let Some((control, _)) = deployment.clone() {
            let (fleet, reloader) = (fleet.clone(), reloader.clone());
            critical.spawn(async move {
                // The wish for the channel outlives a failure.
                drop(control.open().await);
                let reload = move || {
                    let reloader = reloader.clone();
                    async move { reloader.reload().await.map_err(|error| error.to_string()) }
                };
                Ok(fleet::serve_deployment(control, fleet, reload).await)
            });
        }
        let heartbeat = door.heartbeat.clone();
        critical.spawn(async move { Ok(heartbeat.run().await) });
        let max_queue_bytes = limits::queue_bound(config.server.max_queue_bytes);
        let upkeep = Upkeep {
            tenants: tenants.clone(),
            occupancy: occupancy.clone(),
            budget,
            max_queue_bytes,
            progress,
        };
        critical.spawn(async move { Ok(upkeep.run().await) });
        let denylists = DenylistWatch::new(tenants.clone());
        critical.spawn(async move { Ok(denylists.run().await) });
        critical.spawn(readiness::run(
            tenants.clone(),
            life.clone(),
            config.server.ready_wait,
            options.strict,
        ));
        if let Some(listener) = api {
            let router = router::management(ApiState::new(
                tenants.clone(),
                keys,
                fleet,
                Deployment {
                    reload: Box::new({
                        let reloader = reloader.clone();
                        move || {
                            let reloader = reloader.clone();
                            let reload = async move { reloader.reload().await };
                            Box::pin(async { reload.await.map_err(|error| error.to_string()) })
                        }
                    }),
                    control: deployment,
                },
            ));
            critical.spawn(async move { Ok(http::serve(listener, router).await) });
        }
        critical.spawn(async move { Ok(accept::run(sockets, door).await) });
        let api_address = addresses.api.map(|address| address.to_string());
        tracing::info!(
            server.listen = %addresses.server, admin.listen = %addresses.admin, api.listen = api_address,
            tenants = tenants.all().len(), max_connections = occupancy.most(), "listening"
        );
        Ok(Self {
            addresses,
            life,
            tenants,
            occupancy,
            connections,
            reloader,
            registry,
            critical,
        })
    }

    /// Where it listens.
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
    /// If a task ended that may not end.
    pub async fn run(mut self, mut signals: Signals) -> anyhow::Result<Ended> {
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Drain => break,
                    Asked::Reload => {
                        let reloader = self.reloader.clone();
                        // It logs how it went; a drain does not wait for it.
                        tokio::spawn(async move { drop(reloader.reload().await) });
                    }
                },
                ended = self.critical.join_next() => {
                    let error = unexpected_end(ended);
                    tracing::error!(error = format!("{error:#}"), "The gateway stopped");
                    return Err(error);
                }
            }
        }
        let drain = drain::Drain {
            config: self.reloader.state.lock().config.server.drain,
            life: &self.life,
            tenants: &self.tenants,
            occupancy: &self.occupancy,
            connections: &self.connections,
        };
        let ended = drain.run(&mut signals).await;
        // Nobody shall wait for answers of a replica that is gone; without it the entry ends by itself.
        drop(tokio::time::timeout(LEAVING, self.registry.leave()).await);
        let tenants = self.tenants.with_sockets();
        // What would outlive the replica in Redis; each layer bounds its own goodbye.
        futures_util::future::join_all(tenants.iter().map(|tenant| tenant.relay.layer().close()))
            .await;
        Ok(ended)
    }
}

type TaskEnd = Option<Result<anyhow::Result<Infallible>, tokio::task::JoinError>>;

fn unexpected_end(ended: TaskEnd) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => anyhow::Error::new(error).context("a task of the gateway failed"),
        None | Some(Ok(Ok(_))) => anyhow::anyhow!("the gateway has no task left"),
    }
}
