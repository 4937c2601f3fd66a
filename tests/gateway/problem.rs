//! The common part of every refusal: the problem document and its headers.

use crate::support::http::Response;

/// One refusal as it has to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    /// The status.
    pub(crate) status: u16,
    /// The stable word.
    pub(crate) code: &'static str,
    /// The token check that failed, where one did.
    pub(crate) check: Option<&'static str>,
}

impl Problem {
    /// A refusal.
    pub(crate) const fn new(status: u16, code: &'static str) -> Self {
        Self {
            status,
            code,
            check: None,
        }
    }

    /// 401 because of one check of the token.
    pub(crate) const fn token(check: &'static str) -> Self {
        Self {
            status: 401,
            code: "token_not_valid",
            check: Some(check),
        }
    }

    /// Holds an answer of the tenant `realm` against it.
    pub(crate) fn is(self, response: &Response, realm: &str) {
        assert_eq!(response.status, self.status, "{self:?}: {response:?}");
        let content_type = response.header("content-type");
        assert_eq!(
            content_type,
            Some("application/problem+json"),
            "{response:?}"
        );
        let cache_control = response.header("cache-control");
        assert_eq!(cache_control, Some("no-store"), "{response:?}");
        let body = response.json();
        for member in ["type", "title", "detail"] {
            let text = body[member].as_str();
            assert!(
                text.is_some_and(|text| !text.is_empty()),
                "{member}: {body}"
            );
        }
        assert_eq!(body["status"], self.status, "{body}");
        assert_eq!(body["code"], self.code, "{body}");
        if let Some(check) = self.check {
            assert_eq!(body["check"], check, "{body}");
        }
        let challenge = response.header("www-authenticate");
        let expected = match (self.status, self.code) {
            (401, "token_missing") => Some(format!("Bearer realm=\"{realm}\"")),
            (401, _) => Some(format!("Bearer realm=\"{realm}\", error=\"invalid_token\"")),
            _ => None,
        };
        assert_eq!(challenge, expected.as_deref(), "{response:?}");
        let waits = matches!(self.status, 429 | 503);
        let retry_after = response.header("retry-after");
        assert_eq!(retry_after.is_some(), waits, "{response:?}");
        if let Some(seconds) = retry_after {
            seconds.parse::<u32>().unwrap();
        }
    }
}

/// The stable word of a close reason, without the advice on when to come back.
pub(crate) fn word(reason: &str) -> &str {
    reason.split(" retry_after_ms=").next().unwrap_or(reason)
}

/// The advice in a close reason, in milliseconds.
pub(crate) fn retry_after_ms(reason: &str) -> Option<u64> {
    reason.split_once(" retry_after_ms=")?.1.parse().ok()
}
