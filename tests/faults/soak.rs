//! The soak: faults in random order on the same servers, and at the end a look for leaks.
//!
//! All faults that servers survive in place take part, each once before any comes again. A leak is what the replicas still
//! hold when every client is gone: sockets, descriptors, threads, tasks, memory, and in Redis keys and subscriptions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::fault::Fault;
use crate::options::{Options, Soak};
use crate::play::play_on;
use crate::report;
use crate::row::{Clocks, NOTHING, Redis, Road, Row, Users, WORLD, World};
use crate::rows::rows;
use crate::stage::Stage;
use crate::support::replica::Replica;

/// The longest time for what is left over to go away.
const GONE: Duration = Duration::from_secs(60);
/// What a replica may have beyond its first calm: links that a pool keeps, and memory that its allocator keeps.
const MORE_DESCRIPTORS: f64 = 24.0;
const MORE_THREADS: f64 = 16.0;
const MORE_TASKS: f64 = 16.0;
const MORE_MEMORY: f64 = 64.0 * 1024.0 * 1024.0;

/// What a replica holds.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    connections: f64,
    descriptors: f64,
    threads: f64,
    tasks: f64,
    memory: f64,
}

impl Holdings {
    async fn of(replica: &Replica) -> Self {
        let metrics = replica.metrics().await;
        let value = |name| metrics.value(name, &[]);
        Self {
            connections: value("lockgate_connections"),
            descriptors: value("process_open_fds"),
            threads: value("process_threads"),
            tasks: value("lockgate_runtime_tasks"),
            memory: value("process_resident_memory_bytes"),
        }
    }

    /// The excess over what there was, in words; `None` without any.
    fn leak(&self, before: &Self) -> Option<String> {
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
}

/// True for rows that the soak's servers can play one after the other.
fn takes_part(row: &Row) -> bool {
    let World {
        redis,
        layer,
        road,
        users: _,
        settings,
        of_hurt,
        more_groups,
        clocks,
        crowd,
    } = row.world;
    redis == Redis::One
        && layer == "pubsub"
        && road == Road::Publish
        && clocks == Clocks::Real
        && settings.is_empty()
        && of_hurt.is_empty()
        && more_groups == 0
        && crowd.is_none()
}

/// Plays faults until the time is over, then looks for leaks; true if all is well.
pub(crate) async fn run(soak: &Soak, options: &Options) -> bool {
    println!("soak: {:?}, --seed {}", soak.lasts, soak.seed);
    let world = World {
        users: Users::Postgres,
        ..WORLD
    };
    let mut stage = Stage::set(&world, options.size).await;
    let mut good = round(&mut stage, &calm(&world), options).await;
    let before = settled(&stage, &[]).await;
    let keys_before = lasting_keys(&mut stage).await;

    let mut random = StdRng::seed_from_u64(soak.seed);
    let started = Instant::now();
    let mut waiting: Vec<Row> = Vec::new();
    let mut played = 0;
    while started.elapsed() < soak.lasts {
        if waiting.is_empty() {
            waiting = rows().into_iter().filter(takes_part).collect();
            waiting.retain(|row| options.rows.is_empty() || options.rows.contains(&row.number));
            waiting.shuffle(&mut random);
        }
        let Some(row) = waiting.pop() else { break };
        good &= round(&mut stage, &row, options).await;
        played += 1;
    }

    good &= round(&mut stage, &calm(&world), options).await;
    let after = settled(&stage, &before).await;
    for (replica, (after, before)) in after.iter().zip(&before).enumerate() {
        println!("replica {replica}: at the start {before:?}, at the end {after:?}");
        if let Some(leak) = after.leak(before) {
            println!("   FAILED: replica {replica} keeps {leak}");
            good = false;
        }
    }
    good &= redis_is_clean(&mut stage, &keys_before).await;
    println!(
        "soak: {played} faults in {} s, --seed {}: {}",
        started.elapsed().as_secs(),
        soak.seed,
        if good { "passed" } else { "FAILED" }
    );
    good
}

/// The load without a fault.
fn calm(world: &World) -> Row {
    Row {
        number: 0,
        name: "no fault",
        fault: Fault::None,
        lasts: [0, 0],
        world: world.clone(),
        must: NOTHING,
    }
}

async fn round(stage: &mut Stage, row: &Row, options: &Options) -> bool {
    stage.renew(options.size).await;
    let outcome = play_on(stage, row).await;
    let played = (row.clone(), Ok(outcome));
    println!("{}", report::line(&played));
    let breaches = report::breaches(&played);
    for breach in &breaches {
        println!("   FAILED: {breach}");
    }
    breaches.is_empty()
}

/// The holdings of both replicas once their sockets and what is beyond `before` are gone, or after too long a time: a socket
/// that was closed may have a task until its client's end has come.
async fn settled(stage: &Stage, before: &[Holdings]) -> Vec<Holdings> {
    let deadline = Instant::now() + GONE;
    loop {
        let mut holdings = Vec::new();
        for replica in &stage.gateway.replicas {
            holdings.push(Holdings::of(replica).await);
        }
        let mut pairs = holdings.iter().zip(before);
        let gone = holdings.iter().all(|holdings| holdings.connections == 0.0)
            && pairs.all(|(now, before)| now.leak(before).is_none());
        if gone || Instant::now() > deadline {
            return holdings;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The keys of `hurt`'s Redis that no time to live ends.
async fn lasting_keys(stage: &mut Stage) -> BTreeSet<String> {
    let keys: Vec<String> = stage.order(&["KEYS", "*"]).await.expect("Redis answers");
    let mut lasting = BTreeSet::new();
    for key in keys {
        let left: i64 = stage.order(&["PTTL", &key]).await.expect("Redis answers");
        if left == -1 {
            lasting.insert(key);
        }
    }
    lasting
}

/// True if Redis has neither new keys without an end nor subscriptions to groups that have no member.
async fn redis_is_clean(stage: &mut Stage, before: &BTreeSet<String>) -> bool {
    let after = lasting_keys(stage).await;
    let new: Vec<_> = after.difference(before).collect();
    if !new.is_empty() {
        println!("   FAILED: keys without an end: {new:?}");
    }
    let deadline = Instant::now() + GONE;
    let channels = loop {
        let pattern = "*__group__*";
        let channels: Vec<String> = stage
            .order(&["PUBSUB", "CHANNELS", pattern])
            .await
            .expect("Redis answers");
        if channels.is_empty() || Instant::now() > deadline {
            break channels;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    if !channels.is_empty() {
        println!("   FAILED: subscriptions without a socket: {channels:?}");
    }
    new.is_empty() && channels.is_empty()
}
