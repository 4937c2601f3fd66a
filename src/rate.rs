//! A token bucket for two seconds' worth of tokens. It takes 8 bytes, because every connection holds one.
//!
//! Instead of governor, whose keyed limiter keeps a map.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A bucket of the generic cell rate algorithm (ITU-T I.371).
///
/// The bucket stores one value: the time at which it is full again. The caller passes the rate to each call, so that
/// a new rate applies at once. A rate of 0 means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Nanoseconds since [`BEGINNING`]; 0 before the first token is taken. An [`Instant`] would take twice the memory of each
    /// socket.
    full_at: u64,
}

/// The time from which buckets count. Times before it count as it.
static BEGINNING: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(BURST).unwrap_or(now)
});

/// The capacity of a bucket, as the time in which its rate refills it.
const BURST: Duration = Duration::from_secs(2);

impl Bucket {
    /// Takes one token of a bucket that refills with `per_second` tokens per second; returns false if it is empty.
    pub fn take(&mut self, now: Instant, per_second: u32) -> bool {
        self.take_many(now, per_second, 1)
    }

    /// Takes a part of a token: one of so many.
    pub fn take_part(&mut self, now: Instant, per_second: u32, parts: u32) -> bool {
        self.take(now, per_second.saturating_mul(parts))
    }

    /// Takes `count` tokens or none. More than the bucket holds count as all that it holds.
    pub fn take_many(&mut self, now: Instant, per_second: u32, count: u32) -> bool {
        match self.after(now, per_second, count) {
            Ok(full_at) => {
                self.full_at = full_at;
                true
            }
            Err(Empty) => false,
        }
    }

    /// Returns true if [`Bucket::take`] would succeed, and takes nothing.
    pub fn has_one(&self, now: Instant, per_second: u32) -> bool {
        self.after(now, per_second, 1).is_ok()
    }

    /// Returns true if nothing is taken any more: a new bucket would do the same.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= nanos(now.saturating_duration_since(*BEGINNING))
    }

    fn after(&self, now: Instant, per_second: u32, count: u32) -> Result<u64, Empty> {
        let Some(interval) = 1_000_000_000u32.checked_div(per_second) else {
            // Whatever was taken stays taken: one call without a limit must not fill the bucket for the others.
            return Ok(self.full_at);
        };
        let now = nanos(now.saturating_duration_since(*BEGINNING));
        let taken = nanos(Duration::from_nanos(interval.into()) * count);
        let full_at = self.full_at.max(now) + taken.min(nanos(BURST));
        if full_at <= now + nanos(BURST) {
            Ok(full_at)
        } else {
            Err(Empty)
        }
    }
}

/// A process would have to run for 500 years for more than this holds.
fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// The bucket has nothing left.
struct Empty;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_two_seconds_and_refills_at_its_rate() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert!(bucket.is_full(start));
        assert_eq!((0..100).filter(|_| bucket.take(start, 10)).count(), 20);
        assert!(!bucket.has_one(start, 10) && !bucket.is_full(start));
        assert!(bucket.is_full(start + BURST));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(later, 10)).count(), 10);
        assert!(bucket.has_one(later, 0));
    }

    #[test]
    fn many_are_taken_at_once_or_not_at_all() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert!(bucket.take_many(start, 10, 15));
        assert!(!bucket.take_many(start, 10, 6));
        assert!(bucket.take_many(start, 10, 5));
        // A full bucket gives all that it holds for more.
        assert!(bucket.take_many(start + BURST, 10, 1000));
        assert!(!bucket.take(start + BURST, 10));
    }

    #[test]
    fn a_part_of_a_token_takes_a_part_of_its_time() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        assert!(bucket.take_many(now, 10, 19));
        let parts = (0..1000).filter(|_| bucket.take_part(now, 10, 64)).count();
        assert_eq!(parts, 64);
        assert!((0..1000).all(|_| bucket.take_part(now, 0, 64)));
    }

    /// Before, one call with a rate of 0 filled the bucket again.
    #[test]
    fn zero_is_no_limit_and_gives_nothing_back() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        assert!(bucket.take_many(now, 10, 20));
        assert!((0..1000).all(|_| bucket.take(now, 0)));
        assert!(!bucket.take(now, 10));
    }
}
