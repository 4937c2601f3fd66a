//! The configuration: one struct per table of the file, one documented field per key.
//!
//! The reader, its error messages, the defaults and the reference all come from these declarations.
//! [`crate::validation`] checks the keys together, and has `Config::load`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::TenantId;

pub use claim::{ClaimRule, ClaimValue, ExpectedClaim};
pub use effective::{Effective, Trusts, names_cluster, names_meet, prefix_fault};
pub use environment::Environment;
pub use fault::{Fault, Faults};
pub use file::{FileMark, FileMarks};
pub use group::{GroupConfig, HistoryConfig, PresenceConfig, Subscribe};
pub use layer::{GroupNames, LayerConfig, LayerKind, SerializerFormat, channel_pattern};
pub use problem::{ConfigErrors, Mistake, Warning};
pub use reference::{defaults_toml, reference};
pub use registry::RegistryConfig;
pub use route::{
    Accept, ConsumerConfig, Deliver, OnFrame, OnInvalid, OnPing, OnWorkerFull, RouteConfig,
};
pub use secret::Secret;
pub use server::{
    AdminConfig, ApiConfig, ClientAddress, ConfinedKey, DenylistConfig, DrainConfig, Heartbeat,
    KeyScope, LogConfig, LogFormat, MetricsConfig, OnOutage, PerAddress, QueueBound, RedisConfig,
    ServerConfig,
};
pub use tenant::{LimitsConfig, OnExcess, OnGap, RefusalMode, StrangerLimits, TenantConfig};
pub use tls::{Authorities, TlsConfig, Trust, Verify};
pub use token::{IssuerConfig, KeyConfig, OnExpiry, TokenConfig, TokenSource};
pub use units::{parse_duration, parse_size, print_duration, print_size};
pub use users::{IdType, PoolConfig, UsersConfig, UsersFrom};

pub use include::TenantFiles;
pub(crate) use include::{Concerned, IncludedFiles};
pub(crate) use load::{Draft, Places, TenantDraft};
pub(crate) use problem::ConfigReport;
pub(crate) use read::nearest;

use collection::{List, nested};
pub use form::parse_address;
use form::{Flag, Text};
use table::table;
use tenant::TenantTables;

mod claim;
mod collection;
mod document;
mod effective;
mod environment;
mod fault;
pub(crate) mod file;
mod form;
mod group;
mod include;
mod key;
mod layer;
mod load;
mod overrides;
mod problem;
mod read;
mod reference;
mod registry;
mod route;
mod secret;
mod server;
mod table;
mod tenant;
mod tls;
mod token;
mod units;
mod users;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

table! {
    /// The whole configuration: one TOML file, given as `--config` or in `LOCKGATE_CONFIG`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Config {
        /// Files with further `[tenants.NAME]` tables: shell globs, relative to this file.
        pub include: Vec<String> as List(Text) => Vec::new(),
        /// Apply a changed file within two seconds. Otherwise a reload needs SIGHUP or `POST /v1/reload`.
        pub watch: bool as Flag => false,
        /// The listener for sockets, and the bounds of this replica.
        pub server: ServerConfig as nested() => ServerConfig::default(),
        /// The listener for probes and metrics.
        pub admin: AdminConfig as nested() => AdminConfig::default(),
        /// The management API.
        pub api: ApiConfig as nested() => ApiConfig::default(),
        /// The trust in the certificates of all servers: Redis, databases, key sets (`jwk_url`).
        pub tls: TlsConfig as nested() => TlsConfig::default(),
        /// The Redis of the deployment.
        pub redis: RedisConfig as nested() => RedisConfig::default(),
        /// Tokens, users and tenants that are refused before their tokens expire.
        pub denylist: DenylistConfig as nested() => DenylistConfig::default(),
        /// Tenants in a database, beside those of the files.
        pub registry: RegistryConfig as nested() => RegistryConfig::default(),
        /// The log of this process, on standard output.
        pub log: LogConfig as nested() => LogConfig::default(),
        /// The content of `/metrics`.
        pub metrics: MetricsConfig as nested() => MetricsConfig::default(),
        /// One table per tenant, `[tenants.NAME]`; a name is 1 to 63 of `a-z`, `0-9` and `-`, and does not start with `-`.
        pub tenants: BTreeMap<TenantId, Arc<TenantConfig>> as TenantTables => BTreeMap::new(),
    }
}

impl Config {
    /// Returns the configuration of the deployment alone.
    pub fn without_tenants(&self) -> Self {
        Self {
            include: self.include.clone(),
            watch: self.watch,
            server: self.server.clone(),
            admin: self.admin.clone(),
            api: self.api.clone(),
            tls: self.tls.clone(),
            redis: self.redis.clone(),
            denylist: self.denylist.clone(),
            registry: self.registry.clone(),
            log: self.log.clone(),
            metrics: self.metrics.clone(),
            tenants: BTreeMap::new(),
        }
    }
}
