//! `GET /v1/tenants/{t}/connections` and `/groups/{g}`: lists the sockets of every replica.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};

use super::problem::ApiProblem;
use super::users::ask;
use super::{ApiState, PathTenant};
use crate::fleet::Replicas;
use crate::fleet::message::{LARGEST_PAGE, Op, PAGE, SocketEntry};
use crate::ids::GroupName;
use crate::tenant::Tenant;

/// The query of a list: its page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// The most entries: 1 to 1,000; the default is 100.
    pub(super) limit: Option<usize>,
    /// The cursor of the previous page.
    pub(super) cursor: Option<String>,
}

impl Part {
    /// Parses the query of a list.
    pub(super) fn of(query: Result<Query<Self>, QueryRejection>) -> Result<Self, ApiProblem> {
        let Query(part) = query.map_err(|_| ApiProblem::QueryNotValid)?;
        match part.limit {
            Some(limit) if !(1..=LARGEST_PAGE).contains(&limit) => Err(ApiProblem::QueryNotValid),
            _ => Ok(part),
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE)
    }
}

/// A page of sockets.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Connections {
    /// The number of open sockets on the replicas that answered.
    connections: u64,
    /// A page of the sockets, in the order of their channel names.
    sockets: Vec<SocketEntry>,
    /// The cursor of the next page; `null` after the last.
    cursor: Option<String>,
    /// The replicas that answered.
    replicas: Replicas,
}

/// Lists the sockets of a tenant.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}/connections",
    params(("tenant" = String, Path, description = "The tenant's name"), ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "Carried out", body = Connections), (status = 400, description = "The query or a name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn of_tenant(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<Connections>, ApiProblem> {
    list(&state, &tenant, None, Part::of(query)?).await
}

/// Lists the sockets of a group.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}/groups/{group}",
    params(("tenant" = String, Path, description = "The tenant's name"), ("group" = String, Path, description = "The group"), ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "Carried out", body = Connections), (status = 400, description = "The query or a name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn of_group(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, group)): Path<(String, String)>,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<Connections>, ApiProblem> {
    let group = tenant.relay.group_name(&group);
    let group = group.ok_or(ApiProblem::GroupNameNotValid)?;
    list(&state, &tenant, Some(group), Part::of(query)?).await
}

async fn list(
    state: &ApiState,
    tenant: &Tenant,
    group: Option<GroupName>,
    part: Part,
) -> Result<Json<Connections>, ApiProblem> {
    let limit = part.limit();
    let op = Op::List {
        group,
        cursor: part.cursor,
        // One more than asked for shows that there is a next page.
        limit: (limit + 1).min(LARGEST_PAGE),
    };
    let gathered = ask(state, tenant, op).await?;
    let connections = gathered.connections();
    let sockets = gathered
        .answers
        .into_iter()
        .flat_map(|answer| answer.sockets);
    let mut sockets: Vec<SocketEntry> = sockets.collect();
    sockets.sort_unstable_by(|a, b| a.channel.cmp(&b.channel));
    // The largest page cannot ask for one more, so a full one always has a cursor.
    let more = sockets.len() > limit || (limit == LARGEST_PAGE && sockets.len() == limit);
    sockets.truncate(limit);
    let last = sockets.last().map(|socket| socket.channel.clone());
    Ok(Json(Connections {
        connections,
        sockets,
        cursor: last.filter(|_| more),
        replicas: gathered.replicas,
    }))
}
