//! The in-process cache of users, which saves the round trip to Redis. Its memory is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use super::lookup::Wanted;
use super::record::UserRecord;
use crate::ids::UserId;

/// The most bytes of one tenant's cache, which hold about 15,000 users of Django.
const MAX_BYTES: u64 = 8 * 1024 * 1024;
/// The approximate bytes of an entry beside its texts.
const ENTRY_BYTES: usize = 250;

/// The cached users of one tenant. Without a Redis this is the only cache, and it keeps records as long as Redis would.
pub(super) struct LocalCache {
    entries: Cache<UserId, Local>,
    answer_for: Duration,
    negative_for: Duration,
    /// The number of calls of [`LocalCache::forget`].
    epoch: AtomicU64,
}

#[derive(Clone)]
struct Local {
    user: Option<Arc<UserRecord>>,
    generation: Option<Arc<str>>,
    read_at: Instant,
}

impl LocalCache {
    /// Makes an empty cache. An entry is an answer for `answer_for`, and that of an absent user for `negative_for` at
    /// most. It stays in the cache for `keep_for`.
    pub(super) fn new(answer_for: Duration, negative_for: Duration, keep_for: Duration) -> Self {
        Self {
            entries: Cache::builder()
                .weigher(|id: &UserId, local: &Local| {
                    let record = local.user.as_ref().map_or(0, |user| user.weight());
                    u32::try_from(ENTRY_BYTES + id.as_str().len() + record).unwrap_or(u32::MAX)
                })
                .max_capacity(MAX_BYTES)
                .time_to_live(keep_for)
                .build(),
            answer_for,
            negative_for: negative_for.min(answer_for),
            epoch: AtomicU64::new(0),
        }
    }

    /// Returns the epoch, which a lookup must read at its start and pass to [`Self::insert`].
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns the cached answer, if it is fresh.
    pub(super) fn get(&self, id: &UserId) -> Option<Option<Arc<UserRecord>>> {
        self.answer(&self.entries.get(id)?)
    }

    /// Returns the cached answer, if it is fresh and has the generation and the epoch of `wanted`.
    pub(super) fn get_same(&self, wanted: &Wanted) -> Option<Option<Arc<UserRecord>>> {
        let local = self.entries.get(&wanted.id)?;
        let same = local.generation == wanted.generation && self.epoch() == wanted.epoch;
        self.answer(&local).filter(|_| same)
    }

    fn answer(&self, local: &Local) -> Option<Option<Arc<UserRecord>>> {
        let limit = match local.user {
            Some(_) => self.answer_for,
            None => self.negative_for,
        };
        (local.read_at.elapsed() < limit).then(|| local.user.clone())
    }

    /// Returns a cached user, which may be too old for an answer.
    pub(super) fn stale(&self, id: &UserId) -> Option<Arc<UserRecord>> {
        self.entries.get(id)?.user
    }

    /// Stores an answer, unless [`Self::forget`] was called since its lookup began.
    pub(super) fn insert(&self, wanted: &Wanted, user: &Option<Arc<UserRecord>>) {
        if self.answer_for.is_zero() || self.epoch() != wanted.epoch {
            return;
        }
        let local = Local {
            user: user.clone(),
            generation: wanted.generation.clone(),
            read_at: Instant::now(),
        };
        self.entries.insert(wanted.id.clone(), local);
        // `forget` may have run between the check and the insert. It raises the epoch before it drops the entry, so
        // this second check sees it.
        if self.epoch() != wanted.epoch {
            self.entries.invalidate(&wanted.id);
        }
    }

    /// Frees the memory of expired entries, which an idle cache does not do by itself.
    pub(super) fn upkeep(&self) {
        self.entries.run_pending_tasks();
    }

    /// Drops a user. A lookup in progress cannot insert the old record again.
    pub(super) fn forget(&self, id: &UserId) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.entries.invalidate(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(generation: &str, epoch: u64) -> Wanted {
        Wanted {
            id: "7".into(),
            generation: Some(generation.into()),
            epoch,
        }
    }

    fn cache() -> LocalCache {
        let hour = Duration::from_secs(3600);
        LocalCache::new(hour, hour, hour)
    }

    #[test]
    fn an_answer_older_than_a_forget_is_not_kept() {
        let cache = cache();
        let early = wanted("", cache.epoch());
        cache.forget(&"8".into());
        cache.insert(&early, &None);
        assert!(cache.get(&"7".into()).is_none());
        cache.insert(&wanted("", cache.epoch()), &None);
        assert_eq!(cache.get(&"7".into()), Some(None));
        cache.forget(&"7".into());
        assert!(cache.get(&"7".into()).is_none());
    }

    #[test]
    fn a_caller_that_knows_more_is_not_answered() {
        let cache = cache();
        cache.insert(&wanted("g1", 0), &None);
        assert_eq!(cache.get_same(&wanted("g1", 0)), Some(None));
        assert_eq!(cache.get_same(&wanted("g2", 0)), None);
        assert_eq!(cache.get_same(&wanted("g1", 1)), None);
    }

    #[test]
    fn memory_is_bounded() {
        let cache = cache();
        for id in 0..50_000 {
            let id = UserId::from(id.to_string());
            let user = UserRecord {
                id: id.clone(),
                is_active: true,
                fields: "x".repeat(1000).into(),
                password_digest: None,
            };
            let wanted = Wanted {
                id,
                generation: None,
                epoch: 0,
            };
            cache.insert(&wanted, &Some(Arc::new(user)));
        }
        cache.entries.run_pending_tasks();
        assert!(cache.entries.weighted_size() <= MAX_BYTES);
        assert!(cache.entries.entry_count() > 1000);
    }
}
