//! Finds the address of a client, for budgets and logs: that of the peer, or the one that trusted proxies report.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;
use axum::http::header::FORWARDED;
use ipnet::IpNet;

use crate::config::{ClientAddress, ServerConfig};

/// Finds client addresses by `server.client_address` and `server.trusted_proxies`.
#[derive(Clone, Debug)]
pub struct AddressFinder {
    source: ClientAddress,
    trusted: Vec<IpNet>,
}

impl AddressFinder {
    /// Takes `client_address` and `trusted_proxies`.
    pub fn new(config: &ServerConfig) -> Self {
        Self {
            source: config.client_address,
            trusted: config.trusted_proxies.clone(),
        }
    }

    /// Returns the client address of a request from `peer`; `proxied` is the address in a PROXY header.
    ///
    /// The client is the right-most hop that is not a trusted proxy. A header from an untrusted peer is ignored, and so
    /// is each hop to the left of an unreadable one, because any client can have written them. Only the configured source
    /// is read.
    pub fn client(&self, peer: IpAddr, proxied: Option<SocketAddr>, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        match self.source {
            ClientAddress::Peer => peer,
            ClientAddress::ProxyProtocol => {
                proxied.map_or(peer, |client| client.ip().to_canonical())
            }
            ClientAddress::XForwardedFor => {
                let lines = headers.get_all("x-forwarded-for").into_iter().rev();
                let hops = lines.flat_map(|line| line.as_bytes().rsplit(|b| *b == b','));
                self.walk(peer, hops.map(parse_hop))
            }
            ClientAddress::Forwarded => {
                let lines = headers.get_all(FORWARDED).into_iter().rev();
                let hops = lines.flat_map(|line| forwarded_for(line.as_bytes()).into_iter().rev());
                self.walk(peer, hops)
            }
        }
    }

    /// Follows the hops from the peer towards the client while each is a trusted proxy.
    fn walk(&self, peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut nearest = peer;
        for hop in hops {
            if !is_trusted(&self.trusted, nearest) {
                break;
            }
            match hop {
                Some(address) => nearest = address,
                None => break,
            }
        }
        nearest
    }
}

/// Returns true if `address` lies in one of the networks. An IPv4-mapped IPv6 address counts as the IPv4 address.
pub fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// Returns the key of a client's budgets: the IPv4 address, or the /64 network of an IPv6 address, since one subscriber
/// usually owns a whole /64.
pub fn counting_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => IpAddr::V4(four),
        IpAddr::V6(six) => {
            const NETWORK: u128 = !0 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & NETWORK))
        }
    }
}

/// Parses an address with or without brackets and port. Returns `None` for all other text, also zones (`%eth0`) and
/// names.
fn parse_hop(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_ascii();
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address = match bare {
        Some(six) => IpAddr::V6(six.parse().ok()?),
        None => match text.parse() {
            Ok(address) => address,
            Err(_) => without_zone(text.parse().ok()?)?,
        },
    };
    Some(address.to_canonical())
}

/// Returns the IP address, or `None` for one with a zone (`[fe80::1%2]:80`), which has no meaning on another machine.
fn without_zone(address: SocketAddr) -> Option<IpAddr> {
    match address {
        SocketAddr::V6(six) if six.scope_id() != 0 => None,
        address => Some(address.ip()),
    }
}

/// Returns the `for` of each element of a `Forwarded` line (RFC 7239 §4); `None` if it is absent or not an address.
///
/// A line whose quotes do not pair counts as one unreadable hop.
fn forwarded_for(line: &[u8]) -> Vec<Option<IpAddr>> {
    let Some(elements) = split_unquoted(line, b',') else {
        return vec![None];
    };
    elements.into_iter().map(for_of_element).collect()
}

/// Returns the address in the `for` of one element; `None` if there is no `for`, or more than one.
fn for_of_element(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_unquoted(element, b';')? {
        let equals = pair.iter().position(|b| *b == b'=');
        let Some((name, value)) = equals.map(|at| (&pair[..at], &pair[at + 1..])) else {
            continue;
        };
        if name.trim_ascii().eq_ignore_ascii_case(b"for") {
            if found.is_some() {
                return None;
            }
            let value = value.trim_ascii();
            let quoted = value
                .strip_prefix(b"\"")
                .and_then(|v| v.strip_suffix(b"\""));
            found = Some(parse_hop(quoted.unwrap_or(value)));
        }
    }
    found.flatten()
}

/// Splits at `separator` outside of quoted strings. Returns `None` if a quoted string does not end.
fn split_unquoted(bytes: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, &byte) in bytes.iter().enumerate() {
        if escaped {
            escaped = false;
        } else if quoted && byte == b'\\' {
            escaped = true;
        } else if byte == b'"' {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            parts.push(&bytes[start..at]);
            start = at + 1;
        }
    }
    parts.push(&bytes[start..]);
    (!quoted).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn find(source: ClientAddress, peer: &str, lines: &[&str]) -> String {
        let finder = AddressFinder::new(&ServerConfig {
            client_address: source,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..ServerConfig::default()
        });
        let name = match source {
            ClientAddress::Forwarded => "forwarded",
            _ => "x-forwarded-for",
        };
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_bytes(line.as_bytes()).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        finder
            .client(peer.parse().unwrap(), None, &headers)
            .to_string()
    }

    #[test]
    fn x_forwarded_for() {
        let chain = vec!["192.0.2.1"; 1000].join(", ");
        for (row, peer, lines, expected) in [
            ("no header", "10.0.0.1", vec![], "10.0.0.1"),
            ("one hop", "10.0.0.1", vec!["192.0.2.1"], "192.0.2.1"),
            (
                "forged, untrusted peer",
                "192.0.2.9",
                vec!["1.2.3.4"],
                "192.0.2.9",
            ),
            (
                "forged, left of the true hop",
                "10.0.0.1",
                vec!["1.2.3.4, 192.0.2.1"],
                "192.0.2.1",
            ),
            (
                "trusted hops are passed",
                "10.0.0.1",
                vec!["1.1.1.1, 192.0.2.1, 10.2.3.4"],
                "192.0.2.1",
            ),
            (
                "lines are one list",
                "10.0.0.1",
                vec!["192.0.2.1", "10.9.9.9"],
                "192.0.2.1",
            ),
            (
                "all hops trusted",
                "10.0.0.1",
                vec!["10.0.0.3, 10.0.0.2"],
                "10.0.0.3",
            ),
            ("1000 addresses", "10.0.0.1", vec![&chain], "192.0.2.1"),
            ("zone", "10.0.0.1", vec!["fe80::1%eth0"], "10.0.0.1"),
            (
                "garbage",
                "10.0.0.1",
                vec!["192.0.2.1, \u{e9}, 10.0.0.2"],
                "10.0.0.2",
            ),
            ("empty hop", "10.0.0.1", vec!["192.0.2.1,,"], "10.0.0.1"),
            ("port", "10.0.0.1", vec!["192.0.2.1:4711"], "192.0.2.1"),
            ("IPv6", "fd00::1", vec!["[2001:db8::1]:4711"], "2001:db8::1"),
            (
                "IPv6 in brackets",
                "fd00::1",
                vec!["[2001:db8::1]"],
                "2001:db8::1",
            ),
            (
                "mapped peer and hop",
                "::ffff:10.0.0.1",
                vec!["::ffff:192.0.2.1"],
                "192.0.2.1",
            ),
        ] {
            assert_eq!(
                find(ClientAddress::XForwardedFor, peer, &lines),
                expected,
                "{row}"
            );
        }
    }

    #[test]
    fn forwarded() {
        for (row, line, expected) in [
            (
                "plain",
                "for=192.0.2.1;proto=https;by=10.0.0.1",
                "192.0.2.1",
            ),
            (
                "quoted with port",
                r#"proto=https; For="[2001:db8::1]:47""#,
                "2001:db8::1",
            ),
            (
                "right-most",
                "for=1.2.3.4, for=192.0.2.1, for=10.0.0.2",
                "192.0.2.1",
            ),
            ("unknown", "for=192.0.2.1, for=unknown", "10.0.0.1"),
            ("obfuscated", "for=_hidden", "10.0.0.1"),
            (
                "quoted separators",
                r#"for=192.0.2.1;by="a,b;for=1.1.1.1\"""#,
                "192.0.2.1",
            ),
            ("open quote", r#"for=192.0.2.1, for="1.1.1.1"#, "10.0.0.1"),
            ("two for", "for=192.0.2.1;for=192.0.2.2", "10.0.0.1"),
        ] {
            assert_eq!(
                find(ClientAddress::Forwarded, "10.0.0.1", &[line]),
                expected,
                "{row}"
            );
        }
    }

    #[test]
    fn only_the_configured_source_is_believed() {
        assert_eq!(
            find(ClientAddress::Peer, "10.0.0.1", &["192.0.2.1"]),
            "10.0.0.1"
        );
        let finder = AddressFinder::new(&ServerConfig {
            client_address: ClientAddress::ProxyProtocol,
            ..ServerConfig::default()
        });
        let client = finder.client(
            "10.0.0.1".parse().unwrap(),
            Some("192.0.2.1:5".parse().unwrap()),
            &HeaderMap::new(),
        );
        assert_eq!(client.to_string(), "192.0.2.1");
    }

    #[test]
    fn ipv6_counts_by_its_64() {
        for (address, key) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(counting_key(address.parse().unwrap()).to_string(), key);
        }
    }
}
