//! A token bucket that holds two seconds' worth, in 24 bytes: one stands in every connection.

use std::time::{Duration, Instant};

/// The generic cell rate algorithm (ITU-T I.371): it keeps the time at which the bucket would be full again.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Nanoseconds between two takes at the full rate, at most a second; 0 is no limit.
    interval: u32,
    full_at: Option<Instant>,
}

/// What a bucket holds.
const BURST: Duration = Duration::from_secs(2);

impl Bucket {
    /// A full bucket of `per_second` takes a second; 0 is no limit.
    pub fn new(per_second: u32) -> Self {
        let interval = 1_000_000_000u32.checked_div(per_second).unwrap_or(0);
        Self {
            interval,
            full_at: None,
        }
    }

    /// Takes one; false if the bucket is empty.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.interval == 0 {
            return true;
        }
        let full_at =
            self.full_at.map_or(now, |at| at.max(now)) + Duration::from_nanos(self.interval.into());
        let fits = full_at <= now + BURST;
        if fits {
            self.full_at = Some(full_at);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_two_seconds_and_refills_at_its_rate() {
        let (mut bucket, start) = (Bucket::new(10), Instant::now());
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 20);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 10);
    }

    #[test]
    fn zero_is_no_limit() {
        let mut bucket = Bucket::new(0);
        assert!((0..1000).all(|_| bucket.take(Instant::now())));
    }
}
