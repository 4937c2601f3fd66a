//! What the hub holds of one socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Group, Outbound, Pulse};
use crate::clock::UnixTime;
use crate::ids::{ConnectionId, GroupName, Jti, UserId};

/// Ids of connections count up over all tenants of the process.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The slot of a member that is in no hub.
pub(super) const NOT_REGISTERED: u32 = u32::MAX;

/// What a socket is known by, taken from its handshake; it does not change.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Whose socket it is.
    pub user: UserId,
    /// The id of its token, where the token has one.
    pub jti: Option<Jti>,
    /// When its token was issued, in Unix seconds.
    pub issued_at: Option<f64>,
    /// When its token ends, where that closes the socket.
    pub expires_at: Option<UnixTime>,
    /// The password digest that its user had then; only where it is checked.
    pub password: Option<[u8; 16]>,
    /// The path of its request, percent-encoded, without the query.
    pub path: Box<str>,
    /// Of its channel name, the 128 random bits.
    pub channel: [u8; 16],
    /// Which of the tenant's deliveries turns events into frames for this socket.
    pub delivery: u16,
    /// Bytes that may wait for it; 0 is no limit.
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

/// One socket.
#[derive(Debug)]
pub struct Member {
    id: ConnectionId,
    /// Its place in the hub's list, which only the holder of the list's lock moves.
    pub(super) slot: AtomicU32,
    /// Unix seconds: enough for an age, and half of an `Instant`.
    opened_at: u32,
    delivery: u16,
    user: UserId,
    jti: Option<Jti>,
    /// Not a number where the token does not say.
    issued_at: f64,
    password: Option<Box<[u8; 16]>>,
    path: Box<str>,
    channel: [u8; 16],
    outbound: Outbound,
    pulse: Pulse,
    pub(super) groups: Mutex<Vec<Arc<Group>>>,
}

impl Member {
    /// Returns a socket that has just come.
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

    /// [`Profile::delivery`].
    pub fn delivery(&self) -> u16 {
        self.delivery
    }

    /// Whose socket it is.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Returns the id of its token.
    pub fn jti(&self) -> Option<&Jti> {
        self.jti.as_ref()
    }

    /// When its token was issued, in Unix seconds.
    pub fn issued_at(&self) -> Option<f64> {
        (!self.issued_at.is_nan()).then_some(self.issued_at)
    }

    /// Returns the password digest of its user at the handshake, where it is checked.
    pub fn password(&self) -> Option<[u8; 16]> {
        self.password.as_deref().copied()
    }

    /// Returns the path of its request, percent-encoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the random part of its channel name.
    pub fn channel(&self) -> [u8; 16] {
        self.channel
    }

    /// Whole seconds since it came.
    pub fn age(&self) -> u64 {
        (UnixTime::now().0 as u64).saturating_sub(u64::from(self.opened_at))
    }

    /// What waits for the socket.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// When it was last heard of, and how long it may stay.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Returns the groups it is in.
    pub fn groups(&self) -> Vec<GroupName> {
        let groups = self.groups.lock();
        groups.iter().map(|group| group.name().clone()).collect()
    }
}
