//! The orderly goodbye of a replica.
//!
//! Not ready at once; new sockets are served until the load balancer has noticed; then upgrades are refused and open
//! sockets close in random order, at a rate that the rest of the fleet can take; what is left after the deadline
//! is cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use crate::close_code::{CloseFrame, CloseReason};
use crate::config::DrainConfig;
use crate::hub::{CloseOrder, Member};
use crate::metrics;
use crate::socket::registration::Occupancy;
use crate::state::{Life, Tenants};

/// After the window: for close frames that are still on their way.
const LAST_FRAMES: Duration = Duration::from_secs(5);
/// Sockets are closed in batches, this far apart.
const STEP: Duration = Duration::from_millis(50);
/// Clients come back within this time after their close, each at a moment of its own. The closes are level already:
/// this only spreads those of one batch.
const RECONNECT_SPREAD_MS: u64 = 1000;

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In its own time: exit 0.
    InTime,
    /// A second signal cut it short: exit 1.
    CutShort,
}

/// SIGTERM and SIGINT; and SIGHUP, which would end a process that does not take it over.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Takes the signals over from here on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next that asks for a drain. A SIGHUP asks for a reload: it is told, and nothing happens.
    pub async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => tracing::warn!("reload is not supported by this version"),
            }
        }
    }
}

/// What a drain works with.
pub(super) struct Drain<'a> {
    pub(super) config: DrainConfig,
    pub(super) life: &'a Life,
    pub(super) tenants: &'a Tenants,
    pub(super) occupancy: &'a Occupancy,
    pub(super) connections: &'a TaskTracker,
}

impl Drain<'_> {
    /// Drains the replica until its last socket is gone, its time is over, or a second signal comes.
    pub(super) async fn run(self, signals: &mut Signals) -> Ended {
        let began = Instant::now();
        self.life.set_draining();
        tracing::info!(
            count = self.occupancy.open(),
            "Draining: not ready any more, new sockets are still served"
        );
        let ended = tokio::select! {
            () = self.in_order() => Ended::InTime,
            () = signals.next() => Ended::CutShort,
        };
        if ended == Ended::CutShort {
            self.life.set_refusing();
            self.close_all().await;
        }
        let (left, took) = (self.occupancy.open(), began.elapsed().as_millis() as u64);
        tracing::info!(
            count = left,
            duration_ms = took,
            in_time = ended == Ended::InTime && left == 0,
            "Drained"
        );
        ended
    }

    async fn in_order(&self) {
        tokio::time::sleep(self.config.delay).await;
        self.life.set_refusing();
        let deadline = Instant::now() + self.config.window;
        // Sockets whose handshake was under way are not in the first list: ask again until there are none.
        while self.occupancy.open() > 0 && Instant::now() < deadline {
            close_paced(
                self.open_members(),
                self.config.rate,
                deadline - Instant::now(),
            )
            .await;
            tokio::time::sleep(STEP).await;
        }
        let all_gone = async {
            while self.occupancy.open() > 0 {
                metrics::drain_remaining(self.occupancy.open());
                // Whose handshake was under way until now has not been asked yet; asking twice changes nothing.
                for member in self.open_members() {
                    member.outbound().close(goodbye(), CloseOrder::AfterQueued);
                }
                tokio::time::sleep(STEP).await;
            }
        };
        if tokio::time::timeout(LAST_FRAMES, all_gone).await.is_err() {
            tracing::warn!(
                count = self.occupancy.open(),
                "Cutting connections that did not close in time"
            );
        }
    }

    /// A second signal: close frames to everybody at once.
    async fn close_all(&self) {
        for member in self.open_members() {
            member.outbound().close(goodbye(), CloseOrder::Now);
        }
        self.connections.close();
        // Whoever does not answer within a second is cut: two signals mean "now".
        tokio::time::timeout(Duration::from_secs(1), self.connections.wait())
            .await
            .ok();
    }

    fn open_members(&self) -> Vec<Arc<Member>> {
        self.tenants
            .all()
            .iter()
            .flat_map(|tenant| tenant.relay.hub().members())
            .collect()
    }
}

/// Closes the sockets in random order, at `drain.rate` or as fast as the time left demands.
async fn close_paced(mut members: Vec<Arc<Member>>, rate: u32, left: Duration) {
    members.shuffle(&mut rand::rng());
    let needed = members.len() as f64 / left.as_secs_f64().max(STEP.as_secs_f64());
    let rate = f64::from(rate).max(needed);
    let mut pace = tokio::time::interval(STEP);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (began, mut closed) = (Instant::now(), 0);
    while closed < members.len() {
        let now = pace.tick().await;
        let due = (now.into_std().saturating_duration_since(began) + STEP).as_secs_f64() * rate;
        let due = (due as usize).min(members.len());
        for member in &members[closed.min(due)..due] {
            member.outbound().close(goodbye(), CloseOrder::AfterQueued);
        }
        closed = closed.max(due);
    }
}

fn goodbye() -> CloseFrame {
    let wait = Duration::from_millis(rand::random::<u64>() % RECONNECT_SPREAD_MS);
    CloseReason::Draining.frame_with_retry(wait)
}
