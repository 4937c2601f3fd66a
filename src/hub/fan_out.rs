//! One event to many outbound queues; never waits for a socket.

use std::sync::Arc;

use super::{Enqueued, Group, Member};

/// A group of up to this many sockets is walked in one go, under its lock: well under a millisecond.
const AT_ONCE: usize = 4096;
/// In a larger group, sockets that are served before other work on the thread gets its turn.
const SLICE: usize = 512;

/// Counts of one event's way to the sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct FanOut {
    /// Sockets that the event waits for.
    pub queued: usize,
    /// Sockets that were too slow for it.
    pub overflowed: usize,
}

impl FanOut {
    /// Serves every member that is in `group` now with `deliver`, which says what became of it, or `None` where
    /// the socket does not get this event.
    ///
    /// A large group is walked over a copy of its list: between two slices members may come and go, and nobody
    /// who stays may be missed or served twice.
    pub async fn walk(
        group: &Group,
        mut deliver: impl FnMut(&Arc<Member>) -> Option<Enqueued>,
    ) -> Self {
        let mut counts = Self::default();
        if group.visit(AT_ONCE, |member| counts.count(deliver(member))) {
            return counts;
        }
        for slice in group.members().chunks(SLICE) {
            slice
                .iter()
                .for_each(|member| counts.count(deliver(member)));
            tokio::task::yield_now().await;
        }
        counts
    }

    /// Serves these members too.
    pub fn serve(
        &mut self,
        members: &[Arc<Member>],
        mut deliver: impl FnMut(&Arc<Member>) -> Option<Enqueued>,
    ) {
        for member in members {
            self.count(deliver(member));
        }
    }

    /// Adds the counts of another walk with the same event.
    pub fn add(&mut self, other: Self) {
        self.queued += other.queued;
        self.overflowed += other.overflowed;
    }

    fn count(&mut self, outcome: Option<Enqueued>) {
        match outcome {
            Some(Enqueued::Queued) => self.queued += 1,
            Some(Enqueued::Overflowed) => self.overflowed += 1,
            Some(Enqueued::Closed) | None => {}
        }
    }
}
