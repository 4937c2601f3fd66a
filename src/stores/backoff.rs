//! The pauses between attempts that fail.
//!
//! It replaces the crate `backon`, which wraps the attempt itself: the tasks here take orders during a pause.

use std::time::Duration;

/// The first and the longest pause of a link. 50 ms find a server that restarts at once. 1 s does not flood a server that is
/// down, and still finds it soon when it comes back.
const OF_LINKS: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// The pauses between attempts. Each is twice as long as the one before, up to the longest.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Default for Backoff {
    /// Begins the pauses of a link.
    fn default() -> Self {
        let [first, longest] = OF_LINKS;
        Self::between(first, longest)
    }
}

impl Backoff {
    /// Begins with the pause `first`, which grows up to `longest`.
    pub const fn between(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// Returns the next pause, shortened at random by up to a half, so that replicas and tenants do not come back in step.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// Starts again with the first pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Notes the lifetime of a link. One that outlived the longest pause resets the pauses. Others may be cut at once, again
    /// and again, so their pauses go on growing.
    pub fn lived(&mut self, lived: Duration) {
        if lived > self.longest {
            self.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_again_after_a_good_link() {
        let [first, longest] = OF_LINKS;
        let mut backoff = Backoff::default();
        let bounds = [50, 100, 200, 400, 800, 1000, 1000].map(Duration::from_millis);
        for bound in bounds {
            let pause = backoff.pause();
            assert!(
                bound / 2 <= pause && pause <= bound,
                "{pause:?} of {bound:?}"
            );
        }
        backoff.lived(longest);
        assert!(backoff.pause() >= longest / 2, "the link was cut at once");
        backoff.lived(longest * 2);
        assert!(backoff.pause() <= first);
    }
}
