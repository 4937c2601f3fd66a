//! A store in memory, for a gateway without any Redis. Its keys end with the process, and no other process sees them.

use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::clock::UnixTime;

/// The most bytes for which new keys are taken by [`MemoryStore::put_new`]. Clients of the API choose those keys; those of
/// revocations are always taken, because a revocation that is not stored is none.
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
        let entries = self.by_key.iter();
        self.bytes = entries.map(|(key, entry)| bytes_of(key, entry)).sum();
    }

    fn insert(&mut self, key: &str, entry: Entry) {
        self.bytes += bytes_of(key, &entry);
        if let Some(before) = self.by_key.insert(key.to_owned(), entry) {
            self.bytes -= bytes_of(key, &before);
        }
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
        if entries.bytes >= MAX_BYTES {
            return Err(MemoryFull);
        }
        let value = value.to_vec();
        entries.insert(key, Entry { value, ends_at });
        Ok(true)
    }

    /// Removes a key.
    pub fn remove(&self, key: &str) {
        let mut entries = self.entries.lock();
        if let Some(gone) = entries.by_key.remove(key) {
            entries.bytes -= bytes_of(key, &gone);
        }
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
