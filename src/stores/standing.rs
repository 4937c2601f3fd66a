//! The standing of a link to a dependency: pauses between attempts, and each change of state said once. No IO.

use std::fmt::Display;
use std::time::Duration;

use tracing::warn;

use crate::error::{Dependency, ErrorKind};
use crate::metrics;

/// First and last pause between attempts. 50 ms: a server that restarts is found at once. 1 s: one that is gone is not
/// flooded, and one that comes back is found soon.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// The pauses between attempts: each is twice as long as the one before, up to the last.
///
/// Not the crate `backon`, which wraps the attempt itself: what is attempted here takes orders meanwhile.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSES[0])
    }
}

impl Backoff {
    /// Returns the next pause, cut by up to a half at random, so that replicas do not come back in step.
    pub fn pause(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(PAUSES[1]);
        pause
    }

    /// Begins with the first pause again.
    pub fn reset(&mut self) {
        self.0 = PAUSES[0];
    }

    /// Notes how long a link lived. One that outlived the last pause was a good one; others may be cut at once, again and
    /// again, and pauses grow.
    pub fn lived(&mut self, lived: Duration) {
        if lived > PAUSES[1] {
            self.reset();
        }
    }
}

/// The log lines of one kind of link.
#[derive(Clone, Copy, Debug)]
pub struct LinkWords {
    /// The server refuses the credentials.
    pub refused: &'static str,
    /// There is no link for any other reason.
    pub lost: &'static str,
}

/// One link over all its connections: counts them, moves its metrics, and logs a failure once for each kind.
#[derive(Debug)]
pub struct LinkStanding {
    dependency: Dependency,
    /// `host:port`.
    endpoint: String,
    words: LinkWords,
    /// Connections made so far.
    made: u64,
    /// The failure that the log has; `None` while all is well.
    said: Option<ErrorKind>,
}

impl LinkStanding {
    /// A link that was never made.
    pub fn new(dependency: Dependency, endpoint: &str, words: LinkWords) -> Self {
        Self {
            dependency,
            endpoint: endpoint.to_owned(),
            words,
            made: 0,
            said: None,
        }
    }

    /// Notes a connection, and returns its number; the first is 1.
    pub fn up(&mut self) -> u64 {
        self.made += 1;
        if self.made > 1 {
            metrics::reconnected(self.dependency);
        }
        metrics::dependency_up(self.dependency, &self.endpoint, true);
        self.said = None;
        self.made
    }

    /// Notes a lost connection or a failed attempt. `error` holds no secret.
    pub fn down(&mut self, kind: ErrorKind, error: &dyn Display) {
        metrics::dependency_error(self.dependency, kind);
        if !self.is_news(kind) {
            return;
        }
        metrics::dependency_up(self.dependency, &self.endpoint, false);
        let words = match kind {
            ErrorKind::Auth => self.words.refused,
            _ => self.words.lost,
        };
        warn!(
            redis.endpoint = self.endpoint,
            dependency = self.dependency.label(),
            error.kind = kind.label(),
            %error,
            "{words}"
        );
    }

    /// Whether the log does not have the failure yet; from then on it does.
    fn is_news(&mut self, kind: ErrorKind) -> bool {
        self.said.replace(kind) != Some(kind)
    }

    /// `host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_begin_again_after_a_good_link() {
        let mut backoff = Backoff::default();
        let bounds = [50, 100, 200, 400, 800, 1000, 1000].map(Duration::from_millis);
        for bound in bounds {
            let pause = backoff.pause();
            assert!(
                bound / 2 <= pause && pause <= bound,
                "{pause:?} of {bound:?}"
            );
        }
        backoff.lived(PAUSES[1]);
        assert!(backoff.pause() >= PAUSES[1] / 2, "the link was cut at once");
        backoff.lived(PAUSES[1] * 2);
        assert!(backoff.pause() <= PAUSES[0]);
    }

    #[test]
    fn a_failure_is_news_once_for_each_kind_and_again_after_a_link() {
        let words = LinkWords {
            refused: "refused",
            lost: "lost",
        };
        let mut standing = LinkStanding::new(Dependency::Redis, "h:1", words);
        let kinds = [ErrorKind::Io, ErrorKind::Io, ErrorKind::Auth, ErrorKind::Io];
        let news = kinds.map(|kind| standing.is_news(kind));
        assert_eq!(news, [true, false, true, true]);
        assert_eq!([standing.up(), standing.up()], [1, 2]);
        assert!(standing.is_news(ErrorKind::Io));
    }
}
