//! The connections of one tenant on this replica: who is here, who is in which group, what waits for whom.
//!
//! It knows nothing of Redis, tokens or users: [`crate::relay`] tells it what to deliver and learns from it
//! which groups are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;
use parking_lot::Mutex;

pub use groups::{Group, Groups};
pub use outbound::{BATCH, CloseOrder, Enqueued, Item, Next, Outbound};

use crate::clock::UnixTime;
use crate::ids::{ConnectionId, GroupName, UserId};
use groups::BuildIdHasher;

mod fan_out;
mod groups;
mod outbound;
mod pulse;

pub use fan_out::FanOut;
pub use pulse::Pulse;

/// Ids of connections count up over all tenants of the process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What the hub holds of one socket.
#[derive(Debug)]
pub struct Member {
    id: ConnectionId,
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
    members: Mutex<IndexMap<ConnectionId, Arc<Member>, BuildIdHasher>>,
    groups: Groups,
}

impl Hub {
    /// Makes the connection known, for drains and counts; groups are joined one by one.
    pub fn register(&self, member: &Arc<Member>) {
        self.members.lock().insert(member.id, member.clone());
    }

    /// Forgets the connection and takes it out of its groups; returns how many it was in, and those that it left
    /// empty. Names the connection, so that a late goodbye cannot remove another one.
    pub fn unregister(&self, member: &Member) -> Left {
        self.members.lock().swap_remove(&member.id);
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

    /// Puts the connection into the group; true if it was not in it before.
    pub fn join(&self, member: &Arc<Member>, name: &GroupName) -> bool {
        let (group, new) = self.groups.add(name, member);
        if new {
            member.groups.lock().push(group);
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
        self.members.lock().values().cloned().collect()
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
