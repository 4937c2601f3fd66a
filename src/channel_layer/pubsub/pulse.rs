//! Checks that the server behind a link is still there. A subscriber sends no commands, so it asks after a silence.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::super::link::life::RETRY_REFUSED;
use super::subscriptions::Subscriptions;

/// Silence after which a PING is sent.
const IDLE: Duration = Duration::from_millis(750);
/// Silence after the PING at which the link is given up. With a tick for each step, a stopped server is noticed within
/// 3 s.
const PONG_LIMIT: Duration = Duration::from_millis(1500);

/// The clocks of one connection: the last sign of life, and the next retry of refused channels.
pub(super) struct LinkPulse {
    /// The time of the last read.
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

    /// Sends a PING and retries refused channels when they are due; breaks if the server is gone.
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
            // Any read after the PING proves that the server lives: its answer may wait behind a burst of messages.
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
