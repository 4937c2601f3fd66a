//! Which Redis servers a layer stands on.

use crate::config::{LayerConfig, Secret};
use crate::stores::redis::{RedisUrl, RedisUrlError};

/// Why a layer's hosts cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// Neither the layer nor the tenant has a Redis.
    #[error("the layer needs a Redis: set [redis] url, the tenant's redis, or the layer's hosts")]
    Missing,
    /// The URL.
    #[error(transparent)]
    Url(#[from] RedisUrlError),
}

/// The servers of a layer, in order: its `hosts`, else the tenant's Redis alone. Never empty.
///
/// # Errors
/// [`HostsError`], which never quotes a URL.
pub fn hosts(layer: &LayerConfig, tenant: Option<&Secret>) -> Result<Vec<RedisUrl>, HostsError> {
    let urls = match layer.hosts.as_slice() {
        [] => vec![tenant.ok_or(HostsError::Missing)?],
        hosts => hosts.iter().collect(),
    };
    let parsed = urls.into_iter().map(RedisUrl::parse);
    Ok(parsed.collect::<Result<_, _>>()?)
}
