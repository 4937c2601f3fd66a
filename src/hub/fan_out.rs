//! Events to many outbound queues: never waits for a socket, and lets others have their turn.

use std::sync::Arc;

use super::{Group, Member};

/// Sockets that are served before other work on the thread gets its turn: with their writes about 100 µs.
///
/// A tenant's flood wakes so many sockets and no more; then the links are read, and what other tenants have to do is done.
/// That is what bounds how long they wait for it.
const SLICE: usize = 16;

/// How much of its turn a tenant's fan-out has left.
#[derive(Debug)]
pub struct Pace {
    left: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: SLICE }
    }
}

impl Pace {
    /// Notes so much work, in sockets that have something new to write; at the end of its turn it goes behind everybody
    /// else.
    pub async fn spend(&mut self, sockets: usize) {
        self.left = self.left.saturating_sub(sockets);
        if self.left == 0 {
            self.left = SLICE;
            tokio::task::yield_now().await;
        }
    }
}

/// Calls `serve` for every member that is in `group` now.
///
/// A large group is walked over a copy of its list: between two slices members may come and go, and nobody who stays
/// may be missed or served twice.
pub async fn walk(group: &Group, pace: &mut Pace, mut serve: impl FnMut(&Arc<Member>)) {
    if let Some(served) = group.visit(SLICE, &mut serve) {
        return pace.spend(served).await;
    }
    for slice in group.members().chunks(SLICE) {
        slice.iter().for_each(&mut serve);
        pace.spend(slice.len()).await;
    }
}
