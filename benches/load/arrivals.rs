//! The records of what arrives at the sockets of a [`crate::swarm::Swarm`]: counts on each side, and latencies.

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
    /// Adds the arrival of a frame that ends so.
    pub(crate) fn arrived(&mut self, tail: &[u8]) {
        let now = stamp::now();
        self.sockets.extend(stamp::age(tail));
        let pause = self.last_arrival.map_or(0, |last| now - last);
        self.longest_pause = self.longest_pause.max(pause);
        self.last_arrival = Some(now);
    }
}
