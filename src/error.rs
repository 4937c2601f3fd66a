//! The closed sets of words for failures: refusals of a handshake and errors of a dependency.
//!
//! The same word is the `code` of a problem document, the metric label, the log field and the close reason.
//! Clients get these fixed texts; the text of the underlying error goes to the log only.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::close_code::{CloseFrame, CloseReason};
use crate::labels::labels;

labels! {
    /// The checks of a token, in the order in which they are made and reported.
    #[derive(PartialOrd, Ord)]
    pub enum Check {
        Size = "size",
        Format = "format",
        Algorithm = "algorithm",
        Key = "key",
        Signature = "signature",
        Iat = "iat",
        Nbf = "nbf",
        Exp = "exp",
        Issuer = "issuer",
        Audience = "audience",
        Sub = "sub",
        Jti = "jti",
        TokenType = "token_type",
        Claims = "claims",
        UserId = "user_id",
        Denylist = "denylist",
        User = "user",
        IsActive = "is_active",
        Password = "password",
    }
}

/// The reasons for which a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "each variant is its word; status, close code and detail stand beside it below"
)]
pub enum Refusal {
    RequestNotValid,
    HandshakeTimeout,
    /// The request line is longer than 16 KiB (status 414).
    RequestLineTooLarge,
    /// The head is longer than 32 KiB or has more than 100 headers (status 431).
    HeadTooLarge,
    Draining,
    Overloaded,
    RateLimited,
    /// The client address or the tenant has too many connections.
    TooManyConnections,
    /// The user has too many connections. The word is that of `TooManyConnections`, the close code differs.
    TooManyUserConnections,
    TenantNotFound,
    TenantSuspended,
    RouteNotFound,
    MethodNotAllowed,
    UpgradeRequired,
    OriginNotAllowed,
    TokenMissing,
    /// The first check that failed.
    TokenNotValid(Check),
    /// Only `exp` failed. The word is `token_not_valid`; the close frame alone says `token_expired`.
    TokenExpired,
    TokenRevoked,
    UserNotFound,
    UserInactive,
    PasswordChanged,
    GroupNameNotValid,
    GroupForbidden,
    Refused,
    Unavailable,
}

impl Refusal {
    /// Returns the HTTP status of the problem document.
    pub const fn status(self) -> u16 {
        match self {
            Refusal::RequestNotValid | Refusal::GroupNameNotValid => 400,
            Refusal::TokenMissing
            | Refusal::TokenNotValid(_)
            | Refusal::TokenExpired
            | Refusal::TokenRevoked
            | Refusal::UserNotFound
            | Refusal::UserInactive
            | Refusal::PasswordChanged => 401,
            Refusal::TenantSuspended
            | Refusal::OriginNotAllowed
            | Refusal::GroupForbidden
            | Refusal::Refused => 403,
            Refusal::TenantNotFound | Refusal::RouteNotFound => 404,
            Refusal::MethodNotAllowed => 405,
            Refusal::HandshakeTimeout => 408,
            Refusal::RequestLineTooLarge => 414,
            Refusal::UpgradeRequired => 426,
            Refusal::RateLimited
            | Refusal::TooManyConnections
            | Refusal::TooManyUserConnections => 429,
            Refusal::HeadTooLarge => 431,
            Refusal::Draining | Refusal::Overloaded | Refusal::Unavailable => 503,
        }
    }

    /// Returns the word in problem documents, metrics and logs.
    pub const fn code(self) -> &'static str {
        match self {
            Refusal::RequestNotValid => "request_not_valid",
            Refusal::HandshakeTimeout => "handshake_timeout",
            Refusal::RequestLineTooLarge | Refusal::HeadTooLarge => "request_too_large",
            Refusal::Draining => "draining",
            Refusal::Overloaded => "overloaded",
            Refusal::RateLimited => "rate_limited",
            Refusal::TooManyConnections | Refusal::TooManyUserConnections => "too_many_connections",
            Refusal::TenantNotFound => "tenant_not_found",
            Refusal::TenantSuspended => "tenant_suspended",
            Refusal::RouteNotFound => "route_not_found",
            Refusal::MethodNotAllowed => "method_not_allowed",
            Refusal::UpgradeRequired => "upgrade_required",
            Refusal::OriginNotAllowed => "origin_not_allowed",
            Refusal::TokenMissing => "token_missing",
            Refusal::TokenNotValid(_) | Refusal::TokenExpired => "token_not_valid",
            Refusal::TokenRevoked => "token_revoked",
            Refusal::UserNotFound => "user_not_found",
            Refusal::UserInactive => "user_inactive",
            Refusal::PasswordChanged => "password_changed",
            Refusal::GroupNameNotValid => "group_name_not_valid",
            Refusal::GroupForbidden => "group_forbidden",
            Refusal::Refused => "refused",
            Refusal::Unavailable => "unavailable",
        }
    }

    /// Returns an explanation for a person: fixed text that never echoes input.
    pub const fn detail(self) -> &'static str {
        match self {
            Refusal::RequestNotValid => {
                "The request is not a valid WebSocket handshake (RFC 6455 section 4.2.1)."
            }
            Refusal::HandshakeTimeout => "The request did not arrive in time.",
            Refusal::RequestLineTooLarge => "The request line is longer than 16 KiB.",
            Refusal::HeadTooLarge => {
                "The request head is longer than 32 KiB, or has more than 100 headers."
            }
            Refusal::Draining => "This replica is about to exit; another one will serve you.",
            Refusal::Overloaded => "This replica is at its bound; try again later.",
            Refusal::RateLimited => "Too many requests; try again later.",
            Refusal::TooManyConnections | Refusal::TooManyUserConnections => {
                "Too many open connections; try again later."
            }
            Refusal::TenantNotFound => "No tenant is served under this host.",
            Refusal::TenantSuspended => "The tenant is suspended.",
            Refusal::RouteNotFound => "No route has this path.",
            Refusal::MethodNotAllowed => "Only GET opens a WebSocket.",
            Refusal::UpgradeRequired => "This resource speaks the WebSocket protocol, version 13.",
            Refusal::OriginNotAllowed => "The page's origin may not connect.",
            Refusal::TokenMissing => "No token was sent.",
            Refusal::TokenNotValid(_) | Refusal::TokenExpired => "The token is not valid.",
            Refusal::TokenRevoked => "The token was revoked.",
            Refusal::UserNotFound => "The token's user was not found.",
            Refusal::UserInactive => "The token's user is inactive.",
            Refusal::PasswordChanged => "The user's password has been changed.",
            Refusal::GroupNameNotValid => "The connection's groups cannot be named.",
            Refusal::GroupForbidden => "The user may not join these groups.",
            Refusal::Refused => "The application refused the connection.",
            Refusal::Unavailable => "A dependency cannot be asked right now; try again later.",
        }
    }

    /// Returns the token check that failed; `None` if the refusal has another cause.
    pub const fn check(self) -> Option<Check> {
        match self {
            Refusal::TokenNotValid(check) => Some(check),
            Refusal::TokenExpired => Some(Check::Exp),
            Refusal::TokenRevoked => Some(Check::Denylist),
            Refusal::UserNotFound => Some(Check::User),
            Refusal::UserInactive => Some(Check::IsActive),
            Refusal::PasswordChanged => Some(Check::Password),
            _ => None,
        }
    }

    /// Returns the time that a client should wait before it tries again; `None` where waiting does not help.
    ///
    /// Responses with 429 and 503 carry it as `Retry-After` in seconds.
    pub const fn retry_after(self) -> Option<Duration> {
        match self.status() {
            429 | 503 => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Returns the refusal of a handshake whose socket must close for this reason before it is open.
    ///
    /// `None` means that the socket opens first, so that its close frame carries the reason.
    pub const fn of_close(reason: CloseReason) -> Option<Self> {
        Some(match reason {
            CloseReason::TokenRevoked => Refusal::TokenRevoked,
            CloseReason::UserInactive => Refusal::UserInactive,
            CloseReason::UserNotFound => Refusal::UserNotFound,
            CloseReason::PasswordChanged => Refusal::PasswordChanged,
            CloseReason::GroupForbidden => Refusal::GroupForbidden,
            CloseReason::TenantSuspended => Refusal::TenantSuspended,
            CloseReason::Unavailable | CloseReason::Draining => Refusal::Unavailable,
            _ => return None,
        })
    }

    /// Returns the close frame that `refusal = "close"` sends.
    ///
    /// `None` for refusals that come before the tenant's mode is known or applies.
    pub fn close_frame(self) -> Option<CloseFrame> {
        let reason = match self {
            Refusal::OriginNotAllowed => CloseReason::OriginNotAllowed,
            Refusal::TokenMissing => CloseReason::TokenMissing,
            Refusal::TokenExpired => CloseReason::TokenExpired,
            Refusal::TokenNotValid(_) => CloseReason::TokenNotValid,
            Refusal::TokenRevoked => CloseReason::TokenRevoked,
            Refusal::UserNotFound => CloseReason::UserNotFound,
            Refusal::UserInactive => CloseReason::UserInactive,
            Refusal::PasswordChanged => CloseReason::PasswordChanged,
            Refusal::RateLimited => CloseReason::RateLimited,
            Refusal::TooManyConnections => CloseReason::TooManyConnections,
            Refusal::TooManyUserConnections => CloseReason::TooManyUserConnections,
            Refusal::TenantSuspended => CloseReason::TenantSuspended,
            Refusal::GroupNameNotValid => CloseReason::GroupNameNotValid,
            Refusal::GroupForbidden => CloseReason::GroupForbidden,
            Refusal::Unavailable => CloseReason::Unavailable,
            _ => return None,
        };
        Some(reason.frame_with_wait())
    }
}

labels! {
    /// A service that the gateway depends on: the `dependency` label.
    pub enum Dependency {
        Redis = "redis",
        Denylist = "denylist",
        Database = "database",
        Jwks = "jwks",
    }

    /// The kind of a dependency's failure: the `kind` label of `lockgate_dependency_errors_total`.
    pub enum ErrorKind {
        Io = "io",
        Timeout = "timeout",
        Auth = "auth",
        Permission = "permission",
        Protocol = "protocol",
        Other = "other",
    }
}

impl ErrorKind {
    /// Returns true if the dependency did not answer at all.
    pub const fn is_outage(self) -> bool {
        matches!(self, Self::Io | Self::Timeout | Self::Auth)
    }
}

/// A dependency did not answer. The error never means "not revoked" or "no such user".
#[derive(Debug)]
pub struct StoreError {
    /// The dependency that did not answer.
    pub dependency: Dependency,
    /// The kind of the failure.
    pub kind: ErrorKind,
    /// The underlying error with every password masked; for the log, never for a client.
    pub source: Box<dyn Error + Send + Sync>,
}

impl StoreError {
    /// Returns an error of `dependency` with the given cause.
    pub fn new(
        dependency: Dependency,
        kind: ErrorKind,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            dependency,
            kind,
            source: source.into(),
        }
    }

    /// Returns the same error for another caller that waited for the same answer; its source is a text.
    pub fn for_another(&self) -> Self {
        Self::new(self.dependency, self.kind, self.source.to_string())
    }

    /// Returns the error of a dependency that did not answer within `limit`.
    pub fn timeout(dependency: Dependency, limit: Duration) -> Self {
        Self::new(
            dependency,
            ErrorKind::Timeout,
            format!("no answer within {limit:?}"),
        )
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.dependency.label(),
            self.kind.label(),
            self.source
        )
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An open socket of a suspended tenant was told to wait, and one that was about to open was not.
    #[test]
    fn a_refused_socket_is_told_to_wait_where_an_open_one_is() {
        let told = |refusal: Refusal| refusal.close_frame().map(|frame| frame.reason.into_owned());
        for (refusal, reason) in [
            (
                Refusal::TenantSuspended,
                "tenant_suspended retry_after_ms=1000",
            ),
            (Refusal::Unavailable, "unavailable retry_after_ms=1000"),
            (Refusal::TooManyUserConnections, "too_many_connections"),
            (Refusal::TokenRevoked, "token_revoked"),
        ] {
            assert_eq!(told(refusal).as_deref(), Some(reason));
        }
    }
}
