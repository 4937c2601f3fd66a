//! Builds tenants from a configuration: stores, layers, verifiers, routes.
//!
//! Tenants with equal URLs share links and pools. They never share keys, caches or names.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Making, Makings, Tenant, Tenants};
use crate::admission::{Authenticator, DenylistSource};
use crate::auth::TokenVerifier;
use crate::auth::denylist::UnreadableNotice;
use crate::budget::MemoryBudget;
use crate::channel_layer::Control;
use crate::coherence::Coherence;
use crate::config::{Config, Effective, TenantConfig, UsersFrom};
use crate::consumer::{Registry, TenantScope};
use crate::error::Dependency;
use crate::fleet::DeploymentLine;
use crate::group_rules::GroupRules;
use crate::hosts::HostTable;
use crate::hub::Hub;
use crate::ids::{ReplicaId, TenantId};
use crate::metrics::{TenantMetrics, TenantSeries};
use crate::origin::OriginPolicy;
use crate::relay::{Parts, Relay, Settings};
use crate::revocation::Revocations;
use crate::routes::Routes;
use crate::stores::database::Database;
use crate::stores::key_store::KeyStore;
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::stores::redis_url::RedisUrl;
use crate::users::{Permissions, UserBook, Users};

pub use alone::{HandshakeParts, authenticator, handshake_parts};
use links::Links;
pub use links::SharedMemory;

mod alone;
mod links;
mod routes;

/// Builds tenants, and keeps the parts that they share from one configuration to the next.
pub struct Builder {
    registry: Registry,
    /// Counts the bytes of all live frames.
    budget: Arc<MemoryBudget>,
    links: Links,
    series: Arc<TenantSeries>,
}

/// Returns true if `tenant` already serves exactly this configuration.
fn is_served_by(making: Option<Making>, effective: &Effective<'_>, tenant: &Tenant) -> bool {
    let is_same = std::ptr::eq(effective.tenant, &*tenant.config);
    (is_same || *effective.tenant == *tenant.config)
        && making == tenant.making
        && effective.redis == tenant.redis.as_ref()
        && effective.trusts() == tenant.trusts
        && *effective.denylist == *tenant.revocations.config()
}

/// Returns true if this configuration carries events over the same layer and Redis as `tenant`.
fn shares_lines_with(effective: &Effective<'_>, tenant: &Tenant) -> bool {
    let (new, old) = (effective.tenant, &tenant.config);
    new.layer == old.layer
        && new.groups == old.groups
        && effective.redis == tenant.redis.as_ref()
        && (effective.trusts().layer == tenant.trusts.layer || !has_tls_layer(effective))
}

/// Returns true if an authority of the deployment or of the tenant concerns the links of its layer.
fn has_tls_layer(effective: &Effective<'_>) -> bool {
    let hosts = effective.layer_hosts();
    let mut urls = hosts.into_iter().map(RedisUrl::parse);
    urls.any(|url| url.is_ok_and(|url| url.tls()))
}

/// A tenant whose parts cannot be made.
#[derive(Debug)]
pub struct NotBuilt {
    /// The tenant; `None` if the fault is not one tenant's.
    pub tenant: Option<TenantId>,
    /// The reason.
    pub why: anyhow::Error,
}

impl std::fmt::Display for NotBuilt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "tenant {tenant}: {:#}", self.why),
            None => write!(f, "{:#}", self.why),
        }
    }
}

impl std::error::Error for NotBuilt {}

/// The parts that carry a tenant's events.
struct Lines {
    relay: Arc<Relay>,
    /// The Redis servers of its layer.
    servers: Arc<[Arc<RedisStore>]>,
}

/// The stores of a tenant, and the authenticator that asks them.
struct Stores {
    authenticator: Authenticator,
    /// `None`: the claims are the user, and no route has `authorize`.
    database: Option<Arc<Database>>,
    key_store: KeyStore,
}

impl Builder {
    /// Makes the builder of a replica. `registry` holds the consumers that a program added.
    /// `memory` replaces the Redis of tenants that have none.
    pub fn new(
        config: &Config,
        registry: Registry,
        replica: &ReplicaId,
        memory: SharedMemory,
    ) -> Self {
        // One provider serves all TLS of the process. The call fails if the program installed its own, which then stays.
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        Self {
            registry,
            budget: Arc::default(),
            series: memory.series(config.metrics.tenant_series),
            links: Links::new(replica, config.server.max_database_connections, memory),
        }
    }

    /// The counter of the bytes of all live frames.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// The book of the tenants' series.
    pub fn series(&self) -> &Arc<TenantSeries> {
        &self.series
    }

    /// Builds the tenants; unchanged tenants of `before` are reused. Those of the registry, which `makings` has, are built
    /// only if `before` has them. It waits for no connection and touches no open socket. It needs a runtime, because links
    /// start to connect in the background.
    ///
    /// # Errors
    /// [`NotBuilt`]
    pub fn serving(
        &mut self,
        config: &Config,
        before: &Tenants,
        makings: &Makings,
    ) -> Result<(HostTable, Vec<Arc<Tenant>>), NotBuilt> {
        let hosts = HostTable::new(&config.tenants).map_err(|problems| NotBuilt {
            tenant: None,
            why: anyhow::anyhow!("hosts: {problems:?}"),
        })?;
        let mut tenants = Vec::new();
        for (id, tenant) in &config.tenants {
            let served = before.by_id(id.as_str());
            let making = makings.get(id).copied();
            if served.is_none() && making.is_some() {
                continue;
            }
            let effective = config.effective(tenant);
            match served.filter(|served| is_served_by(making, &effective, served)) {
                Some(served) => tenants.push(served),
                None => tenants.push(self.make((id, making), tenant, config, before)?),
            }
        }
        Ok((hosts, tenants))
    }

    /// Builds one tenant of a configuration; one of the registry has a making.
    ///
    /// # Errors
    /// [`NotBuilt`]
    pub fn make(
        &mut self,
        (id, making): (&TenantId, Option<Making>),
        tenant: &Arc<TenantConfig>,
        config: &Config,
        before: &Tenants,
    ) -> Result<Arc<Tenant>, NotBuilt> {
        let built = self.tenant((id, making), tenant, &config.effective(tenant), before);
        built.map(Arc::new).map_err(|why| NotBuilt {
            tenant: Some(id.clone()),
            why,
        })
    }

    /// Drops the links and pools that no tenant uses any more.
    pub fn forget_unused(&mut self) {
        self.links.forget_unused();
    }

    /// Returns the line of the deployment on the server of `[redis]`, a known one if it is there; `None` without a `[redis]`.
    ///
    /// # Errors
    /// [`NotBuilt`] if the URL is invalid or its TLS cannot be set up.
    pub fn deployment(
        &mut self,
        config: &Config,
        known: &[Arc<DeploymentLine>],
    ) -> Result<Option<Arc<DeploymentLine>>, NotBuilt> {
        let Some(url) = &config.redis.url else {
            return Ok(None);
        };
        let store = self
            .links
            .redis(url, &config.deployment_trust(), Dependency::Redis);
        let store = store.map_err(|why| NotBuilt { tenant: None, why })?;
        let key_store = KeyStore::Redis(store);
        if let Some(same) = known
            .iter()
            .find(|known| known.key_store.is_same(&key_store))
        {
            return Ok(Some(same.clone()));
        }
        let control = Arc::new(self.control(&key_store, redis_keys::DEPLOYMENT_CONTROL));
        Ok(Some(Arc::new(DeploymentLine { control, key_store })))
    }

    /// Returns the control channel `name` on the server of `keys`.
    pub fn control(&self, key_store: &KeyStore, name: &str) -> Control {
        self.links.control(key_store, name)
    }

    fn tenant(
        &mut self,
        (id, making): (&TenantId, Option<Making>),
        config: &Arc<TenantConfig>,
        effective: &Effective<'_>,
        before: &Tenants,
    ) -> anyhow::Result<Tenant> {
        let served = before.by_id(id.as_str());
        let before = before.all_of(id.as_str());
        let metrics = self.metrics_of(id, &before);
        // The sockets of a tenant that was deleted do not become those of a later one of its name.
        let kept = served
            .filter(|served| shares_lines_with(effective, served))
            .filter(|served| !Making::differs(making, served.making));
        let kept = kept.as_deref();
        let hub = kept.map_or_else(Arc::default, |kept| kept.relay.hub().clone());
        let stores = self.stores(id, effective, metrics.clone(), Some(hub.clone()))?;
        let (routes, permissions) = paths(config, &stores.database)?;
        let built = routes::build(id, config, &self.registry, kept)?;
        let settings = Settings {
            deliveries: built.deliveries,
            on_gap: config.on_gap,
            limits: config.limits,
            refreshes_tokens: config.token.refresh,
        };
        let Lines { relay, servers } = match kept {
            // The shared relay gets its new settings when the whole configuration is served.
            Some(kept) => Lines {
                relay: kept.relay.clone(),
                servers: kept.servers.clone(),
            },
            None => self.lines(id, effective, &metrics, &hub, &settings)?,
        };
        let control = self.control_of(id, &stores.key_store, &before);
        let revocations = Revocations::new(
            id,
            stores.authenticator.denylist.store.clone(),
            stores.authenticator.denylist.notice.clone(),
            effective.denylist,
            &config.token,
        );
        let coherence = coherence(id, config, hub, &stores, &permissions, &routes);
        Ok(Tenant {
            id: id.clone(),
            making,
            config: config.clone(),
            redis: effective.redis.cloned(),
            trusts: effective.trusts(),
            scope: Arc::new(TenantScope {
                tenant: id.clone(),
                routes,
                channel_prefix: relay.layer().channel_prefix().into(),
            }),
            parts: built.parts,
            origins: OriginPolicy::new(&config.origins, config.require_origin)?,
            authenticator: Arc::new(stores.authenticator),
            permissions,
            relay,
            servers,
            settings: Arc::new(settings),
            revocations,
            coherence: Arc::new(coherence),
            control,
            key_store: stores.key_store,
            metrics,
            remarks: Mutex::default(),
            life: watch::Sender::default(),
            degraded: Mutex::default(),
            used: AtomicBool::new(true),
        })
    }

    fn metrics_of(&self, id: &TenantId, before: &[Arc<Tenant>]) -> Arc<TenantMetrics> {
        match before.first() {
            Some(before) => before.metrics.clone(),
            None => Arc::new(TenantMetrics::of_gateway(&self.series, id)),
        }
    }

    /// Returns the tenant's control channel. Tenants of `before` with the same keys share theirs: heard twice, a
    /// message would act twice on sockets that leave.
    fn control_of(
        &self,
        id: &TenantId,
        key_store: &KeyStore,
        before: &[Arc<Tenant>],
    ) -> Arc<Control> {
        let mut same = before
            .iter()
            .filter(|before| before.key_store.is_same(key_store));
        match same.next() {
            Some(before) => before.control.clone(),
            None => Arc::new(self.control(key_store, &redis_keys::control(id))),
        }
    }

    fn lines(
        &mut self,
        id: &TenantId,
        effective: &Effective<'_>,
        metrics: &Arc<TenantMetrics>,
        hub: &Arc<Hub>,
        settings: &Settings,
    ) -> anyhow::Result<Lines> {
        let config = effective.tenant;
        let rules = Arc::new(GroupRules::new(&config.groups)?);
        let built = self
            .links
            .layer(id, effective, &rules, metrics, &self.budget)?;
        let parts = Parts {
            tenant: id.clone(),
            hub: hub.clone(),
            layer: built.layer,
            inbox: built.inbox,
            group_names: config.layer.group_names,
            rules,
            budget: self.budget.clone(),
            metrics: metrics.clone(),
        };
        Ok(Lines {
            relay: Relay::new(parts, settings.clone()),
            servers: built.servers,
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
        let trusts = effective.trusts();
        let redis = effective
            .redis
            .map(|url| self.links.redis(url, &trusts.redis, Dependency::Redis))
            .transpose()?;
        let own = effective.separate_denylist();
        let key_store = match &redis {
            Some(redis) => KeyStore::Redis(redis.clone()),
            None => self.links.in_memory(),
        };
        let denylist = match own {
            None => key_store.clone(),
            Some(url) => {
                let store = self
                    .links
                    .redis(url, &trusts.denylist, Dependency::Denylist)?;
                KeyStore::Redis(store)
            }
        };
        let database = self.links.database(effective)?;
        let users = match config.users.source {
            UsersFrom::Claims => UserBook::Claimed(config.users.id_type),
            UsersFrom::Database => UserBook::Stored(Users::new(
                id,
                &config.users,
                &config.token,
                database.clone().context("`users.database` is not set")?,
                redis.clone(),
                metrics.clone(),
            )?),
        };
        let authenticator = Authenticator {
            tenant: id.clone(),
            config: Arc::new(config.token.clone()),
            verifier: TokenVerifier::new(&config.token, config.users.id_type)?
                .trusting(&trusts.key_set)?,
            denylist: DenylistSource {
                has_cut_off: AtomicBool::new(false),
                shares_users_redis: own.is_none() && redis.is_some(),
                store: denylist,
                on_outage: effective.denylist.on_outage,
                notice: UnreadableNotice::new(id),
            },
            redis,
            users,
            metrics,
            hub,
        };
        Ok(Stores {
            authenticator,
            database,
            key_store,
        })
    }
}

/// Returns the routes of a tenant, and the permissions that they ask for.
fn paths(
    config: &TenantConfig,
    database: &Option<Arc<Database>>,
) -> anyhow::Result<(Arc<Routes>, Arc<Permissions>)> {
    let routes = Routes::parse(&config.routes).map_err(|errors| anyhow::anyhow!(join(&errors)))?;
    let permissions = Permissions::new(
        &config.routes,
        &config.users,
        &config.token,
        database.clone(),
    )
    .map_err(|errors: Vec<_>| anyhow::anyhow!(join(&errors)))?;
    Ok((Arc::new(routes), Arc::new(permissions)))
}

fn coherence(
    id: &TenantId,
    config: &TenantConfig,
    hub: Arc<Hub>,
    stores: &Stores,
    permissions: &Arc<Permissions>,
    routes: &Arc<Routes>,
) -> Coherence {
    Coherence {
        tenant: id.clone(),
        hub,
        users: stores.authenticator.users.clone(),
        permissions: permissions.clone(),
        key_store: stores.key_store.clone(),
        routes: routes.clone(),
        check_active: config.token.check_user_is_active,
        check_password: config.token.check_revoke_token,
        cache_ttl: config.users.cache_ttl,
        stale_ttl: config.users.stale_ttl,
    }
}

fn join<E: std::fmt::Display>(errors: &[E]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
