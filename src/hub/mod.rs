//! The hub: the connections of one tenant on this replica, their groups and their outbound queues.
//!
//! The hub does not use Redis, tokens or user records. [`crate::relay`] passes it events and learns which groups have
//! members; [`crate::revocation`] tells it which connections to close.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

pub use channels::Channels;
pub use eviction::Pending;
pub use groups::Groups;
pub use member::{
    Group, GroupRecall, Job, Member, NextToken, Profile, ReadWish, Release, Returning, TokenOf,
    TrackedEvent,
};
pub use outbound::{
    BATCH, BegunFrame, Blocked, CloseOrder, Enqueued, HoldId, Item, Next, Outbound, PassedFrames,
    Released, ReplayEnd, ReplayRoom, TOO_SLOW_WAIT, Takes,
};
pub use roster::{Budget, Excess};
pub use track::{AfterPage, LiveOutcome, Track, TrackPage, TrackStep};
pub use waiting_event::WaitingEvent;
pub use wakes::close_in_turns;

use crate::close_code::CloseFrame;
use crate::ids::{GroupName, RevocationTarget, UserId};
use member::NOT_REGISTERED;
use roster::Roster;

mod channels;
mod eviction;
mod fan_out;
mod groups;
mod id_hash;
mod listing;
mod load;
mod member;
mod outbound;
mod paced;
mod pulse;
mod roster;
mod track;
mod waiting_event;
mod wakes;

pub use fan_out::{Pace, visit, walk};
pub use paced::{PACE_STEP, close_paced, spread};
pub use pulse::{PingState, Pulse};

/// The connections and groups of one tenant.
#[derive(Debug, Default)]
pub struct Hub {
    roster: Mutex<Roster>,
    groups: Groups,
}

/// The guard of a handshake, or of a refresh, in its hub. Dropping it removes the entry.
pub struct PendingPlace {
    hub: Arc<Hub>,
    pending: Arc<Pending>,
}

impl PendingPlace {
    /// Returns the entry.
    pub fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }
}

impl Drop for PendingPlace {
    fn drop(&mut self) {
        self.hub.roster.lock().forget_pending(&self.pending);
    }
}

/// The findings about a socket at its admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The token was revoked during the handshake.
    pub revoked: bool,
    /// The user record that the handshake read may be old.
    pub stale: bool,
}

impl Hub {
    /// Enters a token that is verified and is to open a socket, or to become the token of one. Call it before the denylist and the user are read.
    pub fn expect(self: &Arc<Self>, pending: Pending) -> PendingPlace {
        let pending = Arc::new(pending);
        self.roster.lock().pending.push(pending.clone());
        PendingPlace {
            hub: self.clone(),
            pending,
        }
    }

    /// Adds the connection if the budgets have room for it; groups are joined later, one by one.
    ///
    /// The result tells what was announced about the handshake until now. Later announcements close the connection.
    ///
    /// # Errors
    /// The budget without room. The connection is not in the hub then.
    pub fn admit(
        &self,
        member: &Arc<Member>,
        pending: Option<&Pending>,
        budget: &Budget,
    ) -> Result<Admitted, Excess> {
        let mut roster = self.roster.lock();
        roster.reserve(member.user(), budget, Instant::now())?;
        roster.insert(member);
        // Still under the lock: an earlier announcement has marked `pending`, and a later one finds the member.
        Ok(pending.map_or(Admitted::default(), |pending| Admitted {
            revoked: pending.is_revoked(),
            stale: pending.is_stale(),
        }))
    }

    /// Puts the token of a refresh in the place of a connection's own, in every index at once.
    ///
    /// Until then revocations find the connection by its own token and by `pending`, which the caller drops afterwards.
    pub fn renew(&self, member: &Arc<Member>, next: NextToken, pending: &Pending) -> Renewed {
        let mut roster = self.roster.lock();
        // Under the lock: an earlier announcement has marked `pending`, and a later one finds the member by the new token.
        if pending.is_revoked() {
            return Renewed::Revoked;
        }
        if member.outbound().is_closing() || !roster.renew(member, next) {
            return Renewed::Closing;
        }
        Renewed::Done {
            stale: pending.is_stale(),
        }
    }

    /// Removes the connection and takes it out of its groups. Has no effect on any other connection, however late the
    /// call comes.
    pub fn unregister(&self, member: &Member) -> Left {
        self.roster.lock().remove(member);
        self.out_of_groups(member)
    }

    /// Removes the connection as [`Hub::unregister`] does. Until [`Hub::forget_dismissed`] it is one of those that say goodbye.
    pub fn dismiss(&self, member: &Member) -> Left {
        self.roster.lock().dismiss(member);
        self.out_of_groups(member)
    }

    /// Forgets a connection that was dismissed, and whose goodbye is over.
    pub fn forget_dismissed(&self, member: &Member) {
        self.roster.lock().forget_dismissed(member);
    }

    fn out_of_groups(&self, member: &Member) -> Left {
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

    /// Puts the connection into the group, unless it has left the hub; a worker's order may come late.
    pub fn join(&self, member: &Arc<Member>, name: &GroupName) -> Joined {
        // The lock is held to the end. `unregister` clears the slot first and takes this list afterwards, so either
        // this sees the cleared slot, or `unregister` sees the group.
        let mut groups = member.groups.lock();
        if member.slot.load(Ordering::Relaxed) == NOT_REGISTERED {
            return Joined::Gone;
        }
        let (group, new) = self.groups.add(name, member);
        if !new {
            return Joined::Already;
        }
        let mut all = std::mem::take(&mut *groups).into_vec();
        all.reserve_exact(1);
        all.push(group);
        *groups = all.into_boxed_slice();
        Joined::New
    }

    /// Takes the connection out of the group.
    pub fn leave(&self, member: &Member, name: &GroupName) -> Left {
        let mut groups = member.groups.lock();
        let Some(at) = groups.iter().position(|group| group.name() == name) else {
            return Left::default();
        };
        let mut all = std::mem::take(&mut *groups).into_vec();
        let group = all.swap_remove(at);
        *groups = all.into_boxed_slice();
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

    /// Closes the connections that a revocation concerns, by their tokens and by those that are about to replace them, and
    /// marks the handshakes that it concerns. Returns the number of connections that it closed.
    pub fn evict(&self, target: &RevocationTarget, frame: &CloseFrame) -> usize {
        let found = {
            let roster = self.roster.lock();
            let mut found = roster.concerned(target);
            for pending in &roster.pending {
                if pending.mark_revoked(target) {
                    found.extend(pending.socket().cloned());
                }
            }
            found
        };
        close_all(&found, frame, CloseOrder::Now)
    }

    /// Returns the tokens that are verified and are not yet those of members: of handshakes and of refreshes.
    pub fn pending(&self) -> Vec<Arc<Pending>> {
        self.roster.lock().pending.clone()
    }

    /// Refuses a handshake whose token is revoked, or closes its socket if it has opened meanwhile. Closes the socket of a
    /// refresh. Returns the number of sockets closed.
    pub fn evict_pending(&self, pending: &Pending, frame: &CloseFrame) -> usize {
        let opened = {
            let roster = self.roster.lock();
            pending.revoke();
            let mut opened = roster.of_user(pending.token().user);
            opened.retain(|member| member.token() == Some(pending.token()));
            opened.extend(pending.socket().cloned());
            opened
        };
        close_all(&opened, frame, CloseOrder::Now)
    }

    /// Marks the handshakes of a user, because the user record that they read may be old.
    pub fn mark_stale(&self, user: &UserId) {
        let roster = self.roster.lock();
        let pending = roster.pending.iter();
        pending.for_each(|pending| pending.mark_stale(user));
    }

    /// Marks every handshake, because each user record that was read may be old.
    pub fn mark_all_stale(&self) {
        let roster = self.roster.lock();
        roster.pending.iter().for_each(|pending| pending.stale());
    }

    /// Returns the connections of a user.
    pub fn of_user(&self, user: &UserId) -> Vec<Arc<Member>> {
        self.roster.lock().of_user(user)
    }

    /// Returns the connection whose channel has these random bits.
    pub fn by_channel(&self, bits: [u8; 16]) -> Option<Arc<Member>> {
        self.roster.lock().by_channel(bits)
    }

    /// Returns every user that has a connection.
    pub fn users(&self) -> Vec<UserId> {
        self.roster.lock().users()
    }

    /// Closes the oldest connections of a user until at most `most` are open; returns the number closed.
    pub fn replace_oldest(&self, user: &UserId, most: usize, frame: &CloseFrame) -> usize {
        let mut open = self.of_user(user);
        open.retain(|member| !member.outbound().is_closing());
        open.sort_unstable_by_key(|member| member.id());
        let excess = open.len().saturating_sub(most);
        close_all(&open[..excess], frame, CloseOrder::AfterQueued)
    }

    /// Returns the number of connections.
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

    /// Returns true if there is no connection, and none that says goodbye.
    pub fn is_quiet(&self) -> bool {
        let roster = self.roster.lock();
        roster.members().is_empty() && roster.dismissed().len() == 0
    }

    /// Returns all connections that may have bytes in their queues: those of the list, and those that say goodbye.
    pub fn holders(&self) -> Vec<Arc<Member>> {
        let roster = self.roster.lock();
        let members = roster.members().iter();
        members.chain(roster.dismissed()).cloned().collect()
    }
}

/// Closes the connections; returns the number closed, without those that were closing before.
pub fn close_all(members: &[Arc<Member>], frame: &CloseFrame, order: CloseOrder) -> usize {
    let close = |member: &&Arc<Member>| member.outbound().close(frame.clone(), order);
    close_in_turns(|| members.iter().filter(close).count())
}

/// The outcome of [`Hub::renew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The connection has the new token.
    Done {
        /// The user was invalidated meanwhile, so that the record that the refresh read may be old.
        stale: bool,
    },
    /// The new token was revoked meanwhile. The connection has its own token still.
    Revoked,
    /// The connection is closing, or has left the hub.
    Closing,
}

/// The outcome of [`Hub::join`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The connection is in the group now.
    New,
    /// The connection was in the group before.
    Already,
    /// The connection has left the hub.
    Gone,
}

/// The groups that a connection left.
#[derive(Debug, Default)]
pub struct Left {
    /// The number of groups that it left.
    pub memberships: usize,
    /// The groups without another member on this replica.
    pub emptied: Vec<GroupName>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;

    /// Returns a connection of the hub.
    fn member(hub: &Hub) -> Arc<Member> {
        let member = Member::new(Profile {
            user: Some("1".into()),
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
            .remove_if_empty(&name("a"), || panic!("the group has a member"));
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
            .remove_if_empty(&name("a"), || panic!("a member joined again"));
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
            let written = walk(&group, &mut Pace::default(), |member| {
                queued += u64::from(member.outbound().push_frame(&frame).is_queued());
            })
            .await;
            assert_eq!(written.frames, 0, "there is no stream");
            assert_eq!(queued, size);
            assert!(
                members
                    .iter()
                    .all(|member| member.outbound().queued_bytes() > frame.len())
            );
        }
    }
}
