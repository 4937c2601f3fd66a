//! Links to Redis and database pools. Tenants with equal URLs share them, also across reloads.

use std::sync::{Arc, OnceLock};

use crate::budget::MemoryBudget;
use crate::channel_layer::core::CoreEndpoints;
use crate::channel_layer::memory::{MemoryBus, MemoryLayer};
use crate::channel_layer::pubsub::PubSubEndpoints;
use crate::channel_layer::{ChannelLayer, Codec, Control, GroupHistories, Inbox, NoticeLines};
use crate::config::{Effective, LayerKind, PoolConfig, Secret, Trust};
use crate::error::Dependency;
use crate::group_rules::GroupRules;
use crate::ids::{ReplicaId, TenantId};
use crate::metrics::{TenantMetrics, TenantSeries};
use crate::stores::database::{ConnectionBudget, Database};
use crate::stores::key_store::KeyStore;
use crate::stores::memory::MemoryStore;
use crate::stores::redis::RedisStore;
use crate::stores::redis_url::RedisUrl;

/// The links and pools that tenants can share.
pub(super) struct Links {
    endpoints: PubSubEndpoints,
    core: CoreEndpoints,
    redis: Vec<Arc<RedisStore>>,
    databases: Vec<(DatabaseKey, Arc<Database>)>,
    /// `server.max_database_connections`, for all of them together.
    connections: Arc<ConnectionBudget>,
    /// Replaces Redis for tenants that have none.
    memory: SharedMemory,
}

/// The memory that replaces Redis for tenants that have none.
///
/// Replicas of one process that have clones of it act as replicas on one Redis do: they share events, histories, revocations
/// and suspensions, and answer each other. Their tenants' series add up, in the scrape of each. Presence and cached users stay with
/// each replica.
#[derive(Clone, Default)]
pub struct SharedMemory {
    keys: Arc<MemoryStore>,
    bus: Arc<MemoryBus>,
    series: Arc<OnceLock<Arc<TenantSeries>>>,
}

impl SharedMemory {
    /// Returns the book of the tenants' series, which the first replica opens with `most` places.
    pub(super) fn series(&self, most: usize) -> Arc<TenantSeries> {
        let book = self
            .series
            .get_or_init(|| Arc::new(TenantSeries::new(most)));
        book.clone()
    }
}

/// Tenants with equal keys share a pool.
type DatabaseKey = (Secret, PoolConfig, Trust);

/// The layer of a tenant.
pub(super) struct BuiltLayer {
    pub(super) layer: Arc<dyn ChannelLayer>,
    /// The queue of its incoming events.
    pub(super) inbox: Arc<Inbox>,
    /// The Redis servers that it uses.
    pub(super) servers: Arc<[Arc<RedisStore>]>,
}

impl Links {
    /// Starts without links; allows at most `max_database_connections` connections to all databases together.
    pub(super) fn new(
        replica: &ReplicaId,
        max_database_connections: u32,
        memory: SharedMemory,
    ) -> Self {
        Self {
            endpoints: PubSubEndpoints::new(replica.clone()),
            core: CoreEndpoints::new(replica.clone()),
            redis: Vec::new(),
            databases: Vec::new(),
            connections: ConnectionBudget::new(max_database_connections),
            memory,
        }
    }

    /// Drops the links and pools that no tenant uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.redis.retain(|store| Arc::strong_count(store) > 1);
        self.databases
            .retain(|(_, database)| Arc::strong_count(database) > 1);
    }

    /// Returns the control channel `name` on the server of `keys`.
    pub(super) fn control(&self, key_store: &KeyStore, name: &str) -> Control {
        match key_store {
            KeyStore::Redis(store) => Control::on(&self.endpoints, store, name),
            KeyStore::Memory(_) => Control::in_memory(&self.memory.bus, name),
        }
    }

    /// Returns the memory of this process as a store of keys.
    pub(super) fn in_memory(&self) -> KeyStore {
        KeyStore::Memory(self.memory.keys.clone())
    }

    /// Makes the layer of a tenant.
    pub(super) fn layer(
        &mut self,
        tenant: &TenantId,
        effective: &Effective<'_>,
        rules: &Arc<GroupRules>,
        metrics: &Arc<TenantMetrics>,
        budget: &Arc<MemoryBudget>,
    ) -> anyhow::Result<BuiltLayer> {
        let config = effective.tenant;
        let limit = config.limits.layer_queue;
        let inbox = Inbox::counted_in(limit, metrics.clone(), budget.clone());
        let servers = match effective.layer_kind() {
            LayerKind::Memory => Vec::new(),
            LayerKind::PubSub | LayerKind::Core | LayerKind::Sharded => {
                self.layer_stores(effective)?
            }
        };
        let layer: Arc<dyn ChannelLayer> = match effective.layer_kind() {
            LayerKind::Memory => {
                let (shared, prefix) = (self.memory.bus.layer(tenant), &config.layer.prefix);
                let (rules, inbox) = (rules.clone(), inbox.clone());
                Arc::new(MemoryLayer::new(shared, prefix, rules, inbox))
            }
            LayerKind::PubSub | LayerKind::Sharded => {
                let codec = Codec::new(
                    config.layer.serializer_format,
                    &config.layer.symmetric_encryption_keys,
                );
                Arc::new(
                    self.endpoints.attach(
                        &servers,
                        &config.layer.prefix,
                        codec,
                        GroupHistories::new(tenant, rules.clone())
                            .in_namespace(&config.layer.namespace)
                            .on_cluster(effective.layer_kind() == LayerKind::Sharded),
                        inbox.clone(),
                    ),
                )
            }
            LayerKind::Core => {
                let histories = GroupHistories::new(tenant, rules.clone())
                    .in_namespace(&config.layer.namespace);
                let notices = NoticeLines::new(&self.endpoints, &servers, histories, &inbox);
                let layer = &config.layer;
                Arc::new(self.core.attach(&servers, layer, notices, inbox.clone())?)
            }
        };
        Ok(BuiltLayer {
            layer,
            inbox,
            servers: servers.into(),
        })
    }

    fn layer_stores(&mut self, effective: &Effective<'_>) -> anyhow::Result<Vec<Arc<RedisStore>>> {
        let hosts = effective.layer_hosts();
        anyhow::ensure!(!hosts.is_empty(), "the layer has no Redis");
        let trust = effective.trusts().layer;
        let stores = hosts
            .into_iter()
            .map(|url| self.redis(url, &trust, Dependency::Redis));
        stores.collect()
    }

    /// Returns the store on the server at `url`, a known one if login, trust and database number are the same.
    pub(super) fn redis(
        &mut self,
        url: &Secret,
        trust: &Trust,
        dependency: Dependency,
    ) -> anyhow::Result<Arc<RedisStore>> {
        let url = RedisUrl::parse(url)?.trusting(trust.clone());
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

    /// Returns the pool of the tenant's database, a known one if URL, pool settings and trust are the same; `None` if the
    /// tenant has no database.
    pub(super) fn database(
        &mut self,
        effective: &Effective<'_>,
    ) -> anyhow::Result<Option<Arc<Database>>> {
        let users = &effective.tenant.users;
        let Some(url) = users.database.clone() else {
            return Ok(None);
        };
        let key = (url, users.pool, effective.trusts().database);
        let known = self.databases.iter().find(|(known, _)| *known == key);
        if let Some((_, database)) = known {
            return Ok(Some(database.clone()));
        }
        let (url, pool, trust) = &key;
        let database = Database::connect_lazy(url, trust, pool, &self.connections)?;
        self.databases.push((key, database.clone()));
        Ok(Some(database))
    }
}
