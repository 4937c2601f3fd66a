//! The admin listener: liveness, readiness and metrics, on a thread of its own.
//!
//! Liveness asks only whether the runtime makes progress: a lost Redis must not make an orchestrator kill every
//! replica and with them every socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use std::collections::BTreeMap;

use super::keys::{ApiKeys, Caller};
use crate::replica::ReplicaLife;
use crate::tenant::Tenants;

/// The runtime is taken for stuck when its tasks have not run for this long.
const STUCK: Duration = Duration::from_secs(30);

/// A clock that only moves while the runtime runs tasks.
pub struct Progress {
    started: Instant,
    last: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// Called by a task of the runtime, at least every few seconds.
    pub fn mark(&self) {
        self.last
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn is_stuck(&self) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) > STUCK
    }
}

/// What the admin listener tells of.
#[derive(Clone)]
pub struct AdminState {
    /// Whether the runtime makes progress.
    pub progress: Arc<Progress>,
    /// Whether the replica is ready.
    pub life: Arc<ReplicaLife>,
    /// Whose dependencies were reached.
    pub tenants: Arc<Tenants>,
    /// Who may see the names of tenants.
    pub keys: Arc<ApiKeys>,
    /// The recorder's contents.
    pub metrics: PrometheusHandle,
}

/// The routes of the admin listener.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state)
}

async fn livez(State(state): State<AdminState>) -> Response {
    if state.progress.is_stuck() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            no_store(),
            "the runtime makes no progress\n",
        )
            .into_response()
    } else {
        (no_store(), "ok\n").into_response()
    }
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    checks: BTreeMap<&'static str, bool>,
    /// How many tenants cannot be served at the moment.
    degraded: usize,
    /// Why, by tenant; only for an operator's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<BTreeMap<String, Option<String>>>,
}

async fn readyz(State(state): State<AdminState>, headers: HeaderMap) -> Response {
    let ready = state.life.is_ready();
    let degraded = state
        .tenants
        .all()
        .iter()
        .filter(|tenant| tenant.degraded.lock().is_some())
        .count();
    let names = is_operator(&state.keys, &headers).then(|| {
        let reason = |tenant: &Arc<crate::tenant::Tenant>| {
            (tenant.id.to_string(), tenant.degraded.lock().clone())
        };
        state.tenants.all().iter().map(reason).collect()
    });
    let checks = [
        ("started", state.life.has_started()),
        ("not_draining", !state.life.is_draining()),
        ("tenants", degraded == 0),
    ];
    let body = Json(Readiness {
        ready,
        checks: checks.into(),
        degraded,
        tenants: names,
    });
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, no_store(), body).into_response()
}

fn is_operator(keys: &ApiKeys, headers: &HeaderMap) -> bool {
    let header = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = header.and_then(|value| value.strip_prefix("Bearer "));
    key.and_then(|key| keys.find(key)) == Some(Caller::Operator)
}

async fn metrics(State(state): State<AdminState>) -> Response {
    metrics_process::Collector::default().collect();
    let text = state.metrics.render();
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

fn no_store() -> [(axum::http::HeaderName, &'static str); 1] {
    [(CACHE_CONTROL, "no-store")]
}
