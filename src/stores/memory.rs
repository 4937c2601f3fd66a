//! The keys of Lockgate in this process's memory, for a gateway without any Redis: nothing outlives it, nobody shares it.

use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::clock::UnixTime;

/// Texts under keys, each with an end or without.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    /// Unix seconds; infinite without an end.
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

    /// Puts `value` under `key` where `may` agrees with what stands there; answers whether it did.
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
        // Doubling keeps the sweep's cost per new key constant.
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

/// Returns the end of what lives for `ttl` from now.
pub(super) fn end_after(ttl: Duration) -> f64 {
    UnixTime::now().0 + ttl.as_secs_f64()
}
