//! `GET /v1/tenants/{t}/groups/{g}/presence` and `…/presence/count`: who is in a group, on all replicas.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use serde::Serialize;
use serde_json::value::RawValue;

use super::PathTenant;
use super::connections::Part;
use super::problem::{ApiProblem, unavailable};
use crate::ids::GroupName;
use crate::presence::PageOf;
use crate::relay::PresenceError;
use crate::tenant::Tenant;

/// A page of the users who are in a group.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PresencePage {
    /// The number of sockets in the group, on all replicas.
    sockets: u64,
    /// A page of the users, in the order of their ids.
    users: Vec<UserInGroup>,
    /// The cursor of the next page; absent after the last. A page may be shorter than `limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A user who is in a group.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct UserInGroup {
    /// The canonical id.
    id: String,
    /// The user's sockets in the group, on all replicas.
    sockets: u64,
    /// The fields that the group's rule names, as at the connect of the user's newest socket on one of the replicas.
    #[schema(value_type = Object)]
    user: Box<RawValue>,
}

/// The numbers of a group.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PresenceCount {
    /// The number of sockets in the group, on all replicas.
    sockets: u64,
    /// The number of users that the pages list; where there are more than 10,000, the number of those in Redis, at most that of the sockets.
    users: u64,
}

/// Lists the users who are in a group.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}/groups/{group}/presence",
    params(("tenant" = String, Path, description = "The tenant's name"), ("group" = String, Path, description = "The group"), ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, description = "Carried out", body = PresencePage), (status = 400, description = "The query or a name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"), (status = 404, description = "There is no tenant of this name, or the group keeps no presence", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn list(
    PathTenant(tenant): PathTenant,
    Path((_, group)): Path<(String, String)>,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<PresencePage>, ApiProblem> {
    let part = Part::of(query)?;
    let page = PageOf {
        after: part.cursor.as_deref().unwrap_or_default(),
        limit: part.limit(),
    };
    let group = named(&tenant, &group)?;
    let page = tenant.relay.users_in(&group, page).await;
    let page = page.map_err(|error| problem_of(&tenant, &error))?;
    let users = page.users.into_iter().filter_map(|user| {
        Some(UserInGroup {
            id: user.id.as_str().to_owned(),
            sockets: user.sockets,
            // Always valid: what is no JSON did not count as an entry.
            user: RawValue::from_string(user.fields).ok()?,
        })
    });
    Ok(Json(PresencePage {
        sockets: page.sockets,
        users: users.collect(),
        next: page.next,
    }))
}

/// Counts the users who are in a group.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}/groups/{group}/presence/count",
    params(("tenant" = String, Path, description = "The tenant's name"), ("group" = String, Path, description = "The group")),
    responses((status = 200, description = "Carried out", body = PresenceCount), (status = 400, description = "The name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"), (status = 404, description = "There is no tenant of this name, or the group keeps no presence", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn count(
    PathTenant(tenant): PathTenant,
    Path((_, group)): Path<(String, String)>,
) -> Result<Json<PresenceCount>, ApiProblem> {
    let group = named(&tenant, &group)?;
    let numbers = tenant.relay.count_users_in(&group).await;
    let numbers = numbers.map_err(|error| problem_of(&tenant, &error))?;
    Ok(Json(PresenceCount {
        sockets: numbers.sockets,
        users: numbers.users,
    }))
}

fn named(tenant: &Tenant, group: &str) -> Result<GroupName, ApiProblem> {
    let group = tenant.relay.group_name(group);
    group.ok_or(ApiProblem::GroupNameNotValid)
}

fn problem_of(tenant: &Tenant, error: &PresenceError) -> ApiProblem {
    match error {
        PresenceError::NotKept => ApiProblem::PresenceNotKept,
        PresenceError::Store(error) => unavailable(tenant, error),
    }
}
