//! Takes the token from a handshake: query, `Authorization`, `Sec-WebSocket-Protocol`, cookie. The token cannot be printed.
//!
//! This module only finds exactly one token. [`super::TokenVerifier`] checks it.

use std::borrow::Cow;
use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use crate::config::{TokenConfig, TokenSource};

/// The subprotocols that announce a token as the next one: the words that clients use.
pub(crate) const CARRIERS: [&str; 4] = ["bearer", "Bearer", "token", "Token"];

/// An unverified token. It has no `Display`, its `Debug` shows nothing, and its memory is wiped when it is dropped.
pub struct RawToken(Zeroizing<String>);

impl RawToken {
    /// Wraps a token from another source, such as an API body or a command line.
    pub fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// Returns the text. Callers must neither print nor keep it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RawToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The result of the search for a token.
#[derive(Debug)]
pub enum TokenPresence {
    /// No source of the tenant has a token.
    Missing,
    /// Two sources have different tokens, or one has a malformed token: `token_not_valid`, check `format`.
    NotValid,
    /// One token, possibly in several sources.
    Found {
        /// The token.
        token: RawToken,
        /// True if it comes from a cookie, which a browser sends whatever page asks for it.
        by_cookie: bool,
    },
}

impl TokenPresence {
    /// Returns true for a token in a cookie without an origin beside it, which is refused. A cookie comes with any page that opens
    /// the socket. A browser always names the page, so that a request without an origin proves nothing, and one with an origin
    /// was held against the tenant's list.
    pub fn lacks_origin(&self, headers: &HeaderMap) -> bool {
        let by_cookie = matches!(
            self,
            Self::Found {
                by_cookie: true,
                ..
            }
        );
        by_cookie && !headers.contains_key(ORIGIN)
    }
}

/// Searches each of the tenant's sources.
///
/// Within the query the first non-empty value counts; later ones are ignored. Between the cookie and the other sources the
/// order of the list decides, since a browser adds its cookie by itself: an old one must not refuse the token that a page
/// has sent on purpose.
pub fn find_token(query: Option<&str>, headers: &HeaderMap, config: &TokenConfig) -> TokenPresence {
    let mut found: Option<Zeroizing<String>> = None;
    for source in &config.sources {
        if *source == TokenSource::Cookie {
            match in_cookies(headers, &config.cookie) {
                _ if found.is_some() => continue,
                InSource::None => continue,
                InSource::NotValid => return TokenPresence::NotValid,
                InSource::One(token) => {
                    return TokenPresence::Found {
                        token: RawToken(token),
                        by_cookie: true,
                    };
                }
            }
        }
        let token = match source {
            TokenSource::Query => in_query(query.unwrap_or_default(), &config.query_parameter),
            TokenSource::Header => in_authorization(headers),
            TokenSource::Subprotocol => in_subprotocols(headers),
            TokenSource::Cookie => InSource::None,
        };
        match (token, &found) {
            (InSource::None, _) => {}
            (InSource::NotValid, _) => return TokenPresence::NotValid,
            (InSource::One(token), None) => found = Some(token),
            (InSource::One(token), Some(other)) if token == *other => {}
            (InSource::One(_), Some(_)) => return TokenPresence::NotValid,
        }
    }
    match found {
        None => TokenPresence::Missing,
        Some(token) => TokenPresence::Found {
            token: RawToken(token),
            by_cookie: false,
        },
    }
}

enum InSource {
    None,
    NotValid,
    One(Zeroizing<String>),
}

impl InSource {
    fn of(token: &str) -> Self {
        match token {
            "" => InSource::None,
            token => InSource::One(Zeroizing::new(token.to_owned())),
        }
    }
}

/// Returns the values of a parameter of the query, in order and percent-encoded as they came.
pub(crate) fn values_in_query<'q>(
    query: &'q str,
    parameter: &str,
) -> impl Iterator<Item = &'q str> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let named = pairs.filter(move |(name, _)| percent_decode_str(name).eq(parameter.bytes()));
    named.map(|(_, value)| value)
}

fn in_query(query: &str, parameter: &str) -> InSource {
    let value = values_in_query(query, parameter).find(|value| !value.is_empty());
    match value.map(|value| percent_decode_str(value).decode_utf8()) {
        None => InSource::None,
        Some(Ok(Cow::Borrowed(token))) => InSource::of(token),
        Some(Ok(Cow::Owned(token))) => InSource::One(Zeroizing::new(token)),
        Some(Err(_)) => InSource::NotValid,
    }
}

fn in_authorization(headers: &HeaderMap) -> InSource {
    let mut found = InSource::None;
    for header in headers.get_all(AUTHORIZATION) {
        // Ignore other schemes: they can be the credentials of a proxy.
        let Ok(text) = header.to_str() else { continue };
        let mut words = text.split_ascii_whitespace();
        if !words
            .next()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
        {
            continue;
        }
        let token = match (words.next(), words.next()) {
            (None, _) => continue,
            (Some(token), None) => token,
            (Some(_), Some(_)) => return InSource::NotValid,
        };
        match &found {
            InSource::One(first) if first.as_str() != token => return InSource::NotValid,
            _ => found = InSource::of(token),
        }
    }
    found
}

/// Finds a cookie (RFC 6265 §4.2). Of several with one name the first that is not empty counts: browsers send the cookie of
/// the longest path first (§5.4), so it is the one that was set for this path.
fn in_cookies(headers: &HeaderMap, name: &str) -> InSource {
    let lines = headers.get_all(COOKIE).into_iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let is_named = pair[..equals].trim_ascii() == name.as_bytes();
        is_named.then(|| unquoted(pair[equals + 1..].trim_ascii()))
    });
    match values.find(|value| !value.is_empty()).map(str::from_utf8) {
        None => InSource::None,
        Some(Ok(token)) => InSource::of(token),
        Some(Err(_)) => InSource::NotValid,
    }
}

/// Takes the quotes off a value (RFC 6265 §4.1.1).
fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"");
    inner
        .and_then(|inner| inner.strip_suffix(b"\""))
        .unwrap_or(value)
}

/// Finds the pair `["bearer", JWT]` among the offered subprotocols; other words than `bearer` are in [`CARRIERS`].
fn in_subprotocols(headers: &HeaderMap) -> InSource {
    let mut found = InSource::None;
    let mut after_carrier = false;
    for header in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let Ok(text) = header.to_str() else { continue };
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            if !after_carrier {
                after_carrier = CARRIERS.contains(&item);
                continue;
            }
            after_carrier = false;
            match &found {
                InSource::One(first) if first.as_str() != item => return InSource::NotValid,
                _ => found = InSource::of(item),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn find(query: &str, headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        match find_token(Some(query), &map, &TokenConfig::default()) {
            TokenPresence::Missing => "missing".into(),
            TokenPresence::NotValid => "not valid".into(),
            TokenPresence::Found { token, .. } => format!("={}", token.expose()),
        }
    }

    #[test]
    fn the_query_gives_its_first_non_empty_value() {
        let cases = [
            ("", "missing"),
            ("token", "missing"),
            ("token=", "missing"),
            ("token=&token=a", "=a"),
            ("token=a&token=b", "=a"),
            ("x=1&token=a.b.c&y", "=a.b.c"),
            ("TOKEN=a", "missing"),
            ("token[]=a", "missing"),
            ("token=a%2Eb", "=a.b"),
            ("tok%65n=a", "=a"),
            ("token=%FF", "not valid"),
            ("token=a+b", "=a+b"),
            ("token=a=", "=a="),
            ("xtoken=a", "missing"),
            ("token=a;b", "=a;b"),
        ];
        for (query, expected) in cases {
            assert_eq!(find(query, &[]), expected, "{query}");
        }
    }

    #[test]
    fn header_and_subprotocol_are_read() {
        let protocol = "sec-websocket-protocol";
        let cases: [(&[(&'static str, &str)], &str); 18] = [
            (&[("authorization", "Bearer a")], "=a"),
            (&[("authorization", "bearer  a ")], "=a"),
            (&[("authorization", "Bearer")], "missing"),
            (&[("authorization", "Bearer a b")], "not valid"),
            (&[("authorization", "Basic abc")], "missing"),
            (
                &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
                "not valid",
            ),
            (&[(protocol, "bearer, a")], "=a"),
            (&[(protocol, "chat,bearer,a,other")], "=a"),
            (&[(protocol, "bearer"), (protocol, "a")], "=a"),
            (&[(protocol, "bearer")], "missing"),
            (&[(protocol, "chat, a")], "missing"),
            (&[(protocol, "bearer,a,bearer,b")], "not valid"),
            (&[(protocol, "Bearer, a")], "=a"),
            (&[(protocol, "token, a")], "=a"),
            (&[(protocol, "chat, Token, a")], "=a"),
            (&[(protocol, "token, a, Bearer, b")], "not valid"),
            (&[(protocol, "TOKEN, a")], "missing"),
            (&[(protocol, "chat, token")], "missing"),
        ];
        for (headers, expected) in cases {
            assert_eq!(find("", headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn two_sources_must_agree() {
        assert_eq!(find("token=a", &[("authorization", "Bearer a")]), "=a");
        assert_eq!(
            find("token=a", &[("authorization", "Bearer b")]),
            "not valid"
        );
        assert_eq!(find("token=", &[("authorization", "Bearer b")]), "=b");
        assert_eq!(
            find("token=a", &[("sec-websocket-protocol", "bearer, b")]),
            "not valid"
        );
    }

    #[test]
    fn a_source_that_is_switched_off_is_not_looked_at() {
        let config = TokenConfig {
            sources: vec![TokenSource::Header],
            ..TokenConfig::default()
        };
        let presence = find_token(Some("token=a"), &HeaderMap::new(), &config);
        assert!(matches!(presence, TokenPresence::Missing));
    }

    fn find_with_cookies(sources: &[TokenSource], query: &str, lines: &[&[u8]]) -> String {
        let config = TokenConfig {
            sources: sources.to_vec(),
            ..TokenConfig::default()
        };
        let mut map = HeaderMap::new();
        map.append(AUTHORIZATION, HeaderValue::from_static("Bearer h"));
        for line in lines {
            map.append(COOKIE, HeaderValue::from_bytes(line).unwrap());
        }
        match find_token(Some(query), &map, &config) {
            TokenPresence::Missing => "missing".into(),
            TokenPresence::NotValid => "not valid".into(),
            TokenPresence::Found { token, by_cookie } => {
                format!(
                    "{}={}",
                    if by_cookie { "cookie" } else { "" },
                    token.expose()
                )
            }
        }
    }

    #[test]
    fn a_cookie_is_read_as_rfc_6265_writes_it() {
        let long = format!("access_token={}", "x".repeat(8192));
        let cases: [(&[&[u8]], &str); 19] = [
            (&[b"access_token=a"], "cookie=a"),
            (&[b"a=1; access_token=a.b.c; z=2"], "cookie=a.b.c"),
            (&[b"a=1;access_token=a"], "cookie=a"),
            (&[b"access_token=\"a\""], "cookie=a"),
            (&[b"access_token=\"a"], "cookie=\"a"),
            (&[b"access_token = a "], "cookie=a"),
            (&[b"access_token=a=="], "cookie=a=="),
            (&[b"a=1", b"access_token=a"], "cookie=a"),
            // The browser sends the cookie of the longer path first.
            (&[b"access_token=a; access_token=b"], "cookie=a"),
            (&[b"access_token=; access_token=b"], "cookie=b"),
            (&[b"access_token=\"\"; access_token=b"], "cookie=b"),
            (&[b"access_token=a", b"access_token=b"], "cookie=a"),
            (&[b"Access_Token=a"], "missing"),
            (&[b"xaccess_token=a"], "missing"),
            (&[b"access_token"], "missing"),
            (&[b""], "missing"),
            // Bytes of another cookie are no reason to overlook this one.
            (&[b"name=caf\xe9; access_token=a"], "cookie=a"),
            (&[b"access_token=caf\xe9"], "not valid"),
            (&[b"access_token=a%2Eb"], "cookie=a%2Eb"),
        ];
        for (lines, expected) in cases {
            let found = find_with_cookies(&[TokenSource::Cookie], "", lines);
            assert_eq!(found, expected, "{lines:?}");
        }
        let found = find_with_cookies(&[TokenSource::Cookie], "", &[long.as_bytes()]);
        assert_eq!(found.len(), "cookie=".len() + 8192);
    }

    #[test]
    fn between_the_cookie_and_the_others_the_order_of_the_list_decides() {
        use TokenSource::{Cookie, Header, Query};
        let cookie: &[&[u8]] = &[b"access_token=c"];
        for (sources, query, expected) in [
            (&[Query, Cookie][..], "token=q", "=q"),
            (&[Query, Cookie], "", "cookie=c"),
            (&[Cookie, Query], "token=q", "cookie=c"),
            (&[Query, Cookie, Header], "", "cookie=c"),
            (&[Header, Cookie], "", "=h"),
            // The others must still agree with each other, as far as they come before it.
            (&[Query, Header, Cookie], "token=q", "not valid"),
            (&[Query, Cookie, Header], "token=h", "=h"),
        ] {
            let found = find_with_cookies(sources, query, cookie);
            assert_eq!(found, expected, "{sources:?} {query}");
        }
        assert_eq!(find_with_cookies(&[Cookie, Header], "", &[]), "=h");
    }

    #[test]
    fn a_token_cannot_be_printed() {
        let token = RawToken::new("eyJhbGciOi".into());
        assert!(!format!("{token:?}").contains("eyJ"));
    }
}
