//! The calls of operators for whole tenants and for the configuration.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::Serialize;

use super::body::NoBody;
use super::book::TenantOfBook;
use super::connections::Part;
use super::keys::{Caller, operators_only};
use super::problem::{ApiProblem, unavailable};
use super::registered::{self, TenantSource};
use super::revocations::Closed;
use super::users::ask;
use super::{ApiState, PathTenant};
use crate::fleet::message::Op;
use crate::fleet::{Circle, Replicas};
use crate::ids::TenantId;
use crate::metrics;
use crate::stores::key_store::Lifetime;
use crate::stores::redis_keys;
use crate::tenant::{FileTrouble, SUSPENDED};

/// One tenant of the list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantEntry {
    name: String,
    source: TenantSource,
    /// `null` if this replica has not made the tenant, because it is not in use.
    suspended: Option<bool>,
    /// True if this replica cannot serve the tenant now, or not as it is stored.
    degraded: bool,
    /// The reason why it is degraded, or else `null`.
    reason: Option<String>,
    /// The number of open sockets; `null` if it is not known: a replica or the tenant's Redis does not answer, or the tenant is
    /// not in use on this replica.
    connections: Option<u64>,
}

/// A page of tenants.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantList {
    tenants: Vec<TenantEntry>,
    /// The cursor of the next page; `null` after the last.
    cursor: Option<String>,
}

/// Lists the tenants by name.
#[utoipa::path(
    get,
    path = "/v1/tenants",
    params(("limit" = Option<usize>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query), ("after" = Option<String>, Query, description = "Another name for cursor")),
    responses((status = 200, description = "Carried out", body = TenantList), (status = 400, description = "The query or a name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<TenantList>, ApiProblem> {
    operators_only(&caller)?;
    let part = Part::of(query)?;
    let (all, registered) = (state.tenants.all(), registered::known(&state));
    let troubles = state.tenants.file_troubles();
    let after = |id: &TenantId| match &part.cursor {
        Some(cursor) => id.as_str() > cursor.as_str(),
        None => true,
    };
    // One more than the page tells whether there is a next one.
    let most = part.limit() + 1;
    let made = all.iter().map(|tenant| &tenant.id);
    let of_files = { troubles.iter() }.filter_map(|trouble| trouble.tenant.as_ref());
    let first = first_of(made.chain(of_files).filter(|id| after(id)), most);
    let mut names: BTreeMap<_, _> = first.into_iter().map(|id| (id, None)).collect();
    // These are in the order of their names already.
    let begin = registered.partition_point(|tenant| !after(&tenant.id));
    let of_registry = registered[begin..].iter().take(most);
    names.extend(of_registry.map(|tenant| (&tenant.id, Some(tenant))));
    let mut rest = names.into_iter();
    let page: Vec<_> = rest.by_ref().take(part.limit()).collect();
    let more = rest.next().is_some();
    let entries = page
        .iter()
        .map(|(id, registered)| entry(&state, id, *registered));
    let tenants = futures_util::future::join_all(entries).await;
    let last = page.last().map(|(id, _)| id.to_string());
    Ok(Json(TenantList {
        tenants,
        cursor: last.filter(|_| more),
    }))
}

/// Returns the first `most` of the names, without sorting the others. Names may come twice.
fn first_of<'t>(names: impl Iterator<Item = &'t TenantId>, most: usize) -> BTreeSet<&'t TenantId> {
    let mut first = BTreeSet::new();
    for name in names {
        if first.len() < most || first.last().is_some_and(|last| name < *last) {
            first.insert(name);
        }
        if first.len() > most {
            first.pop_last();
        }
    }
    first
}

/// Returns the entry of a tenant. `registered` is the registry's view of it.
async fn entry(state: &ApiState, id: &TenantId, registered: Option<&TenantOfBook>) -> TenantEntry {
    let tenant = state.tenants.by_id(id.as_str());
    let life = tenant.as_ref().map(|tenant| tenant.life().clone());
    let obstacle = life.as_ref().and_then(|life| life.obstacle());
    let connections = match &tenant {
        // An outage of one tenant's Redis leaves its count out and does not fail the list. Some replicas' sockets are no
        // count of all.
        Some(tenant) => {
            let counted = ask(state, tenant, Op::Count).await.ok();
            let counted = counted.filter(|counted| counted.replicas.all_confirmed());
            counted.map(|counted| counted.connections())
        }
        None => None,
    };
    let trouble = match registered {
        Some(registered) => registered.trouble.clone(),
        None => registered::trouble_of_files(state, id),
    };
    let reason = trouble.or_else(|| obstacle.map(str::to_owned));
    TenantEntry {
        name: id.to_string(),
        source: match registered {
            Some(_) => TenantSource::Registry,
            None => TenantSource::File,
        },
        suspended: life.as_ref().map(|life| life.is_suspended()),
        degraded: reason.is_some(),
        reason,
        connections,
    }
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

/// A tenant of an included file, or such a file, that is not served as it stands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NotAsWritten {
    /// The tenant; `null` for mistakes that are not those of one tenant.
    tenant: Option<String>,
    file: String,
    reason: String,
    /// True if its last good configuration is served.
    last_good: bool,
}

impl From<&FileTrouble> for NotAsWritten {
    fn from(trouble: &FileTrouble) -> Self {
        Self {
            tenant: trouble.tenant.as_ref().map(ToString::to_string),
            file: trouble.file.display().to_string(),
            reason: trouble.why.clone(),
            last_good: trouble.is_served,
        }
    }
}

/// The result of a reload.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Reloaded {
    /// The number of replicas that have applied their configuration.
    applied: usize,
    /// The ids of the replicas that refused it; their logs say why.
    refused: Vec<String>,
    /// The tenants and files that this replica does not serve as its files say.
    degraded: Vec<NotAsWritten>,
    /// The ids of the other replicas that do not serve all as their files say; their lists of tenants say why.
    degraded_on: Vec<String>,
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
    // A reload may move the line, and the others hear the one before until they have reloaded.
    let before = state.fleet.deployment();
    (state.deployment.reload)()
        .await
        .map_err(|_| ApiProblem::ConfigurationNotValid)?;
    let troubles = state.tenants.file_troubles();
    let degraded = troubles.iter().map(NotAsWritten::from).collect();
    let Some(line) = before.or_else(|| state.fleet.deployment()) else {
        return Ok(Json(Reloaded {
            applied: 1,
            refused: Vec::new(),
            degraded,
            degraded_on: Vec::new(),
            replicas: Replicas::only_one(),
        }));
    };
    let asked = state
        .fleet
        .ask(Circle::of_deployment(&line), Op::Reload)
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
    let degraded_on = gathered.answers.iter();
    let degraded_on = degraded_on.filter(|answer| answer.degraded.is_some_and(|count| count > 0));
    Ok(Json(Reloaded {
        applied: gathered.answers.len() - refused.len(),
        refused,
        degraded,
        degraded_on: degraded_on.map(|answer| answer.replica.clone()).collect(),
        replicas: gathered.replicas,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_are_found_in_any_order_and_once() {
        let ids: Vec<TenantId> = { ["d", "a", "c", "a", "b", "d"].iter() }
            .map(|name| name.parse().unwrap())
            .collect();
        for (most, expected) in [(2, "ab"), (3, "abc"), (4, "abcd"), (9, "abcd")] {
            let first: String = first_of(ids.iter(), most)
                .iter()
                .map(|id| id.as_str())
                .collect();
            assert_eq!(first, expected);
        }
    }
}
