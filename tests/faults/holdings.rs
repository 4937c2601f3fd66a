//! What replicas and a Redis hold when every client is gone, and what of it is a leak.
//!
//! The soak looks before its faults and after them. `tests/gateway/operations/leaks.rs` holds that it would see a leak.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::redis::RedisServer;
use crate::support::replica::Replica;

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Looks in a row without a fall that end the wait for a first state: the gateway counts its tasks ten times a second.
const STEADY: usize = 10;
/// What a replica may have beyond its first calm: links that a pool keeps, and memory that its allocator keeps.
const MORE_DESCRIPTORS: f64 = 24.0;
const MORE_THREADS: f64 = 16.0;
const MORE_TASKS: f64 = 16.0;
const MORE_MEMORY: f64 = 64.0 * 1024.0 * 1024.0;
/// Bytes by which a key without an end may grow: names of replicas and counts change their lengths.
const MORE_OF_A_KEY: u64 = 4 * 1024;

/// What a replica holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Holdings {
    pub(crate) connections: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
    pub(crate) tasks: f64,
    /// Bytes that are resident.
    pub(crate) memory: f64,
}

impl Holdings {
    /// What a scrape says.
    pub(crate) async fn of(replica: &Replica) -> Self {
        let metrics = replica.metrics().await;
        let value = |name| metrics.value(name, &[]);
        let holdings = Self {
            connections: value("lockgate_connections"),
            descriptors: value("process_open_fds"),
            threads: value("process_threads"),
            tasks: value("lockgate_runtime_tasks"),
            memory: value("process_resident_memory_bytes"),
        };
        // A family that is gone would read as a replica without a leak.
        let Self {
            descriptors,
            threads,
            tasks,
            memory,
            ..
        } = holdings;
        let all = [descriptors, threads, tasks, memory];
        assert!(all.iter().all(|value| *value > 0.0), "{holdings:?}");
        holdings
    }

    /// The excess over what there was, in words; `None` without any.
    pub(crate) fn leak(&self, before: &Self) -> Option<String> {
        let more = [
            ("sockets", self.connections, 0.0),
            (
                "descriptors",
                self.descriptors,
                before.descriptors + MORE_DESCRIPTORS,
            ),
            ("threads", self.threads, before.threads + MORE_THREADS),
            ("tasks", self.tasks, before.tasks + MORE_TASKS),
            ("bytes", self.memory, before.memory + MORE_MEMORY),
        ];
        let more = more.iter().filter(|(_, now, most)| now > most);
        let told: Vec<_> = more
            .map(|(what, now, most)| format!("{now} {what}, expected at most {most}"))
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// True if sockets, descriptors or tasks became fewer since `before`.
    fn falls(&self, before: &Self) -> bool {
        self.connections < before.connections
            || self.descriptors < before.descriptors
            || self.tasks < before.tasks
    }
}

async fn of_all(replicas: &[Replica]) -> Vec<Holdings> {
    let mut found = Vec::new();
    for replica in replicas {
        found.push(Holdings::of(replica).await);
    }
    found
}

/// The holdings once no socket is left and nothing more goes away, or after `patience`.
///
/// The first moment without a socket is too early: tasks and descriptors of the last ones are still there, and a leak of as many
/// would be allowed afterwards.
pub(crate) async fn first_calm(replicas: &[Replica], patience: Duration) -> Vec<Holdings> {
    let deadline = Instant::now() + patience;
    let mut last = of_all(replicas).await;
    let mut steady = 0;
    while steady < STEADY && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        let now = of_all(replicas).await;
        let fell = now.iter().zip(&last).any(|(now, last)| now.falls(last));
        let empty = now.iter().all(|now| now.connections == 0.0);
        steady = if empty && !fell { steady + 1 } else { 0 };
        last = now;
    }
    last
}

/// The holdings once nothing is left beyond `before`, or after `patience`: a socket that was closed may have a task until its
/// client's end has come.
pub(crate) async fn last_calm(
    replicas: &[Replica],
    before: &[Holdings],
    patience: Duration,
) -> Vec<Holdings> {
    let deadline = Instant::now() + patience;
    loop {
        let now = of_all(replicas).await;
        let leaks = |(now, before): (&Holdings, &Holdings)| now.leak(before).is_some();
        if !now.iter().zip(before).any(leaks) || Instant::now() > deadline {
            return now;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The keys of a Redis that no time to live ends, with their bytes.
pub(crate) async fn lasting_keys(server: &RedisServer) -> BTreeMap<String, u64> {
    let mut link = server.connection().await.expect("Redis answers");
    let keys = redis::cmd("KEYS").arg("*").query_async(&mut link).await;
    let keys: Vec<String> = keys.expect("Redis answers");
    let mut lasting = BTreeMap::new();
    for key in keys {
        let (left, bytes): (i64, Option<u64>) = redis::pipe()
            .cmd("PTTL")
            .arg(&key)
            .cmd("MEMORY")
            .arg(&["USAGE", &key, "SAMPLES", "0"])
            .query_async(&mut link)
            .await
            .expect("Redis answers");
        if left == -1 {
            lasting.insert(key, bytes.unwrap_or(0));
        }
    }
    lasting
}

/// The leaks of a Redis: keys without an end that are new or grew, and subscriptions to groups that have no member for
/// `patience`. Empty if all is well.
pub(crate) async fn leaks_of(
    server: &RedisServer,
    before: &BTreeMap<String, u64>,
    patience: Duration,
) -> Vec<String> {
    let mut leaks = Vec::new();
    for (key, bytes) in lasting_keys(server).await {
        let most = before.get(&key).map_or(0, |bytes| bytes + MORE_OF_A_KEY);
        if bytes > most {
            leaks.push(format!(
                "{key} without an end: {bytes} bytes, expected at most {most}"
            ));
        }
    }
    let deadline = Instant::now() + patience;
    let mut channels = subscriptions(server).await;
    while !channels.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        channels = subscriptions(server).await;
    }
    if !channels.is_empty() {
        leaks.push(format!("subscriptions without a socket: {channels:?}"));
    }
    leaks
}

async fn subscriptions(server: &RedisServer) -> Vec<String> {
    server.command(&["PUBSUB", "CHANNELS", "*__group__*"]).await
}
