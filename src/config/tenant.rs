//! `[tenants.NAME]` and its limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::TenantId;

use super::collection::{List, Nested, Optional, nested};
use super::document::Node;
use super::form::{Flag, Size, Text, choice, count};
use super::group::GroupConfig;
use super::key::Inner;
use super::layer::LayerConfig;
use super::read::{Form, Reader, bare};
use super::route::RouteConfig;
use super::secret::{Secret, SecretText};
use super::server::RedisConfig;
use super::table::{Keyed, table, words};
use super::token::{TokenConfig, TokenTable};
use super::users::UsersConfig;
use super::{KIB, MIB};

table! {
    /// One customer of the deployment.
    #[derive(Clone, Debug, PartialEq)]
    pub struct TenantConfig {
        /// Host names: a name, `*.name` (one label), or `*`; exact beats wildcard. Only a sole tenant may leave it out.
        pub hosts: Vec<String> as List(Text) => Vec::new(),
        /// Origins of pages that may connect: `https://app.example.com`, `https://*.example.com`, `self` (the request's own host and
        /// port), those of apps and files (`capacitor://localhost`, `chrome-extension://ID`, `file://`), `null`, `*`. Empty: `self`.
        pub origins: Vec<String> as List(Text) => Vec::new(),
        /// Also refuse a request without `Origin`.
        pub require_origin: bool as Flag => false,
        /// The form of a refusal: an HTTP status, or an accepted upgrade that is closed at once with a code that browsers can read.
        pub refusal: RefusalMode as choice() => RefusalMode::Http,
        /// The sign of lost events to clients.
        pub on_gap: OnGap as choice() => OnGap::Count,
        /// Keys of the management API for this tenant only; at least 32 bytes each.
        pub api_keys: Vec<Secret> as List(SecretText) => Vec::new(),
        /// A Redis of its own. Unset: `[redis]`.
        pub redis: Option<RedisConfig> as Optional(nested()) => None,
        /// The tokens that are accepted.
        pub token: TokenConfig as TokenTable => TokenConfig::default(),
        /// The source of users.
        pub users: UsersConfig as nested() => UsersConfig::default(),
        /// Its channel layer.
        pub layer: LayerConfig as nested() => LayerConfig::default(),
        /// Its limits.
        pub limits: LimitsConfig as nested() => LimitsConfig::default(),
        /// The rules for its groups by their names: history, presence.
        pub groups: Vec<GroupConfig> as List(nested()) => Vec::new(),
        /// Its paths.
        pub routes: Vec<RouteConfig> as List(nested()) => Vec::new(),
    }
}

/// The tables below `[tenants]`.
pub(super) struct TenantTables;

impl Form for TenantTables {
    type Value = BTreeMap<TenantId, Arc<TenantConfig>>;

    fn expected(&self) -> String {
        "a table [tenants.NAME]".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        let tenant: Nested<TenantConfig> = nested();
        let read = table.iter().filter_map(|(name, node)| {
            reader.below(bare(name), |reader| match name.parse::<TenantId>() {
                Ok(id) => Some((id, Arc::new(tenant.read(node, reader)?))),
                Err(_) => {
                    let expected = "a name of 1 to 63 of a-z, 0-9 and -, not beginning with -";
                    reader.mistake(node, format!("{name:?}"), expected, "rename the tenant")
                }
            })
        });
        Some(read.collect())
    }

    fn print(&self, _: &Self::Value) -> Option<String> {
        None
    }

    fn inner(&self) -> Inner {
        Inner::Named(TenantConfig::ABOUT, TenantConfig::keys())
    }
}

words! {
    /// The form of a refusal.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum RefusalMode {
        /// By status, with a problem document.
        #[default]
        Http = "http",
        /// Accepted, and at once closed with the code of the reason.
        Close = "close",
    }
}

words! {
    /// The sign of lost events to clients.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum OnGap {
        /// Nothing; operators see it counted.
        #[default]
        Count = "count",
        /// The text frame `{"type":"lockgate.gap"}`.
        Notify = "notify",
        /// Close code 4004, paced.
        Close = "close",
    }
}

table! {
    /// Limits of one tenant, per replica. 0: no limit. Rates allow a burst of two seconds.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct LimitsConfig {
        /// Open sockets; over it 429. With those that say goodbye they are at most twice as many.
        pub connections: u32 as count(0) => 0,
        /// Open sockets without a user, of routes with `anonymous`; over it 429. The rest of `connections` is left for users.
        /// 0: half of `connections`.
        pub anonymous_connections: u32 as count(0) => 0,
        /// New sockets per second, counted after authentication; over it 429.
        pub connects_per_second: u32 as count(0) => 0,
        /// New sockets without a user per second; over it 429. The rest of `connects_per_second` is left for users. 0: half of
        /// `connects_per_second`.
        pub anonymous_connects_per_second: u32 as count(0) => 0,
        /// Open sockets of one user; over it as `on_excess` says.
        pub connections_per_user: u32 as count(0) => 0,
        /// The reaction to a socket over `connections_per_user`: 429, or the oldest is closed with 4506.
        pub on_excess: OnExcess as choice() => OnExcess::Refuse,
        /// Messages that one socket may send per second, of which 64 pings or pongs count as one; over it 4013.
        pub messages_per_second: u32 as count(0) => 50,
        /// Size of one message of a client; over it 1009.
        pub message_size: u64 as Size(0) => 64 * KIB,
        /// Groups of one socket; over it the connect is refused with 403 `group_forbidden`.
        pub groups_per_socket: u32 as count(0) => 100,
        /// Bytes that may wait for a socket that takes none. Over it the socket closes with 4008 unless it takes 80 KiB in 5 s
        /// and catches up within 60 s.
        pub send_queue: u64 as Size(0) => MIB,
        /// Events into groups per second. Over it the API answers 429, and a socket is closed with 4013.
        pub publishes_per_second: u32 as count(0) => 0,
        /// Events of sockets without a user into groups per second; over it such a socket is closed with 4013. The rest of
        /// `publishes_per_second` is left for users and the API. 0: half of `publishes_per_second`.
        pub anonymous_publishes_per_second: u32 as count(0) => 0,
        /// Calls of the management API per second with the tenant's own keys, all together, a large body counting as several; over it
        /// 429. An operator's key has `api.calls_per_second` instead. 0: no limit.
        pub api_calls_per_second: u32 as count(0) => 1000,
        /// Messages of the tenant's control channel per second, and as many answers; long messages and lists count as several. What
        /// is over it is dropped and counted, but never a `revoke`, `invalidate`, `suspend` or `resume`. 0: no limit.
        pub control_per_second: u32 as count(0) => 1000,
        /// Bytes that may wait for fan-out. Over it events are lost, which is a gap of this tenant only.
        pub layer_queue: u64 as Size(0) => 8 * MIB,
    }
}

/// The shares of a tenant's limits that its sockets without a user may take; 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrangerLimits {
    /// Of `connections`.
    pub connections: u32,
    /// Of `connects_per_second`.
    pub connects_per_second: u32,
    /// Of `publishes_per_second`.
    pub publishes_per_second: u32,
}

impl LimitsConfig {
    /// Returns true if a socket may be in so many groups.
    pub fn allow_groups(&self, count: usize) -> bool {
        self.groups_per_socket == 0 || count <= self.groups_per_socket as usize
    }

    /// Returns what sockets without a user may take: their own limits, else half of the tenant's, so that by default too
    /// clients without a token cannot use up what its users need.
    pub fn of_strangers(&self) -> StrangerLimits {
        // A limit of 1 has no half that is a limit.
        let share = |own: u32, all: u32| match (own, all) {
            (0, 0) => 0,
            (0, all) => (all / 2).max(1),
            (own, _) => own,
        };
        StrangerLimits {
            connections: share(self.anonymous_connections, self.connections),
            connects_per_second: share(
                self.anonymous_connects_per_second,
                self.connects_per_second,
            ),
            publishes_per_second: share(
                self.anonymous_publishes_per_second,
                self.publishes_per_second,
            ),
        }
    }
}

words! {
    /// The reaction to a socket over `connections_per_user`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnExcess {
        /// 429.
        Refuse = "refuse",
        /// The user's oldest socket is closed with 4506.
        Replace = "replace",
    }
}
