//! The times of a socket that the timer wheel reads without a lock: of its pings, of its token's expiry and of
//! `server.max_age`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::UnixTime;

/// Times in ticks of the timer wheel. Ticks count from 1; 0 means "never".
#[derive(Debug)]
pub struct Pulse {
    ping_due: AtomicU32,
    pinged: AtomicU32,
    ponged: AtomicU32,
    retires_at: AtomicU32,
    /// Unix seconds as `f64` bits; infinite if the token's expiry does not close the socket.
    expires_at: AtomicU64,
}

impl Pulse {
    /// Makes the times of a socket that has just opened.
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

    /// Sets the tick at which the next ping is due.
    pub fn set_ping_due(&self, tick: u32) {
        self.ping_due.store(tick, Ordering::Relaxed);
    }

    /// Returns the tick at which the next ping is due.
    pub fn ping_due(&self) -> u32 {
        self.ping_due.load(Ordering::Relaxed)
    }

    /// Notes that a ping was sent at `tick`.
    pub fn pinged(&self, tick: u32) {
        self.pinged.store(tick, Ordering::Relaxed);
    }

    /// Notes that the answer to a ping came at `tick`.
    pub fn ponged(&self, tick: u32) {
        self.ponged.store(tick, Ordering::Relaxed);
    }

    /// Returns the tick of the last ping if it is not answered yet.
    pub fn awaits_pong_since(&self) -> Option<u32> {
        let pinged = self.pinged.load(Ordering::Relaxed);
        (pinged != 0 && self.ponged.load(Ordering::Relaxed) < pinged).then_some(pinged)
    }

    /// Sets the tick at which the socket reaches `server.max_age`.
    pub fn set_retires_at(&self, tick: u32) {
        self.retires_at.store(tick, Ordering::Relaxed);
    }

    /// Returns the tick at which the socket reaches `server.max_age`; `None` if there is no maximum.
    pub fn retires_at(&self) -> Option<u32> {
        let tick = self.retires_at.load(Ordering::Relaxed);
        (tick != 0).then_some(tick)
    }

    /// Returns the seconds until the token expires: negative after its expiry, infinite if that does not close the
    /// socket.
    pub fn seconds_left(&self, now: UnixTime) -> f64 {
        f64::from_bits(self.expires_at.load(Ordering::Relaxed)) - now.0
    }
}
