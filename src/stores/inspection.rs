//! Facts about one Redis server, and probes of the commands that a gateway needs.
//!
//! The denylist watch and `lockgate doctor` use them. A fact that the login may not ask for is unknown, not an error.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};

use super::key_read::KeyRead;
use super::misfit::version_numbers;
use super::redis::RedisStore;
use super::redis::cluster::slot_of;
use super::redis_keys::{ACKNOWLEDGED, EPOCH_BYTES, LOST};
use super::redis_link::{ANSWER_LIMIT, store_error};
use super::redis_role::{role_in, role_in_info};

pub use super::redis_role::Role;

/// The oldest version that is supported. Scripts that ask for the time and then write, and `ZPOPMIN`, came with it.
pub const OLDEST_VERSION: (u32, u32) = (5, 0);

/// The oldest version whose ACL rules know channels, so that back ends of tenants can be kept apart.
pub const CHANNEL_RULES: (u32, u32) = (6, 2);

/// The seconds by which the server's clock may differ from this machine's. Beyond them the two disagree on which tokens and
/// revocations are over.
pub const CLOCK_MAY_DIFFER: f64 = 1.0;

/// The lifetime of a key that is written as a probe.
const PROBE_TTL: Duration = Duration::from_secs(1);

/// The facts about a server; `None` if the server does not state one, or the login may not ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The version, for example `7.0.15`.
    pub version: Option<String>,
    /// The role: master or replica.
    pub role: Option<Role>,
    /// The number of replicas that are connected to it.
    pub replicas: Option<u64>,
    /// The bytes of memory that it uses.
    pub used_memory: Option<u64>,
    /// The bytes of memory above which it evicts keys or refuses writes; 0 means no limit.
    pub maxmemory: Option<u64>,
    /// The eviction policy: `noeviction`, `volatile-lru`, …
    pub maxmemory_policy: Option<String>,
    /// True if it logs writes to a file (`appendonly`).
    pub append_only: Option<bool>,
    /// The times of snapshots (`save`); empty means never.
    pub save: Option<String>,
    /// The path of the file with the users (`aclfile`); empty if there is none.
    pub acl_file: Option<String>,
    /// The path of the configuration file; empty if there is none.
    pub config_file: Option<String>,
    /// The most bytes of one argument of a command (`proto-max-bulk-len`).
    pub max_bulk: Option<u64>,
    /// The most bytes of memory of all clients (`maxmemory-clients`); 0 means no limit. Redis 7 has it.
    pub client_memory: Option<u64>,
    /// True if it frees keys that expire beside its other work (`lazyfree-lazy-expire`).
    pub lazy_expire: Option<bool>,
}

impl Facts {
    /// Asks for the facts that INFO has. If the server refuses INFO, asks for the role with ROLE.
    ///
    /// # Errors
    /// [`StoreError`] if the server does not answer. A refusal is not an error.
    pub async fn ask(store: &RedisStore) -> Result<Self, StoreError> {
        let info: Option<String> = allowed(store.query("info", &redis::cmd("INFO")).await)?;
        let mut facts = info.as_deref().map(Self::read).unwrap_or_default();
        if facts.role.is_none() {
            let role: Option<Value> = allowed(store.query("role", &redis::cmd("ROLE")).await)?;
            facts.role = role.as_ref().and_then(role_in);
        }
        Ok(facts)
    }

    /// Returns true if the server is known to be older than [`OLDEST_VERSION`].
    pub fn is_too_old(&self) -> bool {
        self.version_numbers()
            .is_some_and(|numbers| numbers < OLDEST_VERSION)
    }

    /// Asks for all facts. Some need CONFIG, which the login of a gateway need not have.
    ///
    /// # Errors
    /// See [`Facts::ask`].
    pub async fn ask_all(store: &RedisStore) -> Result<Self, StoreError> {
        let mut facts = Self::ask(store).await?;
        facts.save = setting(store, "save").await?;
        facts.acl_file = setting(store, "aclfile").await?;
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
        facts.max_bulk = number(setting(store, "proto-max-bulk-len").await?);
        facts.client_memory = number(setting(store, "maxmemory-clients").await?);
        let lazy = setting(store, "lazyfree-lazy-expire").await?;
        facts.lazy_expire = lazy.map(|word| word == "yes");
        Ok(facts)
    }

    /// Parses the answer to INFO.
    fn read(info: &str) -> Self {
        let fields: HashMap<&str, &str> = info
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'))
            .collect();
        let text = |name: &str| fields.get(name).map(|text| (*text).to_owned());
        let number = |name: &str| fields.get(name).and_then(|bytes| bytes.parse().ok());
        Self {
            version: text("redis_version"),
            role: role_in_info(info),
            replicas: number("connected_slaves"),
            used_memory: number("used_memory"),
            maxmemory: number("maxmemory"),
            maxmemory_policy: text("maxmemory_policy"),
            append_only: fields.get("aof_enabled").map(|flag| *flag == "1"),
            config_file: text("config_file"),
            ..Self::default()
        }
    }

    /// Returns the major and minor version.
    pub fn version_numbers(&self) -> Option<(u32, u32)> {
        version_numbers(self.version.as_ref()?)
    }

    /// Returns true if it drops keys with a time to live when its memory is full, as every policy but `noeviction`
    /// does.
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

    /// Returns the part of its memory that is used; 0 if it has no bound.
    pub fn memory_ratio(&self) -> Option<f64> {
        match (self.used_memory?, self.maxmemory?) {
            (_, 0) => Some(0.0),
            (used, most) => Some(used as f64 / most as f64),
        }
    }

    /// Returns what a failover may take from revocations that `wanted` replicas acknowledge each (`denylist.replicas`).
    pub fn failover(&self, wanted: u32) -> Failover {
        let replicas = self.replicas.filter(|_| self.role != Some(Role::Replica));
        match (replicas, u64::from(wanted)) {
            (None, _) => Failover::Unknown,
            (Some(0), 0) => Failover::None,
            (Some(_), 0) => Failover::LosesTheLast,
            (Some(has), wanted) if has < wanted => Failover::Short(has),
            _ => Failover::LosesNothing,
        }
    }

    /// Returns true if its data survives a restart.
    pub fn persists(&self) -> Option<bool> {
        match (self.append_only, &self.save) {
            (Some(true), _) => Some(true),
            (_, Some(save)) if !save.is_empty() => Some(true),
            (Some(false), Some(_)) => Some(false),
            _ => None,
        }
    }
}

/// The revocations that a failover may take: replicas get writes a moment later than clients get the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// The login may not ask, or the server is itself a replica.
    Unknown,
    /// The server has no replica.
    None,
    /// The last ones, also if they were confirmed: no replica acknowledges them.
    LosesTheLast,
    /// Each is refused: the server has fewer replicas than must acknowledge it. The number is that of its replicas.
    Short(u64),
    /// A replica has each one that was confirmed.
    LosesNothing,
}

/// Returns a setting of the server.
async fn setting(store: &RedisStore, name: &str) -> Result<Option<String>, StoreError> {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg(name);
    let found: Option<HashMap<String, String>> = allowed(store.query("config", &get).await)?;
    Ok(found.and_then(|mut found| found.remove(name)))
}

/// Turns a refusal into `None`: no permission, or no such command, since managed servers hide some.
fn allowed<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => match error.kind {
            ErrorKind::Permission | ErrorKind::Other | ErrorKind::Protocol => Ok(None),
            ErrorKind::Io | ErrorKind::Timeout | ErrorKind::Auth => Err(error),
        },
    }
}

/// The times of several PINGs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// The median time.
    pub median: Duration,
    /// The longest time.
    pub max: Duration,
}

impl Latency {
    /// Sends `count` PINGs, at least one, one after another.
    ///
    /// # Errors
    /// The [`StoreError`] of the first PING that fails.
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

/// Returns the server's clock minus this machine's, in seconds; `None` if the login may not ask. It is exact to half a
/// round trip.
///
/// # Errors
/// [`StoreError`] if the server does not answer.
pub async fn clock_offset(store: &RedisStore) -> Result<Option<f64>, StoreError> {
    let before = UnixTime::now();
    let time: Option<(f64, f64)> = allowed(store.query("time", &redis::cmd("TIME")).await)?;
    let now = f64::midpoint(before.0, UnixTime::now().0);
    Ok(time.map(|(seconds, micros)| seconds + micros / 1e6 - now))
}

/// Checks that `key` can be written. The key lives for a second, so choose one that no process reads.
///
/// # Errors
/// [`StoreError`] with the reason: no permission, a replica, no memory left, no answer.
pub async fn write(store: &RedisStore, key: &str) -> Result<(), StoreError> {
    store.set_ex(key, b"1", PROBE_TTL).await
}

/// Checks that `key` can be read, whatever its value.
///
/// # Errors
/// [`StoreError`].
pub async fn read(store: &RedisStore, key: &str) -> Result<(), StoreError> {
    let read = KeyRead::text(key.to_owned(), EPOCH_BYTES);
    store.get_each([read]).await.map(drop)
}

/// Checks that `channel` can be subscribed, on a separate connection.
///
/// # Errors
/// [`StoreError`].
pub async fn subscribe(store: &RedisStore, channel: &str) -> Result<(), StoreError> {
    if let Some(node) = node_of(store, channel).await {
        return sharded(&node, channel).await.map(drop);
    }
    in_time(store, async {
        let mut link = store.client().await?.get_async_pubsub().await?;
        link.subscribe(channel).await
    })
    .await
}

/// Returns the master of a cluster that has the slot of a channel; `None` for one server, or if there is none.
async fn node_of(store: &RedisStore, channel: &str) -> Option<Arc<RedisStore>> {
    store.cluster_maps()?;
    // The map is there once a shard has answered.
    drop(store.ping().await);
    let map = store.cluster_maps()?.borrow().clone();
    let node = map.owner(slot_of(channel.as_bytes()))?;
    Some(node.store.clone())
}

/// Subscribes a sharded channel on its node; messages come to the receiver while the connection lives.
async fn sharded(
    node: &RedisStore,
    channel: &str,
) -> Result<(MultiplexedConnection, mpsc::UnboundedReceiver<PushInfo>), StoreError> {
    let (sender, messages) = mpsc::unbounded_channel();
    let link = in_time(node, async {
        let info = node.client().await?.get_connection_info().clone();
        let settings = info.redis_settings().clone();
        let settings = settings.set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings))?;
        let config = AsyncConnectionConfig::new().set_push_sender(sender);
        let mut link = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut subscribe = redis::cmd("SSUBSCRIBE");
        subscribe.arg(channel).exec_async(&mut link).await?;
        Ok(link)
    })
    .await?;
    Ok((link, messages))
}

/// Sends a message through `channel` and returns the time until it comes back. Choose a channel without other
/// subscribers.
///
/// # Errors
/// [`StoreError`] if the channel cannot be subscribed or published to, or the message does not come back within a
/// second.
pub async fn echo(store: &RedisStore, channel: &str) -> Result<Duration, StoreError> {
    if let Some(node) = node_of(store, channel).await {
        let (link, mut messages) = sharded(&node, channel).await?;
        let sent = Instant::now();
        store.publish(channel.as_bytes(), b"lockgate").await?;
        let heard = async {
            while let Some(message) = messages.recv().await {
                if message.kind == PushKind::SMessage {
                    return Some(());
                }
            }
            None
        };
        let heard = timeout(ANSWER_LIMIT, heard).await;
        drop(link);
        return came_back(store, heard, sent);
    }
    let mut link = in_time(store, async {
        let mut link = store.client().await?.get_async_pubsub().await?;
        link.subscribe(channel).await?;
        Ok(link)
    })
    .await?;
    let sent = Instant::now();
    store.publish(channel.as_bytes(), b"lockgate").await?;
    let mut messages = link.on_message();
    let heard = timeout(ANSWER_LIMIT, messages.next()).await;
    came_back(store, heard.map(|message| message.map(drop)), sent)
}

fn came_back(
    store: &RedisStore,
    heard: Result<Option<()>, Elapsed>,
    sent: Instant,
) -> Result<Duration, StoreError> {
    match heard {
        Ok(Some(())) => Ok(sent.elapsed()),
        Ok(None) => Err(StoreError::new(
            store.dependency(),
            ErrorKind::Io,
            "the server closed the connection of a subscriber",
        )),
        Err(_) => Err(StoreError::new(
            store.dependency(),
            ErrorKind::Timeout,
            format!("the server took a message, but it did not come back within {ANSWER_LIMIT:?}"),
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

/// The meaning of the mark [`EPOCH`](super::redis_keys::EPOCH) for a reader without an earlier value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataMark {
    /// There is no mark: no replica has looked yet, or all data was lost since a replica looked last.
    Absent,
    /// The mark of a replica is there.
    Whole,
    /// A replica found its mark missing, at this time in Unix seconds.
    Lost(String),
    /// An operator has acknowledged a loss.
    Acknowledged,
}

impl DataMark {
    /// Parses the value of the mark.
    pub fn of(value: Option<&str>) -> Self {
        match value {
            None => DataMark::Absent,
            Some(mark) => match mark.strip_prefix(LOST) {
                Some(rest) => DataMark::Lost(rest.split(':').next().unwrap_or_default().to_owned()),
                None if mark.starts_with(ACKNOWLEDGED) => DataMark::Acknowledged,
                None => DataMark::Whole,
            },
        }
    }
}

/// Returns the value of the mark under `key` ([`epoch`](super::redis_keys::epoch)). A key of another type, or with a value
/// that is too long, counts as an empty text.
///
/// # Errors
/// [`StoreError`].
pub async fn epoch(store: &RedisStore, key: &str) -> Result<Option<String>, StoreError> {
    let read = KeyRead::text(key.to_owned(), EPOCH_BYTES);
    let found = store.get_each([read]).await?.pop();
    Ok(match found {
        Some(Ok(value)) => value.map(|value| String::from_utf8_lossy(&value).into_owned()),
        Some(Err(_)) => Some(String::new()),
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\n# Memory\r\nused_memory:786432\r\nmaxmemory:1048576\r\n\
        maxmemory_policy:volatile-ttl\r\n# Persistence\r\naof_enabled:0\r\n# Replication\r\nrole:slave\r\n";

    #[test]
    fn facts_are_read_from_info() {
        let facts = Facts::read(INFO);
        assert_eq!(facts.version_numbers(), Some((7, 0)));
        assert_eq!(facts.role, Some(Role::Replica));
        assert_eq!(facts.evicts(), Some(true));
        assert_eq!(facts.memory_ratio(), Some(0.75));
        assert_eq!(
            Facts::read("used_memory:9\r\nmaxmemory:0").memory_ratio(),
            Some(0.0)
        );
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
            (None, DataMark::Absent),
            (Some("5f3a"), DataMark::Whole),
            (Some(""), DataMark::Whole),
            (
                Some("lost:1700000000:5f3a"),
                DataMark::Lost("1700000000".into()),
            ),
            (Some("ack:1700000000"), DataMark::Acknowledged),
        ] {
            assert_eq!(DataMark::of(value), epoch, "{value:?}");
        }
    }
}
