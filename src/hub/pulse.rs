//! When a socket was last heard of, and how long its token and `server.max_age` let it stay: read by the timer wheel,
//! without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::UnixTime;

/// Times in ticks of the timer wheel, which counts from 1; 0 is "never".
#[derive(Debug)]
pub struct Pulse {
    ping_due: AtomicU32,
    pinged: AtomicU32,
    ponged: AtomicU32,
    retires_at: AtomicU32,
    /// Unix seconds as `f64` bits; infinite where the token's end does not matter.
    expires_at: AtomicU64,
}

impl Pulse {
    /// A socket that has just been opened.
    pub fn new(expires_at: Option<UnixTime>) -> Self {
        let expires_at = expires_at.map_or(f64::INFINITY, |at| at.0).to_bits();
        let never = || AtomicU32::new(0);
        Self {
            ping_due: never(),
            pinged: never(),
            ponged: never(),
            retires_at: never(),
            expires_at: AtomicU64::new(expires_at),
        }
    }

    /// The next ping is due at `tick`.
    pub fn set_ping_due(&self, tick: u32) {
        self.ping_due.store(tick, Ordering::Relaxed);
    }

    /// When the next ping is due.
    pub fn ping_due(&self) -> u32 {
        self.ping_due.load(Ordering::Relaxed)
    }

    /// A ping left at `tick`.
    pub fn pinged(&self, tick: u32) {
        self.pinged.store(tick, Ordering::Relaxed);
    }

    /// The answer to a ping came at `tick`.
    pub fn ponged(&self, tick: u32) {
        self.ponged.store(tick, Ordering::Relaxed);
    }

    /// The tick of a ping that was not answered yet.
    pub fn awaits_pong_since(&self) -> Option<u32> {
        let pinged = self.pinged.load(Ordering::Relaxed);
        (pinged != 0 && self.ponged.load(Ordering::Relaxed) < pinged).then_some(pinged)
    }

    /// The socket reaches its age at `tick`.
    pub fn set_retires_at(&self, tick: u32) {
        self.retires_at.store(tick, Ordering::Relaxed);
    }

    /// When the socket reaches its age; `None` where sockets may grow as old as they like.
    pub fn retires_at(&self) -> Option<u32> {
        let tick = self.retires_at.load(Ordering::Relaxed);
        (tick != 0).then_some(tick)
    }

    /// Seconds until the token ends: negative once it has, infinite where it does not matter.
    pub fn seconds_left(&self, now: UnixTime) -> f64 {
        f64::from_bits(self.expires_at.load(Ordering::Relaxed)) - now.0
    }
}
