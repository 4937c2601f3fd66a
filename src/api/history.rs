//! `GET /v1/tenants/{t}/groups/{g}/history`: the events that a group keeps.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::PathTenant;
use super::problem::{ApiProblem, unavailable};
use crate::channel_layer::{HistoryFrom, HistoryPage, Incoming, LayerError, Payload, Target};
use crate::fleet::message::{LARGEST_PAGE, PAGE};
use crate::ids::GroupName;
use crate::position::{PlaceInHistory, Position};
use crate::tenant::Tenant;

/// The query of a history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    /// A position of this group; the default is the beginning.
    since: Option<String>,
    /// The most events: 1 to 1,000; the default is 100.
    limit: Option<usize>,
}

/// A page of a history.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct GroupHistory {
    /// The newest position, as clients get it.
    position: String,
    /// True if no event between `since`, or the first one, and the last one listed is missing.
    complete: bool,
    /// The events after `since`, oldest first.
    events: Vec<KeptEvent>,
    /// The position to ask on from; absent after the last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// An event of a history.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct KeptEvent {
    /// Its place in the epoch.
    offset: u64,
    /// The event; `null` if it has no form in JSON, or is not readable.
    #[schema(value_type = Object)]
    event: Option<Box<RawValue>>,
}

/// Lists the events that a group keeps.
#[utoipa::path(
    get,
    path = "/v1/tenants/{tenant}/groups/{group}/history",
    params(("tenant" = String, Path, description = "The tenant's name"), ("group" = String, Path, description = "The group"), ("since" = Option<String>, Query, description = "A position of the group; what came after it is listed"), ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000)),
    responses((status = 200, description = "Carried out", body = GroupHistory), (status = 400, description = "The query or a name is not valid", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"), (status = 404, description = "There is no tenant of this name, or the group keeps no events", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn list(
    PathTenant(tenant): PathTenant,
    Path((_, group)): Path<(String, String)>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Json<GroupHistory>, ApiProblem> {
    let Query(query) = query.map_err(|_| ApiProblem::HistoryQueryNotValid)?;
    let group = tenant.relay.group_name(&group);
    let group = group.ok_or(ApiProblem::GroupNameNotValid)?;
    let since = match &query.since {
        None => None,
        Some(text) => match Position::parse(text) {
            Some((of, position)) if of == group => Some(position),
            _ => return Err(ApiProblem::HistoryQueryNotValid),
        },
    };
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(ApiProblem::HistoryQueryNotValid);
    }
    let from = since.as_ref().map_or_else(HistoryFrom::default, Into::into);
    let page = tenant.relay.history(&group, from).await;
    match page {
        Ok(Some(page)) => Ok(Json(shown(&tenant, &group, since, (page, limit)))),
        Ok(None) => Err(ApiProblem::HistoryNotKept),
        Err(LayerError::Publish(error)) => Err(unavailable(&tenant, &error)),
        Err(_) => Err(ApiProblem::Unavailable),
    }
}

fn shown(
    tenant: &Tenant,
    group: &GroupName,
    since: Option<Position>,
    (mut page, limit): (HistoryPage, usize),
) -> GroupHistory {
    let more = page.more || page.entries.len() > limit;
    page.entries.truncate(limit);
    let last = page.entries.last().map(|entry| entry.offset);
    let next = last.filter(|_| more).map(|offset| {
        let epoch = page.end.epoch.clone();
        Position { epoch, offset }.text(group)
    });
    GroupHistory {
        position: page.end.text(group),
        complete: is_complete(&page, since, more),
        events: { page.entries.into_iter() }
            .map(|entry| KeptEvent {
                offset: entry.offset,
                event: json_of(tenant, group, entry.payload),
            })
            .collect(),
        next,
    }
}

fn is_complete(page: &HistoryPage, since: Option<Position>, more: bool) -> bool {
    let place = since.map(|since| page.past.find(&page.end.epoch, &since));
    let after = match place {
        Some(PlaceInHistory::Kept(offset)) => offset,
        Some(PlaceInHistory::Broken(_) | PlaceInHistory::Foreign) => return false,
        None => 0,
    };
    let mut expected = after;
    let in_order = page.entries.iter().all(|entry| {
        expected = expected.saturating_add(1);
        entry.offset == expected
    });
    in_order && (more || expected == page.end.offset)
}

fn json_of(tenant: &Tenant, group: &GroupName, payload: Payload) -> Option<Box<RawValue>> {
    let incoming = Incoming {
        target: Target::Group(group.clone()),
        payload,
        recorded: None,
        unrecorded: false,
        read_at: std::time::Instant::now(),
    };
    let (_, event) = tenant.relay.layer().open(incoming).ok()??;
    let mut json = String::new();
    event.write_json(&mut json, false).ok()?;
    RawValue::from_string(json).ok()
}
