//! `POST /v1/tenants/{t}/groups/{g}/send` and `POST /v1/tenants/{t}/send`: publish events of a back end to groups.

use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{JsonBytes, object};
use super::idempotency::Idempotent;
use super::problem::ApiProblem;
use super::{ApiState, PathTenant};
use crate::channel_layer::{CallId, LayerError};
use crate::event::Event;
use crate::heavy::{HEAVY_BYTES, heavy};
use crate::ids::GroupName;
use crate::relay::{PublishError, Publisher};
use crate::tenant::Tenant;

/// The most messages of one batch.
const MAX_BATCH: usize = 1000;

/// The answer to a send.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Published {
    /// The number of events passed to the channel layer, not of sockets that got them.
    published: u32,
}

/// The event in a request's body, and the body itself.
pub(super) struct EventBody(pub(super) Event, pub(super) Bytes);

impl FromRequest<ApiState> for EventBody {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiProblem> {
        let JsonBytes(body) = JsonBytes::from_request(request, state).await?;
        Ok(Self(event_of(&body)?, body))
    }
}

/// Parses the JSON text of an event.
fn event_of(json: &[u8]) -> Result<Event, ApiProblem> {
    let event = Event::from_json(json).map_err(|_| ApiProblem::EventNotValid)?;
    match event.is_dispatchable() {
        true => Ok(event),
        false => Err(ApiProblem::EventNotValid),
    }
}

/// Publishes an event to a group.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/groups/{group}/send",
    params(("tenant" = String, Path, description = "The tenant's name"), ("group" = String, Path, description = "The group"), ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; the same call again within a day is carried out once")),
    request_body = crate::api::openapi::EventSchema,
    responses((status = 200, description = "Carried out", body = Published), (status = 409, description = "The Idempotency-Key was used for another call, or its call is in progress", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json"), (status = 429, description = "limits.publishes_per_second is reached", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn to_group(
    PathTenant(tenant): PathTenant,
    Path((_, group)): Path<(String, String)>,
    key: Idempotent,
    EventBody(event, body): EventBody,
) -> Result<Response, ApiProblem> {
    let resource = format!("groups/{group}/send");
    let to = tenant.clone();
    let call = |id: Option<CallId>| async move { publish(&to, &group, &event, id.as_ref()).await };
    key.once(&tenant, &resource, &body, call).await
}

/// Several events, each to its group.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
}

/// One message of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchMessage<'a> {
    group: String,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// The form of a batch for the API's description. The handler itself parses events from their JSON text.
#[derive(utoipa::ToSchema)]
#[schema(as = Batch)]
#[allow(dead_code, reason = "read by the generator alone")]
struct BatchForm {
    /// 1 to 1,000 messages.
    #[schema(min_items = 1, max_items = 1000)]
    messages: Vec<BatchMessageForm>,
}

/// One message of a batch.
#[derive(utoipa::ToSchema)]
#[schema(as = BatchMessage)]
#[allow(dead_code, reason = "read by the generator alone")]
struct BatchMessageForm {
    group: String,
    event: super::openapi::EventSchema,
}

/// The results of a batch, in the order of its messages.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Results {
    results: Vec<Outcome>,
}

/// The result of one message.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum Outcome {
    Published(Published),
    Refused {
        /// The stable word of the error.
        code: &'static str,
        /// The reason, and whether the event may have been published.
        detail: &'static str,
    },
}

/// Publishes a batch. An error in one message does not stop the others.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/send",
    params(("tenant" = String, Path, description = "The tenant's name"), ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; the same call again within a day is carried out once")),
    request_body = BatchForm,
    responses((status = 200, description = "Carried out", body = Results), (status = 409, description = "The Idempotency-Key was used for another call, or its call is in progress", body = crate::api::openapi::ProblemSchema, content_type = "application/problem+json")),
)]
pub(super) async fn batch(
    PathTenant(tenant): PathTenant,
    key: Idempotent,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiProblem> {
    let batch: Batch<'_> = object(&body).ok_or(ApiProblem::BodyNotValid)?;
    if !(1..=MAX_BATCH).contains(&batch.messages.len()) {
        return Err(ApiProblem::BodyNotValid);
    }
    let messages = batch.messages.into_iter();
    let messages: Option<Vec<(String, Box<RawValue>)>> = messages
        .map(|raw| {
            let message: BatchMessage<'_> = object(raw.get().as_bytes())?;
            Some((message.group, message.event.to_owned()))
        })
        .collect();
    let messages = messages.ok_or(ApiProblem::BodyNotValid)?;
    let to = tenant.clone();
    let call = |_| async move { Ok(publish_each(&to, &messages).await) };
    key.once(&tenant, "send", &body, call).await
}

/// Publishes the messages that are events for groups, in their order.
async fn publish_each(tenant: &Tenant, messages: &[(String, Box<RawValue>)]) -> Results {
    let bytes: usize = messages.iter().map(|(_, event)| event.get().len()).sum();
    let read = |(group, event): &(String, Box<RawValue>)| {
        let event = event_of(event.get().as_bytes())?;
        Ok((group_of(tenant, group)?, event))
    };
    let read: Vec<Result<_, ApiProblem>> =
        heavy(bytes >= HEAVY_BYTES, || messages.iter().map(read).collect());
    let mut results = Vec::with_capacity(messages.len());
    let mut events = Vec::with_capacity(messages.len());
    for message in read {
        results.push(match message {
            Ok(message) => {
                events.push(message);
                None
            }
            Err(problem) => Some(problem),
        });
    }
    let published = tenant.relay.publish_each(events).await;
    let mut published = published.into_iter();
    let outcome = |problem: Option<ApiProblem>| {
        let problem = match problem {
            None => published
                .next()?
                .err()
                .map(|error| problem_of(tenant, &error)),
            problem => problem,
        };
        Some(match problem {
            None => Outcome::Published(Published { published: 1 }),
            Some(problem) => Outcome::Refused {
                code: problem.code(),
                detail: problem.detail(),
            },
        })
    };
    Results {
        results: results.into_iter().filter_map(outcome).collect(),
    }
}

async fn publish(
    tenant: &Tenant,
    group: &str,
    event: &Event,
    call: Option<&CallId>,
) -> Result<Published, ApiProblem> {
    let group = group_of(tenant, group)?;
    let publisher = Publisher::BackEnd(call);
    let published = tenant.relay.publish(&group, event, publisher).await;
    published.map_err(|error| problem_of(tenant, &error))?;
    Ok(Published { published: 1 })
}

fn group_of(tenant: &Tenant, group: &str) -> Result<GroupName, ApiProblem> {
    let group = tenant.relay.group_name(group);
    group.ok_or(ApiProblem::GroupNameNotValid)
}

fn problem_of(tenant: &Tenant, error: &PublishError) -> ApiProblem {
    match error {
        PublishError::RateLimited(_) => return ApiProblem::RateLimited,
        PublishError::Layer(LayerError::Encode(error)) if error.is_size() => {
            return ApiProblem::EventTooLarge;
        }
        // The event itself is at fault; for example, MessagePack cannot hold an integer of more than 64 bits.
        PublishError::Layer(error) if error.kind().is_none() => return ApiProblem::EventNotValid,
        PublishError::Layer(_) => {}
    }
    tracing::warn!(tenant.id = %tenant.id, error = %error, "Could not publish an event of the API");
    match error {
        PublishError::Layer(LayerError::NotRecorded(_)) => ApiProblem::NotRecorded,
        _ => ApiProblem::Unavailable,
    }
}
