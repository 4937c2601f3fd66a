//! The replicas of a tenant that live, as one Redis server knows them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};

use super::store::{self, LivingReplicas};
use crate::error::StoreError;
use crate::ids::{TenantId, random_hex};
use crate::stores::redis::RedisStore;

/// Time between two renewals.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Time after which a replica that no list names does not exist. A list that was lost is filled again by then.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// Time for which every write takes back what a dead replica left. All groups are looked at within it.
const TAKEN_BACK_FOR: Duration = Duration::from_secs(60);

/// The finding of a renewal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Redis lost this replica, or counts it as dead: everything is to be written again.
    pub(super) lost: bool,
    /// Another replica ended. Its users may linger, or still stand there.
    pub(super) ended: bool,
}

/// The replicas on one server.
pub(super) struct Census {
    pub(super) store: Arc<RedisStore>,
    /// The id under which this replica writes. It changes whenever what stands there is in doubt.
    pub(super) id: String,
    living: HashSet<String>,
    /// The dead replicas, with the time at which each was found dead.
    dead: HashMap<String, Instant>,
    /// The ids under which this replica wrote before, with the time at which each ended.
    former: HashMap<String, Instant>,
    /// The replicas in groups that no list names, with the time at which each was met.
    unknown: HashMap<String, Instant>,
    /// A replica that lived has ended, and the groups were not looked at since.
    ended: bool,
    renewed: Option<Instant>,
    /// The number of the link of the last renewal.
    link: Option<u64>,
}

impl Census {
    pub(super) fn new(store: &Arc<RedisStore>) -> Self {
        Self {
            store: store.clone(),
            id: random_hex(),
            living: HashSet::new(),
            dead: HashMap::new(),
            former: HashMap::new(),
            unknown: HashMap::new(),
            ended: false,
            renewed: None,
            link: None,
        }
    }

    /// Returns true if it is time to renew.
    pub(super) fn is_due(&self) -> bool {
        let is_old = |at: Instant| at.elapsed() >= RENEW_EVERY;
        self.renewed.is_none_or(is_old) || self.link != self.store.link_number()
    }

    /// Returns true if this replica was entered.
    pub(super) fn is_entered(&self) -> bool {
        self.renewed.is_some()
    }

    /// Renews the own entry.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn renew(&mut self, tenant: &TenantId) -> Result<News, StoreError> {
        let link = self.store.link_number();
        let replicas = store::renew(tenant, &self.store, &self.id).await?;
        let now = Instant::now();
        let is_first = self.renewed.is_none();
        // Another link may lead to a server that lost the newest writes.
        let lost = !is_first && (!replicas.lived || self.link != link);
        self.renewed = Some(now);
        self.link = link;
        self.take(replicas, now);
        if lost {
            // Other replicas may count the old id as dead for some seconds more. They do not know the new one yet.
            let old = std::mem::replace(&mut self.id, random_hex());
            store::renew(tenant, &self.store, &self.id).await?;
            // If it fails, the entry expires by itself.
            drop(store::take_out(tenant, &self.store, &old).await);
            self.former.insert(old, now);
        }
        let ended = std::mem::take(&mut self.ended);
        Ok(News { lost, ended })
    }

    /// Takes the lists of a renewal.
    fn take(&mut self, replicas: LivingReplicas, now: Instant) {
        let living: HashSet<String> = replicas.living.into_iter().collect();
        self.ended |= self.living.iter().any(|id| !living.contains(id));
        self.living = living;
        for id in replicas.dead {
            // A replica that ended in good order is among them: its users may linger.
            self.ended |= !self.dead.contains_key(&id);
            self.dead.entry(id).or_insert(now);
        }
        let (living, own) = (&self.living, &self.id);
        self.dead.retain(|id, _| id != own && !living.contains(id));
        let is_recent = |since: &Instant, most| now.duration_since(*since) < most;
        let forgotten = 10 * TAKEN_BACK_FOR;
        self.former.retain(|_, since| is_recent(since, forgotten));
        self.unknown
            .retain(|id, since| is_recent(since, forgotten) && !living.contains(id));
    }

    /// Reads which of these replicas are dead.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn dead_of(
        &mut self,
        tenant: &TenantId,
        ids: &[String],
    ) -> Result<Vec<String>, StoreError> {
        let is_known = |id: &String| *id == self.id || self.living.contains(id);
        if self.is_entered() && !self.is_due() && ids.iter().all(is_known) {
            return Ok(Vec::new());
        }
        let replicas = store::renew(tenant, &self.store, "").await?;
        let now = Instant::now();
        self.take(replicas, now);
        let mut dead = ids.to_vec();
        dead.retain(|id| self.is_dead(id, now));
        Ok(dead)
    }

    fn is_dead(&mut self, id: &String, now: Instant) -> bool {
        if self.former.contains_key(id) || self.dead.contains_key(id) {
            return true;
        }
        if *id == self.id || self.living.contains(id) {
            return false;
        }
        // A replica enters the list before it writes, but the list may have been lost.
        let since = *self.unknown.entry_ref(id).or_insert(now);
        now.duration_since(since) >= UNKNOWN_FOR
    }

    /// Returns the replicas that were found dead a moment ago.
    pub(super) fn fresh_dead(&self) -> Vec<String> {
        let ended = self.dead.iter().chain(&self.former);
        let fresh = ended.filter(|(_, since)| since.elapsed() < TAKEN_BACK_FOR);
        fresh.map(|(id, _)| id.clone()).collect()
    }
}
