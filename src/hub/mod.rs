//! The connections of one tenant on this replica: who is here, who is in which group, what waits for whom.
//!
//! It knows nothing of Redis, tokens or users: [`crate::relay`] tells it what to deliver and learns from it
//! which groups are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

pub use channels::Channels;
pub use groups::{Group, Groups};
pub use outbound::{BATCH, CloseOrder, Enqueued, Item, Next, Outbound, TOO_SLOW_WAIT};

use crate::clock::UnixTime;
use crate::ids::{ConnectionId, GroupName, UserId};

mod channels;
mod fan_out;
mod groups;
mod outbound;
mod pulse;

pub use fan_out::FanOut;
pub use pulse::Pulse;

/// Ids of connections count up over all tenants of the process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The slot of a member that is in no hub.
const NOT_REGISTERED: u32 = u32::MAX;

/// What the hub holds of one socket.
#[derive(Debug)]
pub struct Member {
    id: ConnectionId,
    /// Its place in the hub's list, which only the holder of the list's lock moves.
    slot: AtomicU32,
    /// Which of the tenant's deliveries turns events into frames for this socket.
    delivery: u16,
    user: UserId,
    outbound: Outbound,
    pulse: Pulse,
    groups: Mutex<Vec<Arc<Group>>>,
}

impl Member {
    /// A socket of `user` whose queue holds at most `send_queue` bytes and whose token ends at `expires_at`.
    pub fn new(
        user: UserId,
        delivery: u16,
        send_queue: u64,
        expires_at: Option<UnixTime>,
    ) -> Arc<Self> {
        let id = ConnectionId(NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let (outbound, pulse) = (Outbound::new(send_queue), Pulse::new(expires_at));
        Arc::new(Self {
            id,
            slot: AtomicU32::new(NOT_REGISTERED),
            delivery,
            user,
            outbound,
            pulse,
            groups: Mutex::default(),
        })
    }

    /// The connection's id, unique in this process.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The index that was given to [`Member::new`].
    pub fn delivery(&self) -> u16 {
        self.delivery
    }

    /// Whose socket it is.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// What waits for the socket.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// When it was last heard of, and how long it may stay.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The groups it is in.
    pub fn groups(&self) -> Vec<GroupName> {
        self.groups
            .lock()
            .iter()
            .map(|group| group.name().clone())
            .collect()
    }
}

/// The connections and groups of one tenant.
#[derive(Debug, Default)]
pub struct Hub {
    /// Each member knows its place in it.
    members: Mutex<Vec<Arc<Member>>>,
    groups: Groups,
}

impl Hub {
    /// Makes the connection known, for drains and counts; groups are joined one by one.
    pub fn register(&self, member: &Arc<Member>) {
        let mut members = self.members.lock();
        let slot = u32::try_from(members.len()).unwrap_or(NOT_REGISTERED);
        member.slot.store(slot, Ordering::Relaxed);
        members.push(member.clone());
    }

    /// Forgets the connection and takes it out of its groups; returns how many it was in, and those that it left
    /// empty. Names the connection, so that a late goodbye cannot remove another one.
    pub fn unregister(&self, member: &Member) -> Left {
        self.forget(member);
        let groups = std::mem::take(&mut *member.groups.lock());
        let memberships = groups.len();
        let emptied = groups
            .iter()
            .filter(|group| self.groups.remove(group, member.id));
        Left {
            memberships,
            emptied: emptied.map(|group| group.name().clone()).collect(),
        }
    }

    /// The last of the list takes the place of the one that goes.
    fn forget(&self, member: &Member) {
        let mut members = self.members.lock();
        let slot = member.slot.swap(NOT_REGISTERED, Ordering::Relaxed);
        let own = members
            .get(slot as usize)
            .is_some_and(|there| there.id == member.id);
        if own {
            members.swap_remove(slot as usize);
            if let Some(moved) = members.get(slot as usize) {
                moved.slot.store(slot, Ordering::Relaxed);
            }
        }
    }

    /// Puts the connection into the group; true if it was not in it before.
    pub fn join(&self, member: &Arc<Member>, name: &GroupName) -> bool {
        let (group, new) = self.groups.add(name, member);
        if new {
            let mut groups = member.groups.lock();
            // Most sockets are in one group: no room for four.
            groups.reserve_exact(1);
            groups.push(group);
        }
        new
    }

    /// Takes the connection out of the group; what it was is told as [`Hub::unregister`] does.
    pub fn leave(&self, member: &Member, name: &GroupName) -> Left {
        let mut groups = member.groups.lock();
        let Some(at) = groups.iter().position(|group| group.name() == name) else {
            return Left::default();
        };
        let group = groups.swap_remove(at);
        drop(groups);
        let emptied = self.groups.remove(&group, member.id);
        Left {
            memberships: 1,
            emptied: emptied.then(|| name.clone()).into_iter().collect(),
        }
    }

    /// The groups of this tenant.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.members.lock().len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the connection list.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().clone()
    }
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

    fn member() -> Arc<Member> {
        Member::new("1".into(), 0, 1000, None)
    }

    fn name(name: &str) -> GroupName {
        name.into()
    }

    #[test]
    fn joining_twice_is_joining_once() {
        let (hub, member) = (Hub::default(), member());
        assert!(hub.join(&member, &name("a")));
        assert!(!hub.join(&member, &name("a")));
        let left = hub.unregister(&member);
        assert_eq!((left.memberships, left.emptied), (1, vec![name("a")]));
    }

    #[test]
    fn the_last_one_to_leave_is_told_and_only_then_is_the_group_forgotten() {
        let (hub, first, last) = (Hub::default(), member(), member());
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
        let (hub, first, second) = (Hub::default(), member(), member());
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
        let (hub, member) = (Hub::default(), member());
        hub.join(&member, &name("a"));
        assert_eq!(hub.leave(&member, &name("b")).memberships, 0);
        assert_eq!(member.groups(), [name("a")]);
    }

    #[test]
    fn ten_thousand_joins_and_leaves_leave_nothing_behind() {
        let hub = Hub::default();
        for round in 0..10_000 {
            let member = member();
            hub.register(&member);
            hub.join(&member, &name(&format!("g{}", round % 7)));
            for group in hub.unregister(&member).emptied {
                hub.groups().remove_if_empty(&group, || {});
            }
        }
        assert!(hub.is_empty() && hub.groups().sizes().is_empty());
    }

    #[tokio::test]
    async fn fan_out_serves_every_member_once_also_in_large_groups() {
        for size in [1, 4096, 5000] {
            let hub = Hub::default();
            let members: Vec<_> = (0..size).map(|_| member()).collect();
            for member in &members {
                hub.join(member, &name("a"));
            }
            let group = hub.groups().get(&name("a")).expect("it has members");
            let frame = Frame::text("x");
            let counts =
                FanOut::walk(&group, |member| Some(member.outbound().push_frame(&frame))).await;
            assert_eq!((counts.queued, counts.overflowed), (size, 0));
            assert!(
                members
                    .iter()
                    .all(|member| member.outbound().queued_bytes() > frame.len())
            );
        }
    }
}
