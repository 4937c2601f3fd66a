//! Whether the server behind a link is still there: a subscriber sends no commands, so silence has to be asked about.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::super::link::life::RETRY_REFUSED;
use super::subscriptions::Subscriptions;

/// A link on which nothing came for this long is asked with a PING …
const IDLE: Duration = Duration::from_millis(750);
/// … and given up if nothing at all comes for this long. With a tick each: a stopped server is noticed within 3 s.
const PONG_LIMIT: Duration = Duration::from_millis(1500);
/// Whether the server is still there, and when to ask again for what it refused.
pub(super) struct LinkPulse {
    /// When anything was read last.
    pub(super) heard: Instant,
    asked: Option<Instant>,
    retried: Instant,
}

impl LinkPulse {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            heard: now,
            asked: None,
            retried: now,
        }
    }

    /// Breaks if the server is gone.
    pub(super) fn beat(
        &mut self,
        now: Instant,
        wishes: &mut Subscriptions,
        out: &mut BytesMut,
    ) -> ControlFlow<()> {
        if now.duration_since(self.retried) >= RETRY_REFUSED {
            self.retried = now;
            wishes.retry_refused();
        }
        match self.asked {
            Some(asked) if self.heard > asked => self.asked = None,
            Some(asked) if now.duration_since(asked) >= PONG_LIMIT => return ControlFlow::Break(()),
            Some(_) => {}
            None if now.duration_since(self.heard) >= IDLE => {
                self.asked = Some(now);
                wishes.ping(out);
            }
            None => {}
        }
        ControlFlow::Continue(())
    }
}
