//! The times of one host that say how much this process knows of what was sent there: since when its reading link may have
//! missed messages, and the clock of the host's Redis.
//!
//! A process that was stopped runs its tasks in any order. These times are right before the reading link has noticed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The time at which the newest wait of a reading link began. Messages that were sent later may not have been heard of.
#[derive(Clone)]
pub(super) struct AskedAt(Arc<Mutex<Instant>>);

impl AskedAt {
    pub(super) fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn get(&self) -> Instant {
        *self.0.lock()
    }

    /// Begins to count again. What was missed until now must have been noted before.
    pub(super) fn again(&self) {
        *self.0.lock() = Instant::now();
    }
}

/// The times of one host.
#[derive(Default)]
pub(super) struct HostTimes {
    /// That of the reading link, once it has taken a mailbox of this layer.
    reader: OnceLock<AskedAt>,
    clock: Mutex<HostClock>,
}

/// A time of the host's clock in Unix milliseconds, and the moment at which it came here.
type ClockReading = (i64, Instant);

/// The readings of the host's clock.
#[derive(Default)]
struct HostClock {
    newest: Option<ClockReading>,
    leap: Option<Leap>,
}

/// The last time that the host's clock ran ahead of this machine's. A machine that was suspended counts no time meanwhile:
/// moments before it are those of the earlier reading.
struct Leap {
    earlier: ClockReading,
    /// The moment at which it showed.
    shown: Instant,
    by: Duration,
}

/// The time by which the host's clock may run ahead between two readings: more than an answer takes, less than events live.
const LEAP: i64 = 1_000;

impl HostTimes {
    /// Notes the link that reads from this host. It is the same one for as long as the layer lives.
    pub(super) fn read_by(&self, reader: &AskedAt) {
        self.reader.get_or_init(|| reader.clone());
    }

    /// Returns the time since which messages may not have been heard of; `None` if the link has not begun.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.reader.get().map(AskedAt::get)
    }

    /// Notes a time of the host's clock, which has just come.
    pub(super) fn tick(&self, milliseconds: i64) {
        let now = Instant::now();
        let mut clock = self.clock.lock();
        if let Some(earlier) = clock.newest
            && let ahead @ LEAP.. = milliseconds - at(earlier, now)
        {
            clock.leap = Some(Leap {
                earlier,
                shown: now,
                by: Duration::from_millis(ahead.unsigned_abs()),
            });
        }
        clock.newest = Some((milliseconds, now));
    }

    /// Returns the time since a moment, with that in which this machine was suspended.
    pub(super) fn away_since(&self, moment: Instant) -> Duration {
        let clock = self.clock.lock();
        let since = clock.leap.as_ref().filter(|leap| leap.shown >= moment);
        moment.elapsed() + since.map_or(Duration::ZERO, |leap| leap.by)
    }

    /// Returns a moment as a time of the host's clock in Unix milliseconds, too early by as long as the newest answer was under way.
    /// `None` before the first one.
    pub(super) fn time_of(&self, moment: Instant) -> Option<i64> {
        let clock = self.clock.lock();
        let time = at(clock.newest?, moment);
        let leap = clock.leap.as_ref().filter(|leap| moment < leap.shown);
        Some(leap.map_or(time, |leap| time.min(at(leap.earlier, moment))))
    }
}

/// Returns the time of the host's clock at a moment, by one reading.
fn at((time, came): ClockReading, moment: Instant) -> i64 {
    let later = moment.saturating_duration_since(came).as_millis() as i64;
    let earlier = came.saturating_duration_since(moment).as_millis() as i64;
    time + later - earlier
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_a_time_of_the_hosts_clock_and_never_a_later_one() {
        let times = HostTimes::default();
        let before = Instant::now();
        assert_eq!(times.time_of(before), None);
        tokio::time::advance(Duration::from_secs(7)).await;
        times.tick(1_000_000);
        assert_eq!(times.time_of(before), Some(993_000));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(times.time_of(Instant::now()), Some(1_003_000));
        // The next answer was under way for two seconds, in which the process stood still.
        times.tick(1_001_000);
        assert_eq!(times.time_of(Instant::now()), Some(1_001_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_stands_still_has_heard_nothing_since() {
        let (times, reader) = (HostTimes::default(), AskedAt::now());
        assert_eq!(times.asked_at(), None);
        times.read_by(&reader);
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(times.asked_at(), Some(began));
        reader.again();
        assert_eq!(times.asked_at(), Some(Instant::now()));
    }

    /// A suspended machine counts no time. Before, a moment of the time before was taken for one just before the answer, so what
    /// expired meanwhile was passed over in silence.
    #[tokio::test(start_paused = true)]
    async fn a_moment_before_the_machine_was_suspended_stays_what_it_was() {
        let times = HostTimes::default();
        times.tick(10_000);
        tokio::time::advance(Duration::from_millis(500)).await;
        let before = Instant::now();
        // Five minutes pass at the host alone.
        times.tick(310_500);
        assert_eq!(
            times.time_of(before - Duration::from_millis(1)),
            Some(10_499)
        );
        tokio::time::advance(Duration::from_millis(500)).await;
        times.tick(311_000);
        assert_eq!(
            times.time_of(before - Duration::from_millis(1)),
            Some(10_499)
        );
        assert_eq!(times.time_of(Instant::now()), Some(311_000));
        let away = times.away_since(before);
        assert_eq!(away, Duration::from_millis(500 + 300_000));
        assert_eq!(times.away_since(Instant::now()), Duration::ZERO);
    }
}
