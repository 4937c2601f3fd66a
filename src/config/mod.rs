//! What an operator configures: one struct per table of the configuration file, one field per key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::ids::TenantId;

pub use secret::Secret;

mod secret;

/// The whole configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Files with further `[tenants.NAME]` tables; shell globs, relative to this file.
    pub include: Vec<String>,
    /// Apply a changed file without a signal.
    pub watch: bool,
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub api: ApiConfig,
    pub redis: RedisConfig,
    pub denylist: DenylistConfig,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    pub tenants: BTreeMap<TenantId, TenantConfig>,
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub client_address: ClientAddress,
    pub trusted_proxies: Vec<IpNet>,
    pub handshake_timeout: Duration,
    pub heartbeat: Heartbeat,
    pub max_connections: u64,
    pub max_queue_bytes: QueueBound,
    pub max_database_connections: u32,
    pub per_address: PerAddress,
    pub drain: DrainConfig,
    /// `None` is `"off"`.
    pub max_age: Option<Duration>,
    pub ready_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    Peer,
    XForwardedFor,
    Forwarded,
    ProxyProtocol,
}

#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    pub interval: Duration,
    pub timeout: Duration,
}

/// A part of the memory limit ("25%") or a size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueueBound {
    Percent(f64),
    Bytes(u64),
}

#[derive(Clone, Copy, Debug, Default)]
pub struct PerAddress {
    pub connections: u32,
    pub handshakes: u32,
    pub connects_per_second: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct DrainConfig {
    pub delay: Duration,
    /// Sockets per second.
    pub rate: u32,
    pub window: Duration,
}

#[derive(Clone, Debug)]
pub struct AdminConfig {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Off while unset.
    pub listen: Option<SocketAddr>,
    pub api_keys: Vec<Secret>,
    pub timeout: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct RedisConfig {
    /// Holds a password at times: a secret.
    pub url: Option<Secret>,
}

#[derive(Clone, Debug)]
pub struct DenylistConfig {
    pub redis: Option<Secret>,
    pub replicas: u32,
    pub on_outage: OnOutage,
    pub recheck: Duration,
    pub max_unverified: Option<Duration>,
    pub keep: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    Refuse,
    Allow,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A level, or a filter as tracing's `EnvFilter` reads it.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Debug)]
pub struct MetricsConfig {
    pub tenant_series: usize,
}

#[derive(Clone, Debug, Default)]
pub struct TenantConfig {
    pub hosts: Vec<String>,
    /// Empty: the request's own host.
    pub origins: Vec<String>,
    pub require_origin: bool,
    pub refusal: RefusalMode,
    pub on_gap: OnGap,
    pub api_keys: Vec<Secret>,
    pub redis: Option<RedisConfig>,
    pub token: TokenConfig,
    pub users: UsersConfig,
    pub layer: LayerConfig,
    pub limits: LimitsConfig,
    pub routes: Vec<RouteConfig>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefusalMode {
    #[default]
    Http,
    Close,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    #[default]
    Count,
    Notify,
    Close,
}

#[derive(Clone, Debug)]
pub struct TokenConfig {
    /// One entry for the single form (`algorithm` with `signing_key` or `verifying_key`), else `keys`; at most 8.
    pub keys: Vec<KeyConfig>,
    pub jwk_url: Option<String>,
    /// With `jwk_url`: the only algorithm that is accepted.
    pub algorithm: Option<String>,
    pub user_id_claim: String,
    pub user_id_field: String,
    /// `None` is `false`: not checked.
    pub jti_claim: Option<String>,
    pub token_type_claim: Option<String>,
    pub token_types: Vec<String>,
    pub audience: Vec<String>,
    /// As simplejwt: none, one or several.
    pub issuer: Vec<String>,
    pub leeway: Duration,
    pub check_revoke_token: bool,
    pub revoke_token_claim: String,
    pub check_user_is_active: bool,
    /// Bytes.
    pub max_size: u64,
    pub sources: Vec<TokenSource>,
    pub query_parameter: String,
    pub on_expiry: OnExpiry,
}

#[derive(Clone, Debug)]
pub struct KeyConfig {
    pub algorithm: String,
    pub kid: Option<String>,
    pub signing_key: Option<Secret>,
    pub verifying_key: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    Query,
    Header,
    Subprotocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExpiry {
    Close,
    Keep,
}

#[derive(Clone, Debug)]
pub struct UsersConfig {
    pub database: Option<Secret>,
    pub table: String,
    pub query: Option<String>,
    pub id_type: IdType,
    pub pool: PoolConfig,
    pub cache_ttl: Duration,
    pub stale_ttl: Duration,
    pub negative_ttl: Duration,
    pub local_ttl: Duration,
    pub authorize_ttl: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdType {
    Int,
    Uuid,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    pub max: u32,
    pub idle: Duration,
}

#[derive(Clone, Debug)]
pub struct LayerConfig {
    /// `None`: `pubsub` where a Redis is configured, else `memory`.
    pub kind: Option<LayerKind>,
    /// Redis URLs, in order; empty: the tenant's Redis.
    pub hosts: Vec<Secret>,
    pub prefix: String,
    pub serializer_format: SerializerFormat,
    pub symmetric_encryption_keys: Vec<Secret>,
    pub group_names: GroupNames,
    pub expiry: Duration,
    pub group_expiry: Duration,
    pub capacity: u32,
    pub channel_capacity: BTreeMap<String, u32>,
    pub random_prefix_length: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    Memory,
    PubSub,
    Core,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerializerFormat {
    MsgPack,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupNames {
    Channels,
    Any,
}

#[derive(Clone, Copy, Debug)]
pub struct LimitsConfig {
    pub connections: u32,
    pub connects_per_second: u32,
    pub connections_per_user: u32,
    pub on_excess: OnExcess,
    pub messages_per_second: u32,
    pub message_size: u64,
    pub groups_per_socket: u32,
    pub send_queue: u64,
    pub publishes_per_second: u32,
    pub layer_queue: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExcess {
    Refuse,
    Replace,
}

#[derive(Clone, Debug, Default)]
pub struct RouteConfig {
    /// As Django's `path()`.
    pub path: String,
    pub groups: Vec<String>,
    pub subprotocols: Vec<String>,
    pub consumer: ConsumerConfig,
    pub deliver: Deliver,
    /// Shell globs over event types; empty: all.
    pub events: Vec<String>,
    pub authorize: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Deliver {
    #[default]
    Body,
    Event,
    Field(String),
}

/// `consumer = { kind = "…", … }`. Keys that the kind does not know are a configuration error.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerConfig {
    /// `listen`, `echo`, `broadcast`, `worker`, or the name of a registered Rust type.
    pub kind: String,
    /// `listen`.
    pub on_frame: OnFrame,
    /// `broadcast`: the group template that frames go to; needed where a route has several groups.
    pub to: Option<String>,
    /// `broadcast`: the type of the event.
    pub event_type: Option<String>,
    /// `broadcast`: the only keys that a client may set; `None`: any.
    pub fields: Option<Vec<String>>,
    /// `broadcast`: `user_id` and user fields that the gateway adds.
    pub stamp: Vec<String>,
    /// `broadcast`.
    pub on_invalid: OnInvalid,
    /// A registered Rust type gets what else stands in the table.
    pub options: toml::Table,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFrame {
    #[default]
    Drop,
    Close,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInvalid {
    #[default]
    Drop,
    Reply,
    Close,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8000)),
            client_address: ClientAddress::Peer,
            trusted_proxies: Vec::new(),
            handshake_timeout: Duration::from_secs(10),
            heartbeat: Heartbeat {
                interval: Duration::from_secs(25),
                timeout: Duration::from_secs(10),
            },
            max_connections: 0,
            max_queue_bytes: QueueBound::Percent(25.0),
            max_database_connections: 100,
            per_address: PerAddress::default(),
            drain: DrainConfig {
                delay: Duration::from_secs(5),
                rate: 300,
                window: Duration::from_secs(60),
            },
            max_age: None,
            ready_wait: Duration::from_secs(30),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: None,
            api_keys: Vec::new(),
            timeout: Duration::from_millis(250),
        }
    }
}

impl Default for DenylistConfig {
    fn default() -> Self {
        Self {
            redis: None,
            replicas: 0,
            on_outage: OnOutage::Refuse,
            recheck: Duration::from_secs(60),
            max_unverified: None,
            keep: Duration::from_secs(30 * 86_400),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            level: "info".into(),
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { tenant_series: 100 }
    }
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            jwk_url: None,
            algorithm: None,
            user_id_claim: "user_id".into(),
            user_id_field: "id".into(),
            jti_claim: Some("jti".into()),
            token_type_claim: Some("token_type".into()),
            token_types: vec!["access".into()],
            audience: Vec::new(),
            issuer: Vec::new(),
            leeway: Duration::ZERO,
            check_revoke_token: false,
            revoke_token_claim: "hash_password".into(),
            check_user_is_active: true,
            max_size: 8 * KIB,
            sources: vec![
                TokenSource::Query,
                TokenSource::Header,
                TokenSource::Subprotocol,
            ],
            query_parameter: "token".into(),
            on_expiry: OnExpiry::Close,
        }
    }
}

impl Default for UsersConfig {
    fn default() -> Self {
        Self {
            database: None,
            table: "auth_user".into(),
            query: None,
            id_type: IdType::Int,
            pool: PoolConfig {
                max: 4,
                idle: Duration::from_secs(30),
            },
            cache_ttl: Duration::from_secs(300),
            stale_ttl: Duration::from_secs(3600),
            negative_ttl: Duration::from_secs(10),
            local_ttl: Duration::from_secs(5),
            authorize_ttl: Duration::from_secs(10),
        }
    }
}

impl Default for LayerConfig {
    fn default() -> Self {
        Self {
            kind: None,
            hosts: Vec::new(),
            prefix: "asgi".into(),
            serializer_format: SerializerFormat::MsgPack,
            symmetric_encryption_keys: Vec::new(),
            group_names: GroupNames::Channels,
            expiry: Duration::from_secs(60),
            group_expiry: Duration::from_secs(86_400),
            capacity: 100,
            channel_capacity: BTreeMap::new(),
            random_prefix_length: 12,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 0,
            connects_per_second: 0,
            connections_per_user: 0,
            on_excess: OnExcess::Refuse,
            messages_per_second: 50,
            message_size: 64 * KIB,
            groups_per_socket: 100,
            send_queue: MIB,
            publishes_per_second: 0,
            layer_queue: 8 * MIB,
        }
    }
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            kind: "listen".into(),
            on_frame: OnFrame::default(),
            to: None,
            event_type: None,
            fields: None,
            stamp: Vec::new(),
            on_invalid: OnInvalid::default(),
            options: toml::Table::new(),
        }
    }
}
