//! The connections of one tenant on this replica: who is here, who is in which group, what waits for whom.
//!
//! It knows nothing of Redis, of tokens or of users' records: [`crate::relay`] tells it what to deliver and learns from
//! it which groups are wanted, [`crate::revocation`] whom to close.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

pub use channels::Channels;
pub use eviction::Pending;
pub use groups::{Group, Groups};
pub use member::{Member, Profile};
pub use outbound::{BATCH, CloseOrder, Enqueued, Item, Next, Outbound, TOO_SLOW_WAIT};
pub use roster::{Budget, Excess};

use crate::close_code::CloseFrame;
use crate::ids::{GroupName, UserId, Whom};
use member::NOT_REGISTERED;
use roster::Roster;

mod channels;
mod eviction;
mod fan_out;
mod groups;
mod member;
mod outbound;
mod paced;
mod pulse;
mod roster;

pub use fan_out::{Pace, walk};
pub use paced::{PACE_STEP, close_paced, spread};
pub use pulse::Pulse;

/// The connections and groups of one tenant.
#[derive(Debug, Default)]
pub struct Hub {
    roster: Mutex<Roster>,
    groups: Groups,
}

/// A handshake in the indexes of its hub; it leaves them when this is dropped.
pub struct PendingPlace {
    hub: Arc<Hub>,
    pending: Arc<Pending>,
}

impl PendingPlace {
    /// Returns the handshake.
    pub fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }
}

impl Drop for PendingPlace {
    fn drop(&mut self) {
        self.hub.roster.lock().forget_pending(&self.pending);
    }
}

/// How a socket that was admitted stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Its token was revoked while its handshake was under way.
    pub revoked: bool,
    /// What its handshake has read of its user may be old.
    pub stale: bool,
}

impl Hub {
    /// Enters a handshake whose token is verified into the indexes, before anything is asked about the token.
    pub fn expect(self: &Arc<Self>, pending: Pending) -> PendingPlace {
        let pending = Arc::new(pending);
        self.roster.lock().pending.push(pending.clone());
        PendingPlace {
            hub: self.clone(),
            pending,
        }
    }

    /// Makes the connection known, within the budgets; groups are joined one by one. What was announced about its
    /// handshake so far is answered, what is announced from now on closes it.
    ///
    /// # Errors
    /// The budget that has no room; the connection is then not in the hub.
    pub fn admit(
        &self,
        member: &Arc<Member>,
        pending: Option<&Pending>,
        budget: &Budget,
    ) -> Result<Admitted, Excess> {
        let mut roster = self.roster.lock();
        roster.reserve(member.user(), budget, Instant::now())?;
        roster.insert(member);
        Ok(pending.map_or(Admitted::default(), |pending| Admitted {
            revoked: pending.is_revoked(),
            stale: pending.is_stale(),
        }))
    }

    /// Forgets the connection and takes it out of its groups; returns how many it was in, and those that it left
    /// empty. Names the connection, so that a late goodbye cannot remove another one.
    pub fn unregister(&self, member: &Member) -> Left {
        self.roster.lock().remove(member);
        let groups = std::mem::take(&mut *member.groups.lock());
        let memberships = groups.len();
        let emptied = groups
            .iter()
            .filter(|group| self.groups.remove(group, member.id()));
        Left {
            memberships,
            emptied: emptied.map(|group| group.name().clone()).collect(),
        }
    }

    /// Puts the connection into the group, unless it has left the hub: an order for it may come late.
    pub fn join(&self, member: &Arc<Member>, name: &GroupName) -> Joined {
        // Held throughout: `unregister` gives up its slot first and takes this list then.
        let mut groups = member.groups.lock();
        if member.slot.load(Ordering::Relaxed) == NOT_REGISTERED {
            return Joined::Gone;
        }
        let (group, new) = self.groups.add(name, member);
        if !new {
            return Joined::Already;
        }
        // Most sockets are in one group: no room for four.
        groups.reserve_exact(1);
        groups.push(group);
        Joined::New
    }

    /// Takes the connection out of the group; what it was is told as [`Hub::unregister`] does.
    pub fn leave(&self, member: &Member, name: &GroupName) -> Left {
        let mut groups = member.groups.lock();
        let Some(at) = groups.iter().position(|group| group.name() == name) else {
            return Left::default();
        };
        let group = groups.swap_remove(at);
        drop(groups);
        let emptied = self.groups.remove(&group, member.id());
        Left {
            memberships: 1,
            emptied: emptied.then(|| name.clone()).into_iter().collect(),
        }
    }

    /// Returns the groups of this tenant.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Closes the connections that a revocation concerns, and marks the handshakes that it concerns; answers how many
    /// were closed by it.
    pub fn evict(&self, whom: &Whom, frame: &CloseFrame) -> usize {
        let found = {
            let roster = self.roster.lock();
            let pending = roster.pending.iter();
            pending.for_each(|pending| pending.mark_revoked(whom));
            roster.concerned(whom)
        };
        close_all(&found, frame, CloseOrder::Now)
    }

    /// Closes every connection of a user; answers how many.
    pub fn close_user(&self, user: &UserId, frame: &CloseFrame) -> usize {
        close_all(&self.of_user(user), frame, CloseOrder::AfterQueued)
    }

    /// Marks the handshakes of a user: what they have read of the user may be old.
    pub fn mark_stale(&self, user: &UserId) {
        let roster = self.roster.lock();
        let pending = roster.pending.iter();
        pending.for_each(|pending| pending.mark_stale(user));
    }

    /// Returns the connections of a user.
    pub fn of_user(&self, user: &UserId) -> Vec<Arc<Member>> {
        self.roster.lock().of_user(user)
    }

    /// Every user that has a connection.
    pub fn users(&self) -> Vec<UserId> {
        self.roster.lock().users()
    }

    /// Closes the oldest connections of a user until at most `most` are open; answers how many.
    pub fn replace_oldest(&self, user: &UserId, most: usize, frame: &CloseFrame) -> usize {
        let mut open = self.of_user(user);
        open.retain(|member| !member.outbound().is_closing());
        open.sort_unstable_by_key(|member| member.id());
        let excess = open.len().saturating_sub(most);
        close_all(&open[..excess], frame, CloseOrder::AfterQueued)
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.roster.lock().members().len()
    }

    /// Returns true if there is no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a copy of the connection list.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.roster.lock().members().to_vec()
    }
}

fn close_all(members: &[Arc<Member>], frame: &CloseFrame, order: CloseOrder) -> usize {
    let close = |member: &&Arc<Member>| member.outbound().close(frame.clone(), order);
    members.iter().filter(close).count()
}

/// What became of a wish to join a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It is in the group now.
    New,
    /// It was in the group before.
    Already,
    /// The connection is not in the hub any more.
    Gone,
}

/// What a connection left behind.
#[derive(Debug, Default)]
pub struct Left {
    /// How many groups it left.
    pub memberships: usize,
    /// Those that have no other member here.
    pub emptied: Vec<GroupName>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;

    /// Returns a connection of the hub.
    fn member(hub: &Hub) -> Arc<Member> {
        let member = Member::new(Profile {
            user: "1".into(),
            send_queue: 1000,
            ..Profile::default()
        });
        hub.admit(&member, None, &Budget::default()).unwrap();
        member
    }

    fn name(name: &str) -> GroupName {
        name.into()
    }

    #[test]
    fn joining_twice_is_joining_once() {
        let hub = Hub::default();
        let member = member(&hub);
        assert_eq!(hub.join(&member, &name("a")), Joined::New);
        assert_eq!(hub.join(&member, &name("a")), Joined::Already);
        let left = hub.unregister(&member);
        assert_eq!((left.memberships, left.emptied), (1, vec![name("a")]));
        assert_eq!(hub.join(&member, &name("b")), Joined::Gone);
        assert!(hub.groups().get(&name("b")).is_none());
    }

    #[test]
    fn the_last_one_to_leave_is_told_and_only_then_is_the_group_forgotten() {
        let hub = Hub::default();
        let (first, last) = (member(&hub), member(&hub));
        hub.join(&first, &name("a"));
        hub.join(&last, &name("a"));
        assert!(hub.leave(&first, &name("a")).emptied.is_empty());
        hub.groups()
            .remove_if_empty(&name("a"), || panic!("somebody is in it"));
        assert_eq!(hub.leave(&last, &name("a")).emptied, [name("a")]);
        let mut gone = false;
        hub.groups().remove_if_empty(&name("a"), || gone = true);
        assert!(gone && hub.groups().get(&name("a")).is_none());
    }

    #[test]
    fn a_group_that_was_joined_again_is_not_forgotten() {
        let hub = Hub::default();
        let (first, second) = (member(&hub), member(&hub));
        hub.join(&first, &name("a"));
        hub.unregister(&first);
        hub.join(&second, &name("a"));
        hub.groups()
            .remove_if_empty(&name("a"), || panic!("somebody came back"));
        assert_eq!(
            hub.groups().get(&name("a")).map(|group| group.len()),
            Some(1)
        );
    }

    #[test]
    fn leaving_a_group_that_one_is_not_in_changes_nothing() {
        let hub = Hub::default();
        let member = member(&hub);
        hub.join(&member, &name("a"));
        assert_eq!(hub.leave(&member, &name("b")).memberships, 0);
        assert_eq!(member.groups(), [name("a")]);
    }

    #[test]
    fn ten_thousand_joins_and_leaves_leave_nothing_behind() {
        let hub = Hub::default();
        for round in 0..10_000 {
            let member = member(&hub);
            hub.join(&member, &name(&format!("g{}", round % 7)));
            for group in hub.unregister(&member).emptied {
                hub.groups().remove_if_empty(&group, || {});
            }
        }
        assert!(hub.is_empty() && hub.groups().sizes().is_empty());
    }

    #[tokio::test]
    async fn fan_out_serves_every_member_once_also_in_large_groups() {
        for size in [1, 8, 9, 5000] {
            let hub = Hub::default();
            let members: Vec<_> = (0..size).map(|_| member(&hub)).collect();
            for member in &members {
                hub.join(member, &name("a"));
            }
            let group = hub.groups().get(&name("a")).expect("it has members");
            let frame = Frame::text("x");
            let mut queued = 0;
            walk(&group, &mut Pace::default(), |member| {
                queued += u64::from(member.outbound().push_frame(&frame) == Enqueued::Queued);
            })
            .await;
            assert_eq!(queued, size);
            assert!(
                members
                    .iter()
                    .all(|member| member.outbound().queued_bytes() > frame.len())
            );
        }
    }
}
