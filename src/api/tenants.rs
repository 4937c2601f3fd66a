//! The calls of operators for whole tenants and for the configuration.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::Serialize;

use super::body::NoBody;
use super::connections::Part;
use super::keys::Caller;
use super::problem::{ApiProblem, unavailable};
use super::revocations::Closed;
use super::users::ask;
use super::{ApiState, PathTenant};
use crate::fleet::message::Op;
use crate::fleet::{Circle, Replicas};
use crate::metrics;
use crate::stores::key_store::Lifetime;
use crate::stores::redis_keys;
use crate::tenant::{SUSPENDED, Tenant};

/// One tenant of the list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantEntry {
    name: String,
    suspended: bool,
    /// True if this replica cannot serve the tenant now.
    degraded: bool,
    /// The number of open sockets; `null` if it cannot be known: a replica or the tenant's Redis does not answer.
    connections: Option<u64>,
}

/// A page of tenants.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantList {
    tenants: Vec<TenantEntry>,
    /// The cursor of the next page; `null` after the last.
    cursor: Option<String>,
}

/// Refuses a tenant's key.
pub(super) fn operators_only(caller: &Caller) -> Result<(), ApiProblem> {
    match caller {
        Caller::Operator => Ok(()),
        Caller::Tenant(_) => Err(ApiProblem::OperatorsOnly),
    }
}

/// Lists the tenants by name.
#[utoipa::path(
    get,
    path = "/v1/tenants",
    params(("limit" = Option<usize>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "Carried out", body = TenantList), (status = 400, description = "The query or a name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<TenantList>, ApiProblem> {
    operators_only(&caller)?;
    let part = Part::of(query)?;
    let all = state.tenants.all();
    let after = |tenant: &Tenant| match &part.cursor {
        Some(cursor) => tenant.id.as_str() > cursor.as_str(),
        None => true,
    };
    let mut rest = all.iter().filter(|tenant| after(tenant));
    let page: Vec<_> = rest.by_ref().take(part.limit()).collect();
    let more = rest.next().is_some();
    let entries = page.iter().map(|tenant| async {
        // An outage of one tenant's Redis leaves its count out and does not fail the list. Some replicas' sockets are no
        // count of all.
        let counted = ask(&state, tenant, Op::Count).await.ok();
        let counted = counted.filter(|counted| counted.replicas.all_confirmed());
        TenantEntry {
            name: tenant.id.to_string(),
            suspended: tenant.life().is_suspended(),
            degraded: tenant.life().obstacle().is_some(),
            connections: counted.map(|counted| counted.connections()),
        }
    });
    let tenants = futures_util::future::join_all(entries).await;
    let last = page.last().map(|tenant| tenant.id.to_string());
    Ok(Json(TenantList {
        tenants,
        cursor: last.filter(|_| more),
    }))
}

/// Suspends a tenant: stores the state first, and then announces it.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/suspend",
    params(("tenant" = String, Path, description = "The tenant's name")),
    responses((status = 200, description = "Carried out", body = Closed)),
)]
pub(super) async fn suspend(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    PathTenant(tenant): PathTenant,
    NoBody: NoBody,
) -> Result<Json<Closed>, ApiProblem> {
    operators_only(&caller)?;
    let key = redis_keys::state(&tenant.id);
    let kept = tenant
        .key_store
        .put(&key, SUSPENDED, Lifetime::Forever, 0)
        .await;
    kept.map_err(|error| unavailable(&tenant, &error))?;
    Ok(Json(ask(&state, &tenant, Op::Suspend).await?.into()))
}

/// Resumes a suspended tenant.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/resume",
    params(("tenant" = String, Path, description = "The tenant's name")),
    responses((status = 200, description = "Carried out", body = Closed)),
)]
pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    PathTenant(tenant): PathTenant,
    NoBody: NoBody,
) -> Result<Json<Closed>, ApiProblem> {
    operators_only(&caller)?;
    let removed = tenant
        .key_store
        .remove(&redis_keys::state(&tenant.id))
        .await;
    removed.map_err(|error| unavailable(&tenant, &error))?;
    Ok(Json(ask(&state, &tenant, Op::Resume).await?.into()))
}

/// The result of a reload.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Reloaded {
    /// The number of replicas that have applied their configuration.
    applied: usize,
    /// The ids of the replicas that refused it; their logs say why.
    refused: Vec<String>,
    /// The replicas that answered in time.
    replicas: Replicas,
}

/// Makes every replica reload its own files. This replica is the first, and it announces nothing if it refuses them.
#[utoipa::path(
    post,
    path = "/v1/reload",
    responses((status = 200, description = "Carried out", body = Reloaded), (status = 422, description = "This replica did not apply the configuration; its log says why", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn reload(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    NoBody: NoBody,
) -> Result<Json<Reloaded>, ApiProblem> {
    operators_only(&caller)?;
    (state.deployment.reload)()
        .await
        .map_err(|_| ApiProblem::ConfigurationNotValid)?;
    let Some((control, key_store)) = &state.deployment.control else {
        return Ok(Json(Reloaded {
            applied: 1,
            refused: Vec::new(),
            replicas: Replicas::only_one(),
        }));
    };
    let asked = state
        .fleet
        .ask(Circle::of_deployment(key_store, control), Op::Reload)
        .await;
    let gathered = asked.map_err(|error| {
        tracing::warn!(error = %error, "A reload could not be announced");
        ApiProblem::FleetUnavailable
    })?;
    if gathered.replicas.expected.is_none() {
        metrics::replicas_of_deployment_unknown();
    }
    let refused = gathered.answers.iter();
    let refused = refused.filter(|answer| answer.error.is_some());
    let refused: Vec<String> = refused.map(|answer| answer.replica.clone()).collect();
    Ok(Json(Reloaded {
        applied: gathered.answers.len() - refused.len(),
        refused,
        replicas: gathered.replicas,
    }))
}
