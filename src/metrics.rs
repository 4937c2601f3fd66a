//! Every metric of the gateway: name, help, labels, buckets, and the functions that move it.
//!
//! Nothing else calls the macros of the `metrics` crate. Labels come from closed sets; `tenant` is bounded by
//! `metrics.tenant_series`. What moves once per frame or delivery keeps its handle in [`TenantMetrics`].

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::close_code::CloseFrame;
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::{TenantId, Whom};

pub use series::{SeriesPlace, TenantSeries, render};

mod series;

/// The label before a tenant is known.
pub const NO_TENANT: &str = "_none";
/// The label of tenants beyond `metrics.tenant_series`.
pub const OTHER_TENANTS: &str = "_other";

/// Handshakes, joins, queries and deliveries: 100 µs to 10 s.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// How long sockets live: 1 s to a day.
const LIFETIMES: &[f64] = &[
    1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0,
];
/// Sockets that one event reached: 1 to 100,000.
const RECIPIENTS: &[f64] = &[
    0.0, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10_000.0, 100_000.0,
];

/// Installs the recorder of this process and describes every family.
///
/// # Errors
/// If the process already has a recorder.
pub fn install() -> Result<
    PrometheusHandle,
    metrics::SetRecorderError<metrics_exporter_prometheus::PrometheusRecorder>,
> {
    let builder = PrometheusBuilder::new();
    let builder = builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS);
    let builder = builder.and_then(|b| {
        b.set_buckets_for_metric(
            Matcher::Full("lockgate_connection_duration_seconds".into()),
            LIFETIMES,
        )
    });
    let builder = builder.and_then(|b| {
        b.set_buckets_for_metric(
            Matcher::Full("lockgate_fanout_recipients".into()),
            RECIPIENTS,
        )
    });
    let recorder = builder
        .expect("no list of buckets is empty")
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();
    Ok(handle)
}

fn describe() {
    metrics_process::Collector::default().describe();
    describe_gauge!(
        "lockgate_build_info",
        "1, with the version of the binary as a label"
    );
    describe_gauge!("lockgate_ready", "1 while /readyz answers 200");
    describe_gauge!("lockgate_draining", "1 from the first SIGTERM on");
    describe_gauge!(
        "lockgate_drain_remaining_connections",
        "Sockets that a drain still has to close"
    );
    describe_gauge!("lockgate_connections", "Open sockets");
    describe_gauge!(
        "lockgate_connections_limit",
        "Sockets that this replica takes before it answers 503"
    );
    describe_gauge!(
        "lockgate_connection_saturation",
        "Open sockets divided by the limit"
    );
    describe_counter!("lockgate_handshakes_total", "Upgrade requests by outcome");
    describe_histogram!(
        "lockgate_handshake_duration_seconds",
        Unit::Seconds,
        "From the request's last byte to the answer"
    );
    describe_histogram!(
        "lockgate_auth_duration_seconds",
        Unit::Seconds,
        "One step of the authentication"
    );
    describe_counter!(
        "lockgate_disconnects_total",
        "Closed sockets by close code and reason"
    );
    describe_histogram!(
        "lockgate_connection_duration_seconds",
        Unit::Seconds,
        "How long sockets lived"
    );
    describe_counter!("lockgate_frames_received_total", "Frames from clients");
    describe_counter!("lockgate_frames_sent_total", "Frames to clients");
    describe_counter!(
        "lockgate_received_bytes_total",
        Unit::Bytes,
        "Bytes from clients after the handshake"
    );
    describe_counter!(
        "lockgate_sent_bytes_total",
        Unit::Bytes,
        "Bytes to clients after the handshake"
    );
    describe_counter!("lockgate_events_total", "Events by where they came from");
    describe_counter!(
        "lockgate_deliveries_total",
        "Events queued for a socket, one per socket"
    );
    describe_counter!(
        "lockgate_events_dropped_total",
        "Events and frames that could not be carried on"
    );
    describe_histogram!(
        "lockgate_fanout_duration_seconds",
        Unit::Seconds,
        "Decoding, rendering and queueing one event"
    );
    describe_histogram!(
        "lockgate_delivery_lag_seconds",
        Unit::Seconds,
        "From the read of an event to the socket write, sampled"
    );
    describe_histogram!(
        "lockgate_fanout_recipients",
        "Sockets that one event was queued for"
    );
    describe_gauge!(
        "lockgate_send_queue_bytes",
        Unit::Bytes,
        "Bytes of frames waiting for sockets, shared frames once"
    );
    describe_gauge!(
        "lockgate_layer_queue_bytes",
        Unit::Bytes,
        "Bytes of events waiting for fan-out"
    );
    describe_gauge!("lockgate_subscriptions", "Memberships of sockets in groups");
    describe_counter!(
        "lockgate_gaps_total",
        "Windows in which events may have been missed"
    );
    describe_histogram!(
        "lockgate_canary_rtt_seconds",
        Unit::Seconds,
        "A canary's way through Redis and back"
    );
    describe_counter!(
        "lockgate_canary_missed_total",
        "Canaries that did not come back in time"
    );
    describe_gauge!("lockgate_dependency_up", "1 while the dependency answers");
    describe_histogram!(
        "lockgate_dependency_duration_seconds",
        Unit::Seconds,
        "How long a dependency took to answer"
    );
    describe_counter!(
        "lockgate_dependency_errors_total",
        "Failures of a dependency"
    );
    describe_counter!(
        "lockgate_reconnects_total",
        "Links to a dependency that were made anew"
    );
    describe_counter!(
        "lockgate_user_lookups_total",
        "User lookups by where the answer came from"
    );
    describe_counter!(
        "lockgate_user_queries_total",
        "Statements that asked a database for users"
    );
    describe_gauge!(
        "lockgate_denylist_at_risk",
        "1 while a Redis with a denylist evicts, is a replica, or lost its data"
    );
    describe_counter!(
        "lockgate_revocations_total",
        "Revocations that this replica heard of"
    );
    describe_histogram!(
        "lockgate_revocation_propagation_seconds",
        Unit::Seconds,
        "From the API call to the confirmation of the last replica that confirmed"
    );
    describe_counter!(
        "lockgate_rate_limited_total",
        "Times that a limit of a tenant was hit"
    );
    describe_gauge!(
        "lockgate_config_reload_successful",
        "1 if the newest configuration was applied"
    );
    describe_gauge!(
        "lockgate_config_reload_timestamp_seconds",
        Unit::Seconds,
        "When a configuration was last applied"
    );
    describe_histogram!(
        "lockgate_loop_lag_seconds",
        Unit::Seconds,
        "How late a timer of the runtime was"
    );
}

/// Where an event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its label")]
pub enum EventSource {
    Layer,
    Api,
    Socket,
}

/// Why an event or a frame was not carried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its label")]
pub enum DropCause {
    NotDecoded,
    NotRendered,
    NotValid,
    NoConsumer,
    WorkerFull,
    Limit,
}

/// What interrupted the stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its label")]
pub enum GapCause {
    Link,
    LayerQueue,
    Canary,
}

/// The kind of a frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its label")]
pub enum FrameKind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
}

/// Where a user record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its label")]
pub enum LookupResult {
    Local,
    Redis,
    Database,
    Stale,
    Negative,
    Error,
}

/// A step of the authentication that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its label")]
pub enum AuthStep {
    Token,
    Denylist,
    User,
    Authorize,
    Join,
}

impl AuthStep {
    const fn label(self) -> &'static str {
        match self {
            AuthStep::Token => "token",
            AuthStep::Denylist => "denylist",
            AuthStep::User => "user",
            AuthStep::Authorize => "authorize",
            AuthStep::Join => "join",
        }
    }
}

/// The handles of one tenant; cheap to share, looked up once.
pub struct TenantMetrics {
    label: Arc<str>,
    /// Given back with the last handle of the tenant.
    _place: Option<SeriesPlace>,
    /// Open sockets.
    pub connections: Gauge,
    /// Memberships of sockets in groups.
    pub subscriptions: Gauge,
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
    frames_received: [Counter; 5],
    events: [Counter; 3],
    dropped: [Counter; 6],
    gaps: [Counter; 3],
    lookups: [Counter; 6],
    revocations: [Counter; 3],
}

impl TenantMetrics {
    /// The handles for `tenant`, under its own name while it holds `place`.
    pub fn in_place(tenant: &TenantId, place: Option<SeriesPlace>) -> Self {
        let mut handles = Self::new(tenant, place.is_some());
        handles._place = place;
        handles
    }

    /// The handles for `tenant`; `own_series` is false beyond `metrics.tenant_series` ([`TenantSeries`]).
    pub fn new(tenant: &TenantId, own_series: bool) -> Self {
        let label: Arc<str> = if own_series {
            tenant.as_str().into()
        } else {
            OTHER_TENANTS.into()
        };
        let l = || label.to_string();
        let frames =
            |kind| counter!("lockgate_frames_received_total", "tenant" => l(), "kind" => kind);
        let events =
            |source| counter!("lockgate_events_total", "tenant" => l(), "source" => source);
        let dropped =
            |cause| counter!("lockgate_events_dropped_total", "tenant" => l(), "cause" => cause);
        let gaps = |cause| counter!("lockgate_gaps_total", "tenant" => l(), "cause" => cause);
        let lookups =
            |result| counter!("lockgate_user_lookups_total", "tenant" => l(), "result" => result);
        let revocations =
            |kind| counter!("lockgate_revocations_total", "tenant" => l(), "kind" => kind);
        Self {
            connections: gauge!("lockgate_connections", "tenant" => l()),
            subscriptions: gauge!("lockgate_subscriptions", "tenant" => l()),
            layer_queue_bytes: gauge!("lockgate_layer_queue_bytes", "tenant" => l()),
            frames_sent: counter!("lockgate_frames_sent_total", "tenant" => l()),
            sent_bytes: counter!("lockgate_sent_bytes_total", "tenant" => l()),
            received_bytes: counter!("lockgate_received_bytes_total", "tenant" => l()),
            deliveries: counter!("lockgate_deliveries_total", "tenant" => l()),
            frames_received: ["text", "binary", "ping", "pong", "close"].map(frames),
            events: ["layer", "api", "socket"].map(events),
            dropped: [
                "not_decoded",
                "not_rendered",
                "not_valid",
                "no_consumer",
                "worker_full",
                "limit",
            ]
            .map(dropped),
            gaps: ["link", "layer_queue", "canary"].map(gaps),
            lookups: ["local", "redis", "database", "stale", "negative", "error"].map(lookups),
            revocations: ["jti", "user", "tenant"].map(revocations),
            label,
            _place: None,
        }
    }

    /// The `tenant` label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A frame came from a client.
    pub fn frame_received(&self, kind: FrameKind) {
        self.frames_received[kind as usize].increment(1);
    }

    /// An event came in.
    pub fn event(&self, source: EventSource) {
        self.events[source as usize].increment(1);
    }

    /// An event or frame was dropped. Other than zero means that someone sends what cannot be carried.
    pub fn dropped(&self, cause: DropCause) {
        self.dropped[cause as usize].increment(1);
    }

    /// Events may have been missed.
    pub fn gap(&self, cause: GapCause) {
        self.gaps[cause as usize].increment(1);
    }

    /// A user was looked up.
    pub fn user_lookup(&self, result: LookupResult) {
        self.lookups[result as usize].increment(1);
    }

    /// A revocation was heard of.
    pub fn revocation(&self, whom: &Whom) {
        let kind = match whom {
            Whom::Token(_) => 0,
            Whom::User(..) => 1,
            Whom::All(_) => 2,
        };
        self.revocations[kind].increment(1);
    }

    /// An upgrade request of this tenant was answered; `result` is a refusal's word or `accepted`.
    pub fn handshake(&self, result: &'static str) {
        counter!("lockgate_handshakes_total", "tenant" => self.label.to_string(), "result" => result).increment(1);
    }

    /// A socket ended.
    pub fn disconnected(&self, close: &CloseFrame, lived: Duration) {
        let (code, reason) = close.labels();
        counter!("lockgate_disconnects_total", "tenant" => self.label.to_string(), "code" => code, "reason" => reason)
            .increment(1);
        histogram!("lockgate_connection_duration_seconds").record(lived.as_secs_f64());
    }

    /// A limit was hit; `limit` is its configuration key.
    pub fn rate_limited(&self, limit: &'static str) {
        counter!("lockgate_rate_limited_total", "tenant" => self.label.to_string(), "limit" => limit).increment(1);
    }
}

/// An upgrade request was refused before its tenant was known.
pub fn handshake_without_tenant(result: &'static str) {
    counter!("lockgate_handshakes_total", "tenant" => NO_TENANT, "result" => result).increment(1);
}

/// How long a handshake took.
pub fn handshake_took(took: Duration) {
    histogram!("lockgate_handshake_duration_seconds").record(took.as_secs_f64());
}

/// How long one step of the authentication took.
pub fn auth_step_took(step: AuthStep, took: Duration) {
    histogram!("lockgate_auth_duration_seconds", "step" => step.label()).record(took.as_secs_f64());
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
            duration: histogram!("lockgate_fanout_duration_seconds"),
            recipients: histogram!("lockgate_fanout_recipients"),
            lag: histogram!("lockgate_delivery_lag_seconds"),
        }
    }
}

/// The dependency at `endpoint` (host:port) answers, or does not.
pub fn dependency_up(dependency: Dependency, endpoint: &str, up: bool) {
    gauge!("lockgate_dependency_up", "dependency" => dependency.label(), "endpoint" => endpoint.to_owned())
        .set(if up { 1.0 } else { 0.0 });
}

/// A dependency answered `operation` (a fixed word such as `mget` or `users`).
pub fn dependency_took(dependency: Dependency, operation: &'static str, took: Duration) {
    histogram!("lockgate_dependency_duration_seconds", "dependency" => dependency.label(), "operation" => operation)
        .record(took.as_secs_f64());
}

/// A dependency failed.
pub fn dependency_failed(error: &StoreError) {
    dependency_error(error.dependency, error.kind);
}

/// A dependency failed in a way that has no [`StoreError`].
pub fn dependency_error(dependency: Dependency, kind: ErrorKind) {
    counter!("lockgate_dependency_errors_total", "dependency" => dependency.label(), "kind" => kind.label()).increment(1);
}

/// A link to a dependency was made anew.
pub fn reconnected(dependency: Dependency) {
    counter!("lockgate_reconnects_total", "dependency" => dependency.label()).increment(1);
}

/// Whether a Redis with a denylist could forget revocations, or did. 1: read the log, and act.
pub fn denylist_at_risk(at_risk: bool) {
    gauge!("lockgate_denylist_at_risk").set(if at_risk { 1.0 } else { 0.0 });
}

/// A statement asked a database for users.
pub fn user_query() {
    counter!("lockgate_user_queries_total").increment(1);
}

/// A canary came back after `took`.
pub fn canary_returned(endpoint: &str, took: Duration) {
    histogram!("lockgate_canary_rtt_seconds", "endpoint" => endpoint.to_owned())
        .record(took.as_secs_f64());
}

/// A canary did not come back in time. Other than zero: Redis takes publishes that its subscribers do not get.
pub fn canary_missed(endpoint: &str) {
    counter!("lockgate_canary_missed_total", "endpoint" => endpoint.to_owned()).increment(1);
}

/// Version of the binary, once at start.
pub fn build_info() {
    gauge!("lockgate_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    draining(false);
    drain_remaining(0);
}

/// Whether `/readyz` answers 200.
pub fn ready(ready: bool) {
    gauge!("lockgate_ready").set(if ready { 1.0 } else { 0.0 });
}

/// Whether the replica drains.
pub fn draining(draining: bool) {
    gauge!("lockgate_draining").set(if draining { 1.0 } else { 0.0 });
}

/// Sockets that the drain still has to close.
pub fn drain_remaining(count: usize) {
    gauge!("lockgate_drain_remaining_connections").set(count as f64);
}

/// Open sockets against the limit, and bytes that wait for sockets; called on each upkeep.
pub fn saturation(open: usize, limit: u64, queued_bytes: u64) {
    gauge!("lockgate_connections_limit").set(limit as f64);
    gauge!("lockgate_connection_saturation").set(open as f64 / limit.max(1) as f64);
    gauge!("lockgate_send_queue_bytes").set(queued_bytes as f64);
}

/// A configuration was applied, or refused, at `now` (Unix seconds).
pub fn config_reload(successful: bool, now: f64) {
    gauge!("lockgate_config_reload_successful").set(if successful { 1.0 } else { 0.0 });
    if successful {
        gauge!("lockgate_config_reload_timestamp_seconds").set(now);
    }
}

/// A revocation of the API was confirmed by every replica that confirmed it.
pub fn revocation_propagated(took: Duration) {
    histogram!("lockgate_revocation_propagation_seconds").record(took.as_secs_f64());
}

/// How late a timer of the runtime fired.
pub fn loop_lag(lag: Duration) {
    histogram!("lockgate_loop_lag_seconds").record(lag.as_secs_f64());
}
