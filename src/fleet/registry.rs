//! The registry of replicas: each replica keeps a key of its own alive in every Redis that it uses.
//!
//! `lockgate::replica:ID` (string, JSON, EX 10) marks a replica as alive. The set `lockgate:TENANT:replicas` lists the
//! replicas that serve a tenant, so that no scan is needed and several deployments may share a Redis. A killed replica
//! counts as alive until its key expires.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::clock::UnixTime;
use crate::error::StoreError;
use crate::ids::{ReplicaId, TenantId};
use crate::stores::key_read::KeyRead;
use crate::stores::key_store::{KeyStore, Lifetime};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;

/// Interval at which a replica renews its key.
const EVERY: Duration = Duration::from_secs(2);
/// Time to live of the key. A replica that does not renew it for so long counts as gone.
const LIFETIME: Duration = Duration::from_secs(10);

/// Renewals until the replica adds itself to the sets of its tenants again, which a Redis may have lost.
const LISTED_EVERY: u64 = 3;

/// Stores with tenants.
type Stores = Vec<(KeyStore, BTreeSet<TenantId>)>;

/// The registry entries of this replica.
pub struct ReplicaRegistry {
    replica: ReplicaId,
    started_at: u64,
    /// Each store with the tenants whose keys it holds.
    stores: Mutex<Stores>,
    /// Entries to remove, because the replica has no more sockets of these tenants.
    left: Mutex<Stores>,
    /// The store of the deployment's own keys.
    deployment: Mutex<Option<KeyStore>>,
}

impl ReplicaRegistry {
    /// Makes the registry of `replica`. [`ReplicaRegistry::run`] writes its entries.
    pub fn new(replica: ReplicaId) -> Arc<Self> {
        Arc::new(Self {
            replica,
            started_at: UnixTime::now().0 as u64,
            stores: Mutex::default(),
            left: Mutex::default(),
            deployment: Mutex::default(),
        })
    }

    /// Sets the tenants to keep entries for, each in the store of its keys. Entries of other tenants are removed.
    pub fn set_tenants(&self, tenants: impl Iterator<Item = (TenantId, KeyStore)>) {
        let mut new = Stores::new();
        for (tenant, store) in tenants {
            enter(&mut new, &store, tenant);
        }
        let mut stores = self.stores.lock();
        let before = std::mem::replace(&mut *stores, new);
        let mut left = self.left.lock();
        let before: Stores = before.into_iter().chain(left.drain(..)).collect();
        for (store, tenants) in before {
            let now = stores.iter().find(|(known, _)| known.is_same(&store));
            let is_here = |tenant: &TenantId| now.is_some_and(|(_, now)| now.contains(tenant));
            for tenant in tenants.into_iter().filter(|tenant| !is_here(tenant)) {
                enter(&mut left, &store, tenant);
            }
        }
    }

    /// Sets the store in which to keep an entry among the replicas of the deployment.
    pub fn set_deployment(&self, store: KeyStore) {
        *self.deployment.lock() = Some(store);
    }

    /// Renews the entries until the task is dropped.
    pub async fn run(self: Arc<Self>) -> Infallible {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0u64;
        loop {
            tick.tick().await;
            self.leave_tenants().await;
            let stores = self.stores.lock().clone();
            let listed = count.is_multiple_of(LISTED_EVERY);
            let signs = stores
                .iter()
                .map(|(store, tenants)| self.renew_in(store, listed.then_some(tenants)));
            futures_util::future::join_all(signs).await;
            let deployment = self.deployment.lock().clone();
            if let Some(store) = deployment.filter(|_| listed) {
                self.in_deployment(&store, "SADD").await;
            }
            count += 1;
        }
    }

    /// Removes this replica from the lists of tenants that it no longer serves, so that no caller waits for its answers.
    async fn leave_tenants(&self) {
        let left = self.left.lock().clone();
        for (store, tenants) in left {
            let Some(redis) = store.redis() else {
                continue;
            };
            if self.in_sets(redis, "SREM", &tenants).await.is_ok() {
                let mut left = self.left.lock();
                for (_, waiting) in left.iter_mut().filter(|(known, _)| known.is_same(&store)) {
                    waiting.retain(|tenant| !tenants.contains(tenant));
                }
                left.retain(|(_, waiting)| !waiting.is_empty());
            }
        }
    }

    /// Runs a command on the set of the deployment's replicas in `store`, which need not be the store of a tenant.
    async fn in_deployment(&self, store: &KeyStore, command: &str) {
        let Some(redis) = store.redis() else {
            return;
        };
        let mut pipe = redis::Pipeline::with_capacity(1);
        let own = self.replica.as_str();
        pipe.cmd(command).arg(redis_keys::REPLICAS).arg(own);
        // The store counts and logs a failure, and the next renewal tries again.
        drop(redis.pipeline_again("replicas", &pipe).await);
    }

    /// Renews the entries in one store. The next renewal repeats a failed one.
    async fn renew_in(&self, store: &KeyStore, tenants: Option<&BTreeSet<TenantId>>) {
        let Some(redis) = store.redis() else {
            return;
        };
        let entry = serde_json::json!({
            "v": 1,
            "id": self.replica.as_str(),
            "version": env!("CARGO_PKG_VERSION"),
            "started_at": self.started_at,
        });
        let entry = entry.to_string();
        let key = redis_keys::replica(&self.replica);
        let lifetime = Lifetime::For(LIFETIME);
        drop(store.put(&key, entry.as_bytes(), lifetime, 0).await);
        if let Some(tenants) = tenants {
            drop(self.in_sets(redis, "SADD", tenants).await);
        }
    }

    /// Runs a command on the sets of these tenants in one round.
    async fn in_sets(
        &self,
        redis: &RedisStore,
        command: &str,
        tenants: &BTreeSet<TenantId>,
    ) -> Result<(), StoreError> {
        let mut pipe = redis::Pipeline::with_capacity(tenants.len());
        for tenant in tenants {
            let key = redis_keys::replicas(tenant);
            pipe.cmd(command).arg(key).arg(self.replica.as_str());
        }
        redis.pipeline_again("replicas", &pipe).await
    }

    /// Removes all entries of this replica, so that no caller waits for its answers.
    pub async fn leave(&self) {
        let stores = std::mem::take(&mut *self.stores.lock());
        let goodbyes = stores.iter().map(|(store, tenants)| async move {
            let Some(redis) = store.redis() else {
                return;
            };
            let key = redis_keys::replica(&self.replica);
            // If the removal fails, the entry expires by itself.
            drop(store.remove(&key).await);
            drop(self.in_sets(redis, "SREM", tenants).await);
        });
        futures_util::future::join_all(goodbyes).await;
        let deployment = self.deployment.lock().take();
        if let Some(store) = deployment {
            self.in_deployment(&store, "SREM").await;
        }
    }
}

fn enter(stores: &mut Stores, store: &KeyStore, tenant: TenantId) {
    match stores.iter_mut().find(|(known, _)| known.is_same(store)) {
        Some((_, tenants)) => drop(tenants.insert(tenant)),
        None => stores.push((store.clone(), BTreeSet::from([tenant]))),
    }
}

/// Returns the ids of the live replicas in the set `list`, including `own`. Removes the entries of dead ones.
pub(super) async fn registered(
    list: &str,
    key_store: &KeyStore,
    own: &ReplicaId,
) -> Result<Vec<String>, StoreError> {
    let own = own.as_str().to_owned();
    let Some(redis) = key_store.redis() else {
        return Ok(vec![own]);
    };
    let mut members = redis::cmd("SMEMBERS");
    members.arg(list);
    let mut listed: Vec<String> = redis.query_again("smembers", &members).await?;
    listed.retain(|id| *id != own);
    let sign = |id: &String| {
        let key = redis_keys::replica(&ReplicaId::from(id.as_str()));
        KeyRead::presence(key)
    };
    let signs: Vec<KeyRead> = listed.iter().map(sign).collect();
    let entries = key_store.get_each(signs).await?;
    let (mut alive, mut dead) = (vec![own], Vec::new());
    for (id, entry) in listed.into_iter().zip(entries) {
        match entry {
            Ok(Some(_)) => alive.push(id),
            _ => dead.push(id),
        }
    }
    if !dead.is_empty() {
        let mut unlisting = redis::cmd("SREM");
        unlisting.arg(list).arg(dead);
        let unlisted: Result<redis::Value, _> = redis.query_again("srem", &unlisting).await;
        // If the removal fails, the next call removes them.
        drop(unlisted);
    }
    alive.sort_unstable();
    Ok(alive)
}
