//! The users of one group as the members on this replica were told of them. Without IO.
//!
//! Notices are numbered. While none is missing, they are passed on as they come. After a doubt (a hole, a lost link, lost
//! data) members are told the difference between what they know and what Redis says, so that joins and leaves pair up for
//! each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};

use super::notice::{Entered, Notice};
use super::store::Announced;
use crate::ids::UserId;

/// Time that all replicas get to fill a Redis that lost its data, before those that are still missing have left.
const REFILL: Duration = Duration::from_secs(15);

/// A change that members are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A user joined; with the fields of the record as a JSON object, if they are known.
    Join(UserId, Option<Arc<str>>),
    /// A user left.
    Leave(UserId),
}

/// The place of a notice in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NoticePlace {
    epoch: String,
    number: u64,
}

/// The trust that the view deserves.
#[derive(Debug)]
enum Belief {
    /// Nothing was read yet. Notices are passed on; the users in them are remembered.
    Fresh {
        told: HashMap<UserId, bool>,
        /// A notice was missed.
        broken: bool,
    },
    /// Every notice was told. Those up to `base`, the place of the read, are in the users already; `None`: there was no
    /// presence at the read. `told`: the users of notices before `base`, while some of these are still to come.
    Sure {
        base: Option<NoticePlace>,
        told: HashMap<UserId, bool>,
    },
    /// Something may be missing: Redis is read at the instant. `graced`: other replicas had the time to fill it.
    Doubtful { read_at: Instant, graced: bool },
}

/// The knowledge of members about one group.
#[derive(Debug)]
pub struct View {
    belief: Belief,
    /// The last notice that was told.
    last: Option<NoticePlace>,
    users: HashSet<UserId>,
}

impl Default for View {
    fn default() -> Self {
        let told = HashMap::new();
        Self {
            belief: Belief::Fresh {
                told,
                broken: false,
            },
            last: None,
            users: HashSet::new(),
        }
    }
}

impl View {
    /// Returns the time at which Redis is to be read; `None` if it need not be.
    pub fn reads_at(&self, now: Instant) -> Option<Instant> {
        match self.belief {
            Belief::Fresh { .. } => Some(now),
            Belief::Sure { .. } => None,
            Belief::Doubtful { read_at, .. } => Some(read_at),
        }
    }

    /// Notes that notices may have been missed.
    pub fn doubt(&mut self, now: Instant) {
        match &mut self.belief {
            Belief::Fresh { broken, .. } => *broken = true,
            Belief::Sure { .. } => self.begin_doubt(now, false),
            Belief::Doubtful { .. } => {}
        }
    }

    fn begin_doubt(&mut self, read_at: Instant, graced: bool) {
        let before = std::mem::replace(&mut self.belief, doubtful(read_at, graced));
        if let Belief::Sure { told, .. } = before {
            // The notices that were still to come may be lost, so members believe what they were told last.
            believe(&mut self.users, told);
        }
    }

    /// Takes a notice; returns what members are told.
    pub fn take(&mut self, notice: Notice, now: Instant) -> Vec<Shown> {
        let place = NoticePlace {
            epoch: notice.epoch.clone(),
            number: notice.number,
        };
        let is_old = self.last.as_ref().is_some_and(|last| holds(last, &place));
        let follows = self.follows(&place);
        match &mut self.belief {
            Belief::Fresh { .. } | Belief::Sure { .. } if is_old => Vec::new(),
            Belief::Fresh { told, broken } => {
                *broken |= !follows;
                remember(told, &notice);
                self.last = Some(place);
                all_of(notice)
            }
            Belief::Sure { base, told } if follows => {
                let is_known = base.as_ref().is_some_and(|base| holds(base, &place));
                match base.as_ref() == Some(&place) {
                    true => told.clear(),
                    false if is_known => remember(told, &notice),
                    false => {}
                }
                self.last = Some(place);
                match is_known {
                    true => all_of(notice),
                    false => self.differences(notice),
                }
            }
            _ => {
                if let Belief::Sure { base, .. } = &self.belief {
                    // In another epoch the data was lost, and the other replicas need time to write theirs again.
                    let before = self.last.as_ref().or(base.as_ref());
                    let lost = before.is_some_and(|before| before.epoch != place.epoch);
                    let read_at = if lost { now + REFILL } else { now };
                    self.begin_doubt(read_at, lost);
                }
                self.last = Some(place);
                self.differences(notice)
            }
        }
    }

    /// Returns true if no notice can be missing before this one.
    fn follows(&self, place: &NoticePlace) -> bool {
        let is_next = |before: &NoticePlace| {
            before.epoch == place.epoch && place.number == before.number.saturating_add(1)
        };
        match (&self.last, &self.belief) {
            (Some(last), _) => is_next(last),
            // The first one that came: any of those before the read, or the one after it.
            (
                None,
                Belief::Sure {
                    base: Some(base), ..
                },
            ) => holds(base, place) || is_next(base),
            (None, Belief::Sure { base: None, .. }) => place.number == 1,
            (None, _) => true,
        }
    }

    /// Returns the changes of a notice that members do not know yet.
    fn differences(&mut self, notice: Notice) -> Vec<Shown> {
        let mut shown = Vec::new();
        for user in notice.left {
            if self.users.remove(&user) {
                shown.push(Shown::Leave(user));
            }
        }
        for Entered { id, fields } in notice.joined {
            if self.users.insert(id.clone()) {
                shown.push(Shown::Join(id, Some(fields)));
            }
        }
        shown
    }

    /// Takes what Redis says, read just now; returns what members are told.
    pub fn read(&mut self, announced: Announced, now: Instant) -> Vec<Shown> {
        let users: HashSet<UserId> = announced.users.into_iter().collect();
        let read = (!announced.epoch.is_empty()).then_some(NoticePlace {
            epoch: announced.epoch,
            number: announced.number,
        });
        let is_lost = match (&self.last, &read) {
            (Some(last), Some(read)) => !holds(read, last),
            (last, _) => last.is_some(),
        };
        let mut to_come = HashMap::new();
        let shown = match &mut self.belief {
            Belief::Sure { .. } => return Vec::new(),
            Belief::Doubtful { graced: false, .. } if is_lost => {
                self.belief = doubtful(now + REFILL, true);
                return Vec::new();
            }
            // Every notice since the subscription was told, and those up to the read are still to come.
            Belief::Fresh {
                broken: false,
                told,
            } if !is_lost => {
                if self.last != read {
                    to_come = std::mem::take(told);
                }
                Vec::new()
            }
            Belief::Fresh { told, .. } => {
                let mut believed = users.clone();
                believe(&mut believed, std::mem::take(told));
                self.last.clone_from(&read);
                difference(&believed, &users)
            }
            Belief::Doubtful { .. } => {
                self.last.clone_from(&read);
                difference(&self.users, &users)
            }
        };
        self.belief = Belief::Sure {
            base: read,
            told: to_come,
        };
        self.users = users;
        shown
    }
}

/// Adds the users of a notice to those that were told.
fn remember(told: &mut HashMap<UserId, bool>, notice: &Notice) {
    told.extend(notice.left.iter().map(|user| (user.clone(), false)));
    told.extend(notice.joined.iter().map(|user| (user.id.clone(), true)));
}

/// Changes users to what was told of them.
fn believe(users: &mut HashSet<UserId>, told: HashMap<UserId, bool>) {
    for (user, is_there) in told {
        match is_there {
            true => drop(users.insert(user)),
            false => drop(users.remove(&user)),
        }
    }
}

fn doubtful(read_at: Instant, graced: bool) -> Belief {
    Belief::Doubtful { read_at, graced }
}

/// Returns true if what happened at `place` is in what was read at `read`.
fn holds(read: &NoticePlace, place: &NoticePlace) -> bool {
    read.epoch == place.epoch && place.number <= read.number
}

fn all_of(notice: Notice) -> Vec<Shown> {
    let left = notice.left.into_iter().map(Shown::Leave);
    let joined = notice.joined.into_iter();
    let joined = joined.map(|user| Shown::Join(user.id, Some(user.fields)));
    left.chain(joined).collect()
}

fn difference(before: &HashSet<UserId>, after: &HashSet<UserId>) -> Vec<Shown> {
    let left = before.difference(after).cloned().map(Shown::Leave);
    let joined = after.difference(before).cloned();
    left.chain(joined.map(|user| Shown::Join(user, None)))
        .collect()
}
