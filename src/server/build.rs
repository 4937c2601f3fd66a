//! From a configuration to tenants that can serve: stores, layers, verifiers, routes.
//!
//! Links and pools are shared where their URLs are equal; keys, caches and names never are.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use crate::admission::{Authenticator, DenylistSource};
use crate::auth::TokenVerifier;
use crate::channel_layer::core::CoreEndpoints;
use crate::channel_layer::memory::MemoryLayer;
use crate::channel_layer::pubsub::PubSubEndpoints;
use crate::channel_layer::{ChannelLayer, Codec, Control, Inbox};
use crate::coherence::Coherence;
use crate::config::{Config, Effective, LayerKind, PoolConfig, RouteConfig, Secret, TenantConfig};
use crate::consumer::{Place, Registry, RouteConsumer};
use crate::error::Dependency;
use crate::frame::QueueBudget;
use crate::hub::Hub;
use crate::ids::{ReplicaId, TenantId};
use crate::metrics::{TenantMetrics, TenantSeries};
use crate::origin::OriginPolicy;
use crate::relay::{Parts, Relay, RouteDelivery, Settings};
use crate::render::Delivery;
use crate::revocation::Revocations;
use crate::routes::Routes;
use crate::state::{RouteParts, Tenant, tenant_of};
use crate::stores::database::{ConnectionBudget, Database};
use crate::stores::key_store::KeyStore;
use crate::stores::memory::MemoryStore;
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::stores::redis_url::RedisUrl;
use crate::templates::Template;
use crate::tenants::HostTable;
use crate::token_auth::TokenAuth;
use crate::users::{Permissions, Users};

/// The authenticator of one tenant, without the rest of a gateway.
///
/// # Errors
/// What the configuration's own check could not see; also if there is no such tenant.
pub fn authenticator(config: &Config, tenant: &str) -> anyhow::Result<Arc<Authenticator>> {
    let (id, tenant) = config
        .tenants
        .get_key_value(tenant)
        .with_context(|| format!("there is no tenant {tenant:?}"))?;
    let mut builder = Builder::new(config, Registry::default(), &ReplicaId::random());
    let metrics = Arc::new(TenantMetrics::new(id, true));
    let effective = config.effective(tenant);
    let stores = builder.stores(id, &effective, metrics, None)?;
    Ok(Arc::new(stores.authenticator))
}

/// Makes tenants and remembers what they can share, from one configuration to the next.
pub(super) struct Builder {
    registry: Registry,
    /// What all frames count against.
    budget: Arc<QueueBudget>,
    endpoints: PubSubEndpoints,
    core: CoreEndpoints,
    redis: Vec<Arc<RedisStore>>,
    databases: Vec<(Secret, PoolConfig, Arc<Database>)>,
    /// `server.max_database_connections`, for all of them together.
    connections: Arc<ConnectionBudget>,
    /// Takes the place of a Redis where there is none.
    memory: Arc<MemoryStore>,
    series: TenantSeries,
}

/// Whether `tenant` serves exactly what is effective.
fn is_served_by(effective: &Effective<'_>, tenant: &Tenant) -> bool {
    *effective.tenant == *tenant.config
        && effective.redis == tenant.redis.as_ref()
        && *effective.denylist == *tenant.revocations.config()
}

/// Whether events and control messages of `tenant` go over the same lines as what is effective.
fn shares_lines_with(effective: &Effective<'_>, tenant: &Tenant) -> bool {
    effective.tenant.layer == tenant.config.layer && effective.redis == tenant.redis.as_ref()
}

/// What a tenant asks.
struct Stores {
    authenticator: Authenticator,
    database: Arc<Database>,
    keys: KeyStore,
}

/// What stays of a tenant when its configuration changes.
struct Lines {
    relay: Arc<Relay>,
    control: Arc<Control>,
}

impl Builder {
    pub(super) fn new(config: &Config, registry: Registry, replica: &ReplicaId) -> Self {
        // One provider for all TLS of the process; a program that installed its own keeps it.
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        Self {
            registry,
            budget: Arc::default(),
            endpoints: PubSubEndpoints::new(replica.clone()),
            core: CoreEndpoints::new(replica.clone()),
            redis: Vec::new(),
            databases: Vec::new(),
            connections: ConnectionBudget::new(config.server.max_database_connections),
            memory: Arc::default(),
            series: TenantSeries::new(config.metrics.tenant_series),
        }
    }

    /// What all frames count against.
    pub(super) fn budget(&self) -> &Arc<QueueBudget> {
        &self.budget
    }

    /// Builds every tenant; those of `before` that do not change stay as they are. Nothing is connected yet, and no
    /// socket notices anything; needs a runtime, because links begin to connect at once.
    ///
    /// # Errors
    /// What the configuration's own check could not see, with the tenant's name.
    pub(super) fn serving(
        &mut self,
        config: &Config,
        before: &[Arc<Tenant>],
    ) -> anyhow::Result<(HostTable, Vec<Arc<Tenant>>)> {
        let hosts = HostTable::new(&config.tenants)
            .map_err(|problems| anyhow::anyhow!("hosts: {problems:?}"))?;
        let mut tenants = Vec::with_capacity(config.tenants.len());
        for (id, tenant) in &config.tenants {
            let effective = config.effective(tenant);
            let known = tenant_of(before, id.as_str());
            if let Some(known) = known.filter(|known| is_served_by(&effective, known)) {
                tenants.push(known.clone());
                continue;
            }
            let built = self.tenant(id, &effective, known);
            tenants.push(Arc::new(built.with_context(|| format!("tenant {id}"))?));
        }
        Ok((hosts, tenants))
    }

    /// Forgets links and pools that no tenant uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.redis.retain(|store| Arc::strong_count(store) > 1);
        self.databases
            .retain(|(_, _, database)| Arc::strong_count(database) > 1);
    }

    /// The control channel of the deployment and the store of its keys, on the server at `url`.
    pub(super) fn deployment(&mut self, url: &Secret) -> anyhow::Result<(Arc<Control>, KeyStore)> {
        let store = self.redis(url, Dependency::Redis)?;
        let control = self
            .endpoints
            .control(&store, redis_keys::DEPLOYMENT_CONTROL);
        Ok((Arc::new(control), KeyStore::Redis(store)))
    }

    /// The channel `name` where the keys of `keys` lie.
    pub(super) fn control(&self, keys: &KeyStore, name: &str) -> Control {
        match keys {
            KeyStore::Redis(store) => self.endpoints.control(store, name),
            KeyStore::Memory(_) => Control::in_memory(name),
        }
    }

    fn tenant(
        &mut self,
        id: &TenantId,
        effective: &Effective<'_>,
        before: Option<&Arc<Tenant>>,
    ) -> anyhow::Result<Tenant> {
        let config = effective.tenant;
        let metrics = match before {
            Some(before) => before.metrics.clone(),
            None => Arc::new(TenantMetrics::new(id, self.series.grant(id))),
        };
        let kept = before.filter(|before| shares_lines_with(effective, before));
        let hub = kept.map_or_else(Arc::default, |kept| kept.relay.hub().clone());
        let stores = self.stores(id, effective, metrics.clone(), Some(hub.clone()))?;
        let routes =
            Routes::parse(&config.routes).map_err(|errors| anyhow::anyhow!(join(&errors)))?;
        let routes = Arc::new(routes);
        let mut deliveries = Deliveries::after(kept.map(|kept| &**kept));
        let mut parts = Vec::new();
        for route in &config.routes {
            let described = || format!("route {:?}", route.path);
            let consumer = self
                .registry
                .consumer(route)
                .map_err(anyhow::Error::msg)
                .with_context(described)?;
            let slot = deliveries
                .slot_of(route, &consumer)
                .with_context(described)?;
            let groups = route
                .groups
                .iter()
                .map(|text| Template::parse(text))
                .collect::<Result<_, _>>();
            parts.push(RouteParts {
                groups: groups.with_context(described)?,
                consumer,
                delivery: slot,
                subprotocols: route.subprotocols.clone(),
            });
        }
        let permissions = Permissions::new(&config.routes, &config.users, stores.database.clone());
        let permissions = permissions.map_err(|errors: Vec<_>| anyhow::anyhow!(join(&errors)))?;
        let permissions = Arc::new(permissions);
        let settings = Settings {
            deliveries: deliveries.slots,
            on_gap: config.on_gap,
            limits: config.limits,
        };
        let lines = match kept {
            // The settings take effect when the whole configuration does.
            Some(kept) => Lines {
                relay: kept.relay.clone(),
                control: kept.control.clone(),
            },
            None => self.lines(
                id,
                effective,
                &metrics,
                hub.clone(),
                &stores.keys,
                &settings,
            )?,
        };
        let revocations = Revocations::new(
            id,
            stores.authenticator.denylist.store.clone(),
            effective.denylist,
            &config.token,
            hub.clone(),
            metrics.clone(),
        );
        let coherence = Coherence {
            tenant: id.clone(),
            hub,
            users: stores.authenticator.users.clone(),
            permissions: permissions.clone(),
            keys: stores.keys.clone(),
            routes: routes.clone(),
            check_active: config.token.check_user_is_active,
            check_password: config.token.check_revoke_token,
            cache_ttl: config.users.cache_ttl,
            stale_ttl: config.users.stale_ttl,
        };
        Ok(Tenant {
            id: id.clone(),
            config: Arc::new(config.clone()),
            redis: effective.redis.cloned(),
            place: Arc::new(Place {
                tenant: id.clone(),
                routes,
                channel_prefix: lines.relay.layer().channel_prefix().into(),
            }),
            parts,
            origins: OriginPolicy::new(&config.origins, config.require_origin)?,
            authenticator: Arc::new(stores.authenticator),
            permissions,
            relay: lines.relay,
            settings: Arc::new(settings),
            revocations,
            coherence: Arc::new(coherence),
            control: lines.control,
            keys: stores.keys,
            metrics,
            degraded: parking_lot::Mutex::default(),
            suspended: before.map_or_else(Arc::default, |before| before.suspended.clone()),
            retired: AtomicBool::new(false),
        })
    }

    fn lines(
        &mut self,
        id: &TenantId,
        effective: &Effective<'_>,
        metrics: &Arc<TenantMetrics>,
        hub: Arc<Hub>,
        keys: &KeyStore,
        settings: &Settings,
    ) -> anyhow::Result<Lines> {
        let config = effective.tenant;
        let (layer, inbox) = self.layer(effective, metrics)?;
        let parts = Parts {
            tenant: id.clone(),
            hub,
            layer,
            inbox,
            group_names: config.layer.group_names,
            budget: self.budget.clone(),
            metrics: metrics.clone(),
        };
        Ok(Lines {
            relay: Relay::new(parts, settings.clone()),
            control: Arc::new(self.control(keys, &redis_keys::control(id))),
        })
    }

    fn stores(
        &mut self,
        id: &TenantId,
        effective: &Effective<'_>,
        metrics: Arc<TenantMetrics>,
        hub: Option<Arc<Hub>>,
    ) -> anyhow::Result<Stores> {
        let config = effective.tenant;
        let redis = effective
            .redis
            .map(|url| self.redis(url, Dependency::Redis))
            .transpose()?;
        let own = effective.separate_denylist();
        let in_memory = || KeyStore::Memory(self.memory.clone());
        let keys = redis.clone().map_or_else(in_memory, KeyStore::Redis);
        let denylist = match own {
            None => keys.clone(),
            Some(url) => KeyStore::Redis(self.redis(url, Dependency::Denylist)?),
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
                shares_users_redis: own.is_none() && redis.is_some(),
                store: denylist,
                on_outage: effective.denylist.on_outage,
            },
            redis,
            users,
            hub,
        };
        Ok(Stores {
            authenticator,
            database,
            keys,
        })
    }

    /// The layer of a tenant.
    fn layer(
        &mut self,
        effective: &Effective<'_>,
        metrics: &Arc<TenantMetrics>,
    ) -> anyhow::Result<(Arc<dyn ChannelLayer>, Arc<Inbox>)> {
        let config = effective.tenant;
        let inbox = Inbox::new(config.limits.layer_queue, metrics.clone());
        let layer: Arc<dyn ChannelLayer> = match effective.layer_kind() {
            LayerKind::Memory => Arc::new(MemoryLayer::new(&config.layer.prefix, inbox.clone())),
            LayerKind::PubSub => {
                let stores = self.layer_stores(effective)?;
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
                let stores = self.layer_stores(effective)?;
                Arc::new(self.core.attach(&stores, &config.layer, inbox.clone())?)
            }
        };
        Ok((layer, inbox))
    }

    fn layer_stores(&mut self, effective: &Effective<'_>) -> anyhow::Result<Vec<Arc<RedisStore>>> {
        let hosts = effective.layer_hosts();
        anyhow::ensure!(!hosts.is_empty(), "the layer has no Redis");
        let stores = hosts
            .into_iter()
            .map(|url| self.redis(url, Dependency::Redis));
        stores.collect()
    }

    fn redis(&mut self, url: &Secret, dependency: Dependency) -> anyhow::Result<Arc<RedisStore>> {
        let url = RedisUrl::parse(url)?;
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

/// The table of deliveries as members know it: a route that stays as it is keeps its slot.
struct Deliveries<'b> {
    before: Option<&'b Tenant>,
    slots: Vec<Option<Arc<RouteDelivery>>>,
}

impl<'b> Deliveries<'b> {
    /// Begins with the slots that sockets of `before` are in, whether their routes stay or not: they get their events
    /// until they are closed.
    fn after(before: Option<&'b Tenant>) -> Self {
        let mut slots = Vec::new();
        if let Some(before) = before {
            slots.clone_from(&before.relay.settings().deliveries);
            let mut used = vec![false; slots.len()];
            for part in &before.parts {
                used[usize::from(part.delivery)] = true;
            }
            for member in before.relay.hub().members() {
                used[usize::from(member.delivery())] = true;
            }
            for (slot, used) in slots.iter_mut().zip(used) {
                if !used {
                    *slot = None;
                }
            }
        }
        Self { before, slots }
    }

    /// The slot of a route.
    fn slot_of(&mut self, route: &RouteConfig, consumer: &RouteConsumer) -> anyhow::Result<u16> {
        if let Some(before) = self.before {
            let same = before.config.routes.iter().position(|old| old == route);
            if let Some(same) = same {
                return Ok(before.parts[same].delivery);
            }
        }
        let delivery = RouteDelivery {
            delivery: Delivery::new(route.deliver.clone(), &route.events)?,
            through_consumer: consumer.sees_events,
        };
        let delivery = Some(Arc::new(delivery));
        let free = self.slots.iter().position(Option::is_none);
        let at = free.unwrap_or(self.slots.len());
        match free {
            Some(at) => self.slots[at] = delivery,
            None => self.slots.push(delivery),
        }
        u16::try_from(at).context("too many routes")
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
