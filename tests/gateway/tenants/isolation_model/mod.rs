//! Isolation as a model: four tenants that look as alike as a configuration lets them, on two replicas and one Redis, and
//! a random sequence of all that clients, back ends, operators and neighbours can do. Beside it stands a model that knows
//! of every socket, also of those without a user, what it must receive, whether and how it must close, and of every tenant what its metrics and its keys
//! in Redis must be. Whatever is of one tenant and shows at another is a failure; the steps are printed.
//!
//! One sequence runs with tenants of a registry, which are let go and made again: there the sockets and the keys are compared.
//!
//! `LOCKGATE_TEST_SEED` runs another sequence.

use crate::support::within;

mod closings;
mod compare;
mod connects;
mod neighbours;
mod party;
mod random;
mod steps;
mod world;

use party::Source;
use random::Random;
use world::World;

/// Steps of a sequence.
const STEPS: usize = 300;
/// Steps from one comparison of all metrics and keys to the next, where nothing closes in between.
const COMPARED_EVERY: usize = 10;
/// The chance in a hundred that a tenant of the registry is let go after a step.
const LET_GO: usize = 4;
/// Of a whole sequence, on a machine that does much else.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(240);

async fn sequence(seed: u64, source: Source) {
    let other = std::env::var("LOCKGATE_TEST_SEED").ok();
    let other = other.map(|text| text.parse().expect("LOCKGATE_TEST_SEED is a number"));
    let seed = other.unwrap_or(seed);
    println!("LOCKGATE_TEST_SEED={seed}");
    let steps = async {
        let mut random = Random::new(seed);
        let mut world = World::new(seed, source).await;
        for step in 0..STEPS {
            if world.step(&mut random).await {
                // A closed socket takes no further part.
                world.compare().await;
            }
            world.settle_events().await;
            if step % COMPARED_EVERY == 0 {
                world.compare().await;
            }
            if source == Source::Registry && random.chance(LET_GO) {
                world.let_go(&mut random).await;
            }
        }
        world.compare().await;
        // Those that are run always are known to draw everything.
        if other.is_none() {
            world.all_was_seen();
        }
    };
    within(DEADLINE, "the steps", steps).await;
}

#[tokio::test]
async fn no_tenant_notices_another_in_the_sequence_of_seed_1() {
    sequence(1, Source::File).await;
}

#[tokio::test]
async fn no_tenant_notices_another_in_the_sequence_of_seed_2() {
    sequence(2, Source::File).await;
}

#[tokio::test]
async fn no_tenant_notices_another_in_the_sequence_of_seed_3() {
    sequence(3, Source::File).await;
}

/// The tenants come from a registry, and replicas let go of them and make them again in between.
#[tokio::test]
async fn no_tenant_notices_another_that_is_let_go_and_made_again() {
    sequence(4, Source::Registry).await;
}
