//! The drain of a replica: it hands its sockets over to the rest of the fleet and ends.
//!
//! Readiness goes off at once. New sockets are still served for `drain.delay`, until the load balancer has noticed.
//! Then upgrades are refused and open sockets close in random order, at a rate that the other replicas can absorb.
//! Sockets and handshakes that are left after the deadline are cut, and their consumers are told.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::close_code::CloseReason;
use crate::config::DrainConfig;
use crate::hub::{CloseOrder, Hub, Member, PACE_STEP, close_paced, spread};
use crate::metrics;
use crate::replica::ReplicaLife;
use crate::socket::Door;
use crate::tenant::Tenants;

/// Extra time after the window for close frames that are still on their way. With [`LAST_WORDS`] it makes the five seconds
/// that operators are told of.
const LAST_FRAMES: Duration = Duration::from_secs(4);
/// The time for the consumers of sockets that are cut.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time between two lines that tell the progress of a drain.
const PROGRESS: Duration = Duration::from_secs(5);

/// The end of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It finished by itself: exit code 0.
    InTime,
    /// A second signal cut it short: exit code 1.
    CutShort,
}

/// The signals SIGTERM, SIGINT and SIGHUP. By default SIGHUP ends a process, so it is always handled.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Handles the signals from here on.
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

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.term.recv() => SignalAction::Drain,
            _ = self.int.recv() => SignalAction::Interrupt,
            _ = self.hup.recv() => SignalAction::Reload,
        }
    }

    /// Waits for the next signal that asks for a drain.
    async fn drain(&mut self) {
        while self.next().await == SignalAction::Reload {
            tracing::warn!("Ignored SIGHUP: a draining replica reads no configuration");
        }
    }
}

/// The request behind a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalAction {
    /// SIGTERM.
    Drain,
    /// SIGINT: a person at a terminal pressed Ctrl-C.
    Interrupt,
    Reload,
}

/// One drain and the parts that it uses.
pub(super) struct Drain<'a> {
    pub(super) config: DrainConfig,
    /// A person at a terminal asked for it, so no load balancer has to notice.
    pub(super) interrupted: bool,
    pub(super) life: &'a ReplicaLife,
    pub(super) tenants: &'a Tenants,
    pub(super) door: &'a Door,
}

impl Drain<'_> {
    /// Drains the replica until its last socket is gone, its time is over, or a second signal comes.
    pub(super) async fn run(self, signals: &mut Signals) -> Ended {
        let began = Instant::now();
        self.life.set_draining();
        self.tell_begin();
        let ended = tokio::select! {
            () = self.in_order() => Ended::InTime,
            () = signals.drain() => Ended::CutShort,
            never = self.tell_progress() => match never {},
        };
        if ended == Ended::CutShort {
            tracing::info!(
                count = self.open(),
                "A second signal: closing all sockets at once"
            );
            self.life.set_refusing();
            self.close_all().await;
        }
        let (left, took) = (self.open(), began.elapsed().as_millis() as u64);
        self.cut().await;
        tracing::info!(
            count = left,
            duration_ms = took,
            in_time = ended == Ended::InTime && left == 0,
            "Drained"
        );
        ended
    }

    fn tell_begin(&self) {
        let again = match self.interrupted {
            true => "Ctrl-C again closes all sockets at once",
            false => "a second signal closes all sockets at once",
        };
        match self.open() {
            0 if self.interrupted => tracing::info!("Stopping: no socket is open"),
            count => tracing::info!(
                count,
                delay_ms = self.config.delay.as_millis() as u64,
                window_ms = self.config.window.as_millis() as u64,
                again,
                "Draining: readiness is off, new sockets are still served"
            ),
        }
    }

    /// Logs the number of sockets that are left, every few seconds.
    async fn tell_progress(&self) -> Infallible {
        loop {
            tokio::time::sleep(PROGRESS).await;
            let count = self.open();
            match self.life.is_refusing() {
                true => tracing::info!(count, "Draining: closing sockets"),
                false => tracing::info!(count, "Draining: waiting for the load balancer"),
            }
        }
    }

    /// Serves new sockets through `drain.delay`. After Ctrl-C it ends as soon as no socket is open.
    async fn serve_on(&self) {
        let end = Instant::now() + self.config.delay;
        if !self.interrupted {
            return tokio::time::sleep_until(end.into()).await;
        }
        while self.open() > 0 && Instant::now() < end {
            tokio::time::sleep(PACE_STEP.min(end - Instant::now())).await;
        }
    }

    async fn in_order(&self) {
        self.serve_on().await;
        self.life.set_refusing();
        let deadline = Instant::now() + self.config.window;
        // Sockets whose handshake was under way are missing from the first list: repeat until none is open.
        while self.open() > 0 && Instant::now() < deadline {
            let members = self.all(Hub::members);
            let left = (deadline - Instant::now()).max(PACE_STEP);
            let needed = members.len() as f64 / left.as_secs_f64();
            let rate = f64::from(self.config.rate).max(needed);
            close_paced(members, rate, CloseReason::Draining).await;
            tokio::time::sleep(PACE_STEP).await;
        }
        let all_gone = async {
            while self.open() > 0 {
                metrics::drain_remaining(self.open());
                // Catches sockets whose handshake has just ended. A second close order changes nothing.
                for member in self.all(Hub::members) {
                    member
                        .outbound()
                        .close(spread(CloseReason::Draining), CloseOrder::AfterQueued);
                }
                tokio::time::sleep(PACE_STEP).await;
            }
        };
        if tokio::time::timeout(LAST_FRAMES, all_gone).await.is_err() {
            tracing::warn!(
                count = self.open(),
                "Cutting connections that did not close in time"
            );
        }
    }

    /// Sends close frames to all sockets at once, after a second signal.
    async fn close_all(&self) {
        // Those that have left the hub still send what is queued, which a close at once drops.
        for member in self.all(Hub::holders) {
            member
                .outbound()
                .close(spread(CloseReason::Draining), CloseOrder::Now);
        }
        self.door.tasks.close();
        // Sockets that do not answer within a second are cut: two signals mean "now".
        let all_gone = self.door.tasks.wait();
        drop(tokio::time::timeout(Duration::from_secs(1), all_gone).await);
    }

    /// Ends what is left, without the clients' part. Consumers are told of the end, and get a moment for it.
    async fn cut(&self) {
        self.door.half_open.end_all();
        self.door.common.heartbeat.stop();
        self.door.tasks.close();
        drop(tokio::time::timeout(LAST_WORDS, self.door.tasks.wait()).await);
    }

    /// Returns the number of sockets that are open or being opened.
    fn open(&self) -> usize {
        self.door.occupancy.open()
    }

    /// Returns what `of` names in the hub of each tenant.
    fn all(&self, of: fn(&Hub) -> Vec<Arc<Member>>) -> Vec<Arc<Member>> {
        let tenants = self.tenants.with_sockets();
        let members = tenants.iter().flat_map(|tenant| of(tenant.relay.hub()));
        members.collect()
    }
}
