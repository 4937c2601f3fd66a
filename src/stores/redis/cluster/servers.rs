//! The servers behind a store: the masters of a cluster, or one server alone.

use std::sync::Arc;

use tokio::sync::watch;

use super::{ClusterMap, LinkState, slot_of};
use crate::stores::redis::RedisStore;

impl RedisStore {
    /// Returns the servers that commands go to: the masters of a cluster that serve slots, else this one alone.
    pub async fn servers(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let servers = self.numbered_servers().await.into_iter();
        servers.map(|(server, _)| server).collect()
    }

    /// Returns the servers that commands go to. With each master of a cluster comes a number whose slot, as a hash tag, it has.
    pub async fn numbered_servers(self: &Arc<Self>) -> Vec<(Arc<Self>, Option<u32>)> {
        let Some(cluster) = &self.cluster else {
            return vec![(self.clone(), None)];
        };
        let map = cluster.map().await;
        let serving = map.shards.iter().filter(|node| node.has_slots());
        let numbered = serving.map(|node| (node.store.clone(), Some(map.number_in(node))));
        numbered.collect()
    }

    /// Returns the master of a cluster that has a key; `None` for one server, and while no node serves the slot.
    pub async fn server_of(&self, key: &str) -> Option<Arc<Self>> {
        let map = self.cluster.as_ref()?.map().await;
        let node = map.owner(slot_of(key.as_bytes()))?;
        Some(node.store.clone())
    }

    /// Returns a receiver of the shards of a cluster; `None` for one server.
    pub fn cluster_maps(&self) -> Option<watch::Receiver<Arc<ClusterMap>>> {
        Some(self.cluster.as_ref()?.maps())
    }

    /// Asks for the shards of a cluster to be looked up again.
    pub fn doubt_cluster(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.doubt();
        }
    }

    /// Returns true if the URL names a cluster.
    pub fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Returns a receiver that changes when the link is made or lost.
    pub(super) fn link_changes(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }
}
