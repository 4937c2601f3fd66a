//! The rule for slow consumers: a socket that is behind is judged by its progress.
//!
//! A socket is behind while its stream takes no bytes and more than `limits.send_queue` waits for it. It is too slow if
//! it takes less than [`LEAST`] bytes in [`WINDOW`], or if it is still behind after [`LONGEST`]. How much was sent to it,
//! and how fast, does not count.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// The time within which a socket that is behind has to take [`LEAST`] bytes. A client that is busy for a moment, or whose
/// network lost a few packets, is back within it.
const WINDOW: Duration = Duration::from_secs(5);
/// 16 KiB a second, an eighth of what a link of 1 Mbit/s takes.
const LEAST: usize = 80 * 1024;
/// The longest time for which a socket may be behind without a break: its client would see events that are a minute old.
const LONGEST: Duration = Duration::from_secs(60);
/// The time between two looks.
const STEP: Duration = Duration::from_secs(1);

/// The progress of a socket that is behind. It exists only so long.
pub(super) struct SlowWatch {
    pace: TakingPace,
    timer: Pin<Box<Sleep>>,
}

impl SlowWatch {
    /// Makes the record of a socket that falls behind now.
    pub(super) fn new() -> Self {
        Self {
            pace: TakingPace::from(Instant::now()),
            timer: Box::pin(sleep(STEP)),
        }
    }

    /// Notes that the stream took bytes.
    pub(super) fn took(&mut self, bytes: usize) {
        self.pace.taken += bytes;
    }

    /// Waits until the socket is too slow. The caller has just offered bytes to the stream, which took none.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.pace.is_too_slow(now, now - self.timer.deadline()) {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(now + STEP);
        }
    }
}

/// The rule, without a clock.
struct TakingPace {
    /// The time at which the socket fell behind.
    since: Instant,
    /// The beginning of the current window.
    window: Instant,
    /// The bytes that the stream took in the window.
    taken: usize,
}

impl TakingPace {
    fn from(now: Instant) -> Self {
        Self {
            since: now,
            window: now,
            taken: 0,
        }
    }

    /// Returns true if the socket is too slow. Call it every [`STEP`]; `late` tells by how much this call missed that.
    fn is_too_slow(&mut self, now: Instant, late: Duration) -> bool {
        if late >= STEP {
            // This process stood still, and the client could not show that it takes bytes.
            self.since += late;
            (self.window, self.taken) = (now, 0);
        }
        if now - self.window >= WINDOW {
            if self.taken < LEAST {
                return true;
            }
            (self.window, self.taken) = (now, 0);
        }
        now - self.since >= LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a client take `bytes` each second until it is too slow; returns the seconds, at most 100.
    fn seconds(bytes: usize) -> u64 {
        let mut now = Instant::now();
        let mut pace = TakingPace::from(now);
        for second in 1..100 {
            pace.taken += bytes;
            now += STEP;
            if pace.is_too_slow(now, Duration::ZERO) {
                return second;
            }
        }
        100
    }

    #[test]
    fn a_standing_socket_is_too_slow_after_one_window() {
        assert_eq!(seconds(0), 5);
        assert_eq!(seconds(15_000), 5);
    }

    #[test]
    fn a_link_of_one_megabit_is_too_slow_only_if_it_never_catches_up() {
        assert_eq!(seconds(125_000), 60);
        assert_eq!(seconds(17_000), 60);
    }

    #[test]
    fn a_pause_of_this_process_is_not_held_against_the_client() {
        let pause = Duration::from_secs(20);
        let mut now = Instant::now();
        let mut pace = TakingPace::from(now);
        for _ in 0..10 {
            now += STEP + pause;
            assert!(!pace.is_too_slow(now, pause));
        }
        for _ in 0..4 {
            now += STEP;
            assert!(!pace.is_too_slow(now, Duration::ZERO));
        }
        assert!(pace.is_too_slow(now + STEP, Duration::ZERO));
    }
}
