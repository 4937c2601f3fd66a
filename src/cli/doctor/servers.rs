//! The Redis servers of a configuration, and the uses that each tenant has for them.

use crate::config::{Config, HistoryConfig, LayerKind, RouteConfig, TenantConfig};
use crate::ids::TenantId;
use crate::stores::redis_url::{RedisUrl, RedisUrlError};
use crate::tenant::scripts::ScriptNeeds;

/// One server with one login and database number.
pub(super) struct RedisServer {
    pub(super) url: RedisUrl,
    /// The tenants that use it, sorted by name.
    pub(super) tenants: Vec<Usage>,
    /// True if it is `[redis]`.
    pub(super) deployment: bool,
    /// The replicas of it that must acknowledge a revocation.
    pub(super) acknowledged: u32,
    /// True if several tenants use the server, perhaps with another login or database number.
    pub(super) shared: bool,
}

/// The uses that a tenant has for a server.
pub(super) struct Usage {
    pub(super) tenant: TenantId,
    /// Its denylist.
    pub(super) denylist: bool,
    /// Its cached users and its control channel.
    pub(super) users: bool,
    /// Its events, by this kind and prefix.
    pub(super) layer: Option<(LayerKind, String)>,
    /// The beginning of its groups' names.
    pub(super) namespace: String,
    /// Patterns of the channels that its workers listen to. A pub/sub layer does not add the prefix to them, a core layer does.
    pub(super) workers: Vec<String>,
    /// The names of its groups that have a history.
    pub(super) histories: Vec<(String, HistoryConfig)>,
    /// The parts that need scripts.
    pub(super) scripts: ScriptNeeds,
}

impl Usage {
    /// Returns true if its events lie in keys.
    pub(super) fn is_core(&self) -> bool {
        matches!(self.layer, Some((LayerKind::Core, _)))
    }
}

impl RedisServer {
    /// Returns true if it holds a tenant's denylist.
    pub(super) fn holds_denylist(&self) -> bool {
        self.tenants.iter().any(|usage| usage.denylist)
    }

    /// Returns `redis USER@HOST:PORT/DB`, without a password. A cluster has no databases.
    pub(super) fn subject(&self) -> String {
        let user = self.url.username().map(|user| format!("{user}@"));
        let (user, endpoint) = (user.unwrap_or_default(), self.url.endpoint());
        match self.url.is_cluster() {
            true => format!("redis {user}{endpoint}"),
            false => format!("redis {user}{endpoint}/{}", self.url.db()),
        }
    }

    fn usage(&mut self, tenant: &TenantId) -> &mut Usage {
        let known = self
            .tenants
            .iter()
            .position(|usage| usage.tenant == *tenant);
        let at = known.unwrap_or_else(|| {
            self.tenants.push(Usage {
                tenant: tenant.clone(),
                denylist: false,
                users: false,
                layer: None,
                namespace: String::new(),
                workers: Vec::new(),
                histories: Vec::new(),
                scripts: ScriptNeeds::default(),
            });
            self.tenants.len() - 1
        });
        &mut self.tenants[at]
    }
}

/// Collects the servers of a configuration, `[redis]` first.
///
/// # Errors
/// [`RedisUrlError`] for an invalid URL, which the check of the configuration refuses as well.
pub(super) fn redis_servers(config: &Config) -> Result<Vec<RedisServer>, RedisUrlError> {
    let mut servers = Vec::new();
    if let Some(url) = &config.redis.url {
        let url = RedisUrl::parse(url)?.trusting(config.deployment_trust());
        server(&mut servers, url).deployment = true;
    }
    for (id, tenant) in &config.tenants {
        let effective = config.effective(tenant);
        let trusts = effective.trusts();
        if let Some(url) = effective.redis {
            let url = RedisUrl::parse(url)?.trusting(trusts.redis);
            server(&mut servers, url).usage(id).users = true;
        }
        if let Some(url) = effective.denylist_redis() {
            let url = RedisUrl::parse(url)?.trusting(trusts.denylist);
            let server = server(&mut servers, url);
            let usage = server.usage(id);
            (usage.denylist, usage.scripts.denylist) = (true, true);
            server.acknowledged = config.denylist.replicas;
        }
        let kind = effective.layer_kind();
        let layer = Some((kind, tenant.layer.prefix.clone()));
        match kind {
            LayerKind::Memory => {}
            LayerKind::PubSub | LayerKind::Core | LayerKind::Sharded => {
                // A layer without hosts was already refused.
                for url in effective.layer_hosts() {
                    let url = RedisUrl::parse(url)?.trusting(trusts.layer.clone());
                    let usage = server(&mut servers, url).usage(id);
                    usage.layer = layer.clone();
                    usage.namespace.clone_from(&tenant.layer.namespace);
                    let groups = tenant.groups.iter();
                    let kept =
                        groups.filter_map(|group| Some((group.name.clone(), group.history?)));
                    usage.histories = kept.collect();
                    usage.scripts = ScriptNeeds {
                        denylist: usage.denylist,
                        ..ScriptNeeds::of_layer(tenant)
                    };
                    usage.workers = worker_channels(tenant);
                }
            }
        }
    }
    let mut places: Vec<(String, TenantId)> = Vec::new();
    for server in &servers {
        let there = server.tenants.iter();
        places.extend(there.map(|usage| (server.url.endpoint(), usage.tenant.clone())));
    }
    for server in &mut servers {
        let endpoint = server.url.endpoint();
        let mut there = places.iter().filter(|(place, _)| *place == endpoint);
        let first = there.next();
        server.shared = there.any(|(_, tenant)| first.is_some_and(|(_, first)| first != tenant));
    }
    Ok(servers)
}

/// Returns the patterns of a tenant's worker channels. Valid channel names have no wildcards, so need no escaping.
fn worker_channels(tenant: &TenantConfig) -> Vec<String> {
    let channel = |route: &RouteConfig| {
        let channel = route.consumer.channel.as_deref()?;
        Some(match route.consumer.partitions {
            0 => channel.to_owned(),
            _ => format!("{channel}.*"),
        })
    };
    tenant.routes.iter().filter_map(channel).collect()
}

fn server(servers: &mut Vec<RedisServer>, url: RedisUrl) -> &mut RedisServer {
    let same = |server: &RedisServer| server.url.same_login(&url) && server.url.db() == url.db();
    let known = servers.iter().position(same);
    let at = known.unwrap_or_else(|| {
        servers.push(RedisServer {
            url,
            tenants: Vec::new(),
            deployment: false,
            acknowledged: 0,
            shared: false,
        });
        servers.len() - 1
    });
    &mut servers[at]
}
