//! `GET /v1/tenants/{t}/connections`, `/groups/{g}` and `/users/{id}/connections`: lists the sockets of every replica.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};

use super::problem::ApiProblem;
use super::user_ids::canonical;
use super::users::ask;
use super::{ApiState, PathTenant};
use crate::fleet::Replicas;
use crate::fleet::answer::{Answer, SocketEntry};
use crate::fleet::message::{LARGEST_PAGE, ListScope, Op, PAGE};
use crate::tenant::Tenant;

/// The query of a list: its page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// The most entries: 1 to 1,000; the default is 100.
    pub(super) limit: Option<usize>,
    /// The cursor of the previous page; `after` is another name for it.
    #[serde(alias = "after")]
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
    /// The cursor of the next page; `null` after the last. A page of long paths may be shorter than `limit`.
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
    list(&state, &tenant, ListScope::All, query).await
}

/// Lists the sockets of a user: whether the user is here.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}/users/{user}/connections",
    params(("tenant" = String, Path, description = "The tenant's name"), ("user" = String, Path, description = "The id of the user, in any form that a token may have it in"), ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "Carried out", body = Connections), (status = 400, description = "The query or the id is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn of_user(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, user)): Path<(String, String)>,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<Connections>, ApiProblem> {
    let user = canonical(&tenant, &user)?;
    list(&state, &tenant, ListScope::User(user), query).await
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
    list(&state, &tenant, ListScope::Group(group), query).await
}

async fn list(
    state: &ApiState,
    tenant: &Tenant,
    of: ListScope,
    query: Result<Query<Part>, QueryRejection>,
) -> Result<Json<Connections>, ApiProblem> {
    let part = Part::of(query)?;
    let limit = part.limit();
    let cursor = part.cursor;
    let op = Op::List { of, cursor, limit };
    let gathered = ask(state, tenant, op).await?;
    let connections = gathered.connections();
    let (sockets, more) = merged(gathered.answers, limit);
    let last = sockets.last().map(|socket| socket.channel.clone());
    Ok(Json(Connections {
        connections,
        sockets,
        cursor: last.filter(|_| more),
        replicas: gathered.replicas,
    }))
}

/// Returns the first `limit` sockets of all answers, and whether others come after them.
fn merged(answers: Vec<Answer>, limit: usize) -> (Vec<SocketEntry>, bool) {
    // A replica that has more has named all of its own up to the last one of its page. What others have after that is left
    // for the next page, which would else skip sockets.
    let ends = answers.iter().filter(|answer| answer.has_more(limit));
    let ends = ends.filter_map(|answer| Some(answer.sockets.last()?.channel.clone()));
    let end = ends.min();
    let sockets = answers.into_iter().flat_map(|answer| answer.sockets);
    let is_known = |socket: &SocketEntry| end.as_ref().is_none_or(|end| socket.channel <= *end);
    let mut sockets: Vec<SocketEntry> = sockets.filter(is_known).collect();
    sockets.sort_unstable_by(|a, b| a.channel.cmp(&b.channel));
    let more = end.is_some() || sockets.len() > limit;
    sockets.truncate(limit);
    (sockets, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(channels: &[&str], more: Option<bool>) -> Answer {
        let socket = |channel: &&str| SocketEntry {
            user_id: Some("7".to_owned()),
            channel: (*channel).to_owned(),
            path: "/".to_owned(),
            age: 0,
        };
        Answer {
            sockets: channels.iter().map(socket).collect(),
            more,
            ..Answer::default()
        }
    }

    #[test]
    fn a_page_ends_where_a_replica_had_to_stop() {
        let page = |answers: Vec<Answer>, limit| {
            let (sockets, more) = merged(answers, limit);
            let channels = sockets.into_iter().map(|socket| socket.channel);
            (channels.collect::<Vec<_>>().join(""), more)
        };
        let (no, yes) = (Some(false), Some(true));
        let whole = vec![answer(&["b", "d"], no), answer(&["a", "c"], no)];
        assert_eq!(page(whole.clone(), 9), ("abcd".into(), false));
        assert_eq!(page(whole, 3), ("abc".into(), true));
        let cut = vec![answer(&["b", "d"], yes), answer(&["a", "c", "e", "f"], no)];
        assert_eq!(page(cut, 9), ("abcd".into(), true));
        // A version without the member has more if its page is full.
        let old = vec![answer(&["b", "d"], None), answer(&["a"], no)];
        assert_eq!(page(old.clone(), 2), ("ab".into(), true));
        assert_eq!(page(old, 3), ("abd".into(), false));
        assert_eq!(page(Vec::new(), 3), (String::new(), false));
    }
}
