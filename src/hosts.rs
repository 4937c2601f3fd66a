//! Finds the tenant of a request by its Host header.
//!
//! An exact name comes before `*.name` (exactly one label), and that before `*`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::config::TenantConfig;
use crate::ids::TenantId;

/// A host of a tenant, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One name, in lower case.
    Exact(Box<str>),
    /// `*.name`; the value is the part after the first dot.
    OneLabel(Box<str>),
    /// `*`.
    Any,
}

impl HostPattern {
    /// Parses a configured host. `None`: it is neither a name nor an address, or it has a port.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (name, wildcard) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        // The port of a request is ignored, so a host with a port would never match.
        let (bare, port) = split_port(name)?;
        let host = host_name(bare).filter(|_| port.is_none())?;
        match wildcard {
            true if host.starts_with('[') => None,
            true => Some(Self::OneLabel(host.into())),
            false => Some(Self::Exact(host.into())),
        }
    }
}

/// Returns the name in a Host header, without port and trailing dot, in the form that [`canonical`] gives it.
///
/// `None`: the header is no host (RFC 9110 §7.2), because it is empty, has user information, or has characters that
/// neither names nor addresses have. International names arrive as ASCII (`xn--…`).
pub fn host_name(header: &str) -> Option<Cow<'_, str>> {
    let (name, port) = split_port(header)?;
    let port = port.unwrap_or_default();
    if !port.bytes().all(|b| b.is_ascii_digit()) || port.len() > 5 {
        return None;
    }
    if name.starts_with('[') {
        address(name)?;
        return Some(canonical(name));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    // 253 is the longest name in the DNS.
    if name.is_empty()
        || name.len() > 253
        || name.split('.').any(str::is_empty)
        || !name.bytes().all(allowed)
    {
        return None;
    }
    Some(canonical(name))
}

/// Returns the form in which hosts are compared: a name in lower case, an IPv6 address as RFC 5952 writes it, so that
/// `[0:0:0:0:0:0:0:1]` is `[::1]`.
pub fn canonical(host: &str) -> Cow<'_, str> {
    match address(host) {
        Some(address) => Cow::Owned(format!("[{address}]")),
        None if host.bytes().any(|b| b.is_ascii_uppercase()) => {
            Cow::Owned(host.to_ascii_lowercase())
        }
        None => Cow::Borrowed(host),
    }
}

/// Returns true if only this machine can be meant by a Host header: `localhost`, 127.0.0.0/8 or `[::1]`, with any port.
pub fn is_loopback(header: &str) -> bool {
    host_name(header).is_some_and(|host| {
        let v4 = || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        host == "localhost" || address(&host).is_some_and(|ip| ip.is_loopback()) || v4()
    })
}

/// Returns the address of an IPv6 literal.
fn address(host: &str) -> Option<Ipv6Addr> {
    let inner = host.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse().ok()
}

/// Splits a Host header before the colon of its port.
fn split_port(header: &str) -> Option<(&str, Option<&str>)> {
    let end = match header.starts_with('[') {
        true => header.find(']')? + 1,
        false => header.find(':').unwrap_or(header.len()),
    };
    let (name, after) = header.split_at(end);
    match after.strip_prefix(':') {
        Some(port) => Some((name, Some(port))),
        None => after.is_empty().then_some((name, None)),
    }
}

/// A fault in the hosts of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProblem {
    /// The tenant.
    pub tenant: TenantId,
    /// The position in its `hosts`. `None`: it has no hosts and is not the only tenant.
    pub index: Option<usize>,
    /// The other tenant with the same host. `None`: the text is no host.
    pub taken_by: Option<TenantId>,
}

/// The hosts of all tenants.
#[derive(Clone, Debug, Default)]
pub struct HostTable {
    exact: HashMap<Box<str>, TenantId>,
    one_label: HashMap<Box<str>, TenantId>,
    any: Option<TenantId>,
    /// True while there may be tenants whose hosts are not known yet.
    is_incomplete: bool,
}

impl HostTable {
    /// Collects the hosts of all tenants. A sole tenant without hosts has every host. Of two tenants with one host the second
    /// has the problem.
    ///
    /// # Errors
    /// Every invalid, duplicate and missing host.
    pub fn new<'c, T>(tenants: T) -> Result<Self, Vec<HostProblem>>
    where
        T: IntoIterator<Item = (&'c TenantId, &'c Arc<TenantConfig>), IntoIter: ExactSizeIterator>,
    {
        let tenants = tenants.into_iter();
        let is_sole = tenants.len() == 1;
        let mut table = Self::default();
        let mut problems = Vec::new();
        for (tenant, config) in tenants {
            let problem = |index, taken_by| HostProblem {
                tenant: tenant.clone(),
                index,
                taken_by,
            };
            match config.hosts.is_empty() {
                true if is_sole => table.any = Some(tenant.clone()),
                true => problems.push(problem(None, None)),
                false => {}
            }
            for (index, host) in config.hosts.iter().enumerate() {
                match HostPattern::parse(host) {
                    None => problems.push(problem(Some(index), None)),
                    Some(pattern) => {
                        if let Some(owner) = table.claim(pattern, tenant) {
                            problems.push(problem(Some(index), Some(owner)));
                        }
                    }
                }
            }
        }
        if problems.is_empty() {
            Ok(table)
        } else {
            Err(problems)
        }
    }

    /// Adds a host. Returns the other tenant that already has it.
    fn claim(&mut self, pattern: HostPattern, tenant: &TenantId) -> Option<TenantId> {
        let owner = match pattern {
            HostPattern::Exact(name) => self.exact.entry(name).or_insert_with(|| tenant.clone()),
            HostPattern::OneLabel(name) => {
                self.one_label.entry(name).or_insert_with(|| tenant.clone())
            }
            HostPattern::Any => self.any.get_or_insert_with(|| tenant.clone()),
        };
        (owner != tenant).then(|| owner.clone())
    }

    /// Adds the hosts of a tenant that cannot be served, as far as they are hosts and no other tenant has them.
    pub fn reserve(&mut self, tenant: &TenantId, hosts: &[String]) {
        for pattern in hosts.iter().filter_map(|host| HostPattern::parse(host)) {
            self.claim(pattern, tenant);
        }
    }

    /// Notes that there may be tenants whose hosts are not known yet.
    pub fn set_incomplete(&mut self) {
        self.is_incomplete = true;
    }

    /// Returns true if a host that is not found may still be that of a tenant.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Finds the tenant of a Host header. `None`: no tenant has the host, or the header is no host.
    pub fn find(&self, header: &str) -> Option<&TenantId> {
        let host = host_name(header)?;
        self.exact
            .get(&*host)
            .or_else(|| {
                let (_, parent) = host.split_once('.')?;
                self.one_label.get(parent)
            })
            .or(self.any.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn tenants(hosts: &[(&str, &[&str])]) -> BTreeMap<TenantId, Arc<TenantConfig>> {
        hosts
            .iter()
            .map(|(name, hosts)| {
                let config = TenantConfig {
                    hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
                    ..TenantConfig::default()
                };
                (name.parse().unwrap(), Arc::new(config))
            })
            .collect()
    }

    #[test]
    fn exact_beats_wildcard_and_wildcard_beats_any() {
        let table = HostTable::new(&tenants(&[
            (
                "exact",
                &[
                    "a.example.com",
                    "Caps.Example.Com.",
                    "127.0.0.1",
                    "[::1]",
                    "[2001:0DB8::000A]",
                ],
            ),
            ("wild", &["*.example.com"]),
            ("rest", &["*"]),
        ]))
        .unwrap();
        for (header, tenant) in [
            ("a.example.com", Some("exact")),
            ("A.EXAMPLE.com:8000", Some("exact")),
            ("a.example.com.", Some("exact")),
            ("a.example.com.:80", Some("exact")),
            ("a.example.com:", Some("exact")),
            ("caps.example.com", Some("exact")),
            ("127.0.0.1:8000", Some("exact")),
            ("[::1]:8000", Some("exact")),
            ("[::1]", Some("exact")),
            // Before: the spelling counted, and these were not found.
            ("[0:0:0:0:0:0:0:1]:8000", Some("exact")),
            ("[0000::0001]", Some("exact")),
            ("[2001:db8::a]", Some("exact")),
            ("[2001:DB8:0::A]:80", Some("exact")),
            ("[::2]", Some("rest")),
            ("b.example.com", Some("wild")),
            ("b.a.example.com", Some("rest")),
            ("example.com", Some("rest")),
            ("localhost", Some("rest")),
            ("", None),
            (":80", None),
            (".", None),
            ("a..b", None),
            (".example.com", None),
            ("a.example.com:80x", None),
            ("a.example.com:800000", None),
            ("a.example.com:80:80", None),
            ("user@a.example.com", None),
            ("a.example.com/", None),
            ("a example.com", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[a.example.com]", None),
            ("bücher.example", None),
        ] {
            assert_eq!(
                table.find(header).map(TenantId::as_str),
                tenant,
                "{header:?}"
            );
        }
    }

    #[test]
    fn two_spellings_of_an_address_are_one_host() {
        let tenants = tenants(&[
            ("a", &["[::1]"]),
            ("b", &["[0:0::1]", "[::1]:80", "*.[::1]"]),
        ]);
        let problems = HostTable::new(&tenants).unwrap_err();
        let taken: Vec<_> = problems.iter().map(|p| p.taken_by.is_some()).collect();
        assert_eq!(taken, [true, false, false]);
    }

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for (header, loopback) in [
            ("localhost:8000", true),
            ("LOCALHOST", true),
            ("localhost.", true),
            ("127.0.0.1:1", true),
            ("127.9.8.7", true),
            ("[::1]:8000", true),
            ("[0:0::1]", true),
            ("[::2]", false),
            ("128.0.0.1", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
            ("rebound.example.com:8000", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(header), loopback, "{header:?}");
        }
    }

    #[test]
    fn a_sole_tenant_needs_no_hosts() {
        let table = HostTable::new(&tenants(&[("sole", &[])])).unwrap();
        assert_eq!(table.find("anything").map(TenantId::as_str), Some("sole"));
        assert_eq!(table.find("not a host"), None);
    }

    #[test]
    fn hosts_of_two_tenants_and_texts_that_are_no_hosts_are_problems() {
        let problems = HostTable::new(&tenants(&[
            ("a", &["x.example", "*.example", "x.example"]),
            (
                "b",
                &[
                    "X.example.",
                    "*.Example",
                    "x.example:80",
                    "*.*.a",
                    "http://y",
                ],
            ),
            ("c", &[]),
        ]))
        .unwrap_err();
        let shown: Vec<(&str, Option<usize>, Option<&str>)> = problems
            .iter()
            .map(|p| {
                let taken_by = p.taken_by.as_ref().map(TenantId::as_str);
                (p.tenant.as_str(), p.index, taken_by)
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("b", Some(0), Some("a")),
                ("b", Some(1), Some("a")),
                ("b", Some(2), None),
                ("b", Some(3), None),
                ("b", Some(4), None),
                ("c", None, None),
            ]
        );
    }
}
