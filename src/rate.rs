//! A token bucket that holds two seconds' worth, in 16 bytes: one stands in every connection.

use std::time::{Duration, Instant};

/// The generic cell rate algorithm (ITU-T I.371): it keeps the time at which the bucket would be full again.
///
/// The rate is named at each call, so that a new one holds at once; 0 is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at: Option<Instant>,
}

/// What a bucket holds.
const BURST: Duration = Duration::from_secs(2);

impl Bucket {
    /// Takes one at `per_second` takes a second; false if the bucket is empty.
    pub fn take(&mut self, now: Instant, per_second: u32) -> bool {
        match self.after_one(now, per_second) {
            Ok(full_at) => {
                self.full_at = full_at;
                true
            }
            Err(Empty) => false,
        }
    }

    /// Whether [`Bucket::take`] would succeed; takes nothing.
    pub fn has_one(&self, now: Instant, per_second: u32) -> bool {
        self.after_one(now, per_second).is_ok()
    }

    fn after_one(&self, now: Instant, per_second: u32) -> Result<Option<Instant>, Empty> {
        let Some(interval) = 1_000_000_000u32.checked_div(per_second) else {
            return Ok(None);
        };
        let interval = Duration::from_nanos(interval.into());
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + interval;
        if full_at <= now + BURST {
            Ok(Some(full_at))
        } else {
            Err(Empty)
        }
    }
}

/// The bucket has nothing left.
struct Empty;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_two_seconds_and_refills_at_its_rate() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert_eq!((0..100).filter(|_| bucket.take(start, 10)).count(), 20);
        assert!(!bucket.has_one(start, 10));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(later, 10)).count(), 10);
        assert!(bucket.has_one(later, 0));
    }

    #[test]
    fn zero_is_no_limit() {
        let mut bucket = Bucket::default();
        assert!((0..1000).all(|_| bucket.take(Instant::now(), 0)));
    }
}
