//! A model of groups with history: events are published, lost, doubled and delayed, histories are trimmed and begin again, reads
//! fail, sockets come, go, read slowly and come back, all in random order. Each client must get each event once and in order,
//! unless it was told of a gap.

mod layer;
mod many_groups;
mod model;
mod replays;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use model::{Faults, Model};

/// Plays a sequence for each seed, some beside each other. The clock is the test's own, so that a busy machine does not change who
/// comes first.
async fn play(seeds: std::ops::Range<u64>, faults: Faults) {
    let sequence = async |seed| {
        let mut model = Model::new(seed, faults);
        model.begin().await;
        for _ in 0..400 {
            model.step().await;
        }
        model.settle().await;
    };
    stream::iter(seeds).for_each_concurrent(10, sequence).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_history_has_reaches_every_client_once_in_order_and_no_gap_is_told() {
    play(0..60, Faults::default()).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_history_lost_is_told_as_a_gap() {
    let faults = Faults {
        forgets: true,
        ..Faults::default()
    };
    play(1000..1060, faults).await;
}

#[tokio::test(start_paused = true)]
async fn newest_events_that_redis_lost_are_told_as_a_gap() {
    let faults = Faults {
        cuts: true,
        ..Faults::default()
    };
    play(3000..3080, faults).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_at_silent_groups_finds_a_history_that_is_gone() {
    let mut model = Model::new(2000, Faults::default());
    let found = tokio::time::timeout(Duration::from_secs(20), model.find_silent_loss());
    found.await.expect("it reads the group");
}
