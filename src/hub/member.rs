//! The hub's records of one socket and of one group. Each holds the other, so both stand here.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;

use super::id_hash::hash_of;
use super::{Outbound, Pulse};
use crate::clock::UnixTime;
use crate::ids::{ConnectionId, GroupName, Jti, UserId};

pub use history::{GroupRecall, Job, ReadWish, Release, Returning, TrackedEvent};

mod history;

/// The next connection id. Ids count up over all tenants of the process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The slot of a member that is not in a hub.
pub(super) const NOT_REGISTERED: u32 = u32::MAX;

/// The properties of a socket that its handshake sets. Only those of its token change later ([`super::Hub::renew`]).
#[derive(Clone, Debug)]
pub struct Profile {
    /// The socket's user; `None` for an anonymous socket, which has no token either.
    pub user: Option<UserId>,
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
            user: Some("".into()),
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
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOf<'a> {
    /// The user of the token.
    pub user: &'a UserId,
    /// The id of the token; `None` if it has none.
    pub jti: Option<Jti>,
    /// The time at which it was issued, in Unix seconds.
    pub issued_at: Option<f64>,
}

/// The properties of a socket's token. A refresh replaces them all at once, under the lock of the hub's list, so that no
/// index holds a socket under a token that it no longer has.
#[derive(Debug)]
pub(super) struct TokenMarks {
    jti: Option<Jti>,
    /// NaN if the token has no `iat`; an `Option` would take twice the memory.
    issued_at: f64,
    password: Option<Box<[u8; 16]>>,
}

/// The properties of a token that takes the place of a socket's own.
#[derive(Clone, Debug)]
pub struct NextToken {
    /// The id of the token; `None` if it has none.
    pub jti: Option<Jti>,
    /// The time at which it was issued, in Unix seconds.
    pub issued_at: Option<f64>,
    /// The time at which it expires; `None` if that does not close the socket.
    pub expires_at: Option<UnixTime>,
    /// The password digest of the user record that the token was checked with.
    pub password: Option<[u8; 16]>,
}

impl TokenMarks {
    fn new(jti: Option<Jti>, issued_at: Option<f64>, password: Option<[u8; 16]>) -> Self {
        Self {
            jti,
            issued_at: issued_at.unwrap_or(f64::NAN),
            password: password.map(Box::new),
        }
    }

    fn issued_at(&self) -> Option<f64> {
        (!self.issued_at.is_nan()).then_some(self.issued_at)
    }
}

/// One socket.
#[derive(Debug)]
pub struct Member {
    id: ConnectionId,
    /// The index in the hub's list. It changes only under the list's lock.
    pub(super) slot: AtomicU32,
    /// Unix seconds. They are precise enough for an age and take a quarter of the memory of an `Instant`.
    opened_at: u32,
    /// The tick of the timer wheel at which the socket may again refresh its token as often as at first.
    refreshes_full_at: AtomicU32,
    delivery: u16,
    user: Option<UserId>,
    token: Mutex<TokenMarks>,
    path: Box<str>,
    pub(super) channel: [u8; 16],
    outbound: Outbound,
    pulse: Pulse,
    /// Without room for more: most sockets join all their groups at once.
    pub(super) groups: Mutex<Box<[Arc<Group>]>>,
}

impl Member {
    /// Makes the record of a socket that has just connected.
    pub fn new(profile: Profile) -> Arc<Self> {
        Arc::new(Self {
            id: ConnectionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            slot: AtomicU32::new(NOT_REGISTERED),
            opened_at: UnixTime::now().0 as u32,
            refreshes_full_at: AtomicU32::new(0),
            delivery: profile.delivery,
            user: profile.user,
            token: Mutex::new(TokenMarks::new(
                profile.jti,
                profile.issued_at,
                profile.password,
            )),
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

    /// Returns the socket's user; `None` for an anonymous socket.
    pub fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// Returns the id of the token.
    pub fn jti(&self) -> Option<Jti> {
        self.token.lock().jti.clone()
    }

    /// Returns the time at which the token was issued, in Unix seconds.
    pub fn issued_at(&self) -> Option<f64> {
        self.token.lock().issued_at()
    }

    /// Returns the user, the id and the issue time of its token: revocations find it by them. `None` for an anonymous socket,
    /// which no revocation concerns.
    pub fn token(&self) -> Option<TokenOf<'_>> {
        let user = self.user.as_ref()?;
        let token = self.token.lock();
        Some(TokenOf {
            user,
            jti: token.jti.clone(),
            issued_at: token.issued_at(),
        })
    }

    /// Returns the user's password digest when the token was checked; `None` if the tenant does not check it.
    pub fn password(&self) -> Option<[u8; 16]> {
        self.token.lock().password.as_deref().copied()
    }

    /// Takes one refresh from the socket's budget; false if it is empty. Only the socket's own task calls it.
    ///
    /// `now` is the current tick of the timer wheel. One refresh comes back every `interval` ticks, up to `most`.
    pub fn take_refresh(&self, now: u32, interval: u32, most: u32) -> bool {
        let full_at = self.refreshes_full_at.load(Ordering::Relaxed).max(now) + interval;
        let has_one = full_at <= now + interval * most;
        if has_one {
            self.refreshes_full_at.store(full_at, Ordering::Relaxed);
        }
        has_one
    }

    /// Puts another token in the place of its own. The caller keeps the indexes in step.
    pub(super) fn set_token(&self, next: NextToken) {
        self.pulse.set_expires_at(next.expires_at);
        *self.token.lock() = TokenMarks::new(next.jti, next.issued_at, next.password);
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

    /// Returns true if the socket is in a group, and a hole in the events of any of its groups is read from its history. A
    /// socket that comes back reads the history of the groups that it holds, and one that is about to join has missed nothing.
    pub fn is_healed(&self) -> bool {
        let groups = self.groups.lock();
        let healed = |group: &Arc<Group>| {
            let history = group.known_history();
            history.is_some_and(|history| history.heals(self.id))
                || self.outbound.holds(group.name())
        };
        groups.iter().all(healed) && (!groups.is_empty() || self.outbound.holds_any())
    }

    /// Returns the names of the socket's groups.
    pub fn groups(&self) -> Vec<GroupName> {
        let groups = self.groups.lock();
        groups.iter().map(|group| group.name().clone()).collect()
    }
}

/// One group.
///
/// Its table stores one pointer for each member, and hashes the ids that the members hold. A map from id to member would
/// take 40 bytes more for each membership of a large group.
#[derive(Debug)]
pub struct Group {
    pub(super) name: GroupName,
    members: Mutex<HashTable<Arc<Member>>>,
    /// Set with the first use of its history.
    history: OnceLock<Box<GroupRecall>>,
}

impl Group {
    /// Makes a group without members.
    pub(super) fn new(name: GroupName) -> Self {
        Self {
            name,
            members: Mutex::default(),
            history: OnceLock::new(),
        }
    }

    /// Returns the group's part in the history. Only for groups that have one.
    pub fn history(&self) -> &GroupRecall {
        self.history.get_or_init(Box::default)
    }

    /// Returns the group's part in the history, if that was used before.
    pub fn known_history(&self) -> Option<&GroupRecall> {
        self.history.get().map(|history| &**history)
    }

    /// Adds the member; returns true if it was not in the group before.
    pub(super) fn add(&self, member: &Arc<Member>) -> bool {
        let same = |other: &Arc<Member>| other.id() == member.id();
        let hash = |member: &Arc<Member>| hash_of(member.id());
        let mut members = self.members.lock();
        match members.entry(hash_of(member.id()), same, hash) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(member.clone());
                true
            }
        }
    }

    /// Takes the member out; returns true if it was the last one.
    pub(super) fn remove(&self, member: ConnectionId) -> bool {
        let mut members = self.members.lock();
        let gone = members
            .find_entry(hash_of(member), |other| other.id() == member)
            .map(|entry| entry.remove().0);
        let is_last = gone.is_ok() && members.is_empty();
        // A large group that has shrunk gives its memory back.
        let count = members.len();
        if members.capacity() > 64 && count < members.capacity() / 8 {
            members.shrink_to(count * 2, |member| hash_of(member.id()));
        }
        is_last
    }

    /// Returns the group's name within its tenant.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Returns the members, if there are at most `MOST`. They are served without the group's lock, because an event of many values takes
    /// long to write, and a socket that joins meanwhile must not wait for that.
    pub fn few<const MOST: usize>(&self) -> Option<[Option<Arc<Member>>; MOST]> {
        let members = self.members.lock();
        let mut all = members.iter();
        (members.len() <= MOST).then(|| std::array::from_fn(|_| all.next().cloned()))
    }

    /// Returns a copy of the member list.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().iter().cloned().collect()
    }

    /// Returns true if the connection is a member.
    pub(super) fn holds(&self, id: ConnectionId) -> bool {
        let members = self.members.lock();
        members
            .find(hash_of(id), |other| other.id() == id)
            .is_some()
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
