//! The list of replicas: each replica keeps a key of its own alive in every Redis that it uses.
//!
//! `lockgate::replica:ID` (string, JSON, EX 10) marks a replica as alive. The set `lockgate:TENANT:replicas` lists the
//! replicas that serve a tenant, so that no scan is needed and several deployments may share a Redis. A killed replica
//! counts as alive until its key expires.
//!
//! A list can be lost, refused or replaced by something else. Each replica adds itself again at its next renewal, and for as
//! long as a list may lack a living replica, [`Registered`] says so instead of guessing.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::RedisResult;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

use super::deployment::DeploymentStores;
use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};
use crate::ids::{ReplicaId, TenantId};
use crate::stores::key_read::KeyRead;
use crate::stores::key_store::{KeyStore, Lifetime};
use crate::stores::redis::{RedisStore, error_kind};
use crate::stores::redis_keys;

/// Reads a list. Its members come with their lengths bounded, since they go back to Redis as keys.
const LISTED: &str = include_str!("listed.lua");
/// Interval at which a replica renews its key.
const EVERY: Duration = Duration::from_secs(2);
/// Time to live of the key. A replica that does not renew it for so long counts as gone.
const LIFETIME: Duration = Duration::from_secs(10);
/// The most ids that are read of one list. A list is a public key, and reading a huge one would stop Redis for others.
const MOST_LISTED: usize = 1000;

/// Stores with tenants.
type Stores = Vec<(KeyStore, BTreeSet<TenantId>)>;

/// The replicas that a list names, and whether it can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    /// The ids of the live replicas, this one included.
    pub(super) ids: Vec<String>,
    /// The reason why others may be alive too.
    pub(super) doubt: Option<Doubt>,
}

/// A reason why the number of replicas cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// Redis did not answer in time, refuses the key, or it has another type.
    #[error("the list of replicas could not be read; other replicas may be running")]
    ListNotRead,
    /// This replica was no longer in the list.
    #[error(
        "the list of replicas was lost or replaced a moment ago; replicas may be missing in it"
    )]
    ListLost,
    /// This replica may not add itself, so neither may the others.
    #[error("Redis does not let replicas enter their list; other replicas may be running")]
    NotEntered,
    /// Redis delivered the question to connections that did not answer and that no list names.
    #[error(
        "{0} more connections got the message and did not answer: replicas that are not in the list, or other clients"
    )]
    Unheard(u64),
}

/// The knowledge of this replica about one list.
#[derive(Clone, Copy, Debug, Default)]
struct ListEntry {
    /// It has entered itself.
    entered: bool,
    /// The last time at which it had to enter itself again.
    lost_at: Option<Instant>,
    /// Redis refuses to enter it.
    refused: bool,
}

/// The entries of this replica, and what it knows of the lists.
pub struct ReplicaList {
    replica: ReplicaId,
    started_at: u64,
    /// Each store with the tenants whose keys it holds.
    stores: Mutex<Stores>,
    /// Entries to remove, because the replica has no more sockets of these tenants.
    left: Mutex<Stores>,
    /// The stores of the deployment's own keys.
    deployment: Mutex<DeploymentStores>,
    /// By the keys of the lists. Two stores may have a list of one name while a reload moves a tenant; a doubt about either
    /// is one about both.
    standings: Mutex<BTreeMap<String, ListEntry>>,
    /// Asks for a renewal at once.
    renew_now: Notify,
    /// True once the replica leaves, and renews no entry any more.
    leaving: watch::Sender<bool>,
    /// Held by a renewal, and by the removal of the entries, which nothing may write again.
    writing: tokio::sync::Mutex<()>,
}

impl ReplicaList {
    /// Makes the entries of `replica`. [`ReplicaList::run`] writes its entries.
    pub fn new(replica: ReplicaId) -> Arc<Self> {
        Arc::new(Self {
            replica,
            started_at: UnixTime::now().0 as u64,
            stores: Mutex::default(),
            left: Mutex::default(),
            deployment: Mutex::default(),
            standings: Mutex::default(),
            renew_now: Notify::new(),
            leaving: watch::Sender::new(false),
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the id of this replica.
    pub(super) fn replica(&self) -> &ReplicaId {
        &self.replica
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
                self.standings.lock().remove(&redis_keys::replicas(&tenant));
                enter(&mut left, &store, tenant);
            }
        }
        self.renew_now.notify_one();
    }

    /// Sets the stores in which to keep an entry among the replicas of the deployment: the present one, and then those that it is
    /// about to leave. It leaves the others.
    pub fn set_deployment(&self, stores: Vec<KeyStore>) {
        if self.deployment.lock().replace(stores) {
            // The others enter the new list with their own reloads, so for a moment it does not tell all.
            let entry = ListEntry {
                lost_at: Some(Instant::now()),
                ..ListEntry::default()
            };
            let list = redis_keys::REPLICAS.to_owned();
            self.standings.lock().insert(list, entry);
        }
        self.renew_now.notify_one();
    }

    /// Renews the entries until the replica leaves, and waits then until the task is dropped.
    pub async fn run(self: Arc<Self>) -> Infallible {
        tokio::select! {
            biased;
            () = self.leaves() => {}
            never = self.renew() => match never {},
        }
        std::future::pending().await
    }

    /// Waits until the replica leaves.
    async fn leaves(&self) {
        let mut leaving = self.leaving.subscribe();
        drop(leaving.wait_for(|leaving| *leaving).await);
    }

    async fn renew(&self) -> Infallible {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.renew_now.notified() => {}
            }
            let _turn = self.writing.lock().await;
            self.leave_tenants().await;
            let stores = self.all_stores();
            let signs = stores
                .iter()
                .map(|(store, tenants)| self.renew_in(store, tenants));
            futures_util::future::join_all(signs).await;
            self.renew_deployment().await;
        }
    }

    /// Renews the entries among the replicas of the deployment.
    async fn renew_deployment(&self) {
        let (entered, left) = self.deployment.lock().due();
        let list = [redis_keys::REPLICAS.to_owned()];
        // The present one is the first: it adds this replica, and a later addition would look like the loss of the list.
        for redis in entered.iter().filter_map(KeyStore::redis) {
            self.enter_lists(redis, &list).await;
        }
        for redis in left.iter().filter_map(KeyStore::redis) {
            // If the removal fails, the others strike the entry out once the sign of life has expired.
            drop(self.each_of(redis, "SREM", &list).await);
        }
    }

    /// Returns the stores that have its sign of life: those of tenants, and the deployment's also while it has no tenant.
    fn all_stores(&self) -> Stores {
        let mut stores = self.stores.lock().clone();
        for store in self.deployment.lock().entered() {
            if !stores.iter().any(|(known, _)| known.is_same(store)) {
                stores.push((store.clone(), BTreeSet::new()));
            }
        }
        stores
    }

    /// Removes this replica from the lists of tenants that it no longer serves, so that no caller waits for its answers.
    async fn leave_tenants(&self) {
        let left = self.left.lock().clone();
        for (store, tenants) in left {
            let Some(redis) = store.redis() else {
                continue;
            };
            let ended = match self.in_sets(redis, "SREM", &tenants).await {
                Ok(()) => true,
                // A login that is refused stays so, and the store would count an error at each renewal.
                Err(error) => matches!(error.kind, ErrorKind::Auth | ErrorKind::Permission),
            };
            if ended {
                let mut left = self.left.lock();
                for (_, waiting) in left.iter_mut().filter(|(known, _)| known.is_same(&store)) {
                    waiting.retain(|tenant| !tenants.contains(tenant));
                }
                left.retain(|(_, waiting)| !waiting.is_empty());
            }
        }
    }

    /// Renews the entries in one store. The next renewal repeats a failed one.
    async fn renew_in(&self, store: &KeyStore, tenants: &BTreeSet<TenantId>) {
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
        let lists: Vec<String> = tenants.iter().map(redis_keys::replicas).collect();
        self.enter_lists(redis, &lists).await;
    }

    /// Adds this replica to these lists. What is no list is replaced, because only a list can tell the replicas.
    async fn enter_lists(&self, redis: &RedisStore, lists: &[String]) {
        let entered = self.each_of(redis, "SADD", lists).await;
        // If Redis does not answer, the store counts and logs it, and the next renewal tries again.
        let Ok(entered) = entered else { return };
        for (list, entered) in lists.iter().zip(entered) {
            match entered {
                Ok(added) => self.entered(list, added > 0),
                Err(error) if error.code() == Some("WRONGTYPE") => {
                    tracing::warn!(
                        redis.key = list,
                        "The list of replicas was not a set; it is made again"
                    );
                    let mut pipe = redis::pipe();
                    pipe.atomic().del(list).ignore();
                    pipe.sadd(list, self.replica.as_str()).ignore();
                    if redis.query::<()>("replicas", &pipe).await.is_ok() {
                        self.entered(list, true);
                    }
                }
                Err(error) => self.refused(list, error_kind(&error), &error.to_string()),
            }
        }
    }

    /// Notes that this replica is in a list; `added`: it was not before.
    fn entered(&self, list: &str, added: bool) {
        let mut standings = self.standings.lock();
        let standing = standings.entry(list.to_owned()).or_default();
        let was_lost = added && standing.entered;
        if was_lost {
            standing.lost_at = Some(Instant::now());
        }
        let was_refused = std::mem::take(&mut standing.refused);
        standing.entered = true;
        drop(standings);
        if was_lost {
            tracing::warn!(
                redis.key = list,
                "The list of replicas was lost; this replica has entered it again"
            );
        }
        if was_refused {
            tracing::info!(
                redis.key = list,
                "Redis lets this replica enter the list of replicas again"
            );
        }
    }

    /// Notes that Redis refuses this replica a list, and logs it once.
    fn refused(&self, list: &str, kind: ErrorKind, error: &str) {
        let mut standings = self.standings.lock();
        let standing = standings.entry(list.to_owned()).or_default();
        let is_new = !std::mem::replace(&mut standing.refused, true);
        drop(standings);
        if is_new {
            let advice = match kind {
                ErrorKind::Permission => "; grant the keys lockgate:*",
                _ => "",
            };
            tracing::error!(
                redis.key = list,
                error.kind = kind.label(),
                error,
                "Redis refuses to enter this replica in the list of replicas: calls of the API cannot tell how many there are{advice}"
            );
        }
    }

    /// Runs a command on each of these sets in one round, with a result for each.
    async fn each_of(
        &self,
        redis: &RedisStore,
        command: &str,
        lists: &[String],
    ) -> Result<Vec<RedisResult<u64>>, StoreError> {
        if lists.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::Pipeline::with_capacity(lists.len());
        for list in lists {
            pipe.cmd(command).arg(list).arg(self.replica.as_str());
        }
        redis.query_each("replicas", &mut pipe).await
    }

    /// Runs a command on the sets of these tenants in one round.
    async fn in_sets(
        &self,
        redis: &RedisStore,
        command: &str,
        tenants: &BTreeSet<TenantId>,
    ) -> Result<(), StoreError> {
        let lists: Vec<String> = tenants.iter().map(redis_keys::replicas).collect();
        self.each_of(redis, command, &lists).await.map(drop)
    }

    /// Removes all entries of this replica, so that no caller waits for its answers.
    pub async fn leave(&self) {
        self.leaving.send_replace(true);
        let stores = self.all_stores();
        self.stores.lock().clear();
        let mut deployment = std::mem::take(&mut *self.deployment.lock());
        // A renewal that is under way ends here. It could write the sign of life again behind its removal.
        let _turn = self.writing.lock().await;
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
        let (entered, left) = deployment.due();
        for redis in entered.iter().chain(&left).filter_map(KeyStore::redis) {
            let list = [redis_keys::REPLICAS.to_owned()];
            drop(self.each_of(redis, "SREM", &list).await);
        }
    }

    /// Returns this replica as the only one that is known.
    pub(super) fn only_this(&self, doubt: impl Into<Option<Doubt>>) -> Registered {
        Registered {
            ids: vec![self.replica.as_str().to_owned()],
            doubt: doubt.into(),
        }
    }

    /// Returns the live replicas in the set `list`. Removes the entries of dead ones.
    pub(super) async fn registered(&self, list: &str, key_store: &KeyStore) -> Registered {
        let Some(redis) = key_store.redis() else {
            return self.only_this(None);
        };
        match self.live(list, key_store, redis).await {
            Ok((ids, is_listed)) => Registered {
                ids,
                doubt: self.doubt(list, is_listed),
            },
            Err(_) => self.only_this(Doubt::ListNotRead),
        }
    }

    /// Returns the ids of the live replicas in `list`, and whether this one was in it.
    async fn live(
        &self,
        list: &str,
        key_store: &KeyStore,
        redis: &RedisStore,
    ) -> Result<(Vec<String>, bool), StoreError> {
        let own = self.replica.as_str();
        let mut members = redis::cmd("EVAL");
        members.arg(LISTED).arg(1).arg(list).arg(MOST_LISTED);
        let mut listed: Vec<String> = redis.query_again("smembers", &members).await?;
        let all = listed.len();
        listed.retain(|id| *id != own);
        let is_listed = listed.len() < all;
        let sign = |id: &String| {
            let key = redis_keys::replica(&ReplicaId::from(id.as_str()));
            KeyRead::presence(key)
        };
        let signs: Vec<KeyRead> = listed.iter().map(sign).collect();
        let entries = key_store.get_each(signs).await?;
        let (mut alive, mut dead) = (vec![own.to_owned()], Vec::new());
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
        Ok((alive, is_listed))
    }

    /// Returns the reason not to believe a list that could be read.
    fn doubt(&self, list: &str, is_listed: bool) -> Option<Doubt> {
        let mut standings = self.standings.lock();
        let standing = standings.entry(list.to_owned()).or_default();
        if standing.refused {
            return Some(Doubt::NotEntered);
        }
        if standing.entered && !is_listed {
            standing.lost_at = Some(Instant::now());
            self.renew_now.notify_one();
        }
        // Until then every live replica has entered itself again, or its sign of life has expired.
        let was_lost = standing.lost_at.is_some_and(|at| at.elapsed() < LIFETIME);
        was_lost.then_some(Doubt::ListLost)
    }
}

fn enter(stores: &mut Stores, store: &KeyStore, tenant: TenantId) {
    match stores.iter_mut().find(|(known, _)| known.is_same(store)) {
        Some((_, tenants)) => drop(tenants.insert(tenant)),
        None => stores.push((store.clone(), BTreeSet::from([tenant]))),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    /// The deployment's store stayed until the goodbyes were said, and a renewal wrote the sign of life there again.
    #[tokio::test]
    async fn a_replica_that_leaves_renews_nothing() {
        let replicas = ReplicaList::new(ReplicaId::random());
        replicas.set_deployment(vec![KeyStore::Memory(Arc::default())]);
        let turn = replicas.writing.lock().await;
        replicas.renew_now.notify_one();
        let mut renewals = pin!(replicas.clone().run());
        assert!(renewals.as_mut().now_or_never().is_none());
        let mut leave = pin!(replicas.leave());
        assert!(leave.as_mut().now_or_never().is_none());
        assert!(replicas.all_stores().is_empty());
        drop(turn);
        // The renewal waited first, and gives way.
        assert!(renewals.as_mut().now_or_never().is_none());
        assert!(leave.as_mut().now_or_never().is_some());
        replicas.renew_now.notify_one();
        assert!(renewals.as_mut().now_or_never().is_none());
        assert!(replicas.renew_now.notified().now_or_never().is_some());
    }
}
