//! Fan-out: puts events into many outbound queues, or writes them. It never waits for a socket, and it yields to other work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Group, Member, PassedFrames, load};

/// Sockets of a busy tenant served before other work on the thread gets its turn; with their writes about 100 µs.
///
/// A flood of one tenant wakes this many sockets. Then the thread reads the links and serves the other tenants, so
/// this number bounds the time that they wait.
const SLICE: usize = 8;
/// Sockets served at once for a tenant that was quiet. Its event then waits for another tenant's flood once, not once
/// per slice.
const SAVED: usize = 256;
/// The part of its own time that an event leaves to other work: so many times less.
const OTHERS: u32 = 8;
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

/// Calls `serve` for every member that is in `group` now. Returns the frames that were written meanwhile: all others are queued.
///
/// It walks over a copy of a large group's list. Members join and leave between two slices, and a member that stays
/// must be served exactly once.
///
/// The frames of a quiet tenant are written at once: their sockets' tasks would write after all that other tenants have to do.
/// While threads have time, other work has its turn after each slice. The sockets of a busy tenant or of a large group write
/// beside each other, if the runtime has threads for that.
pub async fn walk(
    group: &Group,
    pace: &mut Pace,
    mut serve: impl FnMut(&Arc<Member>),
) -> PassedFrames {
    let mut written = PassedFrames::default();
    if let Some(few) = group.few::<SLICE>() {
        let (few, count) = (few.iter().flatten(), few.iter().flatten().count());
        if pace.save_and_pay(count) {
            few.for_each(|member| pass(member, &mut serve, &mut written));
        } else {
            few.for_each(serve);
            pace.spend(count).await;
        }
        return written;
    }
    let members = group.members();
    if !pace.save_and_pay(members.len()) {
        let is_alone = load::is_alone();
        for slice in members.chunks(SLICE) {
            for member in slice {
                match is_alone {
                    true => pass(member, &mut serve, &mut written),
                    false => serve(member),
                }
            }
            pace.spend(slice.len()).await;
        }
        return written;
    }
    let mut turns = (!load::is_busy()).then(|| EventTurns::of(members.len()));
    for slice in members.chunks(SLICE) {
        if let Some(turns) = &mut turns {
            turns.give_way().await;
        }
        let mut pass = |member| pass(member, &mut serve, &mut written);
        slice.iter().for_each(&mut pass);
    }
    written
}

/// Calls `serve` for one member. Returns the frames that were written meanwhile, as [`walk`] does.
pub async fn visit(
    member: &Arc<Member>,
    pace: &mut Pace,
    mut serve: impl FnMut(&Arc<Member>),
) -> PassedFrames {
    let mut written = PassedFrames::default();
    if pace.save_and_pay(1) {
        pass(member, serve, &mut written);
    } else {
        serve(member);
        pace.spend(1).await;
    }
    written
}

/// Serves a member, and writes what it gets.
fn pass(member: &Arc<Member>, mut serve: impl FnMut(&Arc<Member>), written: &mut PassedFrames) {
    member.outbound().pass(written, || serve(member));
}

/// The turns of an event between which other work has its own. Each one waits for everything that others have to do, and the
/// event of a quiet tenant would wait for a flood as often as it has turns. So they end once others have taken a part of the time
/// that the event needs itself, and a busy thread has none.
struct EventTurns {
    all: u32,
    /// Those that are over.
    over: u32,
    began: Instant,
    others: Duration,
}

impl EventTurns {
    fn of(sockets: usize) -> Self {
        Self {
            all: u32::try_from(sockets.div_ceil(SLICE)).unwrap_or(u32::MAX),
            over: 0,
            began: Instant::now(),
            others: Duration::ZERO,
        }
    }

    /// Lets others have their turn after each of the event's own.
    async fn give_way(&mut self) {
        let now = Instant::now();
        if self.over > 0 && !self.have_ended(now) {
            tokio::task::yield_now().await;
            self.others += now.elapsed();
        }
        self.over += 1;
    }

    fn have_ended(&self, now: Instant) -> bool {
        let own = now.duration_since(self.began).saturating_sub(self.others);
        self.others > own / self.over * self.all / OTHERS
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::Profile;
    use super::*;

    /// Before, each of the turns waited for all work of others, however long that took.
    #[test]
    fn the_turns_of_an_event_end_when_others_have_had_their_part() {
        let began = Instant::now();
        let ended = |others, now| {
            let turns = EventTurns {
                all: 13,
                over: 2,
                began,
                others: Duration::from_micros(others),
            };
            turns.have_ended(began + Duration::from_micros(now))
        };
        // Two turns took 100 µs, and 81 µs are an eighth of thirteen.
        assert!(!ended(0, 100));
        assert!(!ended(81, 181));
        assert!(ended(82, 182));
    }

    #[tokio::test]
    async fn other_work_has_its_turn_between_the_sockets_of_an_event() {
        let group = Arc::new(Group::new("g".into()));
        for _ in 0..3 * SLICE {
            group.add(&Member::new(Profile::default()));
        }
        let served = std::cell::Cell::new(0);
        let mut pace = Pace::default();
        let walks = walk(&group, &mut pace, |_| served.set(served.get() + 1));
        let mut walks = std::pin::pin!(walks);
        let mut steps = Vec::new();
        while futures_util::poll!(walks.as_mut()).is_pending() {
            steps.push(served.get());
        }
        steps.push(served.get());
        steps.dedup();
        assert_eq!(steps.first(), Some(&SLICE), "{steps:?}");
        assert_eq!(steps.last(), Some(&(3 * SLICE)));
    }

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
            let written = walk(&group, &mut Pace::default(), serve).await;
            assert_eq!(written.frames, 0, "there is no stream");
            assert_eq!((served, group.len()), (members, 2 * members));
        }
    }
}
