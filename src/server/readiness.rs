//! When the replica is ready, and which tenants cannot be served.
//!
//! Ready is a matter of the start alone: a dependency that fails later never turns readiness off, or all replicas
//! would leave together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::replica::ReplicaLife;
use crate::tenant::look::{Obstacle, look_at, set_degraded};
use crate::tenant::{Tenant, Tenants};

/// Between two looks at tenants that are not served yet.
const RETRY: Duration = Duration::from_millis(500);
/// Between two looks at tenants that were served once: a column may come, or go.
const RECHECK: Duration = Duration::from_secs(30);

/// Watches the tenants for ever.
pub(super) async fn run(
    tenants: Arc<Tenants>,
    life: Arc<ReplicaLife>,
    ready_wait: Duration,
    strict: bool,
) -> anyhow::Result<Infallible> {
    let deadline = Instant::now() + ready_wait;
    let mut waiting: Vec<Waiting> = tenants.all().iter().cloned().map(Waiting::new).collect();
    while !waiting.is_empty() && Instant::now() < deadline {
        let looks = waiting.into_iter().map(async |waiting| {
            let reached = look_at(&waiting.tenant).await;
            // Before the replica is ready: nobody is let in to a tenant that was suspended before.
            waiting.tenant.read_state().await;
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
