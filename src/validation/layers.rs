//! Channel layers: what each kind needs, and that tenants on one Redis do not meet.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, GroupNames, LayerKind, Secret, TenantConfig, channel_pattern};
use crate::ids::TenantId;

use super::{Checker, deployment, redis_url, workers};

/// What Lockgate's own keys begin with.
const OWN_PREFIX: &str = "lockgate:";

/// Tenants by endpoint, each once with its prefix.
pub(super) type Shared<'c> = BTreeMap<String, BTreeSet<(&'c str, &'c TenantId)>>;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    let mut shared = Shared::new();
    for (id, tenant) in &config.tenants {
        check_layer(config, id, tenant, checker);
        if kind_of(config, tenant) == LayerKind::Memory {
            continue;
        }
        for url in hosts_of(config, tenant) {
            for endpoint in redis_url::endpoints(url.expose()).unwrap_or_default() {
                let prefix = tenant.layer.prefix.as_str();
                shared.entry(endpoint).or_default().insert((prefix, id));
            }
        }
    }
    workers::check(config, &shared, checker);
    // Two tenants may meet on several hosts, and on several Sentinels of one master: told once.
    let mut told = BTreeSet::new();
    for (endpoint, tenants) in shared {
        if tenants.len() > 1 {
            check_prefixes(&endpoint, &tenants, &mut told, checker);
        }
    }
}

/// The Redis servers that carry a tenant's events.
fn hosts_of<'c>(config: &'c Config, tenant: &'c TenantConfig) -> Vec<&'c Secret> {
    let own = tenant.redis.as_ref().and_then(|redis| redis.url.as_ref());
    let hosts = &tenant.layer.hosts;
    if hosts.is_empty() {
        own.or(config.redis.url.as_ref()).into_iter().collect()
    } else {
        hosts.iter().collect()
    }
}

pub(super) fn kind_of(config: &Config, tenant: &TenantConfig) -> LayerKind {
    let has_redis = !hosts_of(config, tenant).is_empty();
    tenant.layer.kind.unwrap_or(match has_redis {
        true => LayerKind::PubSub,
        false => LayerKind::Memory,
    })
}

fn check_layer(config: &Config, id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let layer = &tenant.layer;
    let at = |name: &str| format!("tenants.{id}.layer.{name}");
    let expected = "redis.url, tenants.NAME.redis or hosts";
    match (layer.kind, hosts_of(config, tenant).is_empty()) {
        (Some(LayerKind::PubSub), true) => {
            checker.mistake(&at("kind"), "\"pubsub\" without a Redis", expected, "");
        }
        (Some(LayerKind::Core), true) => {
            checker.mistake(&at("kind"), "\"core\" without a Redis", expected, "");
        }
        (None, true) => {
            let text = "no Redis is configured, so events stay in this process; kind = \"memory\" says that it is meant";
            checker.warn(&format!("tenants.{id}.layer"), text);
        }
        _ => {}
    }
    if layer.kind == Some(LayerKind::Memory) && !layer.hosts.is_empty() {
        checker.mistake(
            &at("hosts"),
            "hosts of a memory layer",
            "kind = \"pubsub\" or \"core\", or no hosts",
            "",
        );
    }
    for (index, host) in layer.hosts.iter().enumerate() {
        deployment::redis(&at(&format!("hosts[{index}]")), Some(host), checker);
    }
    if layer.group_names == GroupNames::Any && kind_of(config, tenant) != LayerKind::PubSub {
        let expected = "\"channels\", or a pubsub layer";
        checker.mistake(
            &at("group_names"),
            "\"any\" on another layer than pubsub",
            expected,
            "",
        );
    }
    for glob in layer.channel_capacity.keys() {
        if let Err(error) = channel_pattern(glob) {
            let expected = "a shell glob over channel names, such as \"worker-*\"";
            checker.mistake(
                &at("channel_capacity"),
                format!("{glob:?}"),
                expected,
                error.msg,
            );
        }
    }
}

/// Tenants on one Redis tell their groups apart by prefix alone; the database number does not separate pub/sub.
fn check_prefixes<'c>(
    endpoint: &str,
    tenants: &BTreeSet<(&'c str, &'c TenantId)>,
    told: &mut BTreeSet<&'c TenantId>,
    checker: &mut Checker<'_>,
) {
    for (prefix, id) in tenants {
        let found = match *prefix {
            "" => "an empty prefix",
            own if own.starts_with(OWN_PREFIX) => "a prefix that begins with lockgate:",
            own if OWN_PREFIX.starts_with(own) => "a prefix that lockgate: begins with",
            own if own.contains("__group__") => "a prefix with __group__",
            _ => continue,
        };
        if told.insert(id) {
            report(id, found.to_owned(), endpoint, checker);
        }
    }
    // In order, whatever begins with a prefix stands right behind it.
    for ((short, first), (long, second)) in tenants.iter().zip(tenants.iter().skip(1)) {
        if !short.is_empty() && long.starts_with(short) && told.insert(second) {
            let place = checker.place_of(&format!("tenants.{first}.layer.prefix"));
            let found =
                format!("{long:?}, which begins with {short:?} of tenant {first}, at {place}");
            report(second, found, endpoint, checker);
        }
    }
}

fn report(id: &TenantId, found: String, endpoint: &str, checker: &mut Checker<'_>) {
    let expected = format!("a prefix that keeps it apart from other tenants on {endpoint}");
    let advice = format!("for example prefix = \"{id}\", the same in CHANNEL_LAYERS");
    checker.mistake(
        &format!("tenants.{id}.layer.prefix"),
        found,
        expected,
        advice,
    );
}
