//! The tables of the deployment: listeners, bounds, Redis, denylist, log, metrics.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::collection::{List, Optional, nested};
use super::document::{Node, Value};
use super::form::{
    ANY_SPAN, Address, SECONDS, SOME_SPAN, Text, choice, count, or_off, parsed, quote, within,
};
use super::read::{Form, Reader};
use super::secret::{Secret, SecretText};
use super::table::{table, words};
use super::units;

table! {
    /// The listener for sockets, and the bounds of this replica.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ServerConfig {
        /// Where sockets are accepted; nothing else is served here.
        pub listen: SocketAddr as Address => SocketAddr::from(([0, 0, 0, 0], 8000)),
        /// Where the client's address is read from: one source; of a list the right-most hop that is not in `trusted_proxies`.
        pub client_address: ClientAddress as choice() => ClientAddress::Peer,
        /// Networks whose word about the client's address is believed.
        pub trusted_proxies: Vec<IpNet> as List(parsed("a network such as \"10.0.0.0/8\"")) => Vec::new(),
        /// How long a client may take to send its request. Longer lets slow clients hold descriptors.
        pub handshake_timeout: Duration as SOME_SPAN => Duration::from_secs(10),
        /// Pings to clients.
        pub heartbeat: Heartbeat as nested() => Heartbeat::default(),
        /// Open sockets of this replica; above it upgrades get 503, and readiness stays. 0: the descriptor limit less 256.
        pub max_connections: u64 as count(0) => 0,
        /// Bound of all outbound queues together, as a part of the memory limit or as a size; shared frames count once. Over it the
        /// fullest sockets are closed with 4008.
        pub max_queue_bytes: QueueBound as Quota => QueueBound::Percent(25.0),
        /// Open database connections of this replica, all tenants together; without room, one that is idle elsewhere is closed.
        pub max_database_connections: u32 as count(1) => 100,
        /// Budgets of one client address; IPv6 counts by /64.
        pub per_address: PerAddress as nested() => PerAddress::default(),
        /// The paced goodbye of a replica.
        pub drain: DrainConfig as nested() => DrainConfig::default(),
        /// The age at which a socket is closed as in a drain (1012), at most `drain.rate` per second and up to a tenth later, so
        /// that new replicas fill.
        pub max_age: Option<Duration> as or_off(SECONDS) => None,
        /// How long a starting replica waits for its dependencies before it is ready without them.
        pub ready_wait: Duration as ANY_SPAN => Duration::from_secs(30),
    }
}

words! {
    /// Where the address of a client is read from.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ClientAddress {
        /// The TCP peer.
        Peer = "peer",
        /// `X-Forwarded-For`.
        XForwardedFor = "x-forwarded-for",
        /// `Forwarded` (RFC 7239).
        Forwarded = "forwarded",
        /// The PROXY protocol ahead of the request.
        ProxyProtocol = "proxy-protocol",
    }
}

table! {
    /// Pings to clients.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Heartbeat {
        /// Time between two pings of a socket. Longer than a proxy's idle timeout, and the proxy cuts sockets.
        pub interval: Duration as SECONDS => Duration::from_secs(25),
        /// How long the answer may take before the socket is closed with 4009; shorter than `interval`.
        pub timeout: Duration as SECONDS => Duration::from_secs(10),
    }
}

/// A part of the memory limit (`"25%"`) or a size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueueBound {
    /// Percent of the memory limit.
    Percent(f64),
    /// Bytes.
    Bytes(u64),
}

/// How a [`QueueBound`] is written.
struct Quota;

impl Form for Quota {
    type Value = QueueBound;

    fn expected(&self) -> String {
        "a part of the memory limit such as \"25%\", or a size such as \"512MiB\"".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<QueueBound> {
        let Value::Text(text) = &node.value else {
            return reader.wrong(node, self, "");
        };
        let read = match text.strip_suffix('%') {
            Some(number) => number
                .trim_end()
                .parse::<f64>()
                .ok()
                .filter(|percent| *percent > 0.0 && *percent <= 100.0)
                .map(QueueBound::Percent),
            None => units::parse_size(text)
                .filter(|bytes| *bytes > 0)
                .map(QueueBound::Bytes),
        };
        read.or_else(|| reader.wrong(node, self, "more than 0, and at most 100%"))
    }

    fn print(&self, value: &QueueBound) -> Option<String> {
        Some(quote(&match value {
            QueueBound::Percent(percent) => format!("{percent}%"),
            QueueBound::Bytes(bytes) => units::print_size(*bytes),
        }))
    }
}

table! {
    /// Budgets of one client address; 0 is no limit.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct PerAddress {
        /// Open sockets.
        pub connections: u32 as count(0) => 0,
        /// Handshakes at the same time.
        pub handshakes: u32 as count(0) => 0,
        /// New sockets per second; the bucket holds two seconds.
        pub connects_per_second: u32 as count(0) => 0,
    }
}

table! {
    /// The paced goodbye of a replica. `delay` + `window` + 5 s must fit into the grace period of its supervisor.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct DrainConfig {
        /// How long new sockets are still served, so that the load balancer can notice.
        pub delay: Duration as ANY_SPAN => Duration::from_secs(5),
        /// Sockets closed per second; more where `window` would not suffice.
        pub rate: u32 as count(1) => 300,
        /// How long the closing of all sockets may take.
        pub window: Duration as SECONDS => Duration::from_secs(60),
    }
}

table! {
    /// The listener for probes and metrics: `/livez`, `/readyz`, `/metrics`, on a thread of its own.
    #[derive(Clone, Debug, PartialEq)]
    pub struct AdminConfig {
        /// Where it listens. Not for the public.
        pub listen: SocketAddr as Address => SocketAddr::from(([127, 0, 0, 1], 9000)),
    }
}

table! {
    /// The management API, `/v1`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ApiConfig {
        /// Where it listens; off while unset.
        pub listen: Option<SocketAddr> as Optional(Address) => None,
        /// Keys of operators, for every tenant; at least 32 bytes each.
        pub api_keys: Vec<Secret> as List(SecretText) => Vec::new(),
        /// How long other replicas are waited for.
        pub timeout: Duration as SOME_SPAN => Duration::from_millis(250),
    }
}

table! {
    /// A Redis.
    #[derive(Clone, Debug, PartialEq)]
    pub struct RedisConfig {
        /// `redis://` or `rediss://` with host, port and database, or `redis+sentinel://h:p,h:p/NAME/0`; a secret where it has a password.
        pub url: Option<Secret> as Optional(SecretText) => None,
    }
}

table! {
    /// Tokens, users and tenants that are refused before their tokens expire.
    #[derive(Clone, Debug, PartialEq)]
    pub struct DenylistConfig {
        /// A Redis of its own, as a URL; if unset, the tenant's.
        pub redis: Option<Secret> as Optional(SecretText) => None,
        /// Acknowledgements by Redis replicas that a revocation needs (`WAIT`).
        pub replicas: u32 as within(0, 100) => 0,
        /// The answer to new sockets while the denylist cannot be asked.
        pub on_outage: OnOutage as choice() => OnOutage::Refuse,
        /// How often all open sockets are checked again.
        pub recheck: Duration as SECONDS => Duration::from_secs(60),
        /// How long an open socket may stay while the denylist cannot be asked; then it is closed, paced.
        pub max_unverified: Option<Duration> as or_off(SECONDS) => None,
        /// How long cut-offs are kept; longer than the longest token lives.
        pub keep: Duration as SECONDS => Duration::from_secs(30 * 86_400),
    }
}

words! {
    /// The answer to new sockets while the denylist cannot be asked.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnOutage {
        /// 503.
        Refuse = "refuse",
        /// They are let in.
        Allow = "allow",
    }
}

table! {
    /// The log of this process, on standard output.
    #[derive(Clone, Debug, PartialEq)]
    pub struct LogConfig {
        /// One JSON object per line, or text for people.
        pub format: LogFormat as choice() => LogFormat::Json,
        /// A level (`error`, `warn`, `info`, `debug`, `trace`), or a filter such as `info,lockgate::users=debug`.
        pub level: String as Text => "info".to_owned(),
    }
}

words! {
    /// The form of log lines.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum LogFormat {
        /// One JSON object per line.
        Json = "json",
        /// Text for people.
        Text = "text",
    }
}

table! {
    /// The content of `/metrics`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct MetricsConfig {
        /// Tenants with series of their own; the rest is counted as `_other`.
        pub tenant_series: usize as within(0, 100_000) => 100,
    }
}
