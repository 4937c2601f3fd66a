//! Orders of a tenant's control channel that take long or walk over all its sockets: invalidations, the tenant's cut-off,
//! suspensions.
//!
//! None of them is ever dropped. Those that wait are merged, so that a flood of them costs as much as a few.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Tenant, Tenants, eviction, suspension};
use crate::fleet::Reply;
use crate::fleet::answer::Answer;
use crate::ids::{RevocationTarget, UserId};
use crate::metrics::ControlDrop;
use crate::rate::Bucket;

/// Users that may wait for the look at their sockets. Beyond it every socket of the tenant is looked at.
const MOST_USERS: usize = 1000;
/// Bytes of their ids, as which others may send texts of any kind.
const MOST_BYTES: usize = 1024 * 1024;
/// Answers that may wait for one errand. A caller without an answer finds this replica missing.
const MOST_ANSWERS: usize = 1000;
/// Walks over all sockets per second. Those asked for meanwhile are merged.
const SWEEPS_PER_SECOND: u32 = 10;
/// Pause after a look at every socket because of lost messages, so that a flood cannot keep database and denylist busy.
const PAUSE: Duration = Duration::from_secs(5);

/// The errands of one tenant that wait.
#[derive(Default)]
pub(super) struct Errands {
    looks: Mutex<Looks>,
    look_wanted: Notify,
    /// Messages were lost, or too many wait.
    everyone_wanted: Notify,
    sweep: Mutex<Sweep>,
    sweep_wanted: Notify,
}

/// Users whose sockets are to be looked at.
#[derive(Default)]
struct Looks {
    /// With the answers that wait for each.
    users: IndexMap<UserId, Vec<Reply>>,
    /// Bytes of the users' ids.
    bytes: usize,
    answers: usize,
}

/// Errands that concern all sockets.
#[derive(Default)]
struct Sweep {
    /// The latest cut-off of the tenant.
    cut_off: Option<f64>,
    cut_off_answers: Vec<Reply>,
    /// The last word on the suspension.
    suspended: Option<bool>,
    state_answers: Vec<Reply>,
}

impl Errands {
    /// Notes an invalidated user. Returns false if the answer to it was dropped.
    pub(super) fn invalidate(&self, user: UserId, answer: Reply) -> bool {
        let mut looks = self.looks.lock();
        if !looks.users.contains_key(&user) {
            let bytes = looks.bytes + user.as_str().len();
            if looks.users.len() >= MOST_USERS || bytes > MOST_BYTES {
                self.everyone_wanted.notify_one();
                return false;
            }
            looks.bytes = bytes;
        }
        let has_room = looks.answers < MOST_ANSWERS;
        looks.answers += usize::from(has_room);
        let answers = looks.users.entry(user).or_default();
        if has_room {
            answers.push(answer);
        }
        drop(looks);
        self.look_wanted.notify_one();
        has_room
    }

    /// Notes that messages were lost: every socket is looked at.
    pub(super) fn look_at_everyone(&self) {
        self.everyone_wanted.notify_one();
    }

    /// Notes a cut-off of the whole tenant. Returns false if the answer to it was dropped.
    pub(super) fn cut_off(&self, before: f64, answer: Reply) -> bool {
        let mut sweep = self.sweep.lock();
        sweep.cut_off = Some(sweep.cut_off.map_or(before, |other| other.max(before)));
        let has_room = put(&mut sweep.cut_off_answers, answer);
        self.sweep_wanted.notify_one();
        has_room
    }

    /// Notes a suspension or its end. Returns false if the answer to it was dropped.
    pub(super) fn suspend(&self, suspended: bool, answer: Reply) -> bool {
        let mut sweep = self.sweep.lock();
        sweep.suspended = Some(suspended);
        let has_room = put(&mut sweep.state_answers, answer);
        self.sweep_wanted.notify_one();
        has_room
    }

    /// Runs the errands. `concerned` finds the tenants that they concern, newest first.
    pub(super) async fn run(
        &self,
        tenants: &Tenants,
        concerned: impl Fn() -> Vec<Arc<Tenant>>,
    ) -> Infallible {
        tokio::select! {
            never = self.run_sweeps(tenants, &concerned) => never,
            never = self.run_looks(&concerned) => never,
            never = self.run_looks_at_everyone(&concerned) => never,
        }
    }

    async fn run_sweeps(
        &self,
        tenants: &Tenants,
        concerned: &impl Fn() -> Vec<Arc<Tenant>>,
    ) -> Infallible {
        let mut bucket = Bucket::default();
        loop {
            self.sweep_wanted.notified().await;
            while !bucket.take(Instant::now(), SWEEPS_PER_SECOND) {
                sleep(Duration::from_secs(1) / SWEEPS_PER_SECOND).await;
            }
            let sweep = std::mem::take(&mut *self.sweep.lock());
            let concerned = concerned();
            let Some(newest) = concerned.first() else {
                continue;
            };
            if let Some(before) = sweep.cut_off {
                let closed = eviction::evict(&concerned, &RevocationTarget::All(before));
                answer_all(newest, sweep.cut_off_answers, |answer| {
                    answer.closed = Some(closed);
                });
            }
            let closed = match sweep.suspended {
                None => continue,
                Some(true) => Some(suspension::suspend(tenants, newest.id.as_str())),
                Some(false) => {
                    suspension::resume(tenants, newest.id.as_str());
                    None
                }
            };
            answer_all(newest, sweep.state_answers, |answer| answer.closed = closed);
        }
    }

    async fn run_looks(&self, concerned: &impl Fn() -> Vec<Arc<Tenant>>) -> Infallible {
        loop {
            self.look_wanted.notified().await;
            let looks = std::mem::take(&mut *self.looks.lock());
            let concerned = concerned();
            let Some(newest) = concerned.first() else {
                continue;
            };
            let (users, answers): (Vec<_>, Vec<_>) = looks.users.into_iter().unzip();
            let each = join_all(concerned.iter().map(|t| t.coherence.look_again(&users))).await;
            for (place, answers) in answers.into_iter().enumerate() {
                let closed: usize = each.iter().map(|closed| closed[place]).sum();
                answer_all(newest, answers, |answer| {
                    answer.closed = Some(closed as u64);
                });
            }
        }
    }

    async fn run_looks_at_everyone(&self, concerned: &impl Fn() -> Vec<Arc<Tenant>>) -> Infallible {
        loop {
            self.everyone_wanted.notified().await;
            let concerned = concerned();
            for tenant in &concerned {
                tenant.coherence.forget_all();
                tenant.revocations.want_recheck();
            }
            join_all(concerned.iter().map(|t| t.coherence.look_at_all())).await;
            sleep(PAUSE).await;
        }
    }
}

/// Keeps an answer that waits. Returns false if there is no room for it.
fn put(answers: &mut Vec<Reply>, answer: Reply) -> bool {
    let has_room = answers.len() < MOST_ANSWERS;
    if has_room {
        answers.push(answer);
    }
    has_room
}

fn answer_all(tenant: &Tenant, answers: Vec<Reply>, fill: impl Fn(&mut Answer)) {
    for answer in answers {
        if !answer.send(&fill) {
            tenant.metrics.control_dropped(ControlDrop::Answers);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::channel_layer::Control;
    use crate::fleet::{Fleet, ReplicaList};
    use crate::ids::ReplicaId;

    /// Returns the way of an answer for which no replica waits.
    pub(in crate::tenant) fn answer() -> Reply {
        let replicas = ReplicaList::new(ReplicaId::random());
        let fleet = Fleet::new(replicas, Duration::from_secs(1));
        let control = Arc::new(Control::in_memory(&Arc::default(), "control"));
        Reply::new(&fleet, &control, (None, None), 0)
    }

    #[test]
    fn cut_offs_become_the_latest_and_suspensions_the_last() {
        let errands = Errands::default();
        for before in [5.0, 9.0, 7.0] {
            assert!(errands.cut_off(before, answer()));
        }
        for suspended in [true, false, true] {
            assert!(errands.suspend(suspended, answer()));
        }
        let sweep = errands.sweep.lock();
        assert_eq!((sweep.cut_off, sweep.suspended), (Some(9.0), Some(true)));
        let waiting = (sweep.cut_off_answers.len(), sweep.state_answers.len());
        assert_eq!(waiting, (3, 3));
    }

    #[test]
    fn more_users_than_may_wait_are_a_look_at_every_socket() {
        let errands = Errands::default();
        let user = |number: usize| UserId::from(number.to_string());
        for number in 0..MOST_USERS {
            assert!(errands.invalidate(user(number), answer()));
        }
        assert!(errands.everyone_wanted.notified().now_or_never().is_none());
        // One that waits already is merged; only its answer has no room.
        assert!(!errands.invalidate(user(0), answer()));
        assert!(errands.everyone_wanted.notified().now_or_never().is_none());
        assert!(!errands.invalidate(user(MOST_USERS), answer()));
        assert!(errands.everyone_wanted.notified().now_or_never().is_some());
        assert_eq!(errands.looks.lock().users.len(), MOST_USERS);
    }

    /// Before: a thousand ids of any length waited.
    #[test]
    fn longer_ids_than_may_wait_are_a_look_at_every_socket() {
        let errands = Errands::default();
        let user = |first: &str| UserId::from(first.to_owned() + &"x".repeat(MOST_BYTES / 2));
        assert!(errands.invalidate(UserId::from("1"), answer()));
        assert!(errands.invalidate(user(""), answer()));
        assert!(errands.invalidate(user(""), answer()));
        assert!(errands.everyone_wanted.notified().now_or_never().is_none());
        assert!(!errands.invalidate(user("2"), answer()));
        assert!(errands.everyone_wanted.notified().now_or_never().is_some());
        assert_eq!(errands.looks.lock().users.len(), 2);
    }
}
