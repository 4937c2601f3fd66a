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

/// Time from one canary to the next. With [`RETURN_LIMIT`], two misses and a [`TICK`] for each step, a deaf link is noticed
/// within 1.9 s.
const EVERY: Duration = Duration::from_millis(500);
/// Time that a canary may take to come back after its publish, as long as the link's task runs and has read what came.
const RETURN_LIMIT: Duration = Duration::from_millis(500);
/// Misses in a row after which the link counts as deaf.
const MISSES: u32 = 2;
/// Time between two looks at the clock.
pub(in crate::channel_layer) const TICK: Duration = Duration::from_millis(125);
/// The most time that counts between two looks. A task that did not run for longer may have its canary in the socket, unread.
const COUNTED: Duration = Duration::from_millis(250);

enum CanaryState {
    /// The next canary is not due yet.
    Resting,
    /// On its way to Redis.
    Leaving,
    /// Redis has taken it. The time counts in which it should have come back.
    Expected { waited: Duration },
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
        self.canary.overdue(now, &self.endpoint)?;
        if may_return && let Some(text) = self.canary.due(now) {
            self.publishing = Some(publish(text));
        }
        ControlFlow::Continue(())
    }

    /// Notes that more bytes wait than one read takes. The canary may be among them, so the time until then does not count.
    pub(in crate::channel_layer) fn behind(&mut self) {
        self.canary.behind = true;
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
    /// The last look at the clock.
    looked: Instant,
    /// Bytes were left unread since the last look.
    behind: bool,
    misses: u32,
}

impl Canary {
    fn new() -> Self {
        Self {
            state: CanaryState::Resting,
            number: 0,
            sent: Instant::now(),
            looked: Instant::now(),
            behind: false,
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
                let waited = Duration::ZERO;
                CanaryState::Expected { waited }
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

    /// Counts the time since the last look, and a canary that is overdue; breaks when the link is deaf.
    fn overdue(&mut self, now: Instant, endpoint: &str) -> ControlFlow<()> {
        let since = now.duration_since(std::mem::replace(&mut self.looked, now));
        let behind = std::mem::take(&mut self.behind);
        let CanaryState::Expected { waited } = &mut self.state else {
            return ControlFlow::Continue(());
        };
        if !behind {
            *waited += since.min(COUNTED);
        }
        if *waited < RETURN_LIMIT {
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

    /// Looks at the clock for as long as a canary may be away; returns true if the link is deaf then.
    fn wait(canary: &mut Canary, now: &mut Instant) -> bool {
        let looks = RETURN_LIMIT.as_millis() / TICK.as_millis();
        (0..looks).any(|_| {
            *now += TICK;
            canary.overdue(*now, ENDPOINT).is_break()
        })
    }

    #[test]
    fn two_misses_in_a_row_make_a_link_deaf() {
        let mut canary = Canary::new();
        let mut now = Instant::now();
        let mut round = |canary: &mut Canary, back: bool| {
            now += EVERY;
            let text = canary.due(now).unwrap();
            canary.published(true);
            if back {
                canary.returned(text.as_bytes(), ENDPOINT);
            }
            wait(canary, &mut now)
        };
        let deaf = [false, true, false, false].map(|back| round(&mut canary, back));
        assert_eq!(deaf, [false, false, false, true]);
    }

    /// It used to take up to 4.25 s.
    #[test]
    fn a_link_that_falls_silent_is_deaf_within_two_seconds() {
        let mut flight = Flight::new(ENDPOINT);
        let mut now = Instant::now();
        let began = now;
        loop {
            now += TICK;
            let sent = |_| -> Publishing { Box::pin(async { Ok(1) }) };
            if flight.beat(now, true, sent).is_break() {
                break;
            }
            flight.canary.published(true);
        }
        let took = now - began;
        assert!(took <= Duration::from_millis(1875), "{took:?}");
    }

    #[test]
    fn only_the_progress_of_the_own_task_makes_a_canary_late() {
        let mut canary = Canary::new();
        let mut now = Instant::now() + EVERY;
        for _ in 0..3 {
            canary.due(now).unwrap();
            canary.published(true);
            // The task did not run: the canary may lie in the socket.
            now += Duration::from_secs(60);
            assert!(canary.overdue(now, ENDPOINT).is_continue());
            // More comes than is read.
            for _ in 0..100 {
                now += TICK;
                canary.behind = true;
                assert!(canary.overdue(now, ENDPOINT).is_continue());
            }
            let text = canary.number.to_string();
            canary.returned(text.as_bytes(), ENDPOINT);
        }
        assert_eq!(canary.misses, 0);
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
