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
mod tests;
