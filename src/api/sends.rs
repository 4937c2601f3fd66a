//! `POST /v1/tenants/{t}/groups/{g}/send`: an event from a back end to a group.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Path, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::Serialize;

use super::problem::ApiProblem;
use super::{ApiState, Target};
use crate::event::Event;
use crate::metrics::EventSource;

/// The answer to a send.
#[derive(Debug, Serialize)]
pub(super) struct Published {
    /// How many events were given to the channel layer; not how many sockets got them.
    published: u32,
}

/// An event in a request's body.
pub(super) struct EventBody(Event);

impl FromRequest<ApiState> for EventBody {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiProblem> {
        let headers = request.headers();
        let media = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let is_json = media
            .split(';')
            .next()
            .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"));
        if !is_json || headers.contains_key(CONTENT_ENCODING) {
            return Err(ApiProblem::ContentTypeNotSupported);
        }
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|error| match error {
                BytesRejection::FailedToBufferBody(cause)
                    if cause.status() == StatusCode::PAYLOAD_TOO_LARGE =>
                {
                    ApiProblem::BodyTooLarge
                }
                _ => ApiProblem::EventNotValid,
            })?;
        let event = Event::from_json(&body).map_err(|_| ApiProblem::EventNotValid)?;
        match event.event_type() {
            None | Some("") => Err(ApiProblem::EventNotValid),
            Some(_) => Ok(Self(event)),
        }
    }
}

/// Publishes the event.
pub(super) async fn to_group(
    Target(tenant): Target,
    Path((_, group)): Path<(String, String)>,
    EventBody(event): EventBody,
) -> Result<Json<Published>, ApiProblem> {
    let group = tenant
        .relay
        .group_name(&group)
        .ok_or(ApiProblem::GroupNameNotValid)?;
    let published = tenant.relay.publish(&group, &event, EventSource::Api).await;
    published.map_err(|error| {
        if error.kind().is_none() {
            // The event itself is at fault: an integer beyond 64 bits has no form in MessagePack.
            return ApiProblem::EventNotValid;
        }
        tracing::warn!(tenant.id = %tenant.id, error = %error, "Could not publish an event of the API");
        ApiProblem::Unavailable
    })?;
    Ok(Json(Published { published: 1 }))
}
