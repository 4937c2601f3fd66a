//! Which replicas there are: each keeps a key of its own alive in every Redis that it uses.
//!
//! `lockgate::replica:ID` (string, JSON, EX 10) says that a replica lives, and the set `lockgate:TENANT:replicas` which of
//! them serve a tenant, so that nobody has to scan, and several deployments may share a Redis. A replica that was killed is
//! taken for alive until its key ends.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::clock::UnixTime;
use crate::error::StoreError;
use crate::ids::{ReplicaId, TenantId};
use crate::stores::key_store::{KeyStore, Lifetime};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;

/// From one sign of life to the next.
const EVERY: Duration = Duration::from_secs(2);
/// Without one for this long, a replica is gone.
const LIFETIME: Duration = Duration::from_secs(10);

/// Signs of life between two times that the replica enters itself into the sets of its tenants, which a Redis may lose.
const LISTED_EVERY: u64 = 3;

/// Stores, each with tenants.
type Stores = Vec<(KeyStore, BTreeSet<TenantId>)>;

/// This replica's entries.
pub struct Registry {
    replica: ReplicaId,
    started_at: u64,
    /// Each store with the tenants whose keys lie there.
    stores: Mutex<Stores>,
    /// Entries that are to be taken off: the replica has no socket of these tenants any more.
    left: Mutex<Stores>,
    /// Where the deployment's own keys lie.
    deployment: Mutex<Option<KeyStore>>,
}

impl Registry {
    /// Entries of `replica`; [`Registry::run`] makes them.
    pub fn new(replica: ReplicaId) -> Arc<Self> {
        Arc::new(Self {
            replica,
            started_at: UnixTime::now().0 as u64,
            stores: Mutex::default(),
            left: Mutex::default(),
            deployment: Mutex::default(),
        })
    }

    /// Keeps an entry for each of these tenants in the store of its keys, and no more in others.
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

    /// Keeps an entry among the replicas of the deployment, whose keys lie in `store`.
    pub fn set_deployment(&self, store: KeyStore) {
        *self.deployment.lock() = Some(store);
    }

    /// Gives signs of life for ever.
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

    /// Takes this replica off the lists of tenants that it serves no more: nobody waits for its answers then.
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

    /// The command on the set of the deployment. The store of its keys may be one that no tenant uses.
    async fn in_deployment(&self, store: &KeyStore, command: &str) {
        let Some(redis) = store.redis() else {
            return;
        };
        let mut pipe = redis::Pipeline::with_capacity(1);
        let own = self.replica.as_str();
        pipe.cmd(command).arg(redis_keys::REPLICAS).arg(own);
        // Counted where it fails, and tried again.
        drop(redis.pipeline_again("replicas", &pipe).await);
    }

    /// A Redis that does not take it is asked again with the next sign.
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

    /// The command on the sets of these tenants, all in one round.
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

    /// This replica leaves: nobody waits for it any more.
    pub async fn leave(&self) {
        let stores = std::mem::take(&mut *self.stores.lock());
        let goodbyes = stores.iter().map(|(store, tenants)| async move {
            let Some(redis) = store.redis() else {
                return;
            };
            let key = redis_keys::replica(&self.replica);
            // Without it the entry ends by itself.
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

/// The ids of the replicas in the set `list` that live, `own` among them. Entries of the dead are taken off the list.
pub(super) async fn registered(
    list: &str,
    keys: &KeyStore,
    own: &ReplicaId,
) -> Result<Vec<String>, StoreError> {
    let own = own.as_str().to_owned();
    let Some(redis) = keys.redis() else {
        return Ok(vec![own]);
    };
    let mut members = redis::cmd("SMEMBERS");
    members.arg(list);
    let mut listed: Vec<String> = redis.query_again("smembers", &members).await?;
    listed.retain(|id| *id != own);
    let names: Vec<String> = listed
        .iter()
        .map(|id| redis_keys::replica(&ReplicaId::from(id.as_str())))
        .collect();
    let entries = keys.get_each(names).await?;
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
        // Whoever asks next takes them off.
        drop(unlisted);
    }
    alive.sort_unstable();
    Ok(alive)
}
