//! The task that looks at what waits for the workers of a tenant, on a layer whose channels keep events. It only tells
//! metrics.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Tenant;
use crate::ids::ChannelName;
use crate::metrics::TenantMetrics;
use crate::relay::Relay;
use crate::tasks::{self, Task};

/// Pause between two looks. Every replica asks, so that the figures outlive each of them.
const LOOK: Duration = Duration::from_secs(5);

/// Starts the task of a tenant that has workers.
pub(super) fn watch(tenant: &Tenant) -> Option<Task> {
    let routes = tenant.config.routes.iter();
    // Routes may share a worker.
    let channels: BTreeSet<String> = routes
        .flat_map(|route| route.consumer.worker_channels())
        .collect();
    if channels.is_empty() {
        return None;
    }
    let channels = channels.into_iter().map(ChannelName::from).collect();
    let looking = look(tenant.relay.clone(), tenant.metrics.clone(), channels);
    Some(tasks::lasting("the look at a tenant's workers", looking))
}

async fn look(
    relay: Arc<Relay>,
    metrics: Arc<TenantMetrics>,
    channels: Vec<ChannelName>,
) -> Infallible {
    let mut backlog = None;
    loop {
        match relay.layer().unread(&channels).await {
            Ok(Some(unread)) => {
                let backlog = backlog.get_or_insert_with(|| metrics.worker_backlog());
                backlog.tell(unread.events, unread.oldest);
            }
            Ok(None) => pending().await,
            // The store counts its failures. The last figures stand until it answers.
            Err(_) => {}
        }
        // Random pauses spread the looks of tenants that started together.
        sleep(LOOK.mul_f64(0.75 + 0.25 * rand::random::<f64>())).await;
    }
}
