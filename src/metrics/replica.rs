//! The metrics of this process as a whole: its life, its handshakes, its fan-out.

use std::time::Duration;

use metrics::Histogram;

use super::dependency::one_if;
use super::families::*;

/// The label before a tenant is known.
pub const NO_TENANT: &str = "_none";

/// An upgrade request was refused before its tenant was known.
pub fn handshake_without_tenant(result: &'static str) {
    HANDSHAKES
        .with([NO_TENANT.into(), result.into()])
        .increment(1);
}

/// How long a handshake took that no tenant was found for.
pub fn handshake_without_tenant_took(took: Duration) {
    HANDSHAKE_DURATION.get().record(took.as_secs_f64());
}

/// Handles of the fan-out path, which has no tenant label.
#[derive(Clone)]
pub struct FanOutMetrics {
    /// Decoding, rendering and queueing one event.
    pub duration: Histogram,
    /// Sockets that one event was queued for.
    pub recipients: Histogram,
    /// From the read of an event to the socket write; record a sample only.
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

/// Version of the binary, once at start.
pub fn build_info() {
    BUILD_INFO.with([env!("CARGO_PKG_VERSION").into()]).set(1.0);
    draining(false);
    drain_remaining(0);
}

/// Whether `/readyz` answers 200.
pub fn ready(ready: bool) {
    READY.get().set(one_if(ready));
}

/// Whether the replica drains.
pub fn draining(draining: bool) {
    DRAINING.get().set(one_if(draining));
}

/// Sockets that the drain still has to close.
pub fn drain_remaining(count: usize) {
    DRAIN_REMAINING_CONNECTIONS.get().set(count as f64);
}

/// Open sockets against the limit, and bytes that wait for sockets; called on each upkeep.
pub fn saturation(open: usize, limit: u64, queued_bytes: u64) {
    CONNECTIONS_LIMIT.get().set(limit as f64);
    CONNECTION_SATURATION
        .get()
        .set(open as f64 / limit.max(1) as f64);
    SEND_QUEUE_BYTES.get().set(queued_bytes as f64);
}

/// A configuration was applied, or refused, at `now` (Unix seconds).
pub fn config_reload(successful: bool, now: f64) {
    CONFIG_RELOAD_SUCCESSFUL.get().set(one_if(successful));
    if successful {
        CONFIG_RELOAD_TIMESTAMP.get().set(now);
    }
}

/// A revocation of the API was confirmed by every replica that confirmed it.
pub fn revocation_propagated(took: Duration) {
    REVOCATION_PROPAGATION.get().record(took.as_secs_f64());
}

/// How late a timer of the runtime fired.
pub fn loop_lag(lag: Duration) {
    LOOP_LAG.get().record(lag.as_secs_f64());
}
