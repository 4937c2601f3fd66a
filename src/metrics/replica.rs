//! The metrics of this process as a whole: its life, its handshakes, its fan-out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram};
use parking_lot::Mutex;

use super::dependency::one_if;
use super::families::*;
use super::ledger::{OTHER_TENANTS, WITHOUT_TENANT};
use super::words::{ControlDrop, DropCause, HandshakeStage};
use crate::budget::{HeldKind, MemoryBudget};
use crate::ids::TenantId;

/// The handle of the count of panics, from the start of the server on.
static PANICKED: OnceLock<Counter> = OnceLock::new();

/// Counts an upgrade request that was refused before its tenant was known.
pub fn handshake_without_tenant(result: &'static str) {
    let refused: Counter = WITHOUT_TENANT.handle(&HANDSHAKES, [result]);
    refused.increment(1);
}

/// Records the duration of a handshake that no tenant was found for.
pub fn handshake_without_tenant_took(took: Duration) {
    HANDSHAKE_DURATION.get().record(took.as_secs_f64());
}

/// Handles of the fan-out path, which has no tenant label.
#[derive(Clone)]
pub struct FanOutMetrics {
    /// The time to decode, render and queue one event.
    pub duration: Histogram,
    /// Sockets that one event was queued for.
    pub recipients: Histogram,
    /// The time from the read of an event to the socket write. Record a sample only.
    pub lag: Histogram,
}

impl Default for FanOutMetrics {
    fn default() -> Self {
        Self {
            duration: FANOUT_DURATION.get(),
            recipients: FANOUT_RECIPIENTS.get(),
            lag: DELIVERY_LAG.get(),
        }
    }
}

/// Records the version of the binary and the counts of a start; called once at the start.
pub fn build_info() {
    BUILD_INFO.with([env!("CARGO_PKG_VERSION").into()]).set(1.0);
    draining(false);
    drain_remaining(0);
    // These counters stand in a scrape before they count, so that their rates are 0 and not absent.
    PANICKED.get_or_init(|| PANICS.get()).absolute(0);
    for stage in HandshakeStage::ALL {
        HALF_OPEN_DROPPED.with([stage.label().into()]).absolute(0);
    }
}

/// Records that `/readyz` answers 200, or that it does not.
pub fn ready(ready: bool) {
    READY.get().set(one_if(ready));
}

/// Records that the replica drains, or that it does not.
pub fn draining(draining: bool) {
    DRAINING.get().set(one_if(draining));
}

/// Records the number of sockets that the drain still has to close.
pub fn drain_remaining(count: usize) {
    DRAIN_REMAINING_CONNECTIONS.get().set(count as f64);
}

/// Records the places of sockets that are taken, as a part of their limit, and the limit; called on each upkeep.
pub fn saturation(taken: f64, limit: usize) {
    CONNECTIONS_LIMIT.get().set(limit as f64);
    CONNECTION_SATURATION.get().set(taken);
}

/// Records the half-open connections and their limit; called on each upkeep.
pub fn half_open(now: usize, limit: usize) {
    HALF_OPEN.get().set(now as f64);
    HALF_OPEN_LIMIT.get().set(limit as f64);
}

/// Counts a half-open connection that was dropped to make room, or that found none while each other was being answered.
pub fn handshake_dropped(stage: HandshakeStage) {
    HALF_OPEN_DROPPED.with([stage.label().into()]).increment(1);
}

/// Records the bytes that are held for others, and their bound; called on each upkeep.
pub fn held(budget: &MemoryBudget) {
    for kind in HeldKind::ALL {
        let bytes = budget.of(*kind) as f64;
        HELD_BYTES.with([kind.label().into()]).set(bytes);
    }
    HELD_BYTES_LIMIT.get().set(budget.most() as f64);
    SEND_QUEUE_BYTES
        .get()
        .set(budget.of(HeldKind::Frames) as f64);
}

/// Records that a configuration was applied, or refused, at `now` (Unix seconds).
pub fn config_reload(successful: bool, now: f64) {
    CONFIG_RELOAD_SUCCESSFUL.get().set(one_if(successful));
    if successful {
        CONFIG_RELOAD_TIMESTAMP.get().set(now);
    }
}

/// The tenants that `lockgate_config_degraded` names, one place each; the others share `_other`, and files without one too.
static NAMED: Mutex<BTreeSet<TenantId>> = Mutex::new(BTreeSet::new());
/// The most names of one process.
const MOST_NAMED: usize = 100;

/// Records what is not served as the included files say: tenants, and `None` for a file as a whole.
pub fn config_degraded<'t>(troubles: impl Iterator<Item = Option<&'t TenantId>>) {
    let mut named = NAMED.lock();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let troubles: Vec<_> = troubles.collect();
    for id in troubles.iter().flatten() {
        if named.len() < MOST_NAMED {
            named.insert((*id).clone());
        }
    }
    // A series that has begun goes back to 0.
    counts.extend(named.iter().map(|id| (id.as_str(), 0)));
    counts.insert(OTHER_TENANTS, 0);
    for trouble in troubles {
        let own = trouble.filter(|id| named.contains(*id));
        let label = own.map_or(OTHER_TENANTS, TenantId::as_str);
        *counts.entry(label).or_default() += 1;
    }
    for (label, count) in counts {
        let series = CONFIG_DEGRADED.with([label.to_owned().into()]);
        series.set(f64::from(count));
    }
}

/// Records how many tenants of the registry are served as they are stored, and how many are not.
pub fn registry_tenants(served: usize, degraded: usize) {
    for (state, count) in [("served", served), ("degraded", degraded)] {
        REGISTRY_TENANTS.with([state.into()]).set(count as f64);
    }
}

/// Records how many tenants are made on this replica.
pub fn tenants_made(count: usize) {
    TENANTS_MADE.get().set(count as f64);
}

/// Records that the registry was read at `now` (Unix seconds).
pub fn registry_read(now: f64) {
    REGISTRY_READ_TIMESTAMP.get().set(now);
}

/// Records the number of configured servers whose certificates are not checked (`verify = "none"`).
pub fn unchecked_servers(count: usize) {
    UNCHECKED_SERVERS.get().set(count as f64);
}

/// Records the time from a revocation in the API to its last confirmation by a replica.
pub fn revocation_propagated(took: Duration) {
    REVOCATION_PROPAGATION.get().record(took.as_secs_f64());
}

/// Counts a message of the deployment's control channel, or the answer to one, that was dropped.
pub fn deployment_control_dropped(reason: ControlDrop) {
    let dropped: Counter = WITHOUT_TENANT.handle(&CONTROL_DROPPED, [reason.label()]);
    dropped.increment(1);
}

/// Counts a message on the deployment's control channel that is no command of it. Above zero, a sender writes what this
/// version does not know.
pub fn deployment_message_not_decoded() {
    let cause = DropCause::NotDecoded.label();
    let dropped: Counter = WITHOUT_TENANT.handle(&EVENTS_DROPPED, [cause]);
    dropped.increment(1);
}

/// Counts a call to all replicas of the deployment that could not know which replicas there are.
pub fn replicas_of_deployment_unknown() {
    let unknown: Counter = WITHOUT_TENANT.handle(&REPLICAS_UNKNOWN, []);
    unknown.increment(1);
}

/// Counts a call of an operator over `api.calls_per_second`.
pub fn operator_rate_limited(limit: &'static str) {
    let limited: Counter = WITHOUT_TENANT.handle(&RATE_LIMITED, [limit]);
    limited.increment(1);
}

/// Counts a panic. It takes no lock of the recorder, in which the panic may have happened.
pub fn panicked() {
    if let Some(panics) = PANICKED.get() {
        panics.increment(1);
    }
}

/// Records the delay of a timer of the runtime.
pub fn loop_lag(lag: Duration) {
    LOOP_LAG.get().record(lag.as_secs_f64());
}

/// Sets the number of tasks of the runtime that are alive.
pub fn runtime_tasks(alive: usize) {
    RUNTIME_TASKS.get().set(alive as f64);
}
