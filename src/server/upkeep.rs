//! What has to be done now and then: gauges, the recorder's own upkeep, and the bound on waiting bytes.

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

/// Often enough that a burst cannot pass the bound by much: 200 ms at 100 MB/s are 20 MB.
const STEP: Duration = Duration::from_millis(200);

/// What the upkeep looks after.
pub(super) struct Upkeep {
    /// Whose sockets wait for bytes.
    pub tenants: Arc<Tenants>,
    /// How many sockets there are.
    pub occupancy: Arc<Occupancy>,
    /// Bytes of frames that are alive.
    pub budget: Arc<QueueBudget>,
    /// `server.max_queue_bytes`, in bytes.
    pub max_queue_bytes: u64,
    /// Tells the liveness probe that tasks run.
    pub progress: Arc<Progress>,
}

impl Upkeep {
    /// Does its rounds for ever.
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

    /// Closes the sockets that most waits for, until what is left would be under the bound.
    ///
    /// Shared frames die with the last socket that holds them, so that the gauge tells when it is enough; what
    /// sockets hold that are closing already is on its way out.
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
                // A frame that is half out stays until the socket is gone.
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
