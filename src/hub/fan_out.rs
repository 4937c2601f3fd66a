//! Fan-out: puts events into many outbound queues. It never waits for a socket, and it yields to other work.

use std::sync::Arc;
use std::time::Instant;

use super::{Group, Member, wakes};

/// Sockets of a busy tenant served before other work on the thread gets its turn; with their writes about 100 µs.
///
/// A flood of one tenant wakes this many sockets. Then the thread reads the links and serves the other tenants, so
/// this number bounds the time that they wait.
const SLICE: usize = 8;
/// Sockets served at once for a tenant that was quiet. Its event then waits for another tenant's flood once, not once
/// per slice.
const SAVED: usize = 256;
/// The rate at which a tenant saves, in sockets per second: below this load it counts as quiet.
const SAVED_PER_SECOND: f64 = 20_000.0;

/// The rest of a tenant's turn: a slice, and the sockets that the tenant saved while it was quiet.
#[derive(Debug)]
pub struct Pace {
    /// Sockets left in the slice.
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
    /// Creates the turn of work that no other waits for: it has saved nothing.
    pub fn spent() -> Self {
        Self {
            saved: 0.0,
            ..Self::default()
        }
    }

    /// Accounts for work, in sockets that have something new to write. Yields to all other tasks at the end of a slice,
    /// unless the tenant has saved enough.
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

    /// Yields to all other tasks, so that sockets write before more is queued for them. A socket that takes no bytes does
    /// not make its tenant wait.
    pub async fn give_way(&mut self) {
        self.left = SLICE;
        tokio::task::yield_now().await;
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
/// It walks over a copy of a large group's list. Members join and leave between two slices, and a member that stays
/// must be served exactly once.
///
/// While there is time, the queues of a quiet tenant's event are filled at once and their sockets write in turns with
/// other work, so that the tenant's next events do not wait for these sockets. On busy threads the sockets of such an event
/// are woken at once (`wakes.rs`).
pub async fn walk(group: &Group, pace: &mut Pace, mut serve: impl FnMut(&Arc<Member>)) {
    if let Some(few) = group.few::<SLICE>() {
        let mut served = 0;
        for member in few.iter().flatten() {
            serve(member);
            served += 1;
        }
        return pace.spend(served).await;
    }
    let members = group.members();
    if !wakes::is_busy() && pace.save_and_pay(members.len()) {
        let wakers = wakes::gather(|| members.iter().for_each(&mut serve));
        return wakes::wake_in_turns(wakers, SLICE);
    }
    for slice in members.chunks(SLICE) {
        slice.iter().for_each(&mut serve);
        pace.spend(slice.len()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::Profile;
    use super::*;

    /// Before, a socket that joined a small group waited, with a thread of the runtime, until its event was written.
    #[tokio::test]
    async fn a_group_may_be_joined_while_its_sockets_are_served() {
        for members in [1, SLICE, SLICE + 1] {
            let group = Arc::new(Group::new("g".into()));
            for _ in 0..members {
                group.add(&Member::new(Profile::default()));
            }
            let mut served = 0;
            let serve = |_: &Arc<Member>| {
                served += 1;
                let (tell, told) = mpsc::channel();
                let group = group.clone();
                std::thread::spawn(move || {
                    group.add(&Member::new(Profile::default()));
                    tell.send(())
                });
                assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(()));
            };
            walk(&group, &mut Pace::default(), serve).await;
            assert_eq!((served, group.len()), (members, 2 * members));
        }
    }
}
