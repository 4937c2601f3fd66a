//! The times of a socket that the timer wheel reads without a lock: of its pings, of its token's expiry and of
//! `server.max_age`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::UnixTime;

/// The value of `pinged` while a ping waits for the socket.
const WAITS: u32 = u32::MAX;

/// The state of the last ping of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingState {
    /// None was asked for, or the last one is answered.
    Idle,
    /// One was asked for and has not left yet.
    Waits,
    /// It left at this tick and is not answered yet.
    LeftAt(u32),
}

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
        let never = || AtomicU32::new(0);
        Self {
            ping_due: never(),
            pinged: never(),
            ponged: never(),
            retires_at: never(),
            expires_at: AtomicU64::new(expiry_bits(expires_at)),
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

    /// Notes that a ping is to be sent.
    pub fn ask_ping(&self) {
        self.pinged.store(WAITS, Ordering::Relaxed);
    }

    /// Notes that the kernel took a ping at `tick`.
    pub fn pinged(&self, tick: u32) {
        self.pinged.store(tick, Ordering::Relaxed);
    }

    /// Notes that the answer to a ping came at `tick`.
    pub fn ponged(&self, tick: u32) {
        self.ponged.store(tick, Ordering::Relaxed);
    }

    /// Returns the state of the last ping.
    pub fn ping_state(&self) -> PingState {
        match self.pinged.load(Ordering::Relaxed) {
            WAITS => PingState::Waits,
            pinged if self.ponged.load(Ordering::Relaxed) < pinged => PingState::LeftAt(pinged),
            _ => PingState::Idle,
        }
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

    /// Sets the time at which the token expires; `None` if that does not close the socket.
    pub fn set_expires_at(&self, expires_at: Option<UnixTime>) {
        self.expires_at
            .store(expiry_bits(expires_at), Ordering::Relaxed);
    }

    /// Returns the seconds until the token expires: negative after its expiry, infinite if that does not close the
    /// socket.
    pub fn seconds_left(&self, now: UnixTime) -> f64 {
        f64::from_bits(self.expires_at.load(Ordering::Relaxed)) - now.0
    }
}

fn expiry_bits(expires_at: Option<UnixTime>) -> u64 {
    expires_at.map_or(f64::INFINITY, |at| at.0).to_bits()
}
