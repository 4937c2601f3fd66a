//! Periodic work: gauges, the upkeep of user caches, and the limit on queued bytes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::api::health::Progress;
use crate::close_code::CloseReason;
use crate::frame::QueueBudget;
use crate::hub::{CloseOrder, TOO_SLOW_WAIT};
use crate::metrics;
use crate::socket::registration::Occupancy;
use crate::tenant::Tenants;

/// Interval of the upkeep. At 100 MB/s, a burst exceeds the limit by at most 20 MB before it is noticed.
const STEP: Duration = Duration::from_millis(200);

/// The periodic work and the parts that it needs.
pub(super) struct Upkeep {
    /// The tenants whose queues count.
    pub tenants: Arc<Tenants>,
    /// The counter of open sockets.
    pub occupancy: Arc<Occupancy>,
    /// The counter of the bytes of all live frames.
    pub budget: Arc<QueueBudget>,
    /// `server.max_queue_bytes`, in bytes.
    pub max_queue_bytes: u64,
    /// Shows the liveness probe that tasks run.
    pub progress: Arc<Progress>,
}

impl Upkeep {
    /// Works until the task is dropped.
    pub(super) async fn run(self) -> Infallible {
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            step.tick().await;
            self.progress.mark();
            self.tenants
                .all()
                .iter()
                .for_each(|tenant| tenant.authenticator.users.upkeep());
            metrics::saturation(
                self.tenants.open_connections(),
                self.occupancy.most() as u64,
                self.budget.bytes(),
            );
            if self.budget.bytes() > self.max_queue_bytes {
                self.close_fullest();
            }
        }
    }

    /// Closes the sockets with the most queued bytes until the rest fits the limit.
    ///
    /// A shared frame is freed only with the last socket that holds it, so the counter decides when enough is closed.
    /// Bytes of sockets that already close do not count.
    fn close_fullest(&self) {
        let tenants = self.tenants.with_sockets();
        let members = tenants
            .iter()
            .flat_map(|tenant| tenant.relay.hub().members());
        let (closing, mut open): (Vec<_>, Vec<_>) = members
            .map(|member| (member.outbound().queued_bytes() as u64, member))
            .filter(|(bytes, _)| *bytes > 0)
            .partition(|(_, member)| member.outbound().is_closing());
        let leaving: u64 = closing.iter().map(|(bytes, _)| bytes).sum();
        let limit = self.max_queue_bytes.saturating_add(leaving);
        open.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let (mut closed, mut freed) = (0, 0);
        for (bytes, member) in &open {
            if self.budget.bytes().saturating_sub(freed) <= limit {
                break;
            }
            let frame = CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT);
            if member.outbound().close(frame, CloseOrder::Now) {
                // A partly written frame stays in memory until the socket is gone.
                freed += member.outbound().queued_bytes().min(*bytes as usize) as u64;
                closed += 1;
            }
        }
        if closed == 0 {
            return;
        }
        tracing::warn!(
            count = closed,
            "Closed the fullest connections: server.max_queue_bytes was passed"
        );
    }
}
