//! Bodies of calls: JSON objects with known members, read whole and strictly.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ApiState;
use super::problem::ApiProblem;
use crate::heavy::{HEAVY_BYTES, heavy};

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
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|error| match error {
            BytesRejection::FailedToBufferBody(cause)
                if cause.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                ApiProblem::BodyTooLarge
            }
            _ => ApiProblem::BodyNotValid,
        })
    }
}

/// The body of a call that takes none: nothing, or what some clients send for it, `{}` or `null`. Anything else was
/// meant for another call.
pub(super) struct NoBody;

impl FromRequest<ApiState> for NoBody {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiProblem> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|_| ApiProblem::BodyNotEmpty)?;
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

/// A body with known members. An unknown member is an error, and so is any text after the object.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<ApiState> for JsonBody<T> {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiProblem> {
        let JsonBytes(bytes) = JsonBytes::from_request(request, state).await?;
        object(&bytes).map(Self).ok_or(ApiProblem::BodyNotValid)
    }
}

/// Parses a JSON object. Refuses an array, which serde would read as the members in their order.
pub(super) fn object<'j, T: Deserialize<'j>>(json: &'j [u8]) -> Option<T> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    is_object.then(|| {
        let is_heavy = json.len() >= HEAVY_BYTES;
        heavy(is_heavy, || serde_json::from_slice(json).ok())
    })?
}
