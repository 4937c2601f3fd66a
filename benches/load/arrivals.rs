//! The records of what arrives at the sockets of a [`crate::swarm::Swarm`]: counts on each side, and latencies.

use anyhow::{Result, ensure};

use crate::stamp;

/// The server of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Gateway = 0,
    Floor = 1,
    /// Sockets of a gateway that the load does not count: those that are revoked, and those of a storm.
    Apart = 2,
}

/// The arrivals on one side.
#[derive(Default)]
pub(crate) struct Tally {
    /// The number of complete text and binary frames.
    pub(crate) frames: u64,
    /// The payload length of the last frame.
    pub(crate) last_len: usize,
    /// The number of sockets that the server closed.
    pub(crate) closed: u64,
    /// Code and reason of the first close frame, for the error.
    pub(crate) first_close: Option<String>,
}

/// The nanoseconds from publish to arrival during a latency run.
#[derive(Default)]
pub(crate) struct Latencies {
    /// At the sockets of [`Side::Gateway`].
    pub(crate) sockets: Vec<u64>,
    /// At the bare subscriber.
    pub(crate) subscriber: Vec<u64>,
    /// The longest time between two arrivals at the sockets.
    pub(crate) longest_pause: u64,
    last_arrival: Option<u64>,
}

impl Latencies {
    /// Returns the p99 in milliseconds, at the sockets and at the bare subscriber.
    pub(crate) fn p99(mut self) -> Result<[f64; 2]> {
        ensure!(!self.sockets.is_empty(), "no delivery could be timed");
        for latencies in [&mut self.sockets, &mut self.subscriber] {
            latencies.sort_unstable();
        }
        Ok([self.sockets, self.subscriber].map(|latencies| quantile(&latencies, 0.99) / 1e3))
    }

    /// Adds the arrival of a frame that ends so.
    pub(crate) fn arrived(&mut self, tail: &[u8]) {
        let now = stamp::now();
        self.sockets.extend(stamp::age(tail));
        let pause = self.last_arrival.map_or(0, |last| now - last);
        self.longest_pause = self.longest_pause.max(pause);
        self.last_arrival = Some(now);
    }
}

/// Returns the quantile `part` of sorted nanoseconds, in microseconds.
pub(crate) fn quantile(sorted: &[u64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).map_or(f64::NAN, |&nanos| nanos as f64 / 1e3)
}
