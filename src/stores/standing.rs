//! The standing of a link to a dependency: one log line for each change of state. No IO.

use std::fmt::Display;

use tracing::warn;

use crate::error::{Dependency, ErrorKind};
use crate::metrics;

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
