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
    OperatorsOnly,
    TenantNotFound,
    NotFound,
    MethodNotAllowed,
    ContentTypeNotSupported,
    BodyTooLarge,
    BodyNotValid,
    QueryNotValid,
    CloseNotValid,
    IdempotencyKeyNotValid,
    IdempotencyKeyReused,
    IdempotencyKeyInUse,
    ConfigurationNotValid,
    EventNotValid,
    RevocationNotValid,
    TokenNotOfTenant,
    TokenWithoutId,
    GroupNameNotValid,
    RateLimited,
    NotRevoked,
    NotAnnounced,
    FleetUnavailable,
    Unavailable,
}

impl ApiProblem {
    /// Returns the word for it.
    pub(super) const fn code(self) -> &'static str {
        self.parts().1
    }

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
            ApiProblem::OperatorsOnly => (
                StatusCode::FORBIDDEN,
                "operators_only",
                "The call is for operators; the API key is a tenant's.",
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
            ApiProblem::BodyNotValid => (
                StatusCode::BAD_REQUEST,
                "body_not_valid",
                "The body is not the JSON object that this call takes; the members and their types stand in /openapi.json.",
            ),
            ApiProblem::QueryNotValid => (
                StatusCode::BAD_REQUEST,
                "query_not_valid",
                "The query takes limit (1 to 1000) and cursor.",
            ),
            ApiProblem::CloseNotValid => (
                StatusCode::BAD_REQUEST,
                "close_not_valid",
                "A close code is 1000, 1012 or 3000 to 4999, and a reason has at most 123 bytes.",
            ),
            ApiProblem::IdempotencyKeyNotValid => (
                StatusCode::BAD_REQUEST,
                "idempotency_key_not_valid",
                "Idempotency-Key comes once, with 1 to 255 visible ASCII characters.",
            ),
            ApiProblem::IdempotencyKeyReused => (
                StatusCode::CONFLICT,
                "idempotency_key_reused",
                "The Idempotency-Key was used for another call within a day.",
            ),
            ApiProblem::IdempotencyKeyInUse => (
                StatusCode::CONFLICT,
                "idempotency_key_in_use",
                "A call with this Idempotency-Key is under way; ask again for its answer.",
            ),
            ApiProblem::ConfigurationNotValid => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "configuration_not_valid",
                "This replica did not apply the configuration, and nothing was announced; its log says why.",
            ),
            ApiProblem::RevocationNotValid => (
                StatusCode::BAD_REQUEST,
                "revocation_not_valid",
                "A revocation names jti and exp, or token, or user_id with or without issued_before, or issued_before alone; times are Unix seconds, at most a day ahead.",
            ),
            ApiProblem::TokenNotOfTenant => (
                StatusCode::BAD_REQUEST,
                "token_not_valid",
                "The token was not signed by a key of this tenant.",
            ),
            ApiProblem::TokenWithoutId => (
                StatusCode::BAD_REQUEST,
                "token_without_jti",
                "The token has no jti; only a cut-off revokes it.",
            ),
            ApiProblem::EventNotValid => (
                StatusCode::BAD_REQUEST,
                "event_not_valid",
                "An event is a JSON object, at most 64 levels deep, with a text `type` that begins with neither `_` nor `.`.",
            ),
            ApiProblem::GroupNameNotValid => (
                StatusCode::BAD_REQUEST,
                "group_name_not_valid",
                "A group name is 1 to 99 of ASCII letters, digits, hyphens, underscores and periods.",
            ),
            ApiProblem::RateLimited => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "The tenant publishes more than limits.publishes_per_second allows; nothing was published.",
            ),
            ApiProblem::NotRevoked => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The denylist does not confirm right now; the tokens may not be revoked. Try again.",
            ),
            ApiProblem::NotAnnounced => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "It is stored, but the replicas could not be told right now. Try again.",
            ),
            ApiProblem::FleetUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Redis does not confirm right now; the call may not have been carried out. Try again.",
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
            ApiProblem::Unavailable
            | ApiProblem::NotRevoked
            | ApiProblem::NotAnnounced
            | ApiProblem::FleetUnavailable
            | ApiProblem::RateLimited => {
                headers.insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
