//! The metrics of one tenant. Handles are kept for all that moves once per frame, event or delivery.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::close_code::CloseFrame;
use crate::ids::{TenantId, Whom};
use crate::labels::{Label, PerLabel};

use super::families::*;
use super::family::Family;
use super::series::SeriesPlace;
use super::words::{
    AuthStep, DropCause, EventSource, FrameKind, GapCause, LookupResult, RevocationKind,
};

/// The label of tenants beyond `metrics.tenant_series`.
pub const OTHER_TENANTS: &str = "_other";

/// The result of a handshake that is no refusal.
const ACCEPTED: &str = "accepted";

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
    frames_received: PerLabel<FrameKind, Counter>,
    events: PerLabel<EventSource, Counter>,
    dropped: PerLabel<DropCause, Counter>,
    gaps: PerLabel<GapCause, Counter>,
    lookups: PerLabel<LookupResult, Counter>,
    revocations: PerLabel<RevocationKind, Counter>,
    accepted: Counter,
    /// All tenants share these series.
    auth_steps: PerLabel<AuthStep, Histogram>,
    handshake_duration: Histogram,
}

impl TenantMetrics {
    /// The handles for `tenant`, under its own name while it holds `place`.
    pub fn in_place(tenant: &TenantId, place: Option<SeriesPlace>) -> Self {
        let mut handles = Self::new(tenant, place.is_some());
        handles._place = place;
        handles
    }

    /// The handles for `tenant`; `own_series` is false beyond `metrics.tenant_series` ([`TenantSeries`](super::TenantSeries)).
    pub fn new(tenant: &TenantId, own_series: bool) -> Self {
        let label: Arc<str> = if own_series {
            tenant.as_str().into()
        } else {
            OTHER_TENANTS.into()
        };
        let tenant = || [label.clone().into()];
        Self {
            connections: CONNECTIONS.with(tenant()),
            subscriptions: SUBSCRIPTIONS.with(tenant()),
            layer_queue_bytes: LAYER_QUEUE_BYTES.with(tenant()),
            frames_sent: FRAMES_SENT.with(tenant()),
            sent_bytes: SENT_BYTES.with(tenant()),
            received_bytes: RECEIVED_BYTES.with(tenant()),
            deliveries: DELIVERIES.with(tenant()),
            frames_received: per_label(&FRAMES_RECEIVED, &label),
            events: per_label(&EVENTS, &label),
            dropped: per_label(&EVENTS_DROPPED, &label),
            gaps: per_label(&GAPS, &label),
            lookups: per_label(&USER_LOOKUPS, &label),
            revocations: per_label(&REVOCATIONS, &label),
            accepted: HANDSHAKES.with([label.clone().into(), ACCEPTED.into()]),
            auth_steps: PerLabel::new(|step: AuthStep| AUTH_DURATION.with([step.label().into()])),
            handshake_duration: HANDSHAKE_DURATION.get(),
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
        self.frames_received.of(kind).increment(1);
    }

    /// An event came in.
    pub fn event(&self, source: EventSource) {
        self.events.of(source).increment(1);
    }

    /// An event or frame was dropped. Other than zero means that someone sends what cannot be carried.
    pub fn dropped(&self, cause: DropCause) {
        self.dropped.of(cause).increment(1);
    }

    /// Events may have been missed.
    pub fn gap(&self, cause: GapCause) {
        self.gaps.of(cause).increment(1);
    }

    /// A user was looked up.
    pub fn user_lookup(&self, result: LookupResult) {
        self.lookups.of(result).increment(1);
    }

    /// A revocation was heard of.
    pub fn revocation(&self, whom: &Whom) {
        self.revocations.of(whom.into()).increment(1);
    }

    /// An upgrade request of this tenant was accepted.
    pub fn handshake_accepted(&self) {
        self.accepted.increment(1);
    }

    /// An upgrade request of this tenant was refused; `result` is the refusal's word.
    pub fn handshake_refused(&self, result: &'static str) {
        HANDSHAKES
            .with([self.label.clone().into(), result.into()])
            .increment(1);
    }

    /// How long a handshake took, whatever it came to.
    pub fn handshake_took(&self, took: Duration) {
        self.handshake_duration.record(took.as_secs_f64());
    }

    /// How long one step of the authentication took.
    pub fn auth_step_took(&self, step: AuthStep, took: Duration) {
        self.auth_steps.of(step).record(took.as_secs_f64());
    }

    /// A socket ended.
    pub fn disconnected(&self, close: &CloseFrame, lived: Duration) {
        let (code, reason) = close.labels();
        let labels = [self.label.clone().into(), code.into(), reason.into()];
        DISCONNECTS.with(labels).increment(1);
        CONNECTION_DURATION.get().record(lived.as_secs_f64());
    }

    /// A limit was hit; `limit` is its configuration key.
    pub fn rate_limited(&self, limit: &'static str) {
        RATE_LIMITED
            .with([self.label.clone().into(), limit.into()])
            .increment(1);
    }
}

/// A handle for each word of the second label.
fn per_label<L: Label>(family: &Family<Counter, 2>, tenant: &Arc<str>) -> PerLabel<L, Counter> {
    PerLabel::new(|word: L| family.with([tenant.clone().into(), word.label().into()]))
}
