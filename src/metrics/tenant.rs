//! The metrics of one tenant. It keeps the handles of metrics that change once per frame, event or delivery.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use metrics::{Counter, Gauge, Histogram, SharedString};
use parking_lot::Mutex;

use crate::close_code::CloseFrame;
use crate::ids::{RevocationTarget, TenantId};
use crate::labels::{Label, PerLabel};

use super::families::*;
use super::family::Family;
use super::ledger::CellKind;
use super::series::{SeriesStay, TenantSeries};
use super::words::{
    AuthStep, ControlDrop, DropCause, EventSource, FrameKind, GapCause, LookupResult,
    RecoveryResult, RevocationKind,
};

/// The result of a handshake that is no refusal.
const ACCEPTED: &str = "accepted";

/// Adds one to a gauge until it is dropped.
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The events that wait for the workers of a tenant, as this replica has last seen them. They leave the gauges when this is
/// dropped. The backlogs that a tenant has during a reload add up.
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
    home: SeriesHome,
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
    degraded: Gauge,
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
    /// Looks up the handles of a tenant of a gateway, which count in its book.
    pub fn of_gateway(series: &TenantSeries, tenant: &TenantId) -> Self {
        Self::at(SeriesHome::Book(series.enter(tenant, Instant::now())))
    }

    /// Looks up the handles of a tenant without a gateway. They count in the recorder of the program, if it has one.
    pub fn new(tenant: &TenantId) -> Self {
        Self::at(SeriesHome::Recorder(tenant.as_str().to_owned().into()))
    }

    fn at(home: SeriesHome) -> Self {
        Self {
            connections: home.handle(&CONNECTIONS, []),
            anonymous_connections: OnceLock::new(),
            subscriptions: home.handle(&SUBSCRIPTIONS, []),
            presence_entries: home.handle(&PRESENCE_ENTRIES, []),
            presence_unwritten: home.handle(&PRESENCE_UNWRITTEN, []),
            layer_queue_bytes: home.handle(&LAYER_QUEUE_BYTES, []),
            frames_sent: home.handle(&FRAMES_SENT, []),
            sent_bytes: home.handle(&SENT_BYTES, []),
            received_bytes: home.handle(&RECEIVED_BYTES, []),
            deliveries: home.handle(&DELIVERIES, []),
            unreadable_values: home.handle(&UNREADABLE_VALUES, []),
            recovered_events: home.handle(&RECOVERED_EVENTS, []),
            healed_events: home.handle(&HEALED_EVENTS, []),
            recoveries: home.per_label(&RECOVERIES),
            recorded: home.handle(&RECORDED, []),
            events_unrecorded: home.handle(&EVENTS_UNRECORDED, []),
            worker_timeouts: home.handle(&WORKER_TIMEOUTS, []),
            worker_waiting: home.handle(&WORKER_WAITING, []),
            degraded: home.handle(&TENANT_DEGRADED, []),
            frames_received: home.per_label(&FRAMES_RECEIVED),
            events: home.per_label(&EVENTS),
            dropped: home.per_label(&EVENTS_DROPPED),
            control_dropped: home.per_label(&CONTROL_DROPPED),
            replicas_unknown: home.handle(&REPLICAS_UNKNOWN, []),
            gaps: home.per_label(&GAPS),
            unhealed_gaps: home.per_label(&UNHEALED_GAPS),
            lookups: home.per_label(&USER_LOOKUPS),
            revocations: home.per_label(&REVOCATIONS),
            accepted: home.handle(&HANDSHAKES, [ACCEPTED]),
            auth_steps: PerLabel::new(|step: AuthStep| AUTH_DURATION.with([step.label().into()])),
            handshake_duration: HANDSHAKE_DURATION.get(),
            connection_duration: CONNECTION_DURATION.get(),
            disconnects: Mutex::default(),
            home,
        }
    }

    /// Returns the number of open sockets without a user. Near `limits.anonymous_connections`, or half of `limits.connections`,
    /// strangers are refused.
    pub fn anonymous_connections(&self) -> &Gauge {
        self.anonymous_connections
            .get_or_init(|| self.home.handle(&ANONYMOUS_CONNECTIONS, []))
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
    pub fn waits_for_worker(&self) -> GaugeGuard {
        GaugeGuard::new(&self.worker_waiting)
    }

    /// Tells that the tenant cannot be served, until the guard is dropped. Above zero, an operator has to act; the log says why.
    pub fn is_degraded(&self) -> GaugeGuard {
        GaugeGuard::new(&self.degraded)
    }

    /// Returns the gauges of events that wait for workers. Only tenants with workers on a layer that keeps events have these series.
    pub fn worker_backlog(&self) -> WorkerBacklog {
        WorkerBacklog {
            depth: self.home.handle(&WORKER_DEPTH, []),
            lag: self.home.handle(&WORKER_LAG, []),
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
        self.home.handle(&HANDSHAKES, [result]).increment(1);
    }

    /// Counts a refresh of an open socket's token; `result` is `refreshed` or the refusal's word.
    pub fn token_refreshed(&self, result: &'static str) {
        self.home.handle(&TOKEN_REFRESHES, [result]).increment(1);
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
        let look_up = || self.home.handle(&DISCONNECTS, [code, reason]);
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
        self.home.handle(&RATE_LIMITED, [limit]).increment(1);
    }
}

/// The place of the series of a tenant.
enum SeriesHome {
    /// In the book of its gateway.
    Book(SeriesStay),
    /// In the recorder of a program that has no gateway, under the tenant's name.
    Recorder(SharedString),
}

impl SeriesHome {
    /// Returns the handle for these values of the labels beside `tenant`.
    fn handle<K: CellKind, const N: usize, const W: usize>(
        &self,
        family: &Family<K, N>,
        words: [&'static str; W],
    ) -> K {
        match self {
            Self::Book(stay) => stay.ledger().handle(family, words),
            Self::Recorder(tenant) => family.with(std::array::from_fn(|at| match at {
                0 => tenant.clone(),
                at => words[at - 1].into(),
            })),
        }
    }

    /// Returns a handle for each word of the second label.
    fn per_label<L: Label>(&self, family: &Family<Counter, 2>) -> PerLabel<L, Counter> {
        PerLabel::new(|word: L| self.handle(family, [word.label()]))
    }
}
