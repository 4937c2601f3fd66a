//! Bodies of calls: JSON objects with known members, read whole and strictly.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ApiState;
use super::at_work::CallPlace;
use super::book::TenantMistake;
use super::problem::ApiProblem;
use super::repeats::repeated_keys;
use crate::heavy::{HEAVY_BYTES, heavy};
use crate::problem::document_of_mistakes;

/// The bytes of a body whose `Content-Type` is JSON.
pub(super) struct JsonBytes(pub(super) Bytes);

impl FromRequest<ApiState> for JsonBytes {
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
        whole(request, state).await.map(Self)
    }
}

/// Reads a body to its end. Then the call takes its place among those of its caller.
///
/// # Errors
/// The problem of a body that is too large, or that breaks off, and of a caller with too many calls under way.
async fn whole(request: Request, state: &ApiState) -> Result<Bytes, ApiProblem> {
    let place = request.extensions().get::<CallPlace>().cloned();
    let body = Bytes::from_request(request, state).await;
    let body = body.map_err(|error| match error {
        BytesRejection::FailedToBufferBody(cause)
            if cause.status() == StatusCode::PAYLOAD_TOO_LARGE =>
        {
            ApiProblem::BodyTooLarge
        }
        _ => ApiProblem::BodyNotValid,
    })?;
    if let Some(place) = place {
        place.take(body.len()).await?;
    }
    Ok(body)
}

/// The body of a call that takes none: nothing, or what some clients send for it, `{}` or `null`. Anything else was
/// meant for another call.
pub(super) struct NoBody;

impl FromRequest<ApiState> for NoBody {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiProblem> {
        let body = whole(request, state).await?;
        let members = match body.trim_ascii() {
            b"" | b"null" => Some(Default::default()),
            text => object::<serde_json::Map<String, serde_json::Value>>(text),
        };
        match members {
            Some(members) if members.is_empty() => Ok(Self),
            _ => Err(ApiProblem::BodyNotEmpty),
        }
    }
}

/// A body with known members. An unknown member is an error, and so are a repeated one, at every depth, and any text after
/// the object.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequest<ApiState> for JsonBody<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Response> {
        let bytes = JsonBytes::from_request(request, state).await;
        let JsonBytes(bytes) = bytes.map_err(IntoResponse::into_response)?;
        let repeated = heavy(bytes.len() >= HEAVY_BYTES, || repeated_keys(&bytes));
        if !repeated.is_empty() {
            return Err(refused_repeats(&repeated));
        }
        let body = object(&bytes).map(Self);
        body.ok_or_else(|| ApiProblem::BodyNotValid.into_response())
    }
}

/// Returns the answer to a body that has keys again, with each of them as a mistake.
fn refused_repeats(keys: &[String]) -> Response {
    let problem = ApiProblem::KeyRepeated;
    let mistakes = keys.iter().map(|key| TenantMistake {
        key: key.clone(),
        found: "the key a second time".to_owned(),
        expected: "every key once".to_owned(),
        advice: "only one of its values could count".to_owned(),
    });
    let mistakes = json!(mistakes.collect::<Vec<_>>());
    document_of_mistakes(problem.status(), problem.code(), problem.detail(), mistakes)
}

/// Parses a JSON object. Refuses an array, which serde would read as the members in their order.
pub(super) fn object<'j, T: Deserialize<'j> + Send>(json: &'j [u8]) -> Option<T> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    is_object.then(|| {
        let is_heavy = json.len() >= HEAVY_BYTES;
        heavy(is_heavy, || serde_json::from_slice(json).ok())
    })?
}
