//! The readiness of the replica.
//!
//! Readiness waits for the dependencies at the start only. A dependency that fails later never turns it off, because
//! all replicas would leave the load balancer together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::registry::TenantRegistry;
use crate::replica::ReplicaLife;
use crate::tenant::{Tenant, Tenants};

/// Waits for the first tenants, at most `ready_wait`, and marks the replica as ready.
///
/// # Errors
/// With `strict`, the first tenant that cannot be served.
pub(super) async fn run(
    tenants: Arc<Tenants>,
    registry: Option<Arc<TenantRegistry>>,
    life: Arc<ReplicaLife>,
    ready_wait: Duration,
    strict: bool,
) -> anyhow::Result<Infallible> {
    let deadline = Instant::now() + ready_wait;
    if let Some(registry) = registry {
        // Its tenants count as those of the files. Without it the replica is ready late, not never.
        drop(timeout_at(deadline, registry.serves()).await);
        let tenants = registry.standings();
        let wrong =
            { tenants.iter() }.find_map(|tenant| Some((&tenant.id, tenant.trouble.as_ref()?)));
        if let (true, Some((id, why))) = (strict, wrong) {
            anyhow::bail!("tenant {id} of the registry: {why}");
        }
    }
    let (count, unreached) = wait(tenants.all(), deadline, strict).await?;
    life.set_ready();
    tracing::info!(count, unreached, "Ready");
    std::future::pending().await
}

/// Waits until all tenants are settled. Returns their number, and the number not settled in time.
async fn wait(
    tenants: Arc<[Arc<Tenant>]>,
    deadline: Instant,
    strict: bool,
) -> anyhow::Result<(usize, usize)> {
    if let Ok(settled) = timeout_at(deadline, all_settled(&tenants, strict)).await {
        settled?;
    }
    let unreached = tenants.iter().filter(|tenant| !tenant.life().is_settled());
    let unreached: Vec<_> = unreached.collect();
    for tenant in &unreached {
        tracing::error!(tenant.id = %tenant.id, "Serving although a dependency was never reached");
    }
    Ok((tenants.len(), unreached.len()))
}

async fn all_settled(tenants: &[Arc<Tenant>], strict: bool) -> anyhow::Result<()> {
    let settled = tenants.iter().map(async |tenant| {
        tenant.settled().await;
        tenant
    });
    let mut settled: FuturesUnordered<_> = settled.collect();
    while let Some(tenant) = settled.next().await {
        if strict && let Some(why) = tenant.life().obstacle() {
            anyhow::bail!("tenant {}: {why}", tenant.id);
        }
    }
    Ok(())
}
