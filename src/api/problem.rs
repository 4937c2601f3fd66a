//! The errors of the management API as problem documents (RFC 9457); fixed texts that never echo input.

use axum::http::StatusCode;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};

use crate::problem::document;

/// Why a call was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each variant is its word; status and detail stand beside it below"
)]
pub(super) enum ApiProblem {
    KeyMissing,
    KeyNotValid,
    TenantForbidden,
    TenantNotFound,
    NotFound,
    MethodNotAllowed,
    ContentTypeNotSupported,
    BodyTooLarge,
    EventNotValid,
    GroupNameNotValid,
    Unavailable,
}

impl ApiProblem {
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            ApiProblem::KeyMissing => (
                StatusCode::UNAUTHORIZED,
                "api_key_missing",
                "The call needs an API key: Authorization: Bearer KEY.",
            ),
            ApiProblem::KeyNotValid => (
                StatusCode::UNAUTHORIZED,
                "api_key_not_valid",
                "The API key is not known.",
            ),
            ApiProblem::TenantForbidden => (
                StatusCode::FORBIDDEN,
                "tenant_forbidden",
                "The API key is not for this tenant.",
            ),
            ApiProblem::TenantNotFound => (
                StatusCode::NOT_FOUND,
                "tenant_not_found",
                "There is no tenant of this name.",
            ),
            ApiProblem::NotFound => (
                StatusCode::NOT_FOUND,
                "not_found",
                "There is no such resource.",
            ),
            ApiProblem::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "The resource does not take this method.",
            ),
            ApiProblem::ContentTypeNotSupported => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content_type_not_supported",
                "The body is application/json, without a content coding.",
            ),
            ApiProblem::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The body is larger than 1 MiB.",
            ),
            ApiProblem::EventNotValid => (
                StatusCode::BAD_REQUEST,
                "event_not_valid",
                "An event is a JSON object with a non-empty text `type`, at most 64 levels deep.",
            ),
            ApiProblem::GroupNameNotValid => (
                StatusCode::BAD_REQUEST,
                "group_name_not_valid",
                "A group name is 1 to 99 of ASCII letters, digits, hyphens, underscores and periods.",
            ),
            ApiProblem::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The channel layer does not confirm right now; the event may not have been published.",
            ),
        }
    }
}

impl IntoResponse for ApiProblem {
    fn into_response(self) -> Response {
        let (status, code, detail) = self.parts();
        let mut response = document(status, code, detail);
        let headers = response.headers_mut();
        match self {
            ApiProblem::KeyMissing => {
                headers.insert(
                    WWW_AUTHENTICATE,
                    axum::http::HeaderValue::from_static("Bearer realm=\"lockgate\""),
                );
            }
            ApiProblem::KeyNotValid => {
                let challenge = "Bearer realm=\"lockgate\", error=\"invalid_token\"";
                headers.insert(
                    WWW_AUTHENTICATE,
                    axum::http::HeaderValue::from_static(challenge),
                );
            }
            ApiProblem::Unavailable => {
                headers.insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
