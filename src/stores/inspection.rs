//! What one Redis server says of itself, and whether it does what a gateway asks of it.
//!
//! Asked by the denylist watch and by `lockgate doctor`. What the login may not ask for is unknown, never a failure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::Value;
use tokio::time::timeout;

use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};

use super::redis::RedisStore;
use super::redis_keys::{ACKNOWLEDGED, EPOCH, LOST};
use super::redis_link::{ANSWER_LIMIT, store_error};

/// How long a key lives that only shows whether keys may be written.
const PROBE_TTL: Duration = Duration::from_secs(1);

/// Whether writes go to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Master,
    /// It copies another one, and may be behind it.
    Replica,
}

/// What a server says of itself; `None` where it does not say, or the login may not ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// As `7.0.15`.
    pub version: Option<String>,
    /// Master or replica.
    pub role: Option<Role>,
    /// Bytes after which it evicts or refuses; 0 is no limit.
    pub maxmemory: Option<u64>,
    /// What it evicts then: `noeviction`, `volatile-lru`, …
    pub maxmemory_policy: Option<String>,
    /// Whether it logs writes to a file (`appendonly`).
    pub append_only: Option<bool>,
    /// When it writes snapshots (`save`); empty: never.
    pub save: Option<String>,
}

impl Facts {
    /// Asks for all but `save`, by INFO; only for the role, by ROLE, where that is refused.
    ///
    /// # Errors
    /// [`StoreError`] if the server does not answer. A refusal is no error.
    pub async fn ask(store: &RedisStore) -> Result<Self, StoreError> {
        let info: Option<String> = allowed(store.query("info", &redis::cmd("INFO")).await)?;
        let mut facts = info.as_deref().map(Self::read).unwrap_or_default();
        if facts.role.is_none() {
            let role: Option<Vec<Value>> = allowed(store.query("role", &redis::cmd("ROLE")).await)?;
            let word = role.as_deref().and_then(<[Value]>::first);
            facts.role = word.and_then(|word| match word {
                Value::BulkString(word) => role_of(std::str::from_utf8(word).ok()?),
                Value::SimpleString(word) => role_of(word),
                _ => None,
            });
        }
        Ok(facts)
    }

    /// Asks when it writes snapshots as well: CONFIG, which a gateway's login need not have.
    ///
    /// # Errors
    /// As [`Facts::ask`].
    pub async fn ask_all(store: &RedisStore) -> Result<Self, StoreError> {
        let mut facts = Self::ask(store).await?;
        let mut save = redis::cmd("CONFIG");
        save.arg("GET").arg("save");
        let save: Option<HashMap<String, String>> = allowed(store.query("config", &save).await)?;
        facts.save = save.and_then(|mut found| found.remove("save"));
        Ok(facts)
    }

    /// Reads what INFO answers.
    fn read(info: &str) -> Self {
        let fields: HashMap<&str, &str> = info
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'))
            .collect();
        let text = |name: &str| fields.get(name).map(|text| (*text).to_owned());
        Self {
            version: text("redis_version"),
            role: fields.get("role").and_then(|word| role_of(word)),
            maxmemory: fields.get("maxmemory").and_then(|bytes| bytes.parse().ok()),
            maxmemory_policy: text("maxmemory_policy"),
            append_only: fields.get("aof_enabled").map(|flag| *flag == "1"),
            save: None,
        }
    }

    /// Major and minor version.
    pub fn version_numbers(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.as_ref()?.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// Returns true if it drops keys that have a time to live once its memory is full. Every policy but `noeviction` does.
    pub fn evicts(&self) -> Option<bool> {
        if self.maxmemory == Some(0) {
            return Some(false);
        }
        let policy = self.maxmemory_policy.as_ref()?;
        match policy.as_str() {
            "noeviction" => Some(false),
            _ => self.maxmemory.map(|bytes| bytes > 0),
        }
    }

    /// Returns true if anything it holds outlives its process.
    pub fn persists(&self) -> Option<bool> {
        match (self.append_only, &self.save) {
            (Some(true), _) => Some(true),
            (_, Some(save)) if !save.is_empty() => Some(true),
            (Some(false), Some(_)) => Some(false),
            _ => None,
        }
    }
}

fn role_of(word: &str) -> Option<Role> {
    match word {
        "master" => Some(Role::Master),
        "slave" | "replica" => Some(Role::Replica),
        _ => None,
    }
}

/// `None` for what the server refuses to answer: no permission, no such command (managed servers hide some).
fn allowed<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => match error.kind {
            ErrorKind::Permission | ErrorKind::Other | ErrorKind::Protocol => Ok(None),
            ErrorKind::Io | ErrorKind::Timeout | ErrorKind::Auth => Err(error),
        },
    }
}

/// How long PINGs took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Half of them took at most this.
    pub median: Duration,
    /// The slowest.
    pub max: Duration,
}

impl Latency {
    /// PINGs `count` times, one after another, at least once.
    ///
    /// # Errors
    /// [`StoreError`] of the first that fails.
    pub async fn measure(store: &RedisStore, count: usize) -> Result<Self, StoreError> {
        let mut took = vec![store.ping().await?];
        for _ in 1..count {
            took.push(store.ping().await?);
        }
        took.sort_unstable();
        let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
        Ok(Self { median, max })
    }
}

/// The server's clock less ours, in seconds; `None` if the login may not ask. Exact to half a round trip.
///
/// # Errors
/// [`StoreError`] if the server does not answer.
pub async fn clock_offset(store: &RedisStore) -> Result<Option<f64>, StoreError> {
    let before = UnixTime::now();
    let time: Option<(f64, f64)> = allowed(store.query("time", &redis::cmd("TIME")).await)?;
    let now = f64::midpoint(before.0, UnixTime::now().0);
    Ok(time.map(|(seconds, micros)| seconds + micros / 1e6 - now))
}

/// Whether `key` can be written; it lives for a second, so name one that nobody reads.
///
/// # Errors
/// [`StoreError`] says why not: no permission, a replica, no memory left, no answer.
pub async fn write(store: &RedisStore, key: &str) -> Result<(), StoreError> {
    store.set_ex(key, b"1", PROBE_TTL).await
}

/// Returns true if `key` can be read, whatever it holds.
///
/// # Errors
/// [`StoreError`].
pub async fn read(store: &RedisStore, key: &str) -> Result<(), StoreError> {
    store.get_each(&[key.to_owned()]).await.map(drop)
}

/// Returns true if `channel` may be subscribed, on a connection of its own.
///
/// # Errors
/// [`StoreError`].
pub async fn subscribe(store: &RedisStore, channel: &str) -> Result<(), StoreError> {
    in_time(store, async {
        let mut link = store.client().await?.get_async_pubsub().await?;
        link.subscribe(channel).await
    })
    .await
}

/// How long a message takes through `channel` and back; name one to which nobody else listens.
///
/// # Errors
/// [`StoreError`] if it cannot be subscribed or published to, or the message does not come within a second.
pub async fn echo(store: &RedisStore, channel: &str) -> Result<Duration, StoreError> {
    let mut link = in_time(store, async {
        let mut link = store.client().await?.get_async_pubsub().await?;
        link.subscribe(channel).await?;
        Ok(link)
    })
    .await?;
    let sent = Instant::now();
    store.publish(channel.as_bytes(), b"lockgate").await?;
    let mut messages = link.on_message();
    match timeout(ANSWER_LIMIT, messages.next()).await {
        Ok(Some(_)) => Ok(sent.elapsed()),
        Ok(None) => Err(StoreError::new(
            store.dependency(),
            ErrorKind::Io,
            "the server closed the connection of a subscriber",
        )),
        Err(_) => Err(StoreError::new(
            store.dependency(),
            ErrorKind::Timeout,
            format!("a message was taken, but did not come back within {ANSWER_LIMIT:?}"),
        )),
    }
}

async fn in_time<T>(
    store: &RedisStore,
    work: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, StoreError> {
    match timeout(2 * ANSWER_LIMIT, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(store_error(store.dependency(), error)),
        Err(_) => Err(StoreError::timeout(store.dependency(), 2 * ANSWER_LIMIT)),
    }
}

/// What [`EPOCH`] says to somebody who does not know what it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Epoch {
    /// Nothing: no replica has looked yet, or everything was lost since one looked last.
    Absent,
    /// A replica's mark.
    Whole,
    /// A replica found its mark gone, at this time in Unix seconds as it wrote it.
    Lost(String),
    /// An operator knows of a loss, and revoked again what had to be.
    Acknowledged,
}

impl Epoch {
    /// Reads the mark's value.
    pub fn of(value: Option<&str>) -> Self {
        match value {
            None => Epoch::Absent,
            Some(mark) => match mark.strip_prefix(LOST) {
                Some(rest) => Epoch::Lost(rest.split(':').next().unwrap_or_default().to_owned()),
                None if mark.starts_with(ACKNOWLEDGED) => Epoch::Acknowledged,
                None => Epoch::Whole,
            },
        }
    }
}

/// Returns the value of [`EPOCH`]; a key of another type reads as an empty text.
///
/// # Errors
/// [`StoreError`].
pub async fn epoch(store: &RedisStore) -> Result<Option<String>, StoreError> {
    let found = store.get_each(&[EPOCH.to_owned()]).await?.pop();
    Ok(match found {
        Some(Ok(value)) => value.map(|value| String::from_utf8_lossy(&value).into_owned()),
        Some(Err(_)) => Some(String::new()),
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\n# Memory\r\nmaxmemory:1048576\r\n\
        maxmemory_policy:volatile-ttl\r\n# Persistence\r\naof_enabled:0\r\n# Replication\r\nrole:slave\r\n";

    #[test]
    fn facts_are_read_from_info() {
        let facts = Facts::read(INFO);
        assert_eq!(facts.version_numbers(), Some((7, 0)));
        assert_eq!(facts.role, Some(Role::Replica));
        assert_eq!(facts.evicts(), Some(true));
        assert_eq!(facts.persists(), None);
        assert_eq!(Facts::read(""), Facts::default());
    }

    #[test]
    fn only_a_full_memory_with_a_policy_evicts() {
        let facts = |maxmemory, policy: Option<&str>| Facts {
            maxmemory,
            maxmemory_policy: policy.map(str::to_owned),
            ..Facts::default()
        };
        for (maxmemory, policy, evicts) in [
            (Some(0), Some("allkeys-lru"), Some(false)),
            (Some(1), Some("noeviction"), Some(false)),
            (Some(1), Some("volatile-lru"), Some(true)),
            (None, Some("noeviction"), Some(false)),
            (None, Some("allkeys-lru"), None),
            (Some(1), None, None),
        ] {
            assert_eq!(facts(maxmemory, policy).evicts(), evicts, "{policy:?}");
        }
    }

    #[test]
    fn a_snapshot_or_a_log_outlives_the_process() {
        let facts = |append_only, save: Option<&str>| Facts {
            append_only,
            save: save.map(str::to_owned),
            ..Facts::default()
        };
        assert_eq!(facts(Some(false), Some("")).persists(), Some(false));
        assert_eq!(facts(Some(false), Some("3600 1")).persists(), Some(true));
        assert_eq!(facts(Some(true), None).persists(), Some(true));
        assert_eq!(facts(Some(false), None).persists(), None);
    }

    #[test]
    fn the_mark_says_what_happened() {
        for (value, epoch) in [
            (None, Epoch::Absent),
            (Some("5f3a"), Epoch::Whole),
            (Some(""), Epoch::Whole),
            (
                Some("lost:1700000000:5f3a"),
                Epoch::Lost("1700000000".into()),
            ),
            (Some("ack:1700000000"), Epoch::Acknowledged),
        ] {
            assert_eq!(Epoch::of(value), epoch, "{value:?}");
        }
    }
}
