//! `POST /v1/tenants/{t}/groups/{g}/send`: an event from a back end to a group.

use axum::Json;
use axum::extract::{FromRequest, Path, Request};
use serde::Serialize;

use super::body::JsonBytes;
use super::problem::ApiProblem;
use super::{ApiState, Target};
use crate::event::Event;
use crate::metrics::EventSource;
use crate::relay::PublishError;

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
        let JsonBytes(body) = JsonBytes::from_request(request, state).await?;
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
        match &error {
            PublishError::RateLimited => return ApiProblem::RateLimited,
            // The event itself is at fault: an integer beyond 64 bits has no form in MessagePack.
            PublishError::Layer(error) if error.kind().is_none() => {
                return ApiProblem::EventNotValid;
            }
            PublishError::Layer(_) => {}
        }
        tracing::warn!(tenant.id = %tenant.id, error = %error, "Could not publish an event of the API");
        ApiProblem::Unavailable
    })?;
    Ok(Json(Published { published: 1 }))
}
