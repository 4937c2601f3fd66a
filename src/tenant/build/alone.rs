//! Builds parts of one tenant without a gateway around them: for `lockgate explain`, and for programs that only authenticate.

use std::sync::Arc;

use anyhow::Context;

use super::{Builder, SharedMemory, Stores, paths};
use crate::admission::Authenticator;
use crate::config::{Config, TenantConfig};
use crate::consumer::Registry;
use crate::ids::{ReplicaId, TenantId};
use crate::metrics::TenantMetrics;
use crate::routes::Routes;
use crate::token_auth::TokenAuth;
use crate::users::Permissions;

/// Builds the authenticator of one tenant, without the rest of a gateway.
///
/// # Errors
/// If there is no such tenant, or a part that only exists at run time cannot be made.
pub fn authenticator(config: &Config, tenant: &str) -> anyhow::Result<Arc<Authenticator>> {
    let (id, tenant) = config
        .tenants
        .get_key_value(tenant)
        .with_context(|| format!("there is no tenant {tenant:?}"))?;
    Ok(Arc::new(stores_of(config, id, tenant)?.authenticator))
}

/// The parts of one tenant that answer for a handshake, without its hub and its channel layer.
pub struct HandshakeParts {
    /// Checks tokens and finds their users.
    pub authenticator: Arc<Authenticator>,
    /// The statements that decide which groups a user may join.
    pub permissions: Arc<Permissions>,
    /// The routes by path.
    pub routes: Arc<Routes>,
}

/// Builds the parts that `lockgate explain` asks.
///
/// # Errors
/// As [`authenticator`].
pub fn handshake_parts(config: &Config, id: &TenantId) -> anyhow::Result<HandshakeParts> {
    let tenant = config.tenants.get(id);
    let tenant = tenant.with_context(|| format!("there is no tenant {id}"))?;
    let stores = stores_of(config, id, tenant)?;
    let (routes, permissions) = paths(tenant, &stores.database)?;
    Ok(HandshakeParts {
        authenticator: Arc::new(stores.authenticator),
        permissions,
        routes,
    })
}

/// Builds the stores of one tenant, with links of their own.
fn stores_of(config: &Config, id: &TenantId, tenant: &TenantConfig) -> anyhow::Result<Stores> {
    let mut builder = Builder::new(
        config,
        Registry::default(),
        &ReplicaId::random(),
        SharedMemory::default(),
    );
    let metrics = Arc::new(TenantMetrics::new(id));
    builder.stores(id, &config.effective(tenant), metrics, None)
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
