//! When the replica is ready, and which tenants cannot be served.
//!
//! Ready is a matter of the start alone: a dependency that fails later never turns readiness off, or all replicas
//! would leave together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::error::ErrorKind;
use crate::fleet::Fleet;
use crate::ids::GroupName;
use crate::state::{Life, Tenant, Tenants};
use crate::users::UsersProblem;

/// Between two looks at tenants that are not served yet.
const RETRY: Duration = Duration::from_millis(500);
/// Between two looks at tenants that were served once: a column may come, or go.
const RECHECK: Duration = Duration::from_secs(30);

/// The group that is subscribed for a moment to see whether that is allowed.
const PROBE: &str = "lockgate.probe";

/// What stands in the way of a tenant.
enum Obstacle {
    /// A dependency does not answer yet; it may at any time.
    NotReached(String),
    /// A dependency answered that it will not do: somebody has to act.
    Degraded(String),
}

/// Watches the tenants for ever.
pub(super) async fn run(
    tenants: Arc<Tenants>,
    fleet: Arc<Fleet>,
    life: Arc<Life>,
    ready_wait: Duration,
    strict: bool,
) -> anyhow::Result<Infallible> {
    let deadline = Instant::now() + ready_wait;
    let mut waiting: Vec<Waiting> = tenants.all().iter().cloned().map(Waiting::new).collect();
    while !waiting.is_empty() && Instant::now() < deadline {
        let looks = waiting.into_iter().map(async |waiting| {
            let reached = look_at(&waiting.tenant).await;
            // Before the replica is ready: nobody is let in to a tenant that was suspended before.
            fleet.read_state(&waiting.tenant).await;
            (waiting, reached)
        });
        let mut still = Vec::new();
        for (mut waiting, reached) in futures_util::future::join_all(looks).await {
            if !waiting.settled(reached, strict)? {
                still.push(waiting);
            }
        }
        waiting = still;
        if !waiting.is_empty() {
            tokio::time::sleep(RETRY).await;
        }
    }
    for Waiting { tenant, .. } in &waiting {
        tracing::error!(tenant.id = %tenant.id, "Serving although a dependency was never reached");
    }
    life.set_ready();
    tracing::info!(
        count = tenants.all().len(),
        unreached = waiting.len(),
        "Ready"
    );
    watch(&tenants).await
}

/// A tenant whose dependencies were not all reached yet.
struct Waiting {
    tenant: Arc<Tenant>,
    /// What it was waited for so far: each is told once.
    told: Vec<String>,
}

impl Waiting {
    fn new(tenant: Arc<Tenant>) -> Self {
        let told = Vec::new();
        Self { tenant, told }
    }

    /// Whether the tenant needs no further look before readiness.
    fn settled(&mut self, reached: Result<(), Obstacle>, strict: bool) -> anyhow::Result<bool> {
        let tenant = &self.tenant;
        match reached {
            Ok(()) => {
                set_degraded(tenant, None);
                Ok(true)
            }
            Err(Obstacle::NotReached(what)) => {
                if !self.told.contains(&what) {
                    tracing::warn!(tenant.id = %tenant.id, error = what, "Waiting for a dependency");
                    self.told.push(what);
                }
                Ok(false)
            }
            Err(Obstacle::Degraded(why)) if strict => anyhow::bail!("tenant {}: {why}", tenant.id),
            Err(Obstacle::Degraded(why)) => {
                set_degraded(tenant, Some(why));
                Ok(true)
            }
        }
    }
}

async fn watch(tenants: &Tenants) -> anyhow::Result<Infallible> {
    let mut look = tokio::time::interval(RETRY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_full = Instant::now();
    loop {
        look.tick().await;
        let full = last_full.elapsed() >= RECHECK;
        if full {
            last_full = Instant::now();
        }
        for tenant in tenants.all().iter() {
            let degraded = tenant.is_degraded();
            if full || degraded {
                match look_at(tenant).await {
                    Ok(()) => set_degraded(tenant, None),
                    Err(Obstacle::Degraded(why)) => set_degraded(tenant, Some(why)),
                    // Handshakes find out for themselves, and cached users are served meanwhile.
                    Err(Obstacle::NotReached(_)) => {}
                }
            }
        }
    }
}

/// Asks everything that the tenant needs.
async fn look_at(tenant: &Tenant) -> Result<(), Obstacle> {
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
fn set_degraded(tenant: &Tenant, why: Option<String>) {
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
