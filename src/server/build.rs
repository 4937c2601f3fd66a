//! From a configuration to tenants that can serve: stores, layers, verifiers, routes.
//!
//! Links and pools are shared where their URLs are equal; keys, caches and names never are.

use std::sync::Arc;

use anyhow::Context;

use crate::admission::{Authenticator, DenylistSource};
use crate::auth::TokenVerifier;
use crate::channel_layer::core::CoreEndpoints;
use crate::channel_layer::hosts::hosts;
use crate::channel_layer::memory::MemoryLayer;
use crate::channel_layer::pubsub::PubSubEndpoints;
use crate::channel_layer::{ChannelLayer, Codec, Inbox};
use crate::config::{Config, LayerKind, PoolConfig, Secret, TenantConfig};
use crate::consumer::{Place, Registry};
use crate::error::Dependency;
use crate::frame::QueueBudget;
use crate::hub::Hub;
use crate::ids::{ReplicaId, TenantId};
use crate::metrics::TenantMetrics;
use crate::origin::OriginPolicy;
use crate::relay::{Parts, Relay, RouteDelivery};
use crate::render::Delivery;
use crate::routes::Routes;
use crate::state::{RouteParts, Tenant, Tenants};
use crate::stores::database::{ConnectionBudget, Database};
use crate::stores::redis::RedisStore;
use crate::stores::redis_url::RedisUrl;
use crate::templates::Template;
use crate::tenants::HostTable;
use crate::token_auth::TokenAuth;
use crate::users::{Permissions, Users};

/// Builds every tenant. Nothing is connected yet; needs a runtime, because links begin to connect at once.
///
/// # Errors
/// What the configuration's own check could not see, with the tenant's name.
pub fn build(
    config: &Config,
    registry: &Registry,
    replica: &ReplicaId,
    budget: &Arc<QueueBudget>,
) -> anyhow::Result<Arc<Tenants>> {
    let mut builder = Builder::new(config, replica);
    let mut tenants = Vec::with_capacity(config.tenants.len());
    for (at, (id, tenant)) in config.tenants.iter().enumerate() {
        let metrics = Arc::new(TenantMetrics::new(id, at < config.metrics.tenant_series));
        let built = builder.tenant(id, tenant, registry, budget, metrics);
        tenants.push(Arc::new(built.with_context(|| format!("tenant {id}"))?));
    }
    let hosts = HostTable::new(&config.tenants)
        .map_err(|problems| anyhow::anyhow!("hosts: {problems:?}"))?;
    Ok(Arc::new(Tenants::new(hosts, tenants)))
}

/// The authenticator of one tenant, without the rest of a gateway.
///
/// # Errors
/// As [`build`]; also if there is no such tenant.
pub fn authenticator(config: &Config, tenant: &str) -> anyhow::Result<Arc<Authenticator>> {
    let (id, tenant) = config
        .tenants
        .get_key_value(tenant)
        .with_context(|| format!("there is no tenant {tenant:?}"))?;
    let mut builder = Builder::new(config, &ReplicaId::random());
    let metrics = Arc::new(TenantMetrics::new(id, true));
    Ok(Arc::new(builder.stores(id, tenant, metrics)?.authenticator))
}

/// Makes tenants and remembers what they can share.
struct Builder<'a> {
    config: &'a Config,
    endpoints: PubSubEndpoints,
    core: CoreEndpoints,
    redis: Vec<Arc<RedisStore>>,
    databases: Vec<(Secret, PoolConfig, Arc<Database>)>,
    /// `server.max_database_connections`, for all of them together.
    connections: Arc<ConnectionBudget>,
}

/// What a tenant asks.
struct Stores {
    authenticator: Authenticator,
    database: Arc<Database>,
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, replica: &ReplicaId) -> Self {
        // One provider for all TLS of the process; a program that installed its own keeps it.
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        let endpoints = PubSubEndpoints::new(replica.clone());
        Self {
            config,
            endpoints,
            core: CoreEndpoints::new(replica.clone()),
            redis: Vec::new(),
            databases: Vec::new(),
            connections: ConnectionBudget::new(config.server.max_database_connections),
        }
    }

    fn tenant(
        &mut self,
        id: &TenantId,
        config: &TenantConfig,
        registry: &Registry,
        budget: &Arc<QueueBudget>,
        metrics: Arc<TenantMetrics>,
    ) -> anyhow::Result<Tenant> {
        let stores = self.stores(id, config, metrics.clone())?;
        let (layer, inbox) = self.layer(config, &metrics)?;
        let routes =
            Routes::parse(&config.routes).map_err(|errors| anyhow::anyhow!(join(&errors)))?;
        let (mut parts, mut deliveries) = (Vec::new(), Vec::new());
        for (at, route) in config.routes.iter().enumerate() {
            let described = || format!("route {:?}", route.path);
            let consumer = registry
                .consumer(route)
                .map_err(anyhow::Error::msg)
                .with_context(described)?;
            let delivery =
                Delivery::new(route.deliver.clone(), &route.events).with_context(described)?;
            deliveries.push(RouteDelivery {
                delivery,
                through_consumer: consumer.sees_events,
            });
            let groups = route
                .groups
                .iter()
                .map(|text| Template::parse(text))
                .collect::<Result<_, _>>();
            parts.push(RouteParts {
                groups: groups.with_context(described)?,
                consumer,
                delivery: u16::try_from(at).context("too many routes")?,
                subprotocols: route.subprotocols.clone(),
            });
        }
        let permissions = Permissions::new(&config.routes, &config.users, stores.database.clone());
        let permissions = permissions.map_err(|errors: Vec<_>| anyhow::anyhow!(join(&errors)))?;
        let relay = Relay::new(Parts {
            tenant: id.clone(),
            hub: Arc::new(Hub::default()),
            layer,
            inbox,
            deliveries,
            on_gap: config.on_gap,
            group_names: config.layer.group_names,
            groups_per_socket: config.limits.groups_per_socket as usize,
            budget: budget.clone(),
            metrics: metrics.clone(),
        });
        Ok(Tenant {
            id: id.clone(),
            config: Arc::new(config.clone()),
            place: Arc::new(Place {
                tenant: id.clone(),
                routes,
                channel_prefix: relay.layer().channel_prefix().into(),
            }),
            parts,
            origins: OriginPolicy::new(&config.origins, config.require_origin)?,
            authenticator: Arc::new(stores.authenticator),
            permissions,
            relay,
            metrics,
            degraded: parking_lot::Mutex::default(),
        })
    }

    fn stores(
        &mut self,
        id: &TenantId,
        config: &TenantConfig,
        metrics: Arc<TenantMetrics>,
    ) -> anyhow::Result<Stores> {
        let redis_url = self.tenant_redis(config);
        let redis = redis_url
            .as_ref()
            .map(|url| self.redis(url, Dependency::Redis))
            .transpose()?;
        let deny_url = self
            .config
            .denylist
            .redis
            .clone()
            .or_else(|| redis_url.clone());
        let shares_users_redis =
            self.config.denylist.redis.is_none() || self.config.denylist.redis == redis_url;
        let deny_redis = match (&redis, deny_url) {
            (Some(redis), _) if shares_users_redis => Some(redis.clone()),
            (_, url) => url
                .map(|url| self.redis(&url, Dependency::Denylist))
                .transpose()?,
        };
        let database = self.database(config)?;
        let users = Users::new(
            id,
            &config.users,
            &config.token,
            Some(database.clone()),
            redis.clone(),
            metrics,
        )?;
        let authenticator = Authenticator {
            tenant: id.clone(),
            config: Arc::new(config.token.clone()),
            verifier: TokenVerifier::new(&config.token, config.users.id_type)?,
            denylist: DenylistSource {
                redis: deny_redis,
                shares_users_redis,
                on_outage: self.config.denylist.on_outage,
            },
            redis,
            users,
        };
        Ok(Stores {
            authenticator,
            database,
        })
    }

    /// The layer of a tenant; `pubsub` where there is a Redis, else `memory`.
    fn layer(
        &mut self,
        config: &TenantConfig,
        metrics: &Arc<TenantMetrics>,
    ) -> anyhow::Result<(Arc<dyn ChannelLayer>, Arc<Inbox>)> {
        let inbox = Inbox::new(config.limits.layer_queue, metrics.clone());
        let redis = self.tenant_redis(config);
        let kind = match (config.layer.kind, &redis) {
            (Some(kind), _) => kind,
            (None, Some(_)) => LayerKind::PubSub,
            (None, None) => LayerKind::Memory,
        };
        let layer: Arc<dyn ChannelLayer> = match kind {
            LayerKind::Memory => Arc::new(MemoryLayer::new(&config.layer.prefix, inbox.clone())),
            LayerKind::PubSub => {
                let stores = self.layer_stores(config, redis.as_ref())?;
                let codec = Codec::new(
                    config.layer.serializer_format,
                    &config.layer.symmetric_encryption_keys,
                );
                Arc::new(
                    self.endpoints
                        .attach(&stores, &config.layer.prefix, codec, inbox.clone()),
                )
            }
            LayerKind::Core => {
                let stores = self.layer_stores(config, redis.as_ref())?;
                Arc::new(self.core.attach(&stores, &config.layer, inbox.clone())?)
            }
        };
        Ok((layer, inbox))
    }

    fn layer_stores(
        &mut self,
        config: &TenantConfig,
        redis: Option<&Secret>,
    ) -> anyhow::Result<Vec<Arc<RedisStore>>> {
        let hosts = hosts(&config.layer, redis)?;
        let stores = hosts
            .into_iter()
            .map(|url| self.redis_at(url, Dependency::Redis));
        stores.collect()
    }

    fn tenant_redis(&self, config: &TenantConfig) -> Option<Secret> {
        config
            .redis
            .as_ref()
            .and_then(|redis| redis.url.clone())
            .or_else(|| self.config.redis.url.clone())
    }

    fn redis(&mut self, url: &Secret, dependency: Dependency) -> anyhow::Result<Arc<RedisStore>> {
        self.redis_at(RedisUrl::parse(url)?, dependency)
    }

    fn redis_at(
        &mut self,
        url: RedisUrl,
        dependency: Dependency,
    ) -> anyhow::Result<Arc<RedisStore>> {
        let known = self.redis.iter().find(|store| {
            store.dependency() == dependency
                && store.url().same_login(&url)
                && store.url().db() == url.db()
        });
        if let Some(store) = known {
            return Ok(store.clone());
        }
        let store = RedisStore::new(&url, dependency)?;
        self.redis.push(store.clone());
        Ok(store)
    }

    fn database(&mut self, config: &TenantConfig) -> anyhow::Result<Arc<Database>> {
        let url = config
            .users
            .database
            .as_ref()
            .context("`users.database` is not set")?;
        let pool = config.users.pool;
        let known = self
            .databases
            .iter()
            .find(|(known, size, _)| known == url && *size == pool);
        if let Some((_, _, database)) = known {
            return Ok(database.clone());
        }
        let database = Database::connect_lazy(url, &config.users.pool, &self.connections)?;
        self.databases.push((url.clone(), pool, database.clone()));
        Ok(database)
    }
}

fn join<E: std::fmt::Display>(errors: &[E]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl TokenAuth {
    /// Authenticates every request for one tenant of a configuration; needs a tokio runtime.
    ///
    /// # Errors
    /// If there is no such tenant, or its keys or stores cannot be used.
    pub fn for_tenant(config: &Config, tenant: &str) -> anyhow::Result<Self> {
        Ok(Self::new(authenticator(config, tenant)?))
    }
}
