//! Periodic work: gauges, the upkeep of caches, and the bound of memory.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::shed::Shedder;
use crate::api::health::Progress;
use crate::metrics::{self, TenantSeries};
use crate::socket::per_address::AddressBudgets;
use crate::socket::refusal_log::RefusalLog;
use crate::socket::registration::Occupancy;
use crate::tenant::Tenants;

/// Interval of the upkeep. At 100 MB/s, a burst exceeds the limit by at most 20 MB before it is noticed.
const STEP: Duration = Duration::from_millis(200);
/// Time between two looks at an account that is over its bound.
const SHED_PAUSE: Duration = Duration::from_millis(10);

/// The steps from one sweep of the caches to the next: a second.
const SWEEP: u32 = 5;

/// The periodic work and the parts that it needs.
pub(super) struct Upkeep {
    /// The tenants whose queues count.
    pub tenants: Arc<Tenants>,
    /// The places of sockets.
    pub occupancy: Arc<Occupancy>,
    /// The budgets of client addresses.
    pub addresses: Arc<AddressBudgets>,
    /// The log of refused handshakes.
    pub refusals: Arc<RefusalLog>,
    /// Ends the holders of memory over its bound.
    pub shedder: Shedder,
    /// The places of tenants in the scrape.
    pub series: Arc<TenantSeries>,
    /// Shows the liveness probe that tasks run.
    pub progress: Arc<Progress>,
}

impl Upkeep {
    /// Works until the task is dropped.
    pub(super) async fn run(self) -> Infallible {
        let mut steps: u32 = 0;
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = step.tick() => {}
                () = self.shedder.budget.room_wanted() => {
                    self.shedder.step();
                    // The closed sockets give their memory back meanwhile.
                    tokio::time::sleep(SHED_PAUSE).await;
                    continue;
                }
            }
            self.progress.mark();
            if steps.is_multiple_of(SWEEP) {
                self.sweep();
            }
            steps = steps.wrapping_add(1);
            metrics::saturation(self.occupancy.saturation(), self.occupancy.most());
            self.shedder.step();
        }
    }

    /// Frees what caches hold for nothing.
    fn sweep(&self) {
        for tenant in self.tenants.all().iter() {
            if let Some(users) = tenant.authenticator.users.stored() {
                users.upkeep();
            }
            tenant.permissions.upkeep();
        }
        self.addresses.upkeep();
        self.refusals.upkeep();
        self.series.upkeep(Instant::now());
    }
}
