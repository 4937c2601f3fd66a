//! The server that a store leads to: its identity, whether it fits the URL, and its present address.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Client, Value};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::RedisStore;
use crate::error::{ErrorKind, StoreError};
use crate::stores::misfit::{Misfit, is_too_old_for_cluster};
use crate::stores::redis_keys::{EPOCH, NEVER_WRITTEN};
use crate::stores::redis_link::{ANSWER_LIMIT, store_error};
use crate::stores::redis_master::address;
use crate::stores::server_identity::ServerIdentity;

impl RedisStore {
    /// Returns the identity of the server, or of the masters of a cluster together. It is asked once for each link, and again if
    /// the server did not answer.
    pub async fn identity(&self) -> Arc<ServerIdentity> {
        let Some(cluster) = &self.cluster else {
            return self.identity_here().await;
        };
        let map = cluster.map().await;
        let nodes = map.shards.iter().map(|node| node.store.identity_here());
        let nodes = join_all(nodes).await;
        let nodes = nodes.iter().map(|node| &**node);
        Arc::new(ServerIdentity::of_nodes(&self.endpoint, nodes))
    }

    /// Returns the reason why the server cannot be used by its URL; `None` if it can, or does not answer.
    pub async fn misfit(&self) -> Option<Misfit> {
        let Some(cluster) = &self.cluster else {
            let is_node = self.identity_here().await.is_cluster_node();
            return is_node.then(|| Misfit::ClusterNode(self.endpoint.clone()));
        };
        let map = cluster.map().await;
        let serving = map.shards.iter().filter(|node| node.has_slots());
        let nodes = join_all(serving.map(|node| node.store.identity_here())).await;
        let old = nodes.iter().filter_map(|node| {
            let version = node
                .version()
                .filter(|version| is_too_old_for_cluster(version))?;
            Some((version.to_owned(), node.endpoint().to_owned()))
        });
        let old: Vec<_> = old.collect();
        (!old.is_empty()).then_some(Misfit::OldNodes(old))
    }

    async fn identity_here(&self) -> Arc<ServerIdentity> {
        let link = self.link_number();
        if let Some((known, identity)) = &*self.identity.lock()
            && Some(*known) == link
        {
            return identity.clone();
        }
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let (info, address) =
            tokio::join!(self.query_here::<String>("info", &info), self.address());
        // A login without the right to INFO will be refused again, so that answer is kept. Other failures are not.
        let is_final = match &info {
            Ok(_) => true,
            Err(error) => error.kind == ErrorKind::Permission,
        };
        let addresses = match address {
            Ok((host, port)) => {
                let found = timeout(ANSWER_LIMIT, lookup_host((host, port))).await;
                found.ok().and_then(Result::ok)
            }
            Err(_) => None,
        };
        let is_refused = { info.as_ref().err() }.is_some_and(|error| !error.kind.is_outage());
        let info = info.ok();
        let addresses = addresses.into_iter().flatten();
        let mut identity = ServerIdentity::new(&self.endpoint, info.as_deref(), addresses);
        if is_refused && !self.is_node && self.refuses_two_slots().await {
            identity.set_cluster_node();
        }
        let identity = Arc::new(identity);
        let link = link.filter(|_| is_final);
        *self.identity.lock() = link.map(|link| (link, identity.clone()));
        identity
    }

    /// Returns true if the server refuses a read of two keys because they have different slots. Every node of a cluster does.
    async fn refuses_two_slots(&self) -> bool {
        let mut read = redis::cmd("EXISTS");
        read.arg(NEVER_WRITTEN).arg(EPOCH);
        let answer = self.query_here::<Value>("exists", &read).await;
        // An answer that only a cluster gives has this kind.
        answer.is_err_and(|error| error.kind == ErrorKind::Protocol)
    }

    /// Returns the server's present address: that of the URL, or the one that the Sentinels name.
    ///
    /// # Errors
    /// [`StoreError`] if no Sentinel knows it, or the server that they name is not a master.
    pub async fn address(&self) -> Result<(String, u16), StoreError> {
        if let Some((host, port)) = self.url.address() {
            return Ok((host.to_owned(), port));
        }
        let client = self.route.client().await;
        let client = client.map_err(|error| store_error(self.dependency, error))?;
        self.address_of(&client)
    }

    fn address_of(&self, client: &Client) -> Result<(String, u16), StoreError> {
        let found = address(client).map(|(host, port)| (host.to_owned(), port));
        let text = "the server has no address";
        found.ok_or_else(|| StoreError::new(self.dependency, ErrorKind::Other, text.to_owned()))
    }
}
