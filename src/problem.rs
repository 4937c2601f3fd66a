//! The answer to a refused request: a problem document (RFC 9457) with the headers that belong to its status.
//!
//! `type` is `urn:lockgate:problem:CODE`. It is stable, and like `code` it names the kind of refusal, not the
//! occurrence. The document never echoes input.

use axum::body::Body;
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue,
    RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::error::Refusal;
use crate::ids::TenantId;

/// A refusal on its way to the client.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The reason.
    pub refusal: Refusal,
    /// The tenant, which is the realm of a 401; `None` if the tenant is not known yet.
    pub tenant: Option<&'a TenantId>,
}

/// The members of the document, in the order of the JSON text.
#[derive(Serialize)]
struct Document {
    r#type: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<&'static str>,
    /// Of a key that may not make the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    /// Of a configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    mistakes: Option<Value>,
}

impl Document {
    fn new(status: StatusCode, code: &'static str, detail: &'static str) -> Self {
        Self {
            r#type: format!("urn:lockgate:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail,
            check: None,
            scope: None,
            mistakes: None,
        }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialize")
    }
}

impl Problem<'_> {
    /// Returns the response. Its extensions hold the refusal, so that middleware can count or convert it.
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status();
        *response.headers_mut() = self.headers();
        response.extensions_mut().insert(self.refusal);
        response
    }

    /// Returns the response to a request with `method` as the bytes of an HTTP/1.1 message that closes the connection.
    ///
    /// For requests that no HTTP library has seen.
    pub fn to_http1(&self, method: &Method) -> Vec<u8> {
        let body = self.body();
        let mut headers = self.headers();
        // A 426 names `upgrade` there already.
        headers.append(CONNECTION, HeaderValue::from_static("close"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if let Some(date) = http_date(OffsetDateTime::now_utc()) {
            headers.insert(DATE, date);
        }
        let mut bytes = format!("HTTP/1.1 {}\r\n", self.status()).into_bytes();
        for (name, value) in &headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        // RFC 9110 §9.3.2: the answer to HEAD has no content.
        if method != Method::HEAD {
            bytes.extend_from_slice(body.as_bytes());
        }
        bytes
    }

    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn body(&self) -> String {
        let document = Document {
            check: self.refusal.check().map(|check| check.label()),
            ..Document::new(self.status(), self.refusal.code(), self.refusal.detail())
        };
        document.text()
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &'static str| {
            headers.insert(name, HeaderValue::from_static(value));
        };
        set(CONTENT_TYPE, "application/problem+json");
        set(CACHE_CONTROL, "no-store");
        match self.refusal {
            Refusal::MethodNotAllowed => set(ALLOW, "GET"),
            Refusal::UpgradeRequired => {
                set(UPGRADE, "websocket");
                set(SEC_WEBSOCKET_VERSION, "13");
                // RFC 9110 §7.8: a sender of Upgrade also names it in Connection.
                set(CONNECTION, "upgrade");
            }
            _ => {}
        }
        if let Some(wait) = self.refusal.retry_after() {
            // Whole seconds, rounded up and at least 1, so that no client returns too early.
            let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.refusal.status() == 401 {
            headers.insert(WWW_AUTHENTICATE, self.challenge());
        }
        headers
    }

    /// Returns the challenge of a 401. Without a token it has no `error` (RFC 6750 §3).
    fn challenge(&self) -> HeaderValue {
        let realm = self.tenant.map_or("lockgate", TenantId::as_str);
        let error = match self.refusal {
            Refusal::TokenMissing => "",
            _ => ", error=\"invalid_token\"",
        };
        // A quoted string can hold every character that is valid in a tenant's name.
        HeaderValue::from_str(&format!("Bearer realm=\"{realm}\"{error}"))
            .unwrap_or(HeaderValue::from_static("Bearer"))
    }
}

/// The date of an answer (RFC 9110 §5.6.7).
fn http_date(now: OffsetDateTime) -> Option<HeaderValue> {
    // That of mail, with another name for the time zone.
    let date = now.format(&Rfc2822).ok()?;
    HeaderValue::try_from(format!("{}GMT", date.strip_suffix("+0000")?)).ok()
}

/// Returns a problem document for an error that is not the refusal of a socket.
pub fn document(status: StatusCode, code: &'static str, detail: &'static str) -> Response<Body> {
    response_of(&Document::new(status, code, detail), status)
}

/// Returns a problem document about a key that lacks a scope.
pub fn document_of_scope(
    status: StatusCode,
    code: &'static str,
    detail: &'static str,
    scope: &'static str,
) -> Response<Body> {
    let document = Document {
        scope: Some(scope),
        ..Document::new(status, code, detail)
    };
    response_of(&document, status)
}

/// Returns a problem document about a configuration, with its mistakes as a list.
pub fn document_of_mistakes(
    status: StatusCode,
    code: &'static str,
    detail: &'static str,
    mistakes: Value,
) -> Response<Body> {
    let document = Document {
        mistakes: Some(mistakes),
        ..Document::new(status, code, detail)
    };
    response_of(&document, status)
}

fn response_of(document: &Document, status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(document.text()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Check;

    fn header(refusal: Refusal, name: HeaderName) -> Option<String> {
        let tenant = "acme".parse().unwrap();
        let problem = Problem {
            refusal,
            tenant: Some(&tenant),
        };
        let headers = problem.response().headers().clone();
        headers.get(name).map(|v| v.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_document_has_the_members_of_the_contract_in_order() {
        let refusal = Refusal::TokenNotValid(Check::Signature);
        let problem = Problem {
            refusal,
            tenant: None,
        };
        assert_eq!(
            problem.body(),
            r#"{"type":"urn:lockgate:problem:token_not_valid","title":"Unauthorized","status":401,"code":"token_not_valid","detail":"The token is not valid.","check":"signature"}"#
        );
    }

    #[test]
    fn each_status_has_its_headers() {
        let missing = header(Refusal::TokenMissing, WWW_AUTHENTICATE);
        assert_eq!(missing.as_deref(), Some(r#"Bearer realm="acme""#));
        let revoked = header(Refusal::TokenRevoked, WWW_AUTHENTICATE);
        assert_eq!(
            revoked.as_deref(),
            Some(r#"Bearer realm="acme", error="invalid_token""#)
        );
        let allow = header(Refusal::MethodNotAllowed, ALLOW);
        assert_eq!(allow.as_deref(), Some("GET"));
        let version = header(Refusal::UpgradeRequired, SEC_WEBSOCKET_VERSION);
        assert_eq!(version.as_deref(), Some("13"));
        let upgrade = header(Refusal::UpgradeRequired, UPGRADE);
        assert_eq!(upgrade.as_deref(), Some("websocket"));
        for refusal in [
            Refusal::RateLimited,
            Refusal::Draining,
            Refusal::Unavailable,
        ] {
            assert_eq!(header(refusal, RETRY_AFTER).as_deref(), Some("1"));
        }
        assert_eq!(header(Refusal::OriginNotAllowed, RETRY_AFTER), None);
        let cache = header(Refusal::RouteNotFound, CACHE_CONTROL);
        assert_eq!(cache.as_deref(), Some("no-store"));
    }

    #[test]
    fn dates_are_those_of_http() {
        let example = OffsetDateTime::from_unix_timestamp(784_111_777).unwrap();
        let date = http_date(example).unwrap();
        assert_eq!(date, "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn the_bytes_are_one_response_that_closes() {
        let problem = Problem {
            refusal: Refusal::HeadTooLarge,
            tenant: None,
        };
        let bytes = String::from_utf8(problem.to_http1(&Method::GET)).unwrap();
        let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
        assert!(head.contains("connection: close"));
        assert!(head.contains(&format!("content-length: {}", body.len())));
        let date = head.lines().find_map(|line| line.strip_prefix("date: "));
        assert!(date.is_some_and(|date| date.ends_with(" GMT")), "{head}");
        let bare = String::from_utf8(problem.to_http1(&Method::HEAD)).unwrap();
        assert!(
            bare.ends_with("\r\n\r\n") && bare.contains(&format!("content-length: {}", body.len()))
        );
    }
}
