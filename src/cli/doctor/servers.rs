//! Which Redis servers a configuration names, and what each is used for by which tenant.

use crate::config::{Config, LayerKind, RouteConfig, TenantConfig};
use crate::ids::TenantId;
use crate::stores::redis_url::{RedisUrl, RedisUrlError};

/// One server with one login and database number.
pub(super) struct RedisServer {
    pub(super) url: RedisUrl,
    /// The tenants that use it, in order of their names.
    pub(super) tenants: Vec<Usage>,
    /// Whether it is `[redis]`.
    pub(super) deployment: bool,
}

/// What a tenant uses a server for.
pub(super) struct Usage {
    pub(super) tenant: TenantId,
    /// Its denylist.
    pub(super) denylist: bool,
    /// Its cached users and its control channel.
    pub(super) users: bool,
    /// Its events, by this kind and prefix.
    pub(super) layer: Option<(LayerKind, String)>,
    /// Channels that its workers listen to, which a pub/sub layer names without the prefix; as patterns.
    pub(super) workers: Vec<String>,
}

impl RedisServer {
    /// Whether some tenant's denylist lies here.
    pub(super) fn holds_denylist(&self) -> bool {
        self.tenants.iter().any(|usage| usage.denylist)
    }

    /// `redis USER@HOST:PORT/DB`, without a password.
    pub(super) fn subject(&self) -> String {
        let user = self.url.username().map(|user| format!("{user}@"));
        let (user, endpoint) = (user.unwrap_or_default(), self.url.endpoint());
        format!("redis {user}{endpoint}/{}", self.url.db())
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
                workers: Vec::new(),
            });
            self.tenants.len() - 1
        });
        &mut self.tenants[at]
    }
}

/// The servers of a configuration, `[redis]` first.
///
/// # Errors
/// [`RedisUrlError`] for a URL that the configuration's own check lets pass and this version cannot use.
pub(super) fn redis_servers(config: &Config) -> Result<Vec<RedisServer>, RedisUrlError> {
    let mut servers = Vec::new();
    if let Some(url) = &config.redis.url {
        server(&mut servers, RedisUrl::parse(url)?).deployment = true;
    }
    for (id, tenant) in &config.tenants {
        let effective = config.effective(tenant);
        if let Some(url) = effective.redis {
            server(&mut servers, RedisUrl::parse(url)?).usage(id).users = true;
        }
        if let Some(url) = effective.denylist_redis() {
            server(&mut servers, RedisUrl::parse(url)?)
                .usage(id)
                .denylist = true;
        }
        let kind = effective.layer_kind();
        let layer = Some((kind, tenant.layer.prefix.clone()));
        match kind {
            LayerKind::Memory => {}
            LayerKind::PubSub | LayerKind::Core => {
                // Without a host the configuration was refused already.
                for url in effective.layer_hosts() {
                    let usage = server(&mut servers, RedisUrl::parse(url)?).usage(id);
                    usage.layer = layer.clone();
                    if kind == LayerKind::PubSub {
                        usage.workers = worker_channels(tenant);
                    }
                }
            }
        }
    }
    Ok(servers)
}

/// Valid channel names hold nothing that means more in a pattern than itself.
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
        });
        servers.len() - 1
    });
    &mut servers[at]
}
