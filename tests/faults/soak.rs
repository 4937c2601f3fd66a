//! The soak: faults in random order on the same servers, and at the end a look for leaks.
//!
//! All faults that servers survive in place take part, each once before any comes again. A leak is what the replicas still
//! hold when every client is gone: sockets, descriptors, threads, tasks, memory, and in Redis keys and subscriptions. `holdings`
//! says how much of each is one.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::fault::Fault;
use crate::holdings::{first_calm, last_calm, lasting_keys, leaks_of};
use crate::options::{Options, Soak};
use crate::play::play_on;
use crate::report;
use crate::row::{Clocks, NOTHING, Redis, Road, Row, Users, WORLD, World};
use crate::rows::rows;
use crate::stage::Stage;

/// The longest time for what is left over to go away.
const GONE: Duration = Duration::from_secs(60);
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
        // The soak has a load of its own.
        crowd: _,
    } = row.world;
    redis == Redis::One
        && layer == "pubsub"
        && road == Road::Publish
        && clocks == Clocks::Real
        && settings.is_empty()
        && of_hurt.is_empty()
        && more_groups == 0
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
    let before = first_calm(&stage.gateway.replicas, GONE).await;
    let keys_before = lasting_keys(&stage.stores.servers[0]).await;

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
    let after = last_calm(&stage.gateway.replicas, &before, GONE).await;
    for (replica, (after, before)) in after.iter().zip(&before).enumerate() {
        println!("replica {replica}: at the start {before:?}, at the end {after:?}");
        if let Some(leak) = after.leak(before) {
            println!("   FAILED: replica {replica} keeps {leak}");
            good = false;
        }
    }
    for leak in leaks_of(&stage.stores.servers[0], &keys_before, GONE).await {
        println!("   FAILED: Redis keeps {leak}");
        good = false;
    }
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
    report::tell(&played);
    report::breaches(&played).is_empty()
}
