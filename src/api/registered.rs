//! `GET`, `PUT` and `DELETE /v1/tenants/{t}`: one tenant, as the registry has it.
//!
//! The registry itself is behind [`TenantBook`]. A change is stored and served here before it is announced, so that a caller
//! whose answer has come finds it; replicas that did not answer in time look for changes by themselves.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::ETAG;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::ApiState;
use super::body::{JsonBody, NoBody};
use super::book::{BookProblem, ChangeOrder, TenantBook, TenantOfBook};
use super::keys::{Caller, CallerKey, operators_only};
use super::precondition;
use super::problem::ApiProblem;
use super::users::ask;
use crate::fleet::message::Op;
use crate::fleet::{Circle, Replicas};
use crate::ids::TenantId;
use crate::metrics;
use crate::problem::document_of_mistakes;

/// The state of a tenant on the replica that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TenantState {
    /// Sockets may open.
    Served,
    /// An operator has suspended it.
    Suspended,
    /// It is not served as it is stored; `reason` says why.
    Degraded,
}

/// The place in which a tenant is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TenantSource {
    /// A configuration file.
    File,
    /// The registry.
    Registry,
}

/// One tenant.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantView {
    name: String,
    source: TenantSource,
    state: TenantState,
    /// The reason why it is degraded, or else `null`.
    reason: Option<String>,
    /// The number of open sockets; `null` if it cannot be known.
    connections: Option<u64>,
    /// The keys of `[tenants.NAME]`, each secret as `{"set":true}`; `null` for a tenant of the files.
    config: Option<Value>,
    /// It rises with every change; `null` for a tenant of the files.
    version: Option<i64>,
    /// Unix seconds; `null` for a tenant of the files.
    created_at: Option<i64>,
    /// Unix seconds; `null` for a tenant of the files.
    updated_at: Option<i64>,
}

/// The answer to a stored change.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantStored {
    name: String,
    version: i64,
    /// Valid settings that an operator should know of.
    warnings: Vec<String>,
    /// The replicas that serve the change. The others look for changes every 10 s.
    replicas: Replicas,
}

/// The answer to a deletion.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantDeleted {
    /// The replicas that serve it no more. The others look for changes every 10 s.
    replicas: Replicas,
}

/// Returns the tenant of a path, for an operator.
fn named(caller: &Caller, name: &str) -> Result<TenantId, ApiProblem> {
    operators_only(caller)?;
    name.parse().map_err(|_| ApiProblem::TenantNameNotValid)
}

/// Returns the registry.
fn book_of(state: &ApiState) -> Result<&Arc<dyn TenantBook>, ApiProblem> {
    let book = state.deployment.book.as_ref();
    book.ok_or(ApiProblem::RegistryNotConfigured)
}

/// Shows a tenant: its configuration without its secrets, its state and its sockets.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}",
    params(("tenant" = String, Path, description = "The tenant's name")),
    responses((status = 200, description = "Carried out; ETag has the version", body = TenantView), (status = 400, description = "The name is not one of a tenant", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn show(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiProblem> {
    let id = named(&caller, &name)?;
    let stored = match &state.deployment.book {
        Some(book) => match book.show(&id).await {
            Ok(stored) => Some(stored),
            Err(BookProblem::NotFound | BookProblem::InFiles) => None,
            Err(problem) => return Ok(refused(&id, problem)),
        },
        None => None,
    };
    // One that is not in use is made: its Redis knows whether it is suspended, and other replicas may have its sockets.
    let served = match state.tenants.configured(id.as_str()) {
        Some(_) => state.tenants.for_call(id.as_str()).await,
        None => None,
    };
    if let Some(tenant) = &served {
        // Until then nothing tells a suspension. What cannot open has its reason below.
        tenant.opens().await.ok();
    }
    let trouble = match stored {
        Some(_) => trouble_of(&state, &id),
        None => trouble_of_files(&state, &id),
    };
    if stored.is_none() && served.is_none() && trouble.is_none() {
        return Err(ApiProblem::TenantNotFound);
    }
    let connections = match &served {
        Some(tenant) => {
            let counted = ask(&state, tenant, Op::Count).await.ok();
            let counted = counted.filter(|counted| counted.replicas.all_confirmed());
            counted.map(|counted| counted.connections())
        }
        None => Some(0),
    };
    let life = served.as_ref().map(|tenant| tenant.life().clone());
    let reason = trouble.or_else(|| life.as_ref()?.obstacle().map(str::to_owned));
    let tenant_state = match &life {
        _ if reason.is_some() => TenantState::Degraded,
        Some(life) if life.is_suspended() => TenantState::Suspended,
        Some(_) => TenantState::Served,
        None => TenantState::Degraded,
    };
    let version = stored.as_ref().map(|stored| stored.version);
    let view = TenantView {
        name: id.to_string(),
        source: match stored {
            Some(_) => TenantSource::Registry,
            None => TenantSource::File,
        },
        state: tenant_state,
        reason,
        connections,
        version,
        created_at: stored.as_ref().map(|stored| stored.created_at),
        updated_at: stored.as_ref().map(|stored| stored.updated_at),
        config: stored.and_then(|stored| stored.config),
    };
    Ok(match version {
        Some(version) => (etag(version), Json(view)).into_response(),
        None => Json(view).into_response(),
    })
}

/// Returns the tenants of the registry that this replica knows, by name.
pub(super) fn known(state: &ApiState) -> Arc<Vec<TenantOfBook>> {
    let book = state.deployment.book.as_ref();
    book.map_or_else(Arc::default, |book| book.tenants())
}

fn trouble_of(state: &ApiState, id: &TenantId) -> Option<String> {
    let known = known(state);
    let at = known.binary_search_by(|tenant| tenant.id.cmp(id)).ok()?;
    known[at].trouble.clone()
}

/// Returns the reason why a tenant of an included file is not served as it stands there.
pub(super) fn trouble_of_files(state: &ApiState, id: &TenantId) -> Option<String> {
    let troubles = state.tenants.file_troubles();
    let own = troubles
        .iter()
        .find(|trouble| trouble.tenant.as_ref() == Some(id));
    own.map(|trouble| trouble.why.clone())
}

/// Stores the whole configuration of a tenant, and serves it.
#[utoipa::path(
    put,
    path = "/v1/tenants/{tenant}",
    params(
        ("tenant" = String, Path, description = "The tenant's name"),
        ("If-Match" = Option<String>, Header, description = "The ETag of a GET, a list of them, or *: the tenant must have one of these versions"),
        ("If-None-Match" = Option<String>, Header, description = "*: there must be no such tenant")
    ),
    request_body = inline(Map<String, Value>),
    responses(
        (status = 200, description = "Changed; ETag has the new version", body = TenantStored),
        (status = 201, description = "Made; ETag has the version", body = TenantStored),
        (status = 404, description = "The deployment has no registry", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"),
        (status = 409, description = "A file has this tenant", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"),
        (status = 412, description = "The tenant is not in the state that the call asks for", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"),
        (status = 422, description = "The configuration has mistakes, which the member `mistakes` lists", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")
    ),
)]
pub(super) async fn put(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Extension(key): Extension<CallerKey>,
    Path(name): Path<String>,
    headers: HeaderMap,
    JsonBody(document): JsonBody<Map<String, Value>>,
) -> Result<Response, ApiProblem> {
    let id = named(&caller, &name)?;
    let book = book_of(&state)?.clone();
    let (order, _waits) = ordered(&headers, caller.actor(key))?;
    // In a task of its own, so that a change that has begun runs to its end, and is announced, even if its caller goes away.
    let task = async move {
        let stored = book.put(&id, Value::Object(document), order);
        let stored = match stored.await {
            Ok(stored) => stored,
            Err(problem) => return refused(&id, problem),
        };
        let answer = TenantStored {
            name: id.to_string(),
            version: stored.version,
            warnings: stored.warnings,
            replicas: announce(&state).await,
        };
        let status = match stored.is_new {
            true => StatusCode::CREATED,
            false => StatusCode::OK,
        };
        (status, etag(stored.version), Json(answer)).into_response()
    };
    Ok(to_its_end(task).await)
}

/// Deletes a tenant. Its sockets close with 4017.
#[utoipa::path(
    delete,
    path = "/v1/tenants/{tenant}",
    params(
        ("tenant" = String, Path, description = "The tenant's name"),
        ("If-Match" = Option<String>, Header, description = "The ETag of a GET, a list of them, or *: the tenant must have one of these versions")
    ),
    responses(
        (status = 200, description = "Carried out", body = TenantDeleted),
        (status = 409, description = "A file has this tenant", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"),
        (status = 412, description = "The tenant is not in the state that the call asks for", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")
    ),
)]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Extension(key): Extension<CallerKey>,
    Path(name): Path<String>,
    headers: HeaderMap,
    NoBody: NoBody,
) -> Result<Response, ApiProblem> {
    let id = named(&caller, &name)?;
    let book = book_of(&state)?.clone();
    let (order, _waits) = ordered(&headers, caller.actor(key))?;
    let task = async move {
        if let Err(problem) = book.delete(&id, order).await {
            return refused(&id, problem);
        }
        let replicas = announce(&state).await;
        Json(TenantDeleted { replicas }).into_response()
    };
    Ok(to_its_end(task).await)
}

/// Runs a change to its end, whatever becomes of the caller.
async fn to_its_end(change: impl Future<Output = Response> + Send + 'static) -> Response {
    let (done, answer) = tokio::sync::oneshot::channel();
    crate::tasks::brief(async move {
        // The caller may be gone.
        drop(done.send(change.await));
    });
    // Without an answer the change has panicked, which is logged.
    let answer = answer.await;
    answer.unwrap_or_else(|_| ApiProblem::RegistryUnavailable.into_response())
}

/// Tells all replicas to look at the registry, and returns those that have.
async fn announce(state: &ApiState) -> Replicas {
    let Some(line) = state.fleet.deployment() else {
        return Replicas::only_one();
    };
    let circle = Circle::of_deployment(&line);
    match state.fleet.ask(circle, Op::Registry).await {
        Ok(gathered) => {
            if gathered.replicas.expected.is_none() {
                metrics::replicas_of_deployment_unknown();
            }
            let mut replicas = gathered.replicas;
            let failed = { gathered.answers.iter() }.filter(|answer| answer.error.is_some());
            let failed: Vec<String> = failed.map(|answer| answer.replica.clone()).collect();
            replicas.confirmed -= failed.len();
            replicas.missing.extend(failed);
            replicas
        }
        Err(error) => {
            tracing::warn!(error = %error, "A change of the registry could not be announced; replicas look for it every 10 s");
            Replicas {
                expected: None,
                confirmed: 1,
                missing: Vec::new(),
                warning: Some(
                    "Redis did not take the announcement; the replicas look for changes every 10 s"
                        .to_owned(),
                ),
            }
        }
    }
}

/// Returns what a change needs, and what its handler holds while the caller waits.
fn ordered(headers: &HeaderMap, actor: String) -> Result<(ChangeOrder, Arc<()>), ApiProblem> {
    let waits = Arc::new(());
    let order = ChangeOrder {
        condition: precondition::of(headers)?,
        actor,
        caller: Arc::downgrade(&waits),
    };
    Ok((order, waits))
}

fn etag(version: i64) -> [(HeaderName, HeaderValue); 1] {
    let value = HeaderValue::try_from(format!("\"{version}\""));
    [(ETAG, value.expect("digits in quotes are a header's value"))]
}

/// Returns the answer to a change that was not made.
fn refused(id: &TenantId, problem: BookProblem) -> Response {
    match problem {
        BookProblem::NotFound => ApiProblem::TenantNotFound.into_response(),
        BookProblem::InFiles => ApiProblem::TenantOfFiles.into_response(),
        BookProblem::NotAsExpected => ApiProblem::PreconditionFailed.into_response(),
        BookProblem::Unavailable(error) => {
            tracing::warn!(tenant.id = %id, error = %error, "A call on the registry could not be carried out");
            ApiProblem::RegistryUnavailable.into_response()
        }
        BookProblem::Mistakes(mistakes) => {
            let problem = ApiProblem::TenantNotValid;
            let (status, code) = (problem.status(), problem.code());
            document_of_mistakes(status, code, problem.detail(), json!(mistakes))
        }
    }
}
