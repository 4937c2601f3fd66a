//! The metrics of one tenant. It keeps the handles of metrics that change once per frame, event or delivery.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hashbrown::HashMap;
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;

use crate::close_code::CloseFrame;
use crate::ids::{RevocationTarget, TenantId};
use crate::labels::{Label, PerLabel};

use super::families::*;
use super::family::Family;
use super::series::SeriesPlace;
use super::words::{
    AuthStep, ControlDrop, DropCause, EventSource, FrameKind, GapCause, LookupResult,
    RecoveryResult, RevocationKind,
};

/// The label of tenants beyond `metrics.tenant_series`.
pub const OTHER_TENANTS: &str = "_other";

/// The result of a handshake that is no refusal.
const ACCEPTED: &str = "accepted";

/// A handshake that waits for a worker.
pub struct WorkerWait(Gauge);

impl Drop for WorkerWait {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The events that wait for the workers of a tenant, as this replica has last seen them. They leave the gauges when this is
/// dropped. Tenants that share a series add up.
pub struct WorkerBacklog {
    depth: Gauge,
    lag: Gauge,
    /// The amount that this has put into both.
    told: (f64, f64),
}

impl WorkerBacklog {
    /// Tells the number of events, and the whole seconds for which the oldest one waits. A lag above 10 means that no worker
    /// runs, or that it is stuck.
    pub fn tell(&mut self, depth: u64, lag: Duration) {
        let now = (depth as f64, lag.as_secs() as f64);
        self.depth.increment(now.0 - self.told.0);
        self.lag.increment(now.1 - self.told.1);
        self.told = now;
    }
}

impl Drop for WorkerBacklog {
    fn drop(&mut self) {
        self.tell(0, Duration::ZERO);
    }
}

/// The handles of one tenant, looked up once.
pub struct TenantMetrics {
    label: Arc<str>,
    /// The tenant's place; given back when the handles are dropped.
    _place: Option<SeriesPlace>,
    /// Open sockets.
    pub connections: Gauge,
    /// Open sockets without a user. Most tenants never have one, and then no series either.
    anonymous_connections: OnceLock<Gauge>,
    /// Memberships of sockets in groups.
    pub subscriptions: Gauge,
    /// Users who are in groups with presence, by sockets of this replica.
    pub presence_entries: Gauge,
    /// Groups with presence whose users of this replica could not be written to Redis.
    pub presence_unwritten: Gauge,
    /// Bytes waiting for fan-out.
    pub layer_queue_bytes: Gauge,
    /// Frames written to sockets.
    pub frames_sent: Counter,
    /// Bytes written to sockets.
    pub sent_bytes: Counter,
    /// Bytes read from sockets.
    pub received_bytes: Counter,
    /// Events queued for sockets.
    pub deliveries: Counter,
    /// Values in Redis that were too long, of another type, or malformed. Above zero, a back end or an operator has written
    /// what the gateway cannot believe.
    pub unreadable_values: Counter,
    /// Events that sockets got because they came back for them.
    pub recovered_events: Counter,
    /// Events that this replica missed and read from a history. A steady rise means that Redis drops its links, or that its
    /// inbox overflows.
    pub healed_events: Counter,
    recoveries: PerLabel<RecoveryResult, Counter>,
    /// Events that this replica recorded.
    pub recorded: Counter,
    /// Events of groups with history that were sent to them without being recorded. Above zero, a back end does not send
    /// through the layer class that records.
    pub events_unrecorded: Counter,
    /// Handshakes that no worker answered in time. Above zero, no worker runs, or it is stuck.
    pub worker_timeouts: Counter,
    worker_waiting: Gauge,
    frames_received: PerLabel<FrameKind, Counter>,
    events: PerLabel<EventSource, Counter>,
    dropped: PerLabel<DropCause, Counter>,
    control_dropped: PerLabel<ControlDrop, Counter>,
    replicas_unknown: Counter,
    gaps: PerLabel<GapCause, Counter>,
    unhealed_gaps: PerLabel<GapCause, Counter>,
    lookups: PerLabel<LookupResult, Counter>,
    revocations: PerLabel<RevocationKind, Counter>,
    accepted: Counter,
    /// All tenants share these series.
    auth_steps: PerLabel<AuthStep, Histogram>,
    handshake_duration: Histogram,
    connection_duration: Histogram,
    /// The counters of ends by their labels, each looked up at the first one: a lookup costs more than all else at the end of a
    /// socket.
    disconnects: Mutex<HashMap<(&'static str, &'static str), Counter>>,
}

impl TenantMetrics {
    /// Looks up the handles for `tenant`, under its own name while it holds `place`.
    pub fn in_place(tenant: &TenantId, place: Option<SeriesPlace>) -> Self {
        let mut handles = Self::new(tenant, place.is_some());
        handles._place = place;
        handles
    }

    /// Looks up the handles for `tenant`; `own_series` is false beyond `metrics.tenant_series`
    /// ([`TenantSeries`](super::TenantSeries)).
    pub fn new(tenant: &TenantId, own_series: bool) -> Self {
        let label: Arc<str> = if own_series {
            tenant.as_str().into()
        } else {
            OTHER_TENANTS.into()
        };
        let tenant = || [label.clone().into()];
        Self {
            connections: CONNECTIONS.with(tenant()),
            anonymous_connections: OnceLock::new(),
            subscriptions: SUBSCRIPTIONS.with(tenant()),
            presence_entries: PRESENCE_ENTRIES.with(tenant()),
            presence_unwritten: PRESENCE_UNWRITTEN.with(tenant()),
            layer_queue_bytes: LAYER_QUEUE_BYTES.with(tenant()),
            frames_sent: FRAMES_SENT.with(tenant()),
            sent_bytes: SENT_BYTES.with(tenant()),
            received_bytes: RECEIVED_BYTES.with(tenant()),
            deliveries: DELIVERIES.with(tenant()),
            unreadable_values: UNREADABLE_VALUES.with(tenant()),
            recovered_events: RECOVERED_EVENTS.with(tenant()),
            healed_events: HEALED_EVENTS.with(tenant()),
            recoveries: per_label(&RECOVERIES, &label),
            recorded: RECORDED.with(tenant()),
            events_unrecorded: EVENTS_UNRECORDED.with(tenant()),
            worker_timeouts: WORKER_TIMEOUTS.with(tenant()),
            worker_waiting: WORKER_WAITING.with(tenant()),
            frames_received: per_label(&FRAMES_RECEIVED, &label),
            events: per_label(&EVENTS, &label),
            dropped: per_label(&EVENTS_DROPPED, &label),
            control_dropped: per_label(&CONTROL_DROPPED, &label),
            replicas_unknown: REPLICAS_UNKNOWN.with(tenant()),
            gaps: per_label(&GAPS, &label),
            unhealed_gaps: per_label(&UNHEALED_GAPS, &label),
            lookups: per_label(&USER_LOOKUPS, &label),
            revocations: per_label(&REVOCATIONS, &label),
            accepted: HANDSHAKES.with([label.clone().into(), ACCEPTED.into()]),
            auth_steps: PerLabel::new(|step: AuthStep| AUTH_DURATION.with([step.label().into()])),
            handshake_duration: HANDSHAKE_DURATION.get(),
            connection_duration: CONNECTION_DURATION.get(),
            disconnects: Mutex::default(),
            label,
            _place: None,
        }
    }

    /// Returns the `tenant` label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the number of open sockets without a user. Near `limits.anonymous_connections`, or half of `limits.connections`,
    /// strangers are refused.
    pub fn anonymous_connections(&self) -> &Gauge {
        let label = || [self.label.clone().into()];
        self.anonymous_connections
            .get_or_init(|| ANONYMOUS_CONNECTIONS.with(label()))
    }

    /// Counts a frame from a client.
    pub fn frame_received(&self, kind: FrameKind) {
        self.frames_received.of(kind).increment(1);
    }

    /// Counts an event that came in.
    pub fn event(&self, source: EventSource) {
        self.events.of(source).increment(1);
    }

    /// Counts an event or frame that was dropped. A value above zero means that a sender sends events that cannot be
    /// carried, or more than there is room for.
    pub fn dropped(&self, cause: DropCause) {
        self.dropped.of(cause).increment(1);
    }

    /// Counts a message of the control channel, or the answer to one, that was dropped. A value above zero means that a sender
    /// floods the channel.
    pub fn control_dropped(&self, reason: ControlDrop) {
        self.control_dropped.of(reason).increment(1);
    }

    /// Counts a call to all replicas that could not know which replicas there are.
    pub fn replicas_unknown(&self) {
        self.replicas_unknown.increment(1);
    }

    /// Counts a gap, in which events may have been missed.
    pub fn gap(&self, cause: GapCause) {
        self.gaps.of(cause).increment(1);
    }

    /// Counts a gap whose events no history gives back to all sockets.
    pub fn unhealed_gap(&self, cause: GapCause) {
        self.unhealed_gaps.of(cause).increment(1);
    }

    /// Counts a socket that came back to a group.
    pub fn recovery(&self, result: RecoveryResult) {
        self.recoveries.of(result).increment(1);
    }

    /// Counts a handshake that waits for a worker, until the guard is dropped.
    pub fn waits_for_worker(&self) -> WorkerWait {
        self.worker_waiting.increment(1.0);
        WorkerWait(self.worker_waiting.clone())
    }

    /// Returns the gauges of events that wait for workers. Only tenants with workers on a layer that keeps events have these series.
    pub fn worker_backlog(&self) -> WorkerBacklog {
        WorkerBacklog {
            depth: WORKER_DEPTH.with([self.label.clone().into()]),
            lag: WORKER_LAG.with([self.label.clone().into()]),
            told: (0.0, 0.0),
        }
    }

    /// Counts a lookup of a user.
    pub fn user_lookup(&self, result: LookupResult) {
        self.lookups.of(result).increment(1);
    }

    /// Counts a revocation that this replica received.
    pub fn revocation(&self, target: &RevocationTarget) {
        self.revocations.of(target.into()).increment(1);
    }

    /// Counts an accepted upgrade request.
    pub fn handshake_accepted(&self) {
        self.accepted.increment(1);
    }

    /// Counts a refused upgrade request; `result` is the refusal's word.
    pub fn handshake_refused(&self, result: &'static str) {
        HANDSHAKES
            .with([self.label.clone().into(), result.into()])
            .increment(1);
    }

    /// Counts a refresh of an open socket's token; `result` is `refreshed` or the refusal's word.
    pub fn token_refreshed(&self, result: &'static str) {
        TOKEN_REFRESHES
            .with([self.label.clone().into(), result.into()])
            .increment(1);
    }

    /// Records the duration of a handshake, accepted or refused.
    pub fn handshake_took(&self, took: Duration) {
        self.handshake_duration.record(took.as_secs_f64());
    }

    /// Records the duration of one step of the authentication.
    pub fn auth_step_took(&self, step: AuthStep, took: Duration) {
        self.auth_steps.of(step).record(took.as_secs_f64());
    }

    /// Counts a closed socket and records its lifetime.
    pub fn disconnected(&self, close: &CloseFrame, lived: Duration) {
        let labels @ (code, reason) = close.labels();
        let look_up = || DISCONNECTS.with([self.label.clone().into(), code.into(), reason.into()]);
        let mut disconnects = self.disconnects.lock();
        disconnects
            .entry(labels)
            .or_insert_with(look_up)
            .increment(1);
        drop(disconnects);
        self.connection_duration.record(lived.as_secs_f64());
    }

    /// Counts a hit of a limit; `limit` is its configuration key.
    pub fn rate_limited(&self, limit: &'static str) {
        RATE_LIMITED
            .with([self.label.clone().into(), limit.into()])
            .increment(1);
    }
}

/// Looks up a handle for each word of the second label.
fn per_label<L: Label>(family: &Family<Counter, 2>, tenant: &Arc<str>) -> PerLabel<L, Counter> {
    PerLabel::new(|word: L| family.with([tenant.clone().into(), word.label().into()]))
}
