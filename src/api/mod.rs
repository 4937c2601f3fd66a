//! The management API, one file per noun. This file has the routes and the authentication of callers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use futures_util::future::BoxFuture;

use crate::fleet::Fleet;
use crate::tenant::{Tenant, Tenants};

mod at_work;
mod body;
mod book;
mod call_line;
mod call_rate;
mod connections;
mod groups;
pub mod health;
mod history;
mod idempotency;
mod keys;
mod openapi;
mod precondition;
mod presence;
mod problem;
mod registered;
mod repeats;
mod revocations;
mod scopes;
mod scrape;
mod sends;
mod tenants;
mod user_ids;
mod users;

use at_work::CallsAtWork;
pub use book::{
    BookProblem, ChangeOrder, Precondition, RegisteredTenant, StoredTenant, TenantBook,
    TenantMistake, TenantOfBook,
};
use call_line::CallLine;
use call_rate::{CallRate, Payer, body_length};
pub use keys::ApiKeys;
use keys::Caller;
use problem::ApiProblem;
pub use scrape::ScrapeState;

/// The most bytes of a body.
const MAX_BODY: usize = 1024 * 1024;

/// The state of the API's handlers.
#[derive(Clone)]
pub struct ApiState {
    tenants: Arc<Tenants>,
    api_keys: Arc<ApiKeys>,
    fleet: Arc<Fleet>,
    deployment: Arc<Deployment>,
    call_rate: CallRate,
    at_work: CallsAtWork,
}

/// The operations of the API on the whole deployment.
pub struct Deployment {
    /// Reloads the configuration of this replica.
    pub reload: Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    /// The tenants of the registry; `None` without one.
    pub book: Option<Arc<dyn TenantBook>>,
}

impl ApiState {
    /// Makes the state for these tenants and keys, of a listener with so many connections.
    pub fn new(
        tenants: Arc<Tenants>,
        api_keys: Arc<ApiKeys>,
        fleet: Arc<Fleet>,
        deployment: Deployment,
        connections: usize,
    ) -> Self {
        Self {
            tenants,
            api_keys,
            fleet,
            deployment: Arc::new(deployment),
            call_rate: CallRate::default(),
            at_work: CallsAtWork::new(connections),
        }
    }
}

/// Makes the routes of the API listener.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route(
            "/v1/tenants/{tenant}/groups/{group}/send",
            post(sends::to_group),
        )
        .route("/v1/tenants", get(tenants::list))
        .route(
            "/v1/tenants/{tenant}",
            get(registered::show)
                .put(registered::put)
                .delete(registered::delete),
        )
        .route("/v1/tenants/{tenant}/suspend", post(tenants::suspend))
        .route("/v1/tenants/{tenant}/resume", post(tenants::resume))
        .route("/v1/tenants/{tenant}/send", post(sends::batch))
        .route(
            "/v1/tenants/{tenant}/groups/{group}",
            get(connections::of_group),
        )
        .route(
            "/v1/tenants/{tenant}/groups/{group}/history",
            get(history::list),
        )
        .route(
            "/v1/tenants/{tenant}/groups/{group}/presence",
            get(presence::list),
        )
        .route(
            "/v1/tenants/{tenant}/groups/{group}/presence/count",
            get(presence::count),
        )
        .route(
            "/v1/tenants/{tenant}/connections",
            get(connections::of_tenant),
        )
        .route(
            "/v1/tenants/{tenant}/connections/{channel}/groups/{group}",
            post(groups::add_connection).delete(groups::discard_connection),
        )
        .route(
            "/v1/tenants/{tenant}/connections/{channel}/disconnect",
            post(users::disconnect_connection),
        )
        .route(
            "/v1/tenants/{tenant}/users/{user}/groups/{group}",
            post(groups::add_user).delete(groups::discard_user),
        )
        .route(
            "/v1/tenants/{tenant}/users/{user}/connections",
            get(connections::of_user),
        )
        .route("/v1/tenants/{tenant}/users/{user}/send", post(users::send))
        .route(
            "/v1/tenants/{tenant}/users/{user}/disconnect",
            post(users::disconnect),
        )
        .route(
            "/v1/tenants/{tenant}/users/{user}/invalidate",
            post(users::invalidate),
        )
        .route(
            "/v1/tenants/{tenant}/revocations",
            post(revocations::revoke),
        )
        .route("/v1/reload", post(tenants::reload))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn_with_state(state.clone(), authenticate))
        // Added after the authentication layer, so that it needs no key: it is documentation.
        // For the same reason the fallback above does not reach it.
        .route(
            "/openapi.json",
            get(openapi::serve).fallback(problem::method_not_allowed),
        )
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state)
}

/// Refuses calls without a known key, those over the rate and those of a caller with too many under way. Passes the owner of the key
/// to the handler.
async fn authenticate(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let Some(key) = keys::presented(request.headers()) else {
        return ApiProblem::KeyMissing.into_response();
    };
    let Some(caller) = state.api_keys.find(&key) else {
        // The tenants that are not known yet have keys too.
        let refusal = match state.tenants.is_incomplete() {
            true => ApiProblem::TenantUnavailable,
            false => ApiProblem::KeyNotValid,
        };
        return refusal.into_response();
    };
    let scope = scopes::of(&request);
    if let Some(scope) = scope.filter(|scope| !caller.has(*scope)) {
        return scopes::refuse(scope);
    }
    if !state.call_rate.take(&state, (&caller, key), &request) {
        return call_rate::refuse().await.into_response();
    }
    let place = state.at_work.place(Payer::of(&caller, key), &request);
    // Otherwise it is taken once the body is read.
    let has_no_body = body_length(&request) == 0 || request.method() == Method::GET;
    if has_no_body && let Err(problem) = place.take(0).await {
        return problem.into_response();
    }
    // A call with an `Idempotency-Key` outlives this function if its client goes away.
    request.extensions_mut().insert(place.clone());
    let key = keys::CallerKey(key);
    let mut line = CallLine::of(&request, scope, caller.actor(key));
    if let Some(line) = &line {
        request.extensions_mut().insert(line.revoked());
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(key);
    let answer = next.run(request).await;
    drop(place);
    if let Some(line) = &mut line {
        line.answered(answer.status());
    }
    answer
}

/// The tenant of the path, for which the caller's key is valid.
struct PathTenant(Arc<Tenant>);

impl FromRequestParts<ApiState> for PathTenant {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiProblem> {
        let path = axum::extract::RawPathParams::from_request_parts(parts, state).await;
        let path = path.map_err(|_| ApiProblem::NotFound)?;
        let name = path
            .iter()
            .find(|(name, _)| *name == "tenant")
            .map(|(_, value)| value.to_owned());
        let name = name.ok_or(ApiProblem::NotFound)?;
        let caller = parts
            .extensions
            .get::<Caller>()
            .ok_or(ApiProblem::KeyMissing)?;
        // The key is checked before the tenant, so that a tenant's key does not reveal which other tenants exist.
        if !caller.may_act_for(&name) {
            return Err(ApiProblem::TenantForbidden);
        }
        if let Some(tenant) = state.tenants.for_call(&name).await {
            return Ok(PathTenant(tenant));
        }
        // One that cannot be served, or not be known yet, is there nevertheless.
        let known = registered::known(state);
        let of_files = state.tenants.file_troubles();
        let of_files = of_files
            .iter()
            .filter_map(|trouble| trouble.tenant.as_ref());
        let mut ids = of_files.chain(known.iter().map(|tenant| &tenant.id));
        let is_known = ids.any(|id| id.as_str() == name);
        Err(match is_known || state.tenants.is_incomplete() {
            true => ApiProblem::TenantUnavailable,
            false => ApiProblem::TenantNotFound,
        })
    }
}
