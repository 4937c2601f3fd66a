//! Closes many sockets at a pace, because their clients reconnect and other replicas must take them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use tokio::time::MissedTickBehavior;

use super::{CloseOrder, Member};
use crate::close_code::{CloseFrame, CloseReason};

/// The time between two batches of closes.
pub const PACE_STEP: Duration = Duration::from_millis(50);
/// Clients reconnect at a random time within this many milliseconds after their close. The pace spreads the closes
/// already; this spreads the clients of one batch.
const RECONNECT_SPREAD_MS: u64 = 1000;

/// Closes the sockets in random order, at most `per_second` in a second. Queued frames leave before the close frame.
pub async fn close_paced(mut members: Vec<Arc<Member>>, per_second: f64, reason: CloseReason) {
    members.shuffle(&mut rand::rng());
    let mut pace = tokio::time::interval(PACE_STEP);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (began, mut closed) = (Instant::now(), 0);
    while closed < members.len() {
        let now = pace.tick().await.into_std();
        let lasts = now.saturating_duration_since(began) + PACE_STEP;
        let due = ((lasts.as_secs_f64() * per_second) as usize).min(members.len());
        for member in &members[closed.min(due)..due] {
            member
                .outbound()
                .close(spread(reason), CloseOrder::AfterQueued);
        }
        closed = closed.max(due);
    }
}

/// Returns the reason's frame with a random wait where waiting helps, so that clients closed together do not reconnect
/// together.
pub fn spread(reason: CloseReason) -> CloseFrame {
    reason.frame_with_retry(Duration::from_millis(
        rand::random::<u64>() % RECONNECT_SPREAD_MS,
    ))
}
