//! `/v1/tenants/{t}/users/{id}/groups/{g}` and `…/connections/{channel}/groups/{g}`: open sockets join and leave groups.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use super::body::NoBody;
use super::problem::ApiProblem;
use super::user_ids::canonical;
use super::users::ask;
use super::{ApiState, PathTenant};
use crate::fleet::message::{Op, Sockets};
use crate::fleet::{Gathered, Replicas};
use crate::ids::GroupName;
use crate::tenant::Tenant;

/// The answer to a change of groups.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Changed {
    /// The number of sockets that joined or left the group, on the replicas that confirmed.
    changed: u64,
    /// The number of sockets that did not join, because they are in `limits.groups_per_socket` groups; left out where it is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    over_limit: Option<u64>,
    /// The replicas that confirmed.
    replicas: Replicas,
}

impl From<Gathered> for Changed {
    fn from(gathered: Gathered) -> Self {
        Self {
            changed: gathered.changed(),
            over_limit: Some(gathered.over_limit()).filter(|over| *over > 0),
            replicas: gathered.replicas,
        }
    }
}

/// Puts every open socket of a user into a group.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/users/{user}/groups/{group}",
    params(("tenant" = String, Path, description = "The tenant's name"), ("user" = String, Path, description = "The id of the user, in any form that a token may have it in"), ("group" = String, Path, description = "The group")),
    responses((status = 200, description = "Carried out", body = Changed)),
)]
pub(super) async fn add_user(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, user, group)): Path<(String, String, String)>,
    NoBody: NoBody,
) -> Result<Json<Changed>, ApiProblem> {
    let sockets = Sockets::OfUser(canonical(&tenant, &user)?);
    let group = valid(&tenant, &group)?;
    change(&state, &tenant, Op::GroupAdd { sockets, group }).await
}

/// Takes every open socket of a user out of a group.
#[utoipa::path(
    delete,
    path = "/v1/tenants/{tenant}/users/{user}/groups/{group}",
    params(("tenant" = String, Path, description = "The tenant's name"), ("user" = String, Path, description = "The id of the user, in any form that a token may have it in"), ("group" = String, Path, description = "The group")),
    responses((status = 200, description = "Carried out", body = Changed)),
)]
pub(super) async fn discard_user(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, user, group)): Path<(String, String, String)>,
    NoBody: NoBody,
) -> Result<Json<Changed>, ApiProblem> {
    let sockets = Sockets::OfUser(canonical(&tenant, &user)?);
    let group = valid(&tenant, &group)?;
    change(&state, &tenant, Op::GroupDiscard { sockets, group }).await
}

/// Puts an open socket into a group.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/connections/{channel}/groups/{group}",
    params(("tenant" = String, Path, description = "The tenant's name"), ("channel" = String, Path, description = "The channel name of the socket"), ("group" = String, Path, description = "The group")),
    responses((status = 200, description = "Carried out", body = Changed), (status = 404, description = "There is no tenant of this name, or no open socket with this channel name", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn add_connection(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, channel, group)): Path<(String, String, String)>,
    NoBody: NoBody,
) -> Result<Json<Changed>, ApiProblem> {
    let group = valid(&tenant, &group)?;
    let sockets = Sockets::OfChannel(channel);
    change(&state, &tenant, Op::GroupAdd { sockets, group }).await
}

/// Takes an open socket out of a group.
#[utoipa::path(
    delete,
    path = "/v1/tenants/{tenant}/connections/{channel}/groups/{group}",
    params(("tenant" = String, Path, description = "The tenant's name"), ("channel" = String, Path, description = "The channel name of the socket"), ("group" = String, Path, description = "The group")),
    responses((status = 200, description = "Carried out", body = Changed), (status = 404, description = "There is no tenant of this name, or no open socket with this channel name", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn discard_connection(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, channel, group)): Path<(String, String, String)>,
    NoBody: NoBody,
) -> Result<Json<Changed>, ApiProblem> {
    let group = valid(&tenant, &group)?;
    let sockets = Sockets::OfChannel(channel);
    change(&state, &tenant, Op::GroupDiscard { sockets, group }).await
}

fn valid(tenant: &Tenant, group: &str) -> Result<GroupName, ApiProblem> {
    let group = tenant.relay.group_name(group);
    group.ok_or(ApiProblem::GroupNameNotValid)
}

/// Asks the replicas. A socket that is not found is an error only if every replica has looked.
async fn change(state: &ApiState, tenant: &Tenant, op: Op) -> Result<Json<Changed>, ApiProblem> {
    let of_one_socket = match &op {
        Op::GroupAdd { sockets, .. } | Op::GroupDiscard { sockets, .. } => {
            matches!(sockets, Sockets::OfChannel(_))
        }
        _ => false,
    };
    let gathered = ask(state, tenant, op).await?;
    match of_one_socket && gathered.found_nowhere() {
        true => Err(ApiProblem::ConnectionNotFound),
        false => Ok(Json(gathered.into())),
    }
}
