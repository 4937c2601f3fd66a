//! Events to many outbound queues: never waits for a socket, and lets others have their turn.

use std::sync::Arc;
use std::time::Instant;

use super::{Group, Member};

/// Sockets of a busy tenant that are served before other work on the thread gets its turn: with their writes about 100 µs.
///
/// A flood wakes so many sockets and no more; then the links are read, and what other tenants have to do is done. That is
/// what bounds how long they wait for it.
const SLICE: usize = 8;
/// A tenant that has been quiet has so many sockets served at once: its event does not wait for a flood again and again.
const SAVED: usize = 256;
/// How fast a tenant saves, in sockets per second; below this load it never waits for more than one turn.
const SAVED_PER_SECOND: f64 = 10_000.0;

/// How much of its turn a tenant's fan-out has left.
#[derive(Debug)]
pub struct Pace {
    /// Of the slice.
    left: usize,
    saved: f64,
    updated: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            left: SLICE,
            saved: SAVED as f64,
            updated: Instant::now(),
        }
    }
}

impl Pace {
    /// Notes so much work, in sockets that have something new to write. At the end of its turn it goes behind everybody
    /// else, unless the tenant has saved enough.
    pub async fn spend(&mut self, sockets: usize) {
        if self.save_and_pay(sockets) {
            return;
        }
        self.left = self.left.saturating_sub(sockets);
        if self.left == 0 {
            self.left = SLICE;
            tokio::task::yield_now().await;
        }
    }

    fn save_and_pay(&mut self, sockets: usize) -> bool {
        let now = Instant::now();
        let since = now.duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.saved = (self.saved + since * SAVED_PER_SECOND).min(SAVED as f64);
        let pays = self.saved >= sockets as f64;
        if pays {
            self.saved -= sockets as f64;
        }
        pays
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
