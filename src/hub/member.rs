//! The hub's records of one socket and of one group. Each holds the other, so both stand here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use indexmap::IndexMap;
use parking_lot::Mutex;

use super::id_hash::BuildIdHasher;
use super::{Outbound, Pulse};
use crate::clock::UnixTime;
use crate::ids::{ConnectionId, GroupName, Jti, UserId};

/// The next connection id. Ids count up over all tenants of the process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The slot of a member that is not in a hub.
pub(super) const NOT_REGISTERED: u32 = u32::MAX;

/// The properties of a socket that its handshake sets and that do not change.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The socket's user.
    pub user: UserId,
    /// The id of the token; `None` if the token has none.
    pub jti: Option<Jti>,
    /// The time at which the token was issued, in Unix seconds.
    pub issued_at: Option<f64>,
    /// The time at which the token expires; `None` if that does not close the socket.
    pub expires_at: Option<UnixTime>,
    /// The user's password digest at the handshake; `None` if the tenant does not check it.
    pub password: Option<[u8; 16]>,
    /// The path of the request, percent-encoded, without the query.
    pub path: Box<str>,
    /// The 128 random bits of the socket's channel name.
    pub channel: [u8; 16],
    /// The index of the tenant's delivery that turns events into frames for this socket.
    pub delivery: u16,
    /// Bytes that may wait for the socket; 0 means no limit.
    pub send_queue: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            user: "".into(),
            jti: None,
            issued_at: None,
            expires_at: None,
            password: None,
            path: "".into(),
            channel: [0; 16],
            delivery: 0,
            send_queue: 0,
        }
    }
}

/// The properties of a token by which a revocation finds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenOf<'a> {
    /// The user of the token.
    pub user: &'a UserId,
    /// The id of the token; `None` if it has none.
    pub jti: Option<&'a Jti>,
    /// The time at which it was issued, in Unix seconds.
    pub issued_at: Option<f64>,
}

/// One socket.
#[derive(Debug)]
pub struct Member {
    id: ConnectionId,
    /// The index in the hub's list. It changes only under the list's lock.
    pub(super) slot: AtomicU32,
    /// Unix seconds. They are precise enough for an age and take a quarter of the memory of an `Instant`.
    opened_at: u32,
    delivery: u16,
    user: UserId,
    jti: Option<Jti>,
    /// NaN if the token has no `iat`; an `Option` would take twice the memory.
    issued_at: f64,
    password: Option<Box<[u8; 16]>>,
    path: Box<str>,
    pub(super) channel: [u8; 16],
    outbound: Outbound,
    pulse: Pulse,
    pub(super) groups: Mutex<Vec<Arc<Group>>>,
}

impl Member {
    /// Makes the record of a socket that has just connected.
    pub fn new(profile: Profile) -> Arc<Self> {
        Arc::new(Self {
            id: ConnectionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            slot: AtomicU32::new(NOT_REGISTERED),
            opened_at: UnixTime::now().0 as u32,
            delivery: profile.delivery,
            user: profile.user,
            jti: profile.jti,
            issued_at: profile.issued_at.unwrap_or(f64::NAN),
            password: profile.password.map(Box::new),
            path: profile.path,
            channel: profile.channel,
            outbound: Outbound::new(profile.send_queue),
            pulse: Pulse::new(profile.expires_at),
            groups: Mutex::default(),
        })
    }

    /// Returns the connection's id, unique in this process.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Returns [`Profile::delivery`].
    pub fn delivery(&self) -> u16 {
        self.delivery
    }

    /// Returns the socket's user.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Returns the id of the token.
    pub fn jti(&self) -> Option<&Jti> {
        self.jti.as_ref()
    }

    /// Returns the time at which the token was issued, in Unix seconds.
    pub fn issued_at(&self) -> Option<f64> {
        (!self.issued_at.is_nan()).then_some(self.issued_at)
    }

    /// Returns the user, the id and the issue time of its token: revocations find it by them.
    pub fn token(&self) -> TokenOf<'_> {
        TokenOf {
            user: &self.user,
            jti: self.jti.as_ref(),
            issued_at: self.issued_at(),
        }
    }

    /// Returns the user's password digest at the handshake; `None` if the tenant does not check it.
    pub fn password(&self) -> Option<[u8; 16]> {
        self.password.as_deref().copied()
    }

    /// Returns the path of the request, percent-encoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the random part of the socket's channel name.
    pub fn channel(&self) -> [u8; 16] {
        self.channel
    }

    /// Returns the whole seconds since the socket connected.
    pub fn age(&self) -> u64 {
        (UnixTime::now().0 as u64).saturating_sub(u64::from(self.opened_at))
    }

    /// Returns the queue of the socket.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// Returns the times that the timer wheel reads: of pings, and of the socket's end.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Returns the names of the socket's groups.
    pub fn groups(&self) -> Vec<GroupName> {
        let groups = self.groups.lock();
        groups.iter().map(|group| group.name().clone()).collect()
    }
}

/// One group. Its members are dense in memory, because fan-out walks over all of them.
#[derive(Debug)]
pub struct Group {
    pub(super) name: GroupName,
    pub(super) members: Mutex<IndexMap<ConnectionId, Arc<Member>, BuildIdHasher>>,
}

impl Group {
    /// Returns the group's name within its tenant.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Calls `visit` for every member under one lock, and returns the number of members.
    ///
    /// If there are more than `most`, it calls nothing and returns `None`.
    pub fn visit(&self, most: usize, visit: impl FnMut(&Arc<Member>)) -> Option<usize> {
        let members = self.members.lock();
        if members.len() > most {
            return None;
        }
        members.values().for_each(visit);
        Some(members.len())
    }

    /// Returns a copy of the member list.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().values().cloned().collect()
    }

    /// Returns true if the connection is a member.
    pub(super) fn holds(&self, id: ConnectionId) -> bool {
        self.members.lock().contains_key(&id)
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.members.lock().len()
    }

    /// Returns true if the group has no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
