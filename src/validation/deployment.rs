//! Checks the tables of the deployment: listeners, heartbeat, Redis, log, API keys.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::config::{ClientAddress, Config, RegistryConfig, Secret, print_duration};
use crate::sealing::SealingKeys;
use crate::stores::database::DatabaseUrl;
use crate::stores::redis_url::RedisUrl;
use crate::telemetry;

use super::Checker;

/// Shortest key of the management API, in bytes.
const API_KEY_BYTES: usize = 32;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    listeners(config, checker);
    server(config, checker);
    redis("redis.url", config.redis.url.as_ref(), checker);
    redis("denylist.redis", config.denylist.redis.as_ref(), checker);
    if telemetry::filter(&config.log.level).is_none() {
        let found = format!("{:?}", config.log.level);
        let expected =
            "error, warn, info, debug, trace, or a filter such as \"info,lockgate::users=debug\"";
        checker.mistake("log.level", found, expected, "");
    }
    api_keys(config, checker);
    confined_keys(config, checker);
    registry(&config.registry, checker);
}

/// Reports a registry that lacks a part or whose database or keys are wrong.
fn registry(registry: &RegistryConfig, checker: &mut Checker<'_>) {
    match (&registry.database, registry.key.is_empty()) {
        (Some(_), true) => {
            let expected = "registry.key, which seals the secrets of its tenants";
            let advice = "make one: openssl rand -base64 32";
            checker.mistake(
                "registry.database",
                "a database without a key",
                expected,
                advice,
            );
        }
        (None, false) => {
            let expected = "registry.database, which holds the tenants";
            checker.mistake("registry.key", "a key without a database", expected, "");
        }
        _ => {}
    }
    if let Some(url) = &registry.database {
        let url = DatabaseUrl::parse(url).map_err(|fault| fault.below("database"));
        let url = checker.faults("registry", url.map_err(Into::into));
        if let Some(remark) = url.as_ref().and_then(DatabaseUrl::remark) {
            checker.warn("registry.database", remark);
        }
        if url.is_some_and(|url| url.is_in_memory()) {
            let expected = "a database that outlives the process";
            checker.mistake("registry.database", "a database in memory", expected, "");
        }
    }
    if !registry.key.is_empty() {
        checker.faults("registry.key", SealingKeys::new(&registry.key));
    }
}

/// Reports listeners that share a port. Different addresses of this machine may use the same port.
fn listeners(config: &Config, checker: &mut Checker<'_>) {
    let mut before: Vec<(&str, SocketAddr)> = Vec::new();
    let listeners = [
        ("server.listen", Some(config.server.listen)),
        ("admin.listen", Some(config.admin.listen)),
        ("api.listen", config.api.listen),
    ];
    for (key, listen) in listeners {
        let Some(listen) = listen else { continue };
        let overlaps = |other: &SocketAddr| {
            listen.port() != 0
                && listen.port() == other.port()
                && (listen.ip() == other.ip()
                    || listen.ip().is_unspecified()
                    || other.ip().is_unspecified())
        };
        if let Some((other, address)) = before.iter().find(|(_, address)| overlaps(address)) {
            let found = format!("{listen}, and {other} is {address}");
            checker.mistake(key, found, "a port of its own", "change one of the two");
        }
        before.push((key, listen));
    }
}

fn server(config: &Config, checker: &mut Checker<'_>) {
    let server = &config.server;
    if server.heartbeat.timeout >= server.heartbeat.interval {
        let found = format!(
            "{} beside an interval of {}",
            print_duration(server.heartbeat.timeout),
            print_duration(server.heartbeat.interval)
        );
        let expected = "a timeout shorter than the interval";
        checker.mistake(
            "server.heartbeat.timeout",
            found,
            expected,
            "lengthen the interval",
        );
    }
    if server.client_address != ClientAddress::Peer && server.trusted_proxies.is_empty() {
        let expected = "server.trusted_proxies with the networks of the proxies";
        let found = "a source without trusted proxies";
        checker.mistake(
            "server.client_address",
            found,
            expected,
            "name them, or write \"peer\"",
        );
    }
}

/// Reports confined keys without a key or without a scope.
fn confined_keys(config: &Config, checker: &mut Checker<'_>) {
    for (index, confined) in config.api.confined_keys.iter().enumerate() {
        let table = format!("api.confined_keys[{index}]");
        if confined.key.is_none() {
            let key = format!("{table}.key");
            checker.mistake(
                &key,
                "no key",
                "the key, at least 32 bytes",
                "make one: openssl rand -base64 32",
            );
        }
        if confined.scopes.is_empty() {
            let key = format!("{table}.scopes");
            let advice = "a key for every call belongs to api.api_keys";
            checker.mistake(&key, "no scope", "the calls that the key may make", advice);
        }
    }
}

/// Reports an invalid Redis URL.
pub(super) fn redis(key: &str, url: Option<&Secret>, checker: &mut Checker<'_>) {
    if let Some(Err(error)) = url.map(RedisUrl::parse) {
        checker.fault(key, error.into());
    }
}

/// Reports weak API keys, and keys that are configured twice: a shared key does not identify its caller.
pub(super) fn api_keys(config: &Config, checker: &mut Checker<'_>) {
    let operators = config.api.api_keys.iter().enumerate();
    let operators = operators.map(|(index, key)| (format!("api.api_keys[{index}]"), key));
    let confined = config.api.confined_keys.iter().enumerate();
    let confined = confined.filter_map(|(index, confined)| {
        let path = format!("api.confined_keys[{index}].key");
        Some((path, confined.key.as_ref()?))
    });
    let tenants = checker.in_order(config).into_iter();
    let tenants = tenants.flat_map(|(id, tenant)| {
        let keys = tenant.api_keys.iter().enumerate();
        keys.map(move |(index, key)| (format!("tenants.{id}.api_keys[{index}]"), key))
    });
    let mut seen: HashMap<&str, String> = HashMap::new();
    for (path, key) in operators.chain(confined).chain(tenants) {
        let bytes = key.expose().len();
        if bytes < API_KEY_BYTES {
            let found = format!("a key of {bytes} bytes");
            let expected = format!("at least {API_KEY_BYTES} bytes");
            checker.mistake(&path, found, expected, "make one: openssl rand -base64 32");
        } else if !key.expose().bytes().all(|b| b.is_ascii_graphic()) {
            let found = "a key with spaces or with characters beyond ASCII";
            checker.mistake(&path, found, "a key that a header can carry", "");
        } else if let Some(first) = seen.get(key.expose()) {
            let found = format!("the key of {first} again, at {}", checker.place_of(first));
            checker.mistake(&path, found, "a key of its own", "");
        }
        seen.entry(key.expose()).or_insert(path);
    }
    let has_keys = !config.api.api_keys.is_empty()
        || !config.api.confined_keys.is_empty()
        || config
            .tenants
            .values()
            .any(|tenant| !tenant.api_keys.is_empty());
    if config.api.listen.is_some() && !has_keys && checker.has("api.listen") {
        checker.warn(
            "api.listen",
            "there is no key in api.api_keys or of a tenant: every call gets 401",
        );
    }
}
