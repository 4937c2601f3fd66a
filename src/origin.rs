//! Checks the `Origin` of a handshake: the pages that may open a tenant's sockets (RFC 6455 §10.2).
//!
//! A page cannot make a browser send a false `Origin`. Other clients can send any value or none.

use axum::http::HeaderMap;
use axum::http::header::ORIGIN;
use axum::http::uri::Authority;

use crate::config::{Fault, Faults};
use crate::error::Refusal;
use crate::hosts;

/// A tenant's `origins` and `require_origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPolicy {
    /// The listed origins, at least one.
    allowed: Vec<Allowed>,
    required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    /// `*`
    Any,
    /// `null`: the origin of sandboxed frames, files and some redirects.
    Null,
    /// `self`: the request's own host, as without a list.
    Own,
    /// `https://app.example.com`
    Exact(Origin),
    /// `https://*.example.com`, stored without `*.`. As in `hosts`, `*` stands for one label.
    Subdomain(Origin),
}

/// Scheme, host and port in the form that RFC 6454 §4 compares: lower case, with default ports written out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl OriginPolicy {
    /// Makes the policy of a tenant's `origins` (empty: the request's own host) and `require_origin`.
    ///
    /// # Errors
    /// Every entry with a path, without a scheme, or otherwise not an origin, at `origins[INDEX]`.
    pub fn new(origins: &[String], required: bool) -> Result<Self, Faults> {
        if origins.is_empty() {
            return Ok(Self {
                allowed: vec![Allowed::Own],
                required,
            });
        }
        let allowed = origins.iter().enumerate().map(|(index, entry)| {
            Allowed::parse(entry).map_err(|fault| fault.below(&format!("origins[{index}]")))
        });
        Ok(Self {
            allowed: Faults::collect(allowed)?,
            required,
        })
    }

    /// Returns `Ok` if a page may connect that sent these headers to `host`.
    ///
    /// # Errors
    /// `origin_not_allowed`, also for two origins, and for none if one is required.
    pub fn check(&self, headers: &HeaderMap, host: &Authority) -> Result<(), Refusal> {
        let mut values = headers.get_all(ORIGIN).into_iter();
        let allowed = match (values.next(), values.next()) {
            (None, _) => !self.required,
            (Some(_), Some(_)) => false,
            (Some(value), None) => self.allows(value.to_str().unwrap_or_default(), host),
        };
        if allowed {
            Ok(())
        } else {
            Err(Refusal::OriginNotAllowed)
        }
    }

    fn allows(&self, text: &str, host: &Authority) -> bool {
        if self.is_written_so(text, host) {
            return true;
        }
        let origin = Origin::parse(text);
        self.allowed.iter().any(|entry| match (entry, &origin) {
            (Allowed::Any, _) => true,
            (Allowed::Null, _) => text == "null",
            (Allowed::Own, _) => is_own(text, host),
            (Allowed::Exact(allowed), Some(origin)) => allowed == origin,
            (Allowed::Subdomain(parent), Some(origin)) => origin.is_child_of(parent),
            (_, None) => false,
        })
    }
}

impl OriginPolicy {
    /// Returns true for most of what is allowed: the text of an entry, or the text of the host behind `https://` or
    /// `http://`. Parsing costs three allocations.
    fn is_written_so(&self, text: &str, host: &Authority) -> bool {
        self.allowed.iter().any(|entry| match entry {
            Allowed::Own => is_written_as(text, host.as_str()),
            Allowed::Exact(origin) => origin.is_written(text),
            Allowed::Any | Allowed::Null | Allowed::Subdomain(_) => false,
        })
    }
}

/// Returns true if `text` is `host` behind `https://` or `http://`.
fn is_written_as(text: &str, host: &str) -> bool {
    let written = text
        .strip_prefix("https://")
        .or(text.strip_prefix("http://"));
    let is_plain = !host.contains(['@', '*']) && !host.ends_with(':');
    is_plain && !host.is_empty() && written == Some(host)
}

/// Returns true if `text` is the origin of a page of the request's own host. React Native on Android sends the server's host as
/// origin, older versions with a slash behind it.
fn is_own(text: &str, host: &Authority) -> bool {
    let origin = Origin::parse(text.strip_suffix('/').unwrap_or(text));
    origin.is_some_and(|origin| origin.is_of(host))
}

impl Allowed {
    fn parse(entry: &str) -> Result<Self, Fault> {
        match entry {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Null),
            "self" => return Ok(Self::Own),
            _ => {}
        }
        let parsed = match entry.split_once("://*.") {
            Some((scheme, parent)) => {
                Origin::parse(&format!("{scheme}://{parent}")).map(Self::Subdomain)
            }
            None => Origin::parse(entry).map(Self::Exact),
        };
        parsed.ok_or_else(|| {
            let expected = "\"https://name\", \"https://*.name\", with a port if it is not the scheme's, \"self\", \"file://\", \"null\" or \"*\"";
            let fault = Fault::new("", format!("{entry:?}"), expected);
            match entry.split_once("://") {
                Some((_, rest)) if rest.contains('/') => fault.advice("an origin has no path"),
                _ => fault,
            }
        })
    }
}

impl Origin {
    /// Parses exactly `scheme://host` or `scheme://host:port`. Schemes that are not of the web may have no host: `file://`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme_byte = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            || !scheme.bytes().all(scheme_byte)
        {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        if authority.is_empty() && default_port(&scheme).is_none() {
            return Some(Self {
                port: None,
                host: String::new(),
                scheme,
            });
        }
        let authority = authority.parse::<Authority>().ok()?;
        let explicit = authority.port_u16();
        let bare = explicit.is_some() || authority.as_str() == authority.host();
        if authority.host().is_empty() || authority.as_str().contains(['@', '*']) || !bare {
            return None;
        }
        Some(Self {
            port: explicit.or(default_port(&scheme)),
            host: hosts::canonical(authority.host()).into_owned(),
            scheme,
        })
    }

    /// Returns true if `text` is this origin as browsers write it: lower case, without a default port.
    fn is_written(&self, text: &str) -> bool {
        let rest = text.strip_prefix(&*self.scheme);
        let rest = rest.and_then(|rest| rest.strip_prefix("://"));
        rest == Some(&*self.host) && self.port == default_port(&self.scheme)
    }

    /// Returns true if the page was served under the request's own host. The scheme is ignored, because a proxy ends TLS.
    fn is_of(&self, host: &Authority) -> bool {
        let port = host.port_u16().or(default_port(&self.scheme));
        matches!(&*self.scheme, "http" | "https")
            && self.host == hosts::canonical(host.host())
            && self.port == port
    }

    /// Returns true if the host has exactly one label more than `parent`, and all else is equal.
    fn is_child_of(&self, parent: &Self) -> bool {
        let label = self.host.split_once('.');
        self.scheme == parent.scheme
            && self.port == parent.port
            && label.is_some_and(|(label, rest)| !label.is_empty() && rest == parent.host)
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn allowed(origins: &[&str], sent: &[&str], host: &str) -> bool {
        let origins: Vec<String> = origins.iter().map(|&o| o.to_owned()).collect();
        let policy = OriginPolicy::new(&origins, false).unwrap();
        let mut headers = HeaderMap::new();
        for origin in sent {
            headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        policy.check(&headers, &host.parse().unwrap()).is_ok()
    }

    /// What is allowed by its text alone is allowed by its parts, too.
    #[test]
    fn a_text_that_needs_no_parsing_is_one_that_parsing_allows() {
        let texts = [
            "https://app.example",
            "http://app.example",
            "https://app.example:443",
            "https://app.example:8443",
            "https://app.example.",
            "https://app.example:",
            "https://a@app.example",
            "https://*.example",
            "https://[::1]",
            "https://",
            "https://App.example",
            "ws://app.example",
            "https://app.example/",
        ];
        let mut quick = 0;
        for list in [
            &[][..],
            &["https://app.example", "http://[::1]"],
            &["https://app.example:8443"],
            &["self"],
        ] {
            let list: Vec<String> = list.iter().map(|&o: &&str| o.to_owned()).collect();
            let policy = OriginPolicy::new(&list, false).unwrap();
            for text in texts {
                for host in [
                    "app.example",
                    "app.example:8443",
                    "app.example:",
                    "[::1]",
                    "a@app.example",
                    "app.example.",
                ] {
                    let Ok(host) = host.parse::<Authority>() else {
                        continue;
                    };
                    if policy.is_written_so(text, &host) {
                        quick += 1;
                        let origin = Origin::parse(text).expect(text);
                        let by_parts = match policy.allowed.contains(&Allowed::Own) {
                            true => origin.is_of(&host),
                            false => policy.allowed.contains(&Allowed::Exact(origin)),
                        };
                        assert!(by_parts, "{text} {host}");
                    }
                }
            }
        }
        assert!(quick > 10, "{quick}");
    }

    #[test]
    fn listed_origins() {
        let list = &["https://app.example", "http://dev.example:3000"];
        for (row, sent, expected) in [
            ("listed", "https://app.example", true),
            ("listed, port written out", "https://app.example:443", true),
            ("listed, upper case", "HTTPS://App.Example", true),
            ("listed with port", "http://dev.example:3000", true),
            ("not listed", "https://other.example", false),
            ("null", "null", false),
            ("suffix trick", "https://app.example.evil", false),
            ("prefix trick", "https://evilapp.example", false),
            ("http for https", "http://app.example", false),
            ("other port", "https://app.example:8443", false),
            ("path", "https://app.example/", false),
            (
                "user information",
                "https://app.example@evil.example",
                false,
            ),
            ("user information before", "https://evil@app.example", false),
            ("empty", "", false),
            (
                "the request's host is not implied",
                "https://acme.example",
                false,
            ),
        ] {
            assert_eq!(allowed(list, &[sent], "acme.example"), expected, "{row}");
        }
    }

    #[test]
    fn an_address_is_compared_as_an_address() {
        let list = &["http://[2001:0DB8::000A]:3000"];
        assert!(allowed(list, &["http://[2001:db8::a]:3000"], "a.example"));
        assert!(!allowed(list, &["http://[2001:db8::b]:3000"], "a.example"));
    }

    #[test]
    fn wildcards_and_null() {
        for (row, list, sent, expected) in [
            ("child", "https://*.x.example", "https://a.x.example", true),
            ("parent", "https://*.x.example", "https://x.example", false),
            (
                "grandchild",
                "https://*.x.example",
                "https://a.b.x.example",
                false,
            ),
            (
                "no label",
                "https://*.x.example",
                "https://.x.example",
                false,
            ),
            ("no dot", "https://*.x.example", "https://ax.example", false),
            ("scheme", "https://*.x.example", "http://a.x.example", false),
            (
                "port",
                "https://*.x.example:8443",
                "https://a.x.example:8443",
                true,
            ),
            ("null", "null", "null", true),
            ("any", "*", "https://whoever.example", true),
            ("any, null too", "*", "null", true),
        ] {
            assert_eq!(allowed(&[list], &[sent], "acme.example"), expected, "{row}");
        }
    }

    #[test]
    fn without_a_list_the_request_s_own_host() {
        for (sent, host, expected) in [
            ("https://acme.example", "acme.example", true),
            ("http://ACME.example", "acme.EXAMPLE", true),
            ("https://acme.example", "acme.example:443", true),
            ("http://localhost:8000", "localhost:8000", true),
            ("http://localhost:3000", "localhost:8000", false),
            ("http://localhost", "localhost:8000", false),
            ("https://evil.example", "acme.example", false),
            ("ftp://acme.example", "acme.example", false),
            ("null", "acme.example", false),
            ("http://[::1]:8000", "[::1]:8000", true),
            // Before: the spelling counted, and this origin was refused.
            ("http://[::1]:8000", "[0:0:0:0:0:0:0:1]:8000", true),
            ("http://[::2]:8000", "[::1]:8000", false),
        ] {
            assert_eq!(allowed(&[], &[sent], host), expected, "{sent} {host}");
        }
    }

    #[test]
    fn the_request_s_own_host_may_be_listed_beside_others() {
        let list = &["https://app.example", "self"];
        for (sent, host, expected) in [
            ("https://app.example", "ws.example", true),
            ("https://ws.example", "ws.example", true),
            ("https://WS.example:443", "ws.example", true),
            ("http://ws.example:80", "ws.example", true),
            ("https://ws.example:8443", "ws.example:8443", true),
            ("https://ws.example", "ws.example:443", true),
            // The port is a part of the origin: another server may listen there.
            ("https://ws.example:8443", "ws.example", false),
            ("https://ws.example", "ws.example:8443", false),
            ("http://[::1]:8000", "[0:0::1]:8000", true),
            ("http://[::1]", "[::1]:8000", false),
            // React Native on Android, of old.
            ("https://ws.example/", "ws.example", true),
            ("https://ws.example//", "ws.example", false),
            ("https://ws.example/chat", "ws.example", false),
            ("https://app.example/", "ws.example", false),
            ("https://ws.example.evil", "ws.example", false),
            ("https://evil.example", "ws.example", false),
            ("file://", "ws.example", false),
            ("self", "ws.example", false),
            ("https://self", "ws.example", false),
            ("null", "ws.example", false),
            ("", "ws.example", false),
        ] {
            assert_eq!(allowed(list, &[sent], host), expected, "{sent} {host}");
        }
    }

    #[test]
    fn apps_and_files_have_schemes_of_their_own() {
        let id = "chrome-extension://abcdefghijklmnopabcdefghijklmnop";
        for (entry, sent, expected) in [
            ("file://", "file://", true),
            ("FILE://", "file://", true),
            ("file://", "null", false),
            ("file://", "file:///", false),
            ("file://", "file://host", false),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("capacitor://localhost", "ionic://localhost", false),
            ("capacitor://localhost", "capacitor://localhost:1", false),
            ("capacitor://", "capacitor://localhost", false),
            ("tauri://localhost", "tauri://localhost", true),
            (id, id, true),
            (id, "chrome-extension://other", false),
            ("app://.", "app://.", true),
        ] {
            assert_eq!(
                allowed(&[entry], &[sent], "localhost"),
                expected,
                "{entry} {sent}"
            );
        }
        // What has a host in a web page's origin is no own host without one.
        assert!(!allowed(&[], &["http://"], "a.example"));
        assert!(!allowed(&["self"], &["capacitor://localhost"], "localhost"));
    }

    #[test]
    fn two_origins_are_refused_and_none_only_where_required() {
        assert!(!allowed(
            &["*"],
            &["https://a.example", "https://a.example"],
            "a.example"
        ));
        assert!(allowed(&["https://a.example"], &[], "a.example"));
        let policy = OriginPolicy::new(&[], true).unwrap();
        let host = "a.example".parse().unwrap();
        assert_eq!(
            policy.check(&HeaderMap::new(), &host),
            Err(Refusal::OriginNotAllowed)
        );
    }

    #[test]
    fn what_is_no_origin_cannot_be_configured() {
        for bad in [
            "",
            "app.example",
            "https://",
            "https://a/b",
            "https://a.example/",
            "https://a.example:x",
            "https://a.example?x",
            "https://a*.b",
            "https://*",
            "https://a.*.b",
            "://a",
            "file",
            "file:",
            "file:///",
            "file:///index.html",
            "http://",
            "wss://",
            "Self",
            "'self'",
        ] {
            let refused = OriginPolicy::new(&["*".to_owned(), bad.to_owned()], false);
            assert_eq!(refused.unwrap_err().0[0].key, "origins[1]", "{bad}");
        }
        for good in [
            "*",
            "null",
            "https://a.example",
            "https://*.a.example",
            "http://localhost:3000",
            "http://[::1]:3000",
            "capacitor://localhost",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "file://",
            "self",
        ] {
            assert!(
                OriginPolicy::new(&[good.to_owned()], false).is_ok(),
                "{good}"
            );
        }
    }
}
