//! A store in memory, for a gateway without any Redis. Its keys end with the process, and no other process sees them.
//!
//! Keys that callers choose are bounded in bytes. Those that may go stand in lists: at the bound the oldest of the list with
//! most bytes goes, so that one tenant's calls take no room from another's.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::clock::UnixTime;

/// The most bytes beside which [`MemoryStore::put_new`] takes a key and lists keep theirs. Clients of the API choose those keys;
/// those of revocations are always taken, because a revocation that is not stored is none.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The approximate bytes of an entry without its key and value.
const ENTRY_BYTES: usize = 100;
/// Interval at which expired entries are removed, in seconds.
const SWEEP: f64 = 60.0;

/// Values by key, with or without an expiry.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: Mutex<StoredKeys>,
}

/// The store has no room for keys that clients choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory for keys is full; configure a Redis")]
pub struct MemoryFull;

#[derive(Debug, Default)]
struct StoredKeys {
    by_key: HashMap<String, Entry>,
    /// The keys that may go, by the names of their lists.
    lists: HashMap<String, KeyList>,
    bytes: usize,
    /// The time of the last sweep, in Unix seconds.
    swept_at: f64,
}

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    /// The expiry in Unix seconds; infinite if there is none.
    ends_at: f64,
}

/// Keys that may go, oldest first.
#[derive(Debug, Default)]
struct KeyList {
    keys: VecDeque<ListedKey>,
    bytes: usize,
}

#[derive(Debug)]
struct ListedKey {
    key: String,
    /// The expiry of the entry when it was listed: a later entry of this key is another one.
    ends_at: f64,
    bytes: usize,
}

impl Entry {
    fn lives(&self, now: UnixTime) -> bool {
        self.ends_at > now.0
    }
}

impl StoredKeys {
    /// Frees the memory of expired entries, at most once in [`SWEEP`].
    fn sweep(&mut self, now: UnixTime) {
        if (now.0 - self.swept_at).abs() < SWEEP {
            return;
        }
        self.swept_at = now.0;
        self.by_key.retain(|_, entry| entry.lives(now));
        self.by_key.shrink_to_fit();
        for list in self.lists.values_mut() {
            list.keys.retain(|listed| listed.ends_at > now.0);
            list.keys.shrink_to_fit();
            list.bytes = list.keys.iter().map(|listed| listed.bytes).sum();
        }
        self.lists.retain(|_, list| !list.keys.is_empty());
        let entries = self.by_key.iter();
        self.bytes = entries.map(|(key, entry)| bytes_of(key, entry)).sum();
    }

    fn insert(&mut self, key: &str, entry: Entry) {
        self.bytes += bytes_of(key, &entry);
        if let Some(before) = self.by_key.insert(key.to_owned(), entry) {
            self.bytes -= bytes_of(key, &before);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(gone) = self.by_key.remove(key) {
            self.bytes -= bytes_of(key, &gone);
        }
    }

    /// Removes the oldest key of a list. Returns false if the list is empty.
    fn remove_oldest(&mut self, list: &str) -> bool {
        let Some(list) = self.lists.get_mut(list) else {
            return false;
        };
        let Some(oldest) = list.keys.pop_front() else {
            return false;
        };
        list.bytes -= oldest.bytes;
        let there = self.by_key.get(&oldest.key);
        if there.is_some_and(|entry| entry.ends_at == oldest.ends_at) {
            self.remove(&oldest.key);
        }
        true
    }

    /// Removes the oldest keys of the fullest lists while there are too many bytes. Returns false if none is left to go.
    fn make_room(&mut self) -> bool {
        while self.bytes >= MAX_BYTES {
            let fullest = self.lists.iter().max_by_key(|(_, list)| list.bytes);
            let Some(fullest) = fullest.map(|(name, _)| name.clone()) else {
                return false;
            };
            if !self.remove_oldest(&fullest) {
                self.lists.remove(&fullest);
            }
        }
        true
    }
}

fn bytes_of(key: &str, entry: &Entry) -> usize {
    ENTRY_BYTES + key.len() + entry.value.len()
}

impl MemoryStore {
    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let (mut entries, now) = (self.entries.lock(), UnixTime::now());
        entries.sweep(now);
        let entry = entries.by_key.get(key).filter(|entry| entry.lives(now))?;
        Some(entry.value.clone())
    }

    /// Stores `value` under `key` if `may` returns true for the current value.
    pub fn put_if(
        &self,
        key: &str,
        value: &[u8],
        ends_at: f64,
        may: impl FnOnce(Option<&[u8]>) -> bool,
    ) {
        let (mut entries, now) = (self.entries.lock(), UnixTime::now());
        entries.sweep(now);
        let there = entries.by_key.get(key).filter(|entry| entry.lives(now));
        if may(there.map(|entry| &*entry.value)) {
            let value = value.to_vec();
            entries.insert(key, Entry { value, ends_at });
        }
    }

    /// Stores `value` under `key` if the key is absent; returns true if it did.
    ///
    /// # Errors
    /// [`MemoryFull`] if the store holds too much already.
    pub fn put_new(&self, key: &str, value: &[u8], ends_at: f64) -> Result<bool, MemoryFull> {
        let (mut entries, now) = (self.entries.lock(), UnixTime::now());
        entries.sweep(now);
        if entries
            .by_key
            .get(key)
            .is_some_and(|entry| entry.lives(now))
        {
            return Ok(false);
        }
        if !entries.make_room() {
            return Err(MemoryFull);
        }
        let value = value.to_vec();
        entries.insert(key, Entry { value, ends_at });
        Ok(true)
    }

    /// Lets `key` go once `list` has more than `most` newer keys, or the memory is full. Without the key it does nothing.
    pub fn keep_newest(&self, list: &str, key: &str, most: u64) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.by_key.get(key) else {
            return;
        };
        let (bytes, ends_at) = (bytes_of(key, entry), entry.ends_at);
        let listed = entries.lists.entry_ref(list).or_default();
        listed.bytes += bytes;
        listed.keys.push_back(ListedKey {
            key: key.to_owned(),
            ends_at,
            bytes,
        });
        let excess = (listed.keys.len() as u64).saturating_sub(most);
        for _ in 0..excess {
            entries.remove_oldest(list);
        }
        entries.make_room();
    }

    /// Removes a key.
    pub fn remove(&self, key: &str) {
        self.entries.lock().remove(key);
    }
}

/// Returns the expiry of an entry that lives for `ttl` from now, in Unix seconds.
pub(super) fn end_after(ttl: Duration) -> f64 {
    UnixTime::now().0 + ttl.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: f64 = f64::INFINITY;

    /// Before, the keys of calls took memory without a bound, for a day each.
    #[test]
    fn keys_that_clients_choose_are_bounded_in_bytes_and_revocations_are_taken() {
        let store = MemoryStore::default();
        let value = vec![b'x'; 1024 * 1024];
        let taken = (0..100).take_while(|n| store.put_new(&n.to_string(), &value, FAR).is_ok());
        assert_eq!(taken.count(), 64);
        assert_eq!(store.put_new("a", b"1", FAR), Err(MemoryFull));
        assert_eq!(store.put_new("1", b"1", FAR), Ok(false));
        store.put_if("deny", b"1", FAR, |_| true);
        assert_eq!(store.get("deny"), Some(b"1".to_vec()));
        store.remove("1");
        assert_eq!(store.put_new("a", b"1", FAR), Ok(true));
    }

    /// Before, nothing went but by its age of a day: the calls of one tenant refused those of all others with 503.
    #[test]
    fn the_oldest_answers_of_the_tenant_with_most_go() {
        let store = MemoryStore::default();
        let value = vec![b'x'; 1024 * 1024];
        let answer = |list: &str, n: u64| {
            let key = format!("{list}{n}");
            assert_eq!(store.put_new(&key, b"held", FAR), Ok(true), "{key}");
            store.put_if(&key, &value, FAR, |_| true);
            store.keep_newest(list, &key, 1000);
        };
        answer("quiet", 0);
        (0..200).for_each(|n| answer("loud", n));
        assert!(store.entries.lock().bytes <= MAX_BYTES + value.len());
        assert!(store.get("quiet0").is_some());
        assert_eq!(
            (store.get("loud136"), store.get("loud199")),
            (None, Some(value.clone()))
        );
    }

    #[test]
    fn a_list_keeps_its_newest_keys_and_what_it_lost_it_does_not_remove_again() {
        let store = MemoryStore::default();
        for n in 0..5 {
            let key = n.to_string();
            store.put_new(&key, b"1", FAR).unwrap();
            store.keep_newest("list", &key, 3);
        }
        let there: Vec<_> = (0..5)
            .map(|n| store.get(&n.to_string()).is_some())
            .collect();
        assert_eq!(there, [false, false, true, true, true]);
        // Another entry of a listed key, which is not listed.
        store.remove("2");
        store.put_new("2", b"2", 1e12).unwrap();
        for key in ["a", "b", "c", "d"] {
            store.put_new(key, b"1", FAR).unwrap();
            store.keep_newest("list", key, 3);
        }
        assert_eq!(store.get("2"), Some(b"2".to_vec()));
        assert_eq!((store.get("3"), store.get("4")), (None, None));
        // The lists of expired entries end with them.
        store.put_if("d", b"1", 1.0, |_| true);
        store.put_if("old", b"1", 1.0, |_| true);
        store.keep_newest("gone", "old", 3);
        store.entries.lock().swept_at = 0.0;
        assert_eq!(store.get("old"), None);
        let lists: Vec<_> = store.entries.lock().lists.keys().cloned().collect();
        assert_eq!(lists, ["list"]);
    }

    /// Before, expired entries stayed until the map was full.
    #[test]
    fn the_memory_of_expired_entries_is_freed() {
        let store = MemoryStore::default();
        for n in 0..1000 {
            store.put_if(&n.to_string(), b"1", 1.0, |_| true);
        }
        store.entries.lock().swept_at = 0.0;
        assert_eq!(store.get("1"), None);
        let entries = store.entries.lock();
        assert_eq!((entries.bytes, entries.by_key.capacity()), (0, 0));
    }
}
