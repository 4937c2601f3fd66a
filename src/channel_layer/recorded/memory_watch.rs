//! Measures the memory of the hosts that hold histories: a full one refuses events of groups with a memory, or evicts histories.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::metrics;
use crate::stores::inspection::Facts;
use crate::stores::redis::RedisStore;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Measures every host now and then. Never returns.
pub(in crate::channel_layer) async fn watch_memory(hosts: Vec<Arc<RedisStore>>) -> Infallible {
    join_all(hosts.into_iter().map(watch)).await;
    std::future::pending().await
}

async fn watch(store: Arc<RedisStore>) {
    let mut link = 0;
    loop {
        link = store.link_after(link).await;
        while let Some(pause) = measure(&store).await {
            if let Ok(newer) = timeout(pause, store.link_after(link)).await {
                link = newer;
            }
        }
        // The login may not ask. Another link may have another one, and a refusal at each look would look like an outage.
    }
}

/// Returns the time to the next look; `None` if no server tells. A cluster has several.
async fn measure(store: &Arc<RedisStore>) -> Option<Duration> {
    let mut is_told = true;
    for server in store.servers().await {
        // The store counts and logs a failure.
        if let Ok(facts) = Facts::ask(&server).await {
            match facts.memory_ratio() {
                Some(ratio) => metrics::history_memory(server.endpoint(), ratio),
                None => is_told = false,
            }
        }
    }
    is_told.then(|| LOOK_EVERY.mul_f64(rand::random_range(0.8..1.2)))
}
