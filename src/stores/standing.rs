//! The standing of a link to a dependency: the pauses between attempts, and one log line for each change of state. No IO.

use std::fmt::Display;
use std::time::Duration;

use tracing::warn;

use crate::error::{Dependency, ErrorKind};
use crate::metrics;

/// The first and the longest pause between attempts. 50 ms find a server that restarts at once. 1 s does not flood a server
/// that is down, and still finds it soon when it comes back.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// The pauses between attempts. Each is twice as long as the one before, up to the longest.
///
/// It replaces the crate `backon`, which wraps the attempt itself: the tasks here take orders during a pause.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSES[0])
    }
}

impl Backoff {
    /// Returns the next pause, shortened at random by up to a half, so that replicas do not come back in step.
    pub fn pause(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(PAUSES[1]);
        pause
    }

    /// Starts again with the first pause.
    pub fn reset(&mut self) {
        self.0 = PAUSES[0];
    }

    /// Notes the lifetime of a link. One that outlived the longest pause resets the pauses. Others may be cut at once, again
    /// and again, so their pauses go on growing.
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

/// The record of one link over all its connections. It counts them, sets the link's metrics, and logs a failure once for
/// each kind.
#[derive(Debug)]
pub struct LinkStanding {
    dependency: Dependency,
    /// `host:port`.
    endpoint: String,
    words: LinkWords,
    /// Connections made so far.
    made: u64,
    /// The kind of the failure that was logged; `None` while the link is up.
    said: Option<ErrorKind>,
}

impl LinkStanding {
    /// Makes the record of a link that has had no connection yet.
    pub fn new(dependency: Dependency, endpoint: &str, words: LinkWords) -> Self {
        Self {
            dependency,
            endpoint: endpoint.to_owned(),
            words,
            made: 0,
            said: None,
        }
    }

    /// Notes a connection; returns its number, from 1 on.
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
        // Each time: another link to the endpoint may have ended meanwhile, and taken the series with it.
        metrics::dependency_up(self.dependency, &self.endpoint, false);
        if !self.is_news(kind) {
            return;
        }
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

    /// Returns true if a failure of this kind was not logged yet, and notes it as logged.
    fn is_news(&mut self, kind: ErrorKind) -> bool {
        self.said.replace(kind) != Some(kind)
    }

    /// Returns `host:port`.
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
