//! The admin listener: liveness and readiness, on a separate thread; the file `scrape.rs` has its metrics.
//!
//! Liveness only checks that the runtime makes progress. A lost Redis must not make an orchestrator kill every replica
//! with all its sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{FromRef, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use std::collections::BTreeMap;

use super::book::TenantBook;
use super::keys::{self, ApiKeys, Caller};
use super::problem;
use super::scrape::{self, ScrapeState};
use crate::config::KeyScope;
use crate::replica::ReplicaLife;
use crate::tenant::Tenants;

/// The time without a running task after which the runtime counts as stuck.
const STUCK: Duration = Duration::from_secs(30);

/// The last time at which the runtime ran a task.
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
    /// Notes that the runtime runs tasks. A task of the runtime calls it every few seconds.
    pub fn mark(&self) {
        self.last
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn is_stuck(&self) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) > STUCK
    }
}

/// The state that the admin listener reports.
#[derive(Clone)]
pub struct AdminState {
    /// The progress of the runtime.
    pub progress: Arc<Progress>,
    /// The state of the replica, for readiness.
    pub life: Arc<ReplicaLife>,
    /// The tenants, for readiness.
    pub tenants: Arc<Tenants>,
    /// The tenants of the registry; `None` without one.
    pub book: Option<Arc<dyn TenantBook>>,
    /// The API keys. An operator's key shows the names of tenants.
    pub api_keys: Arc<ApiKeys>,
    /// The metrics.
    pub scrapes: ScrapeState,
}

impl FromRef<AdminState> for ScrapeState {
    fn from_ref(state: &AdminState) -> Self {
        state.scrapes.clone()
    }
}

/// Makes the routes of the admin listener.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape::replica))
        .route("/metrics/tenants", get(scrape::tenants))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
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
    /// The number of tenants and included files that are not served as they are configured.
    degraded: usize,
    /// The reason by tenant; only for an operator's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<BTreeMap<String, Option<String>>>,
    /// Remarks that an operator should mend although all is served, by their subjects; only for an operator's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<BTreeMap<String, Vec<String>>>,
}

async fn readyz(State(state): State<AdminState>, headers: HeaderMap) -> Response {
    let ready = state.life.is_ready();
    let reasons = reasons(&state);
    let degraded = { reasons.values() }
        .filter(|reason| reason.is_some())
        .count();
    let is_operator = is_operator(&state.api_keys, &headers);
    let checks = [
        ("started", state.life.has_started()),
        ("not_draining", !state.life.is_draining()),
        ("tenants", degraded == 0),
    ];
    let body = Json(Readiness {
        ready,
        checks: checks.into(),
        degraded,
        tenants: is_operator.then_some(reasons),
        warnings: is_operator.then(|| warnings(&state)),
    });
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, no_store(), body).into_response()
}

/// Returns every tenant with the reason why it cannot be served as it is configured, if there is one.
fn reasons(state: &AdminState) -> BTreeMap<String, Option<String>> {
    let tenants = state.tenants.all();
    let reason = |tenant: &Arc<crate::tenant::Tenant>| {
        let obstacle = tenant.life().obstacle().map(str::to_owned);
        (tenant.id.to_string(), obstacle)
    };
    let mut reasons: BTreeMap<_, _> = tenants.iter().map(reason).collect();
    for trouble in state.tenants.file_troubles().iter() {
        reasons.insert(trouble.subject(), Some(trouble.why.clone()));
    }
    let registered = state.book.as_ref().map(|book| book.tenants());
    for tenant in registered.iter().flat_map(|tenants| tenants.iter()) {
        if let Some(trouble) = &tenant.trouble {
            reasons.insert(tenant.id.to_string(), Some(trouble.clone()));
        }
    }
    reasons
}

/// Returns the remarks on dependencies and tenants.
fn warnings(state: &AdminState) -> BTreeMap<String, Vec<String>> {
    let mut all = state.life.remarks().all();
    for tenant in state.tenants.all().iter() {
        let remarks = tenant.remarks();
        if !remarks.is_empty() {
            all.insert(format!("tenant {}", tenant.id), remarks);
        }
    }
    all
}

fn is_operator(api_keys: &ApiKeys, headers: &HeaderMap) -> bool {
    let caller = keys::presented(headers).and_then(|key| api_keys.find(&key));
    match caller {
        None | Some(Caller::Tenant(_)) => false,
        Some(operator) => operator.has(KeyScope::TenantsRead),
    }
}

fn no_store() -> [(axum::http::HeaderName, &'static str); 1] {
    [(CACHE_CONTROL, "no-store")]
}
