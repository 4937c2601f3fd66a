//! A look at everything that a tenant needs: what stands in its way?

use super::Tenant;
use crate::error::ErrorKind;
use crate::ids::GroupName;
use crate::users::UsersProblem;

/// The group that is subscribed for a moment to see whether that is allowed.
const PROBE: &str = "lockgate.probe";

/// What stands in the way of a tenant.
pub enum Obstacle {
    /// A dependency does not answer yet; it may at any time.
    NotReached(String),
    /// A dependency answered that it will not do: somebody has to act.
    Degraded(String),
}

/// Asks everything that the tenant needs.
pub async fn look_at(tenant: &Tenant) -> Result<(), Obstacle> {
    let authenticator = &tenant.authenticator;
    for redis in authenticator.redis_servers() {
        redis
            .ping()
            .await
            .map_err(|error| Obstacle::NotReached(error.to_string()))?;
    }
    authenticator
        .users
        .ready()
        .await
        .map_err(|problem| match problem {
            UsersProblem::Store(error) if error.kind != ErrorKind::Permission => {
                Obstacle::NotReached(error.to_string())
            }
            problem => Obstacle::Degraded(problem.to_string()),
        })?;
    if let Err(error) = authenticator.verifier.ready().await {
        return Err(Obstacle::NotReached(error.to_string()));
    }
    tenant.control.open().await.map_err(|error| match error.kind() {
        Some(ErrorKind::Permission) => Obstacle::Degraded(format!(
            "its Redis user may not subscribe to its control channel; grant the channels lockgate:{}:*",
            tenant.id
        )),
        _ => Obstacle::NotReached(error.to_string()),
    })?;
    let layer = tenant.relay.layer();
    if !layer.ready().await {
        return Err(Obstacle::NotReached(
            "the channel layer is not connected".into(),
        ));
    }
    // Whether groups may be subscribed shows only when one is.
    let probe = GroupName::from(PROBE);
    let subscribed = layer.subscribe(&probe).await;
    layer.unsubscribe(&probe);
    subscribed.map_err(|error| match error.kind() {
        Some(ErrorKind::Permission) => Obstacle::Degraded(format!(
            "its Redis user may not join its groups; grant the channels, with the layer core the keys, {}*",
            tenant.config.layer.prefix
        )),
        _ => Obstacle::NotReached(error.to_string()),
    })
}

/// Notes a change of state, and logs it once.
pub fn set_degraded(tenant: &Tenant, why: Option<String>) {
    let mut degraded = tenant.degraded.lock();
    if *degraded == why {
        return;
    }
    match &why {
        Some(why) => {
            tracing::error!(tenant.id = %tenant.id, error = why, "The tenant cannot be served")
        }
        None => tracing::info!(tenant.id = %tenant.id, "The tenant is served again"),
    }
    *degraded = why;
}
