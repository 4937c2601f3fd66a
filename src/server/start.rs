//! The start of a replica: its listeners, the parts behind them, and their tasks.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::denylist_watch::DenylistWatch;
use super::file_tenants::FileTenants;
use super::follow::{self, ServedRegistry};
use super::limits::{self, ConnectionBounds};
use super::reload::{self, Applied, Reloader, let_links_go};
use super::shed::Shedder;
use super::upkeep::Upkeep;
use super::{Addresses, Options, listen, on_demand, readiness, watch};
use crate::api::health::{AdminState, Progress};
use crate::api::{ApiKeys, ApiState, Deployment, ScrapeState, TenantBook};
use crate::budget::MemoryBudget;
use crate::config::Config;
use crate::fleet::{self, Fleet};
use crate::ids::ReplicaId;
use crate::metrics::{self, TenantSeries};
use crate::registry::TenantRegistry;
use crate::replica::ReplicaLife;
use crate::socket::client_address::AddressFinder;
use crate::socket::half_open::HalfOpen;
use crate::socket::head::HeadReader;
use crate::socket::heartbeat::HeartbeatWheel;
use crate::socket::per_address::AddressBudgets;
use crate::socket::registration::Occupancy;
use crate::socket::{Common, Door};
use crate::tasks;
use crate::tenant::build::Builder;
use crate::tenant::{Tenancy, Tenants};
use crate::validation;

/// The tasks whose end stops the process.
pub(super) type Critical = JoinSet<anyhow::Result<Infallible>>;

/// The bound listeners.
pub(super) struct Listeners {
    pub(super) sockets: TcpListener,
    pub(super) admin: std::net::TcpListener,
    pub(super) api: Option<TcpListener>,
    pub(super) addresses: Addresses,
}

impl Listeners {
    /// Binds every listener.
    pub(super) fn bind(config: &Config) -> anyhow::Result<Self> {
        let sockets = listen::bind(config.server.listen)?;
        let admin = listen::bind_std(config.admin.listen)?;
        let api = config.api.listen.map(listen::bind).transpose()?;
        let addresses = Addresses {
            server: sockets.local_addr()?,
            admin: admin.local_addr()?,
            api: api.as_ref().map(TcpListener::local_addr).transpose()?,
        };
        Ok(Self {
            sockets,
            admin,
            api,
            addresses,
        })
    }
}

/// The parts that serve a configuration and its successors.
pub(super) struct ServerParts {
    pub(super) tenants: Arc<Tenants>,
    pub(super) life: Arc<ReplicaLife>,
    pub(super) reloader: Arc<Reloader>,
    pub(super) replicas: Arc<fleet::ReplicaList>,
    /// The registry of tenants, for the listeners.
    book: Option<Arc<dyn TenantBook>>,
    config: Config,
    strict: bool,
    fleet: Arc<Fleet>,
    api_keys: Arc<ApiKeys>,
    budget: Arc<MemoryBudget>,
    series: Arc<TenantSeries>,
}

impl ServerParts {
    /// Builds the parts, and starts every tenant.
    pub(super) fn build(
        config: Config,
        options: Options,
        tenant_registry: Option<Arc<TenantRegistry>>,
    ) -> anyhow::Result<Self> {
        let replica = ReplicaId::random();
        let replicas = fleet::ReplicaList::new(replica.clone());
        let fleet = Fleet::new(replicas.clone(), config.api.timeout);
        let builder = Builder::new(&config, options.registry, &replica, options.memory);
        let (budget, series) = (builder.budget().clone(), builder.series().clone());
        budget.set_most(limits::queue_bound(
            config.server.max_queue_bytes,
            limits::memory_limit(),
        ));
        let builder = Arc::new(Mutex::new(builder));
        let tenants = Arc::new(Tenants::default());
        let tenancy = Tenancy::new(tenants.clone(), fleet.clone(), replicas.clone());
        let files = FileTenants::default().followed_by(&config, options.included);
        let built = reload::build(&builder, tenant_registry.as_deref(), files, &tenants)?;
        reload::record_troubles(&built.files, &tenants);
        tenancy.serve(built.serving, &builder.lock(), &built.config);
        if let Some(registry) = &tenant_registry {
            registry.was_served(!built.is_incomplete);
        }
        metrics::unchecked_servers(validation::unchecked(&built.config).len());
        let line = builder.lock().deployment(&config, &[])?;
        tenancy.take_part(line, &builder.lock());
        let api_keys = Arc::new(ApiKeys::new(&built.config));
        let reloader = Arc::new(Reloader {
            load: options.load,
            state: Mutex::new(Applied {
                config: built.of_files,
                files: built.files,
                sources: options.sources,
                marks: options.marks,
            }),
            builder,
            registry: tenant_registry,
            tenants: tenants.clone(),
            tenancy,
            api_keys: api_keys.clone(),
            fleet: fleet.clone(),
            turn: tokio::sync::Mutex::default(),
            making: tokio::sync::Mutex::default(),
        });
        Ok(Self {
            tenants,
            life: Arc::default(),
            book: book_of(&reloader),
            reloader,
            replicas,
            config,
            strict: options.strict,
            fleet,
            api_keys,
            budget,
            series,
        })
    }

    /// Builds the parts of the socket listener. `descriptors` is the limit of the process.
    pub(super) fn door(
        &self,
        pages: Option<Router>,
        bounds: ConnectionBounds,
        descriptors: u64,
    ) -> Arc<Door> {
        let server = &self.config.server;
        let half_open = HalfOpen::new(
            limits::max_handshakes(server.max_handshakes, descriptors),
            bounds.clients,
            self.budget.clone(),
        );
        Arc::new(Door {
            config: server.clone(),
            heads: HeadReader::new(server),
            pages,
            life: self.life.clone(),
            occupancy: Occupancy::new(bounds.sockets),
            half_open,
            address_finder: AddressFinder::new(server),
            addresses: AddressBudgets::new(server.per_address),
            common: Arc::new(Common {
                heartbeat: HeartbeatWheel::new(server, self.budget.clone()),
                tenants: self.tenants.clone(),
            }),
            refusals: Arc::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Builds the state of the admin listener.
    pub(super) fn admin(&self, recorder: PrometheusHandle, progress: &Arc<Progress>) -> AdminState {
        AdminState {
            progress: progress.clone(),
            life: self.life.clone(),
            tenants: self.tenants.clone(),
            book: self.book.clone(),
            api_keys: self.api_keys.clone(),
            scrapes: ScrapeState::new(recorder, self.series.clone(), self.tenants.clone()),
        }
    }

    /// Builds the state of the management API, whose listener has so many connections.
    pub(super) fn api(&self, connections: usize) -> ApiState {
        let reloader = self.reloader.clone();
        let deployment = Deployment {
            reload: Box::new(move || {
                let reloader = reloader.clone();
                Box::pin(async move {
                    let reloaded = reloader.reload().await;
                    reloaded.map(drop).map_err(|error| error.to_string())
                })
            }),
            book: self.book.clone(),
        };
        let (tenants, api_keys) = (self.tenants.clone(), self.api_keys.clone());
        ApiState::new(
            tenants,
            api_keys,
            self.fleet.clone(),
            deployment,
            connections,
        )
    }

    /// Starts the tasks of the replica, those of its listeners excepted.
    pub(super) fn start(self, door: &Door, progress: Arc<Progress>) -> Critical {
        let mut critical = Critical::new();
        critical.spawn(async { Err(anyhow::anyhow!("{} failed", tasks::failed().await)) });
        let (replicas, watching) = (self.replicas, self.reloader.clone());
        critical.spawn(async move { Ok(replicas.run().await) });
        let tenant_registry = self.reloader.registry.clone();
        if let Some(registry) = tenant_registry.clone() {
            let [following, making, letting_go] = [(); 3].map(|()| self.reloader.clone());
            let keep = self.config.registry.keep;
            critical.spawn(async move { Ok(follow::run(following).await) });
            critical.spawn(async move { Ok(on_demand::make(making, registry).await) });
            critical.spawn(async move { Ok(on_demand::let_go(letting_go, keep).await) });
        }
        critical.spawn(async move { Ok(watch::run(watching).await) });
        let builder = self.reloader.builder.clone();
        critical.spawn(async move { Ok(let_links_go(builder).await) });
        critical.spawn(serve_deployment(self.fleet, self.reloader));
        let (heartbeat, tenants) = (door.common.heartbeat.clone(), self.tenants.clone());
        let drain_rate = move || tenants.config().server.drain.rate;
        critical.spawn(async move { Ok(heartbeat.run(drain_rate).await) });
        let upkeep = Upkeep {
            tenants: self.tenants.clone(),
            occupancy: door.occupancy.clone(),
            addresses: door.addresses.clone(),
            refusals: door.refusals.clone(),
            shedder: Shedder {
                tenants: self.tenants.clone(),
                half_open: door.half_open.clone(),
                unfinished: door.common.heartbeat.unfinished().clone(),
                budget: self.budget,
            },
            series: self.series,
            progress,
        };
        critical.spawn(async move { Ok(upkeep.run().await) });
        let denylists = DenylistWatch::new(self.tenants.clone(), self.life.remarks().clone());
        critical.spawn(async move { Ok(denylists.run().await) });
        let ready_wait = self.config.server.ready_wait;
        critical.spawn(readiness::run(
            self.tenants,
            tenant_registry,
            self.life,
            ready_wait,
            self.strict,
        ));
        critical
    }
}

/// Returns the registry of tenants as the listeners see it; `None` without one.
fn book_of(reloader: &Arc<Reloader>) -> Option<Arc<dyn TenantBook>> {
    let registry = reloader.registry.clone()?;
    Some(Arc::new(ServedRegistry {
        registry,
        reloader: reloader.clone(),
        changing: Default::default(),
    }))
}

/// Carries out the requests to all replicas.
async fn serve_deployment(
    fleet: Arc<Fleet>,
    reloader: Arc<Reloader>,
) -> anyhow::Result<Infallible> {
    let registry = reloader.clone();
    let reload = move || {
        let reloader = reloader.clone();
        async move {
            let reloaded = reloader.reload().await;
            let degraded = reloaded.map(|troubles| Some(troubles.len() as u64));
            degraded.map_err(|error| error.to_string())
        }
    };
    let look = move || {
        let registry = registry.clone();
        async move {
            let looked = registry.look().await;
            looked.map(|()| None).map_err(|error| error.to_string())
        }
    };
    Ok(fleet::serve_deployment(fleet, reload, look).await)
}
