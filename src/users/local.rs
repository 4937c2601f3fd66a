//! Caches a tenant's users in this process, bounded in memory; a hit costs no round trip.
//!
//! The cache is two maps and not moka, because each handshake reads and writes it. Moka's bookkeeping took 2 % of the
//! CPU of a connect in a profile, and an entry that is only kept for `local_ttl` needs no order of eviction.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::lookup::Wanted;
use super::record::UserRecord;
use crate::ids::UserId;

/// The most bytes of one tenant's records in this process: about 15,000 users of Django's `auth_user`.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// The approximate bytes of an entry without its id and record.
const ENTRY_BYTES: usize = 150;

/// The users of one tenant that this process knows. For a tenant without Redis it takes the place of Redis.
pub(super) struct LocalCache {
    entries: Mutex<Entries>,
    /// The age up to which an entry is an answer.
    answer_for: Duration,
    /// The same for absent users.
    negative_for: Duration,
    /// The age up to which an entry may be used while the database is down.
    keep_for: Duration,
    /// The number of calls of [`LocalCache::forget`].
    epoch: AtomicU64,
}

#[derive(Clone)]
struct Local {
    user: Option<Arc<UserRecord>>,
    generation: Option<Arc<str>>,
    read_at: Instant,
}

impl Local {
    fn bytes(&self, id: &UserId) -> usize {
        let record = self.user.as_ref().map_or(0, |user| user.weight());
        let generation = self.generation.as_ref().map_or(0, |text| text.len());
        ENTRY_BYTES + id.as_str().len() + record + generation
    }
}

/// Two maps that bound size and age without bookkeeping for each entry. New entries go into the young map. Once it
/// holds half of [`MAX_BYTES`], or is `keep_for` old, the old map is dropped and the young one takes its place.
struct Entries {
    young: HashMap<UserId, Local>,
    old: HashMap<UserId, Local>,
    young_bytes: usize,
    began: Instant,
}

impl Entries {
    fn get(&self, id: &UserId) -> Option<&Local> {
        self.young.get(id).or_else(|| self.old.get(id))
    }

    fn insert(&mut self, id: &UserId, local: Local) {
        let bytes = local.bytes(id);
        let replaced = self.young.insert(id.clone(), local);
        let freed = replaced.map_or(0, |replaced| replaced.bytes(id));
        self.young_bytes = (self.young_bytes + bytes).saturating_sub(freed);
    }

    fn remove(&mut self, id: &UserId) {
        if let Some(gone) = self.young.remove(id) {
            self.young_bytes = self.young_bytes.saturating_sub(gone.bytes(id));
        }
        self.old.remove(id);
    }

    /// Returns the old map if its time is over at `now`, so that the caller can drop it without the lock.
    fn rotate(&mut self, now: Instant, keep_for: Duration) -> Option<HashMap<UserId, Local>> {
        let full = self.young_bytes >= MAX_BYTES / 2;
        if !full && now.saturating_duration_since(self.began) < keep_for {
            return None;
        }
        self.began = now;
        self.young_bytes = 0;
        let young = mem::take(&mut self.young);
        Some(mem::replace(&mut self.old, young))
    }
}

impl LocalCache {
    /// Creates a cache whose entries are answers for `answer_for` (`negative_for` for absent users, if that is shorter)
    /// and are kept for `keep_for`.
    pub(super) fn new(answer_for: Duration, negative_for: Duration, keep_for: Duration) -> Self {
        Self {
            entries: Mutex::new(Entries {
                young: HashMap::new(),
                old: HashMap::new(),
                young_bytes: 0,
                began: Instant::now(),
            }),
            answer_for,
            negative_for: negative_for.min(answer_for),
            keep_for,
            epoch: AtomicU64::new(0),
        }
    }

    /// Returns the epoch for the [`Wanted`] of a lookup that begins now; [`Self::insert`] compares it.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns the cached answer.
    pub(super) fn get(&self, id: &UserId) -> Option<Option<Arc<UserRecord>>> {
        self.answer(self.entries.lock().get(id)?)
    }

    /// Returns the cached answer if it has the caller's generation and epoch.
    pub(super) fn get_same(&self, wanted: &Wanted) -> Option<Option<Arc<UserRecord>>> {
        let entries = self.entries.lock();
        let local = entries.get(&wanted.id)?;
        let same = local.generation == wanted.generation && self.epoch() == wanted.epoch;
        self.answer(local).filter(|_| same)
    }

    fn answer(&self, local: &Local) -> Option<Option<Arc<UserRecord>>> {
        let limit = match local.user {
            Some(_) => self.answer_for,
            None => self.negative_for,
        };
        (local.read_at.elapsed() < limit).then(|| local.user.clone())
    }

    /// Returns a user that may be too old to be an answer.
    pub(super) fn stale(&self, id: &UserId) -> Option<Arc<UserRecord>> {
        let entries = self.entries.lock();
        let local = entries.get(id)?;
        let kept = local.read_at.elapsed() < self.keep_for;
        local.user.clone().filter(|_| kept)
    }

    /// Caches an answer, unless a user was forgotten since its lookup began.
    pub(super) fn insert(&self, wanted: &Wanted, user: &Option<Arc<UserRecord>>) {
        if self.answer_for.is_zero() {
            return;
        }
        let now = Instant::now();
        let local = Local {
            user: user.clone(),
            generation: wanted.generation.clone(),
            read_at: now,
        };
        let mut entries = self.entries.lock();
        // Under the lock, because `forget` raises the epoch before it takes the lock to remove the entry.
        if self.epoch() != wanted.epoch {
            return;
        }
        let ended = entries.rotate(now, self.keep_for);
        entries.insert(&wanted.id, local);
        drop(entries);
        drop(ended);
    }

    /// Frees the memory of entries that are too old.
    pub(super) fn upkeep(&self) {
        let ended = self.entries.lock().rotate(Instant::now(), self.keep_for);
        drop(ended);
    }

    /// Drops a user. A lookup that is under way does not bring the old record back.
    pub(super) fn forget(&self, id: &UserId) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.entries.lock().remove(id);
    }

    /// Drops every user, as [`LocalCache::forget`] drops one.
    pub(super) fn forget_all(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let mut entries = self.entries.lock();
        let gone = (mem::take(&mut entries.young), mem::take(&mut entries.old));
        entries.young_bytes = 0;
        drop(entries);
        // Without the lock: a large cache takes a while.
        drop(gone);
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
                fields: "x".repeat(1000).as_str().into(),
                password_digest: None,
            };
            let wanted = Wanted {
                id,
                generation: None,
                epoch: 0,
            };
            cache.insert(&wanted, &Some(Arc::new(user)));
        }
        let entries = cache.entries.lock();
        let generations = [&entries.young, &entries.old];
        let bytes: usize = generations
            .iter()
            .flat_map(|entries| entries.iter())
            .map(|(id, local)| local.bytes(id))
            .sum();
        assert!(bytes <= MAX_BYTES, "{bytes}");
        assert!(entries.young.len() + entries.old.len() > 1000);
    }

    #[test]
    fn the_memory_of_old_entries_is_freed() {
        let moment = Duration::from_millis(1);
        let cache = LocalCache::new(moment, moment, moment);
        cache.insert(&wanted("", 0), &None);
        for _ in 0..2 {
            std::thread::sleep(moment);
            cache.upkeep();
        }
        let entries = cache.entries.lock();
        assert_eq!((entries.young.capacity(), entries.old.capacity()), (0, 0));
    }

    #[test]
    fn an_entry_is_kept_for_its_whole_time() {
        let cache = cache();
        cache.insert(&wanted("", 0), &None);
        let mut entries = cache.entries.lock();
        let ends = entries.began + cache.keep_for;
        assert!(entries.rotate(ends, cache.keep_for).is_some());
        drop(entries);
        assert_eq!(cache.get(&"7".into()), Some(None));
    }
}
