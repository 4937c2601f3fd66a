//! A store in memory, for a gateway without any Redis. Its keys end with the process, and no other process sees them.

use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::clock::UnixTime;

/// Values by key, with or without an expiry.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: Mutex<HashMap<String, Entry>>,
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

impl MemoryStore {
    /// Returns the value of each key.
    pub fn get_each(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        let (entries, now) = (self.entries.lock(), UnixTime::now());
        let value = |key: &String| {
            let entry = entries.get(key).filter(|entry| entry.lives(now))?;
            Some(entry.value.clone())
        };
        keys.iter().map(value).collect()
    }

    /// Stores `value` under `key` if `may` returns true for the current value. Returns true if it stored the value.
    pub fn put_if(
        &self,
        key: &str,
        value: &[u8],
        ends_at: f64,
        may: impl FnOnce(Option<&[u8]>) -> bool,
    ) -> bool {
        let (mut entries, now) = (self.entries.lock(), UnixTime::now());
        let there = entries.get(key).filter(|entry| entry.lives(now));
        if !may(there.map(|entry| &*entry.value)) {
            return false;
        }
        // Expired entries are removed only when the map is full. Its capacity doubles, so the cost per new key is
        // constant.
        if entries.len() == entries.capacity() {
            entries.retain(|_, entry| entry.lives(now));
        }
        let value = value.to_vec();
        entries.insert(key.to_owned(), Entry { value, ends_at });
        true
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
