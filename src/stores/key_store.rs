//! The store of the keys in [`super::redis_keys`]: a Redis, or the memory of this process if there is no Redis.

use std::sync::Arc;
use std::time::Duration;

use super::key_read::{KeyRead, KeyValue};
use super::memory::{MemoryStore, end_after};
use super::redis::RedisStore;
use crate::clock::UnixTime;
use crate::error::{Dependency, ErrorKind, StoreError};

/// Replaces a cut-off by a later one. A value that is no cut-off counts as absent, so that the write repairs it: no string,
/// no number, or longer than [`redis_keys::CUT_OFF_BYTES`](super::redis_keys::CUT_OFF_BYTES).
const RAISE: &str = "\
local old = redis.pcall('GETRANGE', KEYS[1], 0, 64)
if type(old) ~= 'string' or #old > 64 then old = '' end
local now = string.match(old, '^-?%d+%.?%d*$') and tonumber(old)
if now and now < math.huge and now > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

/// Takes the oldest names out of a list, and returns those that are no longer than a name may be: others can write into the list.
/// KEYS: list. ARGV: number, bytes of the longest name.
const TAKE_OLDEST: &str = "\
local names = {}
for _ = 1, tonumber(ARGV[1]) do
    local oldest = redis.call('ZPOPMIN', KEYS[1])[1]
    if not oldest then break end
    if #oldest <= tonumber(ARGV[2]) then names[#names + 1] = oldest end
end
return names";

/// Bytes of the longest name in a list of [`KeyStore::keep_newest`].
pub const LISTED_NAME_BYTES: usize = 255;
/// The most keys that one call of [`KeyStore::keep_newest`] removes.
const MOST_REMOVED: u64 = 100;

/// A store of keys that may expire.
#[derive(Clone)]
pub enum KeyStore {
    /// A Redis, which all replicas share.
    Redis(Arc<RedisStore>),
    /// The memory of this process alone.
    Memory(Arc<MemoryStore>),
}

/// The lifetime of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lifetime {
    /// The key expires after this time.
    For(Duration),
    /// The key expires at this Unix second.
    Until(u64),
    /// The key does not expire.
    Forever,
}

impl KeyStore {
    /// Returns the Redis; `None` for memory.
    pub fn redis(&self) -> Option<&Arc<RedisStore>> {
        match self {
            KeyStore::Redis(redis) => Some(redis),
            KeyStore::Memory(_) => None,
        }
    }

    /// Returns true if both are the same store.
    pub fn is_same(&self, other: &KeyStore) -> bool {
        match (self, other) {
            (KeyStore::Redis(a), KeyStore::Redis(b)) => Arc::ptr_eq(a, b),
            (KeyStore::Memory(a), KeyStore::Memory(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Returns the time since its last answer; zero for memory, which always answers.
    pub fn silent_for(&self) -> Duration {
        match self {
            KeyStore::Redis(redis) => redis.silent_for(),
            KeyStore::Memory(_) => Duration::ZERO,
        }
    }

    /// Returns the values of keys, read in one round, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_each(
        &self,
        reads: impl Into<Vec<KeyRead>>,
    ) -> Result<Vec<KeyValue>, StoreError> {
        match self {
            KeyStore::Redis(redis) => redis.get_each(reads).await,
            KeyStore::Memory(memory) => Ok(values_in(memory, &reads.into())),
        }
    }

    /// Returns the values of keys as [`KeyStore::get_each`] does, with a result for each: see [`RedisStore::get_apart`].
    ///
    /// # Errors
    /// [`StoreError`] if no key could be read.
    pub async fn get_apart(
        &self,
        reads: Vec<KeyRead>,
    ) -> Result<Vec<Result<KeyValue, StoreError>>, StoreError> {
        match self {
            KeyStore::Redis(redis) => redis.get_apart(reads).await,
            KeyStore::Memory(memory) => Ok(values_in(memory, &reads).into_iter().map(Ok).collect()),
        }
    }

    /// Stores `value` under `key`; returns once `replicas` of the server's replicas have acknowledged it.
    ///
    /// # Errors
    /// [`StoreError`]: the value may or may not be stored then.
    pub async fn put(
        &self,
        key: &str,
        value: &[u8],
        lifetime: Lifetime,
        replicas: u32,
    ) -> Result<(), StoreError> {
        match self {
            KeyStore::Redis(redis) => {
                let mut command = redis::cmd("SET");
                command.arg(key).arg(value);
                lifetime.add_to(&mut command);
                write(redis, "set", &command, replicas).await
            }
            KeyStore::Memory(memory) => {
                memory.put_if(key, value, lifetime.ends_at(), |_| true);
                Ok(())
            }
        }
    }

    /// Stores `value` under `key` if the key is absent; returns true if it did. The write is never repeated.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_new(
        &self,
        key: &str,
        value: &[u8],
        lifetime: Lifetime,
    ) -> Result<bool, StoreError> {
        match self {
            KeyStore::Redis(redis) => {
                let mut command = redis::cmd("SET");
                command.arg(key).arg(value).arg("NX");
                lifetime.add_to(&mut command);
                let set: Option<redis::Value> = redis.query("set", &command).await?;
                Ok(set.is_some())
            }
            KeyStore::Memory(memory) => {
                let put = memory.put_new(key, value, lifetime.ends_at());
                put.map_err(|full| StoreError::new(Dependency::Redis, ErrorKind::Other, full))
            }
        }
    }

    /// Raises the cut-off under `key` to `cut_off` (Unix seconds); the key expires at `until`. A `cut_off` before the stored
    /// one changes nothing. The write is acknowledged as in [`KeyStore::put`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn raise(
        &self,
        key: &str,
        cut_off: f64,
        until: u64,
        replicas: u32,
    ) -> Result<(), StoreError> {
        let text = cut_off.to_string();
        match self {
            KeyStore::Redis(redis) => {
                let mut command = redis::cmd("EVAL");
                let left = milliseconds_to(until);
                command.arg(RAISE).arg(1).arg(key).arg(text).arg(left);
                write(redis, "eval", &command, replicas).await
            }
            KeyStore::Memory(memory) => {
                let is_later = |there: Option<&[u8]>| {
                    let there = there.and_then(|there| std::str::from_utf8(there).ok());
                    let there = there.and_then(|there| there.parse::<f64>().ok());
                    there.is_none_or(|there| there <= cut_off)
                };
                memory.put_if(key, text.as_bytes(), until as f64, is_later);
                Ok(())
            }
        }
    }

    /// Notes the key `prefix` and `name` in `list`, and removes the oldest keys of the list beyond `most`. `kept` is the time for
    /// which the key lives at most. A failure leaves some for the next call.
    ///
    /// The list holds names, so that one who may write into it can name no key without the prefix.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_newest(
        &self,
        list: &str,
        (prefix, name): (&str, &str),
        most: u64,
        kept: Duration,
    ) -> Result<(), StoreError> {
        let redis = match self {
            KeyStore::Redis(redis) => redis,
            KeyStore::Memory(memory) => {
                memory.keep_newest(list, &[prefix, name].concat(), most);
                return Ok(());
            }
        };
        let mut pipe = redis::pipe();
        pipe.zadd(list, name, UnixTime::now().0);
        pipe.expire(list, kept.as_secs() as i64);
        pipe.zcard(list);
        let (_, _, count): (u64, u64, u64) = redis.query("keep_newest", &pipe).await?;
        if count <= most {
            return Ok(());
        }
        let mut oldest = redis::cmd("EVAL");
        oldest.arg(TAKE_OLDEST).arg(1).arg(list);
        oldest.arg((count - most).min(MOST_REMOVED));
        oldest.arg(prefix.len() + LISTED_NAME_BYTES);
        let oldest: Vec<Vec<u8>> = redis.query("keep_newest", &oldest).await?;
        if oldest.is_empty() {
            return Ok(());
        }
        // One command for each, since a cluster may hold them on several nodes.
        let mut forget = redis::Pipeline::with_capacity(oldest.len());
        for name in &oldest {
            // An earlier version noted whole keys.
            let name = name.strip_prefix(prefix.as_bytes()).unwrap_or(name);
            forget.del([prefix.as_bytes(), name].concat());
        }
        redis.query("keep_newest", &forget).await
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self, key: &str) -> Result<(), StoreError> {
        match self {
            KeyStore::Redis(redis) => {
                let mut command = redis::cmd("DEL");
                command.arg(key);
                redis.query_again::<redis::Value>("del", &command).await?;
            }
            KeyStore::Memory(memory) => memory.remove(key),
        }
        Ok(())
    }
}

fn values_in(memory: &MemoryStore, reads: &[KeyRead]) -> Vec<KeyValue> {
    let found = |read: &KeyRead| read.keys().find_map(|key| memory.get(key));
    reads.iter().map(|read| read.judge(found(read))).collect()
}

async fn write(
    redis: &RedisStore,
    operation: &'static str,
    command: &redis::Cmd,
    replicas: u32,
) -> Result<(), StoreError> {
    if replicas > 0 {
        return redis.write_acknowledged(operation, command, replicas).await;
    }
    let _answer: redis::Value = redis.query_again(operation, command).await?;
    Ok(())
}

/// Returns the milliseconds from now to a Unix second, at least 1. `EXAT` would need no clock, and Redis 6.2.
fn milliseconds_to(second: u64) -> u64 {
    let left = (second as f64 - UnixTime::now().0) * 1000.0;
    left.ceil().max(1.0) as u64
}

impl Lifetime {
    fn add_to(self, command: &mut redis::Cmd) {
        match self {
            Lifetime::For(ttl) => {
                let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
                command.arg("PX").arg(ttl);
            }
            Lifetime::Until(second) => drop(command.arg("PX").arg(milliseconds_to(second))),
            Lifetime::Forever => {}
        }
    }

    fn ends_at(self) -> f64 {
        match self {
            Lifetime::For(ttl) => end_after(ttl),
            Lifetime::Until(second) => second as f64,
            Lifetime::Forever => f64::INFINITY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before: `EXAT`, which a Redis before 6.2 refuses, so that every revocation was 503.
    #[test]
    fn a_lifetime_up_to_a_second_is_told_as_the_time_that_is_left() {
        let left = |second: u64| {
            let mut command = redis::cmd("SET");
            Lifetime::Until(second).add_to(&mut command);
            let words: Vec<String> = command
                .args_iter()
                .map(|word| match word {
                    redis::Arg::Simple(word) => String::from_utf8_lossy(word).into_owned(),
                    _ => String::new(),
                })
                .collect();
            assert_eq!(words[1], "PX");
            words[2].parse::<u64>().unwrap()
        };
        let now = UnixTime::now().0 as u64;
        let (hour, past) = (left(now + 3600), left(now - 10));
        assert!((3_590_000..=3_600_000).contains(&hour), "{hour}");
        assert_eq!(past, 1);
    }

    #[tokio::test]
    async fn memory_keeps_what_redis_would() {
        let store = KeyStore::Memory(Arc::default());
        let far = Lifetime::For(Duration::from_secs(100));
        let read = async |key: &str| {
            let read = KeyRead::text(key.to_owned(), 100);
            let values = store.get_each([read]).await.unwrap();
            values[0].clone().unwrap()
        };
        assert!(store.put_new("a", b"1", far).await.unwrap());
        assert!(!store.put_new("a", b"2", far).await.unwrap());
        assert_eq!(read("a").await.as_deref(), Some(&b"1"[..]));
        store.put("a", b"3", Lifetime::Until(1), 0).await.unwrap();
        assert_eq!(read("a").await, None);
        for (cut_off, stands) in [(10.0, "10"), (9.0, "10"), (11.5, "11.5")] {
            store.raise("c", cut_off, u64::MAX, 0).await.unwrap();
            assert_eq!(read("c").await.as_deref(), Some(stands.as_bytes()));
        }
        store.remove("c").await.unwrap();
        assert_eq!(read("c").await, None);
    }
}
