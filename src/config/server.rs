//! The tables of the deployment: listeners, bounds, Redis, denylist, log, metrics.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::collection::{List, Optional, nested};
use super::document::{Node, TomlValue};
use super::form::{
    ANY_SPAN, Address, SECONDS, SOME_SPAN, Text, choice, count, or_off, parsed, quote, within,
};
use super::read::{Form, Reader};
use super::secret::{Secret, SecretText};
use super::table::{Words, table, words};
use super::tls::{Authorities, AuthorityPem, Verify};
use super::units;

table! {
    /// The listener for sockets, and the bounds of this replica.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ServerConfig {
        /// The address for sockets; nothing else is served here.
        pub listen: SocketAddr as Address => SocketAddr::from(([0, 0, 0, 0], 8000)),
        /// The source of the client's address. In a list of hops the right-most one outside of `trusted_proxies` counts.
        pub client_address: ClientAddress as choice() => ClientAddress::Peer,
        /// Networks of proxies that may state the client's address.
        pub trusted_proxies: Vec<IpNet> as List(parsed("a network such as \"10.0.0.0/8\"")) => Vec::new(),
        /// Time for a client to send its request. A longer one lets slow clients hold descriptors.
        pub handshake_timeout: Duration as SOME_SPAN => Duration::from_secs(10),
        /// Time for a client to complete a message that it has begun. Then the socket is closed with 1008. Shorter than the time
        /// of the largest message on the slowest link is too short.
        pub message_timeout: Duration as SECONDS => Duration::from_secs(60),
        /// Pings to clients.
        pub heartbeat: Heartbeat as nested() => Heartbeat::default(),
        /// Most open sockets of this replica. Above it upgrades get 503; readiness stays on. 0: the descriptor limit less an eighth, which is at least 256 and at most 2,816.
        pub max_connections: u64 as count(0) => 0,
        /// Most connections whose handshake is not over. At the bound a new one takes the place of the oldest that has sent nothing,
        /// of the oldest incomplete request, or of the oldest without a verified token, whichever are most. 0: one for 40 KiB of the memory limit, at most a quarter of the descriptor limit.
        pub max_handshakes: u64 as count(0) => 0,
        /// Bound of the memory that clients and back ends can make this replica hold, as a part of the memory limit or as a size:
        /// queued frames (shared ones count once), events, unfinished messages, requests. Over it the oldest incomplete requests
        /// are dropped and the fullest sockets closed with 4008; a quarter above it no holder gets more than 4 KiB, and no
        /// tenant more than 64 KiB of events that wait for fan-out.
        pub max_queue_bytes: QueueBound as Quota => QueueBound::Percent(25.0),
        /// Most open database connections of this replica, all tenants together. At the limit an idle one of another pool is closed.
        pub max_database_connections: u32 as count(1) => 100,
        /// Limits of one client address. IPv6 addresses count by /64.
        pub per_address: PerAddress as nested() => PerAddress::default(),
        /// The drain of a replica: its sockets close at a limited rate.
        pub drain: DrainConfig as nested() => DrainConfig::default(),
        /// The age at which a socket is closed as in a drain (1012), at most `drain.rate` per second and up to a tenth later, so
        /// that new replicas fill.
        pub max_age: Option<Duration> as or_off(SECONDS) => None,
        /// Longest wait of a starting replica for its dependencies. Then it is ready without them.
        pub ready_wait: Duration as ANY_SPAN => Duration::from_secs(30),
    }
}

words! {
    /// The source of a client's address.
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
        /// Time between two pings of a socket. It must be shorter than the idle timeout of every proxy, which would cut the socket.
        pub interval: Duration as SECONDS => Duration::from_secs(25),
        /// Time for the answer, from the moment at which the ping leaves; then the socket is closed with 4009. Must be shorter than
        /// `interval`.
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

/// The written form of a [`QueueBound`].
struct Quota;

impl Form for Quota {
    type Value = QueueBound;

    fn expected(&self) -> String {
        "a part of the memory limit such as \"25%\", or a size such as \"512MiB\"".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<QueueBound> {
        let TomlValue::Text(text) = &node.value else {
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
    /// Limits of one client address. 0: no limit.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct PerAddress {
        /// Open sockets.
        pub connections: u32 as count(0) => 0,
        /// Handshakes at the same time.
        pub handshakes: u32 as count(0) => 0,
        /// New sockets per second. A burst of two seconds is allowed.
        pub connects_per_second: u32 as count(0) => 0,
    }
}

table! {
    /// The drain of a replica: its sockets close at a limited rate. `delay` + `window` + 5 s must fit into the grace period of its supervisor.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct DrainConfig {
        /// Time in which new sockets are still served, so that the load balancer can notice the drain.
        pub delay: Duration as ANY_SPAN => Duration::from_secs(5),
        /// Sockets closed per second; more if `window` would be too short.
        pub rate: u32 as count(1) => 300,
        /// Time for closing all sockets.
        pub window: Duration as SECONDS => Duration::from_secs(60),
    }
}

table! {
    /// The listener for probes and metrics: `/livez`, `/readyz`, `/metrics`, on a thread of its own.
    #[derive(Clone, Debug, PartialEq)]
    pub struct AdminConfig {
        /// The address. Keep it off public networks.
        pub listen: SocketAddr as Address => SocketAddr::from(([127, 0, 0, 1], 9000)),
    }
}

table! {
    /// The management API, `/v1`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ApiConfig {
        /// The address. Unset: the API is off.
        pub listen: Option<SocketAddr> as Optional(Address) => None,
        /// Keys of operators, valid for every tenant; at least 32 bytes each.
        pub api_keys: Vec<Secret> as List(SecretText) => Vec::new(),
        /// Keys of operators that may make some calls only.
        pub confined_keys: Vec<ConfinedKey> as List(nested()) => Vec::new(),
        /// Longest wait for the answers of other replicas.
        pub timeout: Duration as SOME_SPAN => Duration::from_millis(250),
        /// Calls per second of each operator's key, a large body counting as several; over it 429. 0: no limit.
        pub calls_per_second: u32 as count(0) => 1000,
    }
}

table! {
    /// A key of an operator that may make some calls only, for every tenant.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ConfinedKey {
        /// The key; at least 32 bytes.
        pub key: Option<Secret> as Optional(SecretText) => None,
        /// The calls that it may make, at least one word; the page of the API has the calls of each.
        pub scopes: Vec<KeyScope> as List(choice()) => Vec::new(),
    }
}

words! {
    /// A group of calls of the management API.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum KeyScope {
        /// The list of tenants, one tenant, and the reasons in `/readyz`.
        TenantsRead = "tenants:read",
        /// Tenants of the registry: make, change and delete them.
        TenantsWrite = "tenants:write",
        /// Suspend and resume tenants.
        Suspend = "suspend",
        /// Send events.
        Send = "send",
        /// Close sockets of a user, or one socket.
        Disconnect = "disconnect",
        /// Read the record of a user again.
        Invalidate = "invalidate",
        /// Revoke tokens.
        Revoke = "revoke",
        /// Open sockets, histories, presence.
        List = "list",
        /// Let open sockets join and leave groups.
        Groups = "groups",
        /// Read the files again.
        Reload = "reload",
    }
}

impl KeyScope {
    /// Returns its word.
    pub fn word(self) -> &'static str {
        let mut words = <Self as Words>::WORDS.iter();
        let found = words.find(|(_, scope)| *scope == self);
        found.map_or("", |(word, _)| *word)
    }
}

table! {
    /// A Redis.
    #[derive(Clone, Debug, PartialEq)]
    pub struct RedisConfig {
        /// `redis://` or `rediss://` with host, port and database, `redis+sentinel://h:p,h:p/NAME/0`, or `redis+cluster://h:p,h:p` with
        /// some nodes of a cluster; with TLS `rediss+sentinel://` and `rediss+cluster://`. A secret if it has a password.
        pub url: Option<Secret> as Optional(SecretText) => None,
        /// Certificate authorities of this Redis, besides the system's and those of `[tls]`. Those of the deployment's Redis also
        /// hold for `denylist.redis` and the `hosts` of layers.
        pub ca: Vec<Authorities> as List(AuthorityPem) => Vec::new(),
        /// The part of the server's certificate that is checked over TLS: the chain and the name, the chain alone, or nothing,
        /// so that any server may answer in its place and gets the password.
        pub verify: Verify as choice() => Verify::Full,
    }
}

table! {
    /// Tokens, users and tenants that are refused before their tokens expire.
    #[derive(Clone, Debug, PartialEq)]
    pub struct DenylistConfig {
        /// A Redis of its own, as a URL. Unset: the tenant's.
        pub redis: Option<Secret> as Optional(SecretText) => None,
        /// Acknowledgements by Redis replicas that a revocation needs (`WAIT`).
        pub replicas: u32 as within(0, 100) => 0,
        /// The answer to new sockets while the denylist does not answer.
        pub on_outage: OnOutage as choice() => OnOutage::Refuse,
        /// Interval at which all open sockets are checked again.
        pub recheck: Duration as SECONDS => Duration::from_secs(60),
        /// Time for which an open socket may stay while the denylist does not answer. Then it is closed, at a limited rate.
        pub max_unverified: Option<Duration> as or_off(SECONDS) => None,
        /// Time for which cut-offs are kept. Must be longer than the longest lifetime of a token.
        pub keep: Duration as SECONDS => Duration::from_secs(30 * 86_400),
    }
}

words! {
    /// The answer to new sockets while the denylist does not answer.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnOutage {
        /// 503.
        Refuse = "refuse",
        /// Accept them.
        Allow = "allow",
    }
}

table! {
    /// The log of this process, on standard output.
    #[derive(Clone, Debug, PartialEq)]
    pub struct LogConfig {
        /// One JSON object per line, or text for people; `auto` is text at a terminal and JSON elsewhere.
        pub format: LogFormat as choice() => LogFormat::Auto,
        /// A level (`error`, `warn`, `info`, `debug`, `trace`), or a filter such as `info,lockgate::users=debug`.
        pub level: String as Text => "info".to_owned(),
    }
}

words! {
    /// The form of log lines.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum LogFormat {
        /// Text at a terminal, JSON elsewhere.
        Auto = "auto",
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
        /// Number of tenants with series of their own: the busiest, each for at least an hour. All others are counted as `_other`;
        /// `/metrics/tenants` has them all.
        pub tenant_series: usize as within(0, 100_000) => 100,
    }
}
