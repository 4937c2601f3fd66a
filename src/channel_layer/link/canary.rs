//! The canary of a link: a message published through the command link and expected on the subscriber link.
//!
//! It tells a deaf link (the far side of a split brain, a subscriber connection that a proxy forgot) from one on which
//! there is nothing to hear. A canary that could not be published is not counted.

use std::future::pending;
use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::metrics;

/// Time from one canary to the next. With [`RETURN_LIMIT`] and two misses, a deaf link is noticed within about four
/// seconds.
const EVERY: Duration = Duration::from_secs(1);
/// Time that a canary may take to come back after its publish.
const RETURN_LIMIT: Duration = Duration::from_secs(1);
/// Misses in a row after which the link counts as deaf.
const MISSES: u32 = 2;

enum CanaryState {
    /// The next canary is not due yet.
    Resting,
    /// On its way to Redis.
    Leaving,
    /// Redis has taken it.
    Expected { taken: Instant },
}

/// The publish of a canary over the command link.
pub(in crate::channel_layer) type Publishing = BoxFuture<'static, Result<u64, StoreError>>;

/// The canary of one connection, with its publish.
pub(in crate::channel_layer) struct Flight {
    canary: Canary,
    publishing: Option<Publishing>,
    /// `host:port`, for the metrics.
    endpoint: String,
}

impl Flight {
    pub(in crate::channel_layer) fn new(endpoint: &str) -> Self {
        Self {
            canary: Canary::new(),
            publishing: None,
            endpoint: endpoint.to_owned(),
        }
    }

    /// Publishes the next canary if it is due and the link can hear it (`may_return`); breaks when the link is deaf.
    pub(in crate::channel_layer) fn beat(
        &mut self,
        now: Instant,
        may_return: bool,
        publish: impl FnOnce(String) -> Publishing,
    ) -> ControlFlow<()> {
        if may_return && let Some(text) = self.canary.due(now) {
            self.publishing = Some(publish(text));
        }
        self.canary.overdue(now, &self.endpoint)
    }

    /// Waits for the publish under way; never ends if there is none. The publish is kept if the future is dropped.
    pub(in crate::channel_layer) async fn published(&mut self) {
        let published = match &mut self.publishing {
            Some(publishing) => publishing.await,
            None => pending().await,
        };
        self.publishing = None;
        self.canary.published(published.is_ok());
    }

    /// Notes that a canary came back.
    pub(in crate::channel_layer) fn returned(&mut self, text: &[u8]) {
        self.canary.returned(text, &self.endpoint);
    }
}

/// The state of a link's canaries, without IO.
struct Canary {
    state: CanaryState,
    number: u64,
    sent: Instant,
    misses: u32,
}

impl Canary {
    fn new() -> Self {
        Self {
            state: CanaryState::Resting,
            number: 0,
            sent: Instant::now(),
            misses: 0,
        }
    }

    /// Returns the text of the next canary, if one is due.
    fn due(&mut self, now: Instant) -> Option<String> {
        if !matches!(self.state, CanaryState::Resting) || now.duration_since(self.sent) < EVERY {
            return None;
        }
        self.number += 1;
        self.sent = now;
        self.state = CanaryState::Leaving;
        Some(self.number.to_string())
    }

    /// Notes that Redis took the canary, or that the publish failed. The canary may have come back before Redis' answer;
    /// then the state is no longer `Leaving` and stays as it is.
    fn published(&mut self, taken: bool) {
        if matches!(self.state, CanaryState::Leaving) {
            self.state = if taken {
                let taken = Instant::now();
                CanaryState::Expected { taken }
            } else {
                CanaryState::Resting
            };
        }
    }

    /// Notes that a canary came back; an older one than the last is ignored.
    fn returned(&mut self, text: &[u8], endpoint: &str) {
        if text == self.number.to_string().as_bytes() {
            metrics::canary_returned(endpoint, self.sent.elapsed());
            self.misses = 0;
            self.state = CanaryState::Resting;
        }
    }

    /// Counts a canary that is overdue; breaks when the link is deaf.
    fn overdue(&mut self, now: Instant, endpoint: &str) -> ControlFlow<()> {
        let CanaryState::Expected { taken } = self.state else {
            return ControlFlow::Continue(());
        };
        if now.duration_since(taken) < RETURN_LIMIT {
            return ControlFlow::Continue(());
        }
        metrics::canary_missed(endpoint);
        self.misses += 1;
        self.state = CanaryState::Resting;
        if self.misses >= MISSES {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "h:1";

    #[test]
    fn two_misses_in_a_row_make_a_link_deaf() {
        let mut canary = Canary::new();
        let mut now = Instant::now();
        let mut round = |canary: &mut Canary, back: bool| {
            now += EVERY + EVERY;
            let text = canary.due(now).unwrap();
            canary.published(true);
            if back {
                canary.returned(text.as_bytes(), ENDPOINT);
            }
            now += EVERY + RETURN_LIMIT;
            canary.overdue(now, ENDPOINT).is_break()
        };
        let deaf = [false, true, false, false].map(|back| round(&mut canary, back));
        assert_eq!(deaf, [false, false, false, true]);
    }

    #[test]
    fn a_canary_that_could_not_leave_is_not_missed() {
        let mut canary = Canary::new();
        let mut now = Instant::now();
        for _ in 0..5 {
            now += EVERY;
            assert!(canary.due(now).is_some());
            canary.published(false);
            assert!(canary.overdue(now + EVERY * 5, ENDPOINT).is_continue());
        }
    }
}
