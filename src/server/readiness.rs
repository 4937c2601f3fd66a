//! The readiness of the replica.
//!
//! Readiness waits for the dependencies at the start only. A dependency that fails later never turns it off, because
//! all replicas would leave the load balancer together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::replica::ReplicaLife;
use crate::tenant::{Tenant, Tenants};

/// Waits for the first tenants, at most `ready_wait`, and marks the replica as ready.
///
/// # Errors
/// With `strict`, the first tenant that cannot be served.
pub(super) async fn run(
    tenants: Arc<Tenants>,
    life: Arc<ReplicaLife>,
    ready_wait: Duration,
    strict: bool,
) -> anyhow::Result<Infallible> {
    let (count, unreached) = wait(tenants.all(), ready_wait, strict).await?;
    life.set_ready();
    tracing::info!(count, unreached, "Ready");
    std::future::pending().await
}

/// Waits until all tenants are settled. Returns their number, and the number not settled in time.
async fn wait(
    tenants: Arc<[Arc<Tenant>]>,
    most: Duration,
    strict: bool,
) -> anyhow::Result<(usize, usize)> {
    if let Ok(settled) = timeout(most, all_settled(&tenants, strict)).await {
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
