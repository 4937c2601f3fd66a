//! The errors of the management API as problem documents (RFC 9457); fixed texts that never echo input.

use axum::http::StatusCode;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};

use crate::error::StoreError;
use crate::fleet::NotAsked;
use crate::fleet::message::NotCarried;
use crate::problem::document;
use crate::tenant::Tenant;

/// Writes [`ApiProblem`]: each reason beside its status, its stable word and its detail.
macro_rules! problems {
    ($($reason:ident: $status:ident, $code:literal, $detail:literal;)*) => {
        /// A reason for which a call was not carried out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum ApiProblem {
            $(#[doc = $detail] $reason,)*
        }

        impl ApiProblem {
            /// Returns the stable word of the error.
            pub(super) const fn code(self) -> &'static str {
                match self {
                    $(Self::$reason => $code,)*
                }
            }

            pub(super) const fn status(self) -> StatusCode {
                match self {
                    $(Self::$reason => StatusCode::$status,)*
                }
            }

            /// Returns the text for the caller, which never echoes input.
            pub(super) const fn detail(self) -> &'static str {
                match self {
                    $(Self::$reason => $detail,)*
                }
            }
        }
    };
}

problems! {
    KeyMissing: UNAUTHORIZED, "api_key_missing",
        "The call needs an API key: Authorization: Bearer KEY.";
    ScopeMissing: FORBIDDEN, "scope_missing",
        "The key is confined to other calls: `scope` names the word that api.confined_keys does not give it.";
    KeyNotValid: UNAUTHORIZED, "api_key_not_valid",
        "The API key is not known.";
    TenantForbidden: FORBIDDEN, "tenant_forbidden",
        "The API key is not for this tenant.";
    OperatorsOnly: FORBIDDEN, "operators_only",
        "The call needs an operator's key; this key belongs to a tenant.";
    TenantNotFound: NOT_FOUND, "tenant_not_found",
        "There is no tenant of this name.";
    RegistryNotConfigured: NOT_FOUND, "registry_not_configured",
        "The deployment has no registry of tenants: set registry.database and registry.key.";
    TenantNameNotValid: BAD_REQUEST, "tenant_name_not_valid",
        "A tenant's name is 1 to 63 of a-z, 0-9 and -, and does not start with -.";
    TenantOfFiles: CONFLICT, "tenant_of_files",
        "A configuration file has this tenant, and only the file can change it.";
    TenantNotValid: UNPROCESSABLE_ENTITY, "tenant_not_valid",
        "The configuration of the tenant has mistakes, which the member `mistakes` lists; nothing was changed.";
    PreconditionNotValid: BAD_REQUEST, "precondition_not_valid",
        "If-Match takes the ETag of a GET, a list of them, or *; If-None-Match takes * alone; a call has one of the two.";
    PreconditionFailed: PRECONDITION_FAILED, "precondition_failed",
        "The tenant is not in the state that If-Match or If-None-Match asks for: read it again.";
    RegistryUnavailable: SERVICE_UNAVAILABLE, "unavailable",
        "The registry's database does not confirm right now, so the change may not have been made. Try again.";
    TenantUnavailable: SERVICE_UNAVAILABLE, "unavailable",
        "The tenant cannot be served right now, or the registry that may have it could not be read yet; the call was not carried out.";
    ConnectionNotFound: NOT_FOUND, "connection_not_found",
        "The tenant has no open socket with this channel name, on any replica.";
    NotFound: NOT_FOUND, "not_found",
        "There is no such resource.";
    MethodNotAllowed: METHOD_NOT_ALLOWED, "method_not_allowed",
        "The resource does not take this method.";
    ContentTypeNotSupported: UNSUPPORTED_MEDIA_TYPE, "content_type_not_supported",
        "The body must be application/json, without a content coding.";
    BodyTooLarge: PAYLOAD_TOO_LARGE, "body_too_large",
        "The body is larger than 1 MiB.";
    EventTooLarge: PAYLOAD_TOO_LARGE, "event_too_large",
        "The event, as it is written for the replicas, is longer than what they read (2 MiB to a user, 8 MiB to a group, a million values); numbers are written out, 1e15 as 1000000000000000.0. Nothing was sent.";
    BodyNotEmpty: BAD_REQUEST, "body_not_valid",
        "The call takes no body, or an empty JSON object.";
    BodyNotValid: BAD_REQUEST, "body_not_valid",
        "The body is not a JSON object with the members of this call; /openapi.json lists them with their types.";
    KeyRepeated: BAD_REQUEST, "body_not_valid",
        "A key stands in its JSON object more than once; the member `mistakes` names each.";
    QueryNotValid: BAD_REQUEST, "query_not_valid",
        "The query takes limit (1 to 1000) and cursor.";
    HistoryQueryNotValid: BAD_REQUEST, "query_not_valid",
        "The query takes limit (1 to 1000) and since, a position of this group as its events and answers have it.";
    SeriesQueryNotValid: BAD_REQUEST, "query_not_valid",
        "The query takes limit (1 to 1000) and after, or the name of one tenant as `tenant`.";
    CloseNotValid: BAD_REQUEST, "close_not_valid",
        "A close code must be 1000, 1012 or 3000 to 4999, and a reason must have at most 123 bytes.";
    IdempotencyKeyNotValid: BAD_REQUEST, "idempotency_key_not_valid",
        "Idempotency-Key must be given once, with 1 to 255 visible ASCII characters.";
    IdempotencyKeyReused: CONFLICT, "idempotency_key_reused",
        "The Idempotency-Key was used for another call within a day.";
    IdempotencyKeyInUse: CONFLICT, "idempotency_key_in_use",
        "A call with this Idempotency-Key is in progress; ask again for its answer.";
    ConfigurationNotValid: UNPROCESSABLE_ENTITY, "configuration_not_valid",
        "This replica did not apply the configuration and did not announce it; its log says why.";
    EventNotValid: BAD_REQUEST, "event_not_valid",
        "An event must be a JSON object, at most 64 levels deep, with a text `type` that does not begin with `_` or `.`. MessagePack carries no integer beyond 64 bits, and JSON no infinite number.";
    RevocationNotValid: BAD_REQUEST, "revocation_not_valid",
        "A revocation needs jti and exp, or token, or user_id with or without issued_before, or issued_before alone.";
    UserIdNull: BAD_REQUEST, "revocation_not_valid",
        "user_id is null, which names no user. Send the user's id; to revoke the tokens of the whole tenant, leave user_id out.";
    JtiNull: BAD_REQUEST, "revocation_not_valid",
        "jti is null, which names no token. Send the token's jti, or the token itself as `token`; to revoke by a cut-off, leave jti out.";
    RevocationNull: BAD_REQUEST, "revocation_not_valid",
        "exp, token or issued_before is null. Send a value, or leave the member out.";
    TimeNotValid: BAD_REQUEST, "revocation_not_valid",
        "exp and issued_before are Unix seconds from 0 to 253402300799 (the year 9999), and issued_before is at most a day ahead; a larger number is usually in milliseconds.";
    TokenNotOfTenant: BAD_REQUEST, "token_not_valid",
        "The token was not signed by a key of this tenant.";
    TokenWithoutId: BAD_REQUEST, "token_without_jti",
        "The token has no jti; only a cut-off can revoke it.";
    GroupNameNotValid: BAD_REQUEST, "group_name_not_valid",
        "A group name must be 1 to 99 ASCII letters, digits, hyphens, underscores and periods.";
    HistoryNotKept: NOT_FOUND, "history_not_kept",
        "The group keeps no events: the first entry of [[tenants.NAME.groups]] whose name matches it must have history.";
    PresenceNotKept: NOT_FOUND, "presence_not_kept",
        "The group keeps no presence: the first entry of [[tenants.NAME.groups]] whose name matches it must have presence.";
    UsersNotKept: NOT_FOUND, "users_not_kept",
        "There is no record to read again: the users of this tenant are the claims of their tokens (users.source). Revoke the user's tokens instead.";
    UserIdNotValid: BAD_REQUEST, "user_id_not_valid",
        "No user of this tenant can have this id: users.id_type says what ids are (int, uuid or text).";
    RateLimited: TOO_MANY_REQUESTS, "rate_limited",
        "The tenant publishes more than limits.publishes_per_second allows; nothing was published.";
    TooManyCalls: TOO_MANY_REQUESTS, "rate_limited",
        "The key makes more calls than limits.api_calls_per_second (an operator's key: api.calls_per_second) allows; the call was not carried out.";
    NotRevoked: SERVICE_UNAVAILABLE, "unavailable",
        "The denylist does not confirm right now, so the tokens may not be revoked. Try again.";
    NotAnnounced: SERVICE_UNAVAILABLE, "unavailable",
        "The change is stored, but it could not be announced to the replicas right now. Try again.";
    FleetUnavailable: SERVICE_UNAVAILABLE, "unavailable",
        "Redis does not confirm right now, so the call may not have been carried out. Try again.";
    NotRecorded: SERVICE_UNAVAILABLE, "unavailable",
        "Redis refused to record the event, so it was not published. During a failover it takes the event a moment later; otherwise its log and its memory say why.";
    Unavailable: SERVICE_UNAVAILABLE, "unavailable",
        "The channel layer does not confirm right now, so the event may not have been published.";
}

impl IntoResponse for ApiProblem {
    fn into_response(self) -> Response {
        let mut response = document(self.status(), self.code(), self.detail());
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
            | ApiProblem::RegistryUnavailable
            | ApiProblem::TenantUnavailable
            | ApiProblem::NotRecorded
            | ApiProblem::NotRevoked
            | ApiProblem::NotAnnounced
            | ApiProblem::FleetUnavailable
            | ApiProblem::RateLimited
            | ApiProblem::TooManyCalls => {
                headers.insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// The answer to a path that a listener does not have.
pub(super) async fn not_found() -> ApiProblem {
    ApiProblem::NotFound
}

/// The answer to a method that a path does not take. The router adds `Allow`.
pub(super) async fn method_not_allowed() -> ApiProblem {
    ApiProblem::MethodNotAllowed
}

/// The answer to a call whose question could not be put to the replicas; logs an outage.
pub(super) fn not_asked(tenant: &Tenant, error: &NotAsked) -> ApiProblem {
    match error {
        NotAsked::NotSent(error) => unavailable(tenant, error),
        NotAsked::NotCarried(NotCarried::TooLong) => ApiProblem::EventTooLarge,
        NotAsked::NotCarried(NotCarried::Event(_)) => ApiProblem::EventNotValid,
    }
}

/// The answer to a call that a store or the other replicas kept from being carried out; logs the reason.
pub(super) fn unavailable(tenant: &Tenant, error: &StoreError) -> ApiProblem {
    tracing::warn!(tenant.id = %tenant.id, error = %error, "A call of the API could not be carried out");
    ApiProblem::FleetUnavailable
}
