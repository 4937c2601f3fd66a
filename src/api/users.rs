//! `/v1/tenants/{t}/users/{id}/…`: the calls for all sockets of one user, on every replica;
//! `…/connections/{channel}/disconnect` for one socket.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::body::{JsonBody, NoBody};
use super::idempotency::Idempotent;
use super::problem::{ApiProblem, not_asked, unavailable};
use super::revocations::Closed;
use super::sends::EventBody;
use super::user_ids::canonical;
use super::{ApiState, PathTenant};
use crate::close_code::RequestedClose;
use crate::fleet::message::{Op, Sockets};
use crate::fleet::{Gathered, Replicas};
use crate::tenant::Tenant;

/// The answer to a send to a user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Delivered {
    /// Always 1: the event was passed to the replicas.
    published: u32,
    /// The number of sockets that it was queued for, on the replicas that confirmed.
    delivered: u64,
    /// The replicas that confirmed.
    replicas: Replicas,
}

/// Sends an event to every socket of a user.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/users/{user}/send",
    params(("tenant" = String, Path, description = "The tenant's name"), ("user" = String, Path, description = "The id of the user, in any form that a token may have it in"), ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; the same call again within a day is carried out once")),
    request_body = crate::api::openapi::EventSchema,
    responses((status = 200, description = "Carried out", body = Delivered), (status = 409, description = "The Idempotency-Key was used for another call, or its call is in progress", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn send(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, user)): Path<(String, String)>,
    key: Idempotent,
    EventBody(event, body): EventBody,
) -> Result<axum::response::Response, ApiProblem> {
    let user = canonical(&tenant, &user)?;
    let resource = format!("users/{user}/send");
    let op = Op::Send {
        user,
        event: Arc::new(event),
    };
    let asked = tenant.clone();
    key.once(&tenant, &resource, &body, |_| async move {
        let gathered = ask(&state, &asked, op).await?;
        Ok(Delivered {
            published: 1,
            delivered: gathered.delivered(),
            replicas: gathered.replicas,
        })
    })
    .await
}

/// The content of the close frame.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Disconnection {
    /// 1000, 1012 or 3000-4999; the default is 4508.
    code: Option<u16>,
    /// At most 123 bytes; the default is `disconnected`.
    reason: Option<String>,
}

impl Disconnection {
    /// Makes the command that closes the sockets.
    fn of(self, sockets: Sockets) -> Result<Op, ApiProblem> {
        let close = RequestedClose::new(self.code, self.reason);
        let close = close.map_err(|_| ApiProblem::CloseNotValid)?;
        Ok(Op::Disconnect { sockets, close })
    }
}

/// Closes every socket of a user.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/users/{user}/disconnect",
    params(("tenant" = String, Path, description = "The tenant's name"), ("user" = String, Path, description = "The id of the user, in any form that a token may have it in")),
    request_body = Disconnection,
    responses((status = 200, description = "Carried out", body = Closed)),
)]
pub(super) async fn disconnect(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, user)): Path<(String, String)>,
    JsonBody(body): JsonBody<Disconnection>,
) -> Result<Json<Closed>, ApiProblem> {
    let op = body.of(Sockets::OfUser(canonical(&tenant, &user)?))?;
    Ok(Json(ask(&state, &tenant, op).await?.into()))
}

/// Closes one socket.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/connections/{channel}/disconnect",
    params(("tenant" = String, Path, description = "The tenant's name"), ("channel" = String, Path, description = "The channel name of the socket")),
    request_body = Disconnection,
    responses((status = 200, description = "Carried out", body = Closed), (status = 404, description = "There is no tenant of this name, or no open socket with this channel name", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn disconnect_connection(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, channel)): Path<(String, String)>,
    JsonBody(body): JsonBody<Disconnection>,
) -> Result<Json<Closed>, ApiProblem> {
    let op = body.of(Sockets::OfChannel(channel))?;
    let gathered = ask(&state, &tenant, op).await?;
    match gathered.found_nowhere() {
        true => Err(ApiProblem::ConnectionNotFound),
        false => Ok(Json(gathered.into())),
    }
}

/// Invalidates the record of a user: every replica reads it again and checks the user's sockets.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/users/{user}/invalidate",
    params(("tenant" = String, Path, description = "The tenant's name"), ("user" = String, Path, description = "The id of the user, in any form that a token may have it in")),
    responses((status = 200, description = "Carried out", body = Closed)),
)]
pub(super) async fn invalidate(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Path((_, user)): Path<(String, String)>,
    NoBody: NoBody,
) -> Result<Json<Closed>, ApiProblem> {
    let user = canonical(&tenant, &user)?;
    if !tenant.coherence.has_something_to_reread() {
        return Err(ApiProblem::UsersNotKept);
    }
    let renewed = tenant.coherence.renew_generation(&user).await;
    renewed.map_err(|error| unavailable(&tenant, &error))?;
    let gathered = ask(&state, &tenant, Op::Invalidate(user)).await?;
    Ok(Json(gathered.into()))
}

/// Asks every replica that serves the tenant.
pub(super) async fn ask(state: &ApiState, tenant: &Tenant, op: Op) -> Result<Gathered, ApiProblem> {
    let asked = tenant.ask(&state.fleet, op).await;
    asked.map_err(|error| not_asked(tenant, &error))
}
