//! Finds the tenant of a request by its Host header.
//!
//! An exact name comes before `*.name` (exactly one label), and that before `*`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

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
        let host = host_name(name)?;
        let whole =
            host.len() == name.len() || name.strip_suffix('.') == Some(name.get(..host.len())?);
        match (whole, wildcard) {
            (false, _) => None,
            (true, true) if host.starts_with('[') => None,
            (true, true) => Some(Self::OneLabel(host.into())),
            (true, false) => Some(Self::Exact(host.into())),
        }
    }
}

/// Returns the name in a Host header, in lower case, without port and trailing dot.
///
/// `None`: the header is no host (RFC 9110 §7.2), because it is empty, has user information, or has characters that
/// neither names nor addresses have. International names arrive as ASCII (`xn--…`).
pub fn host_name(header: &str) -> Option<Cow<'_, str>> {
    let (name, port) = match header.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')? + 2;
            let (name, after) = header.split_at(end);
            let address = name.get(1..end - 1)?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            match after.strip_prefix(':') {
                Some(port) => (name, port),
                None if after.is_empty() => (name, ""),
                None => return None,
            }
        }
        None => {
            let (name, port) = header.split_once(':').unwrap_or((header, ""));
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
            (name, port)
        }
    };
    if !port.bytes().all(|b| b.is_ascii_digit()) || port.len() > 5 {
        return None;
    }
    Some(if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
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
}

impl HostTable {
    /// Collects the hosts of all tenants. A sole tenant without hosts has every host.
    ///
    /// # Errors
    /// Every invalid, duplicate and missing host.
    pub fn new(tenants: &BTreeMap<TenantId, TenantConfig>) -> Result<Self, Vec<HostProblem>> {
        let mut table = Self::default();
        let mut problems = Vec::new();
        for (tenant, config) in tenants {
            let problem = |index, taken_by| HostProblem {
                tenant: tenant.clone(),
                index,
                taken_by,
            };
            match config.hosts.is_empty() {
                true if tenants.len() == 1 => table.any = Some(tenant.clone()),
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

    fn tenants(hosts: &[(&str, &[&str])]) -> BTreeMap<TenantId, TenantConfig> {
        hosts
            .iter()
            .map(|(name, hosts)| {
                let config = TenantConfig {
                    hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
                    ..TenantConfig::default()
                };
                (name.parse().unwrap(), config)
            })
            .collect()
    }

    #[test]
    fn exact_beats_wildcard_and_wildcard_beats_any() {
        let table = HostTable::new(&tenants(&[
            (
                "exact",
                &["a.example.com", "Caps.Example.Com.", "127.0.0.1", "[::1]"],
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
