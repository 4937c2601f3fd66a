//! Channel layers: what each kind needs, and that tenants on one Redis do not meet.

use std::collections::BTreeMap;

use crate::config::{Config, GroupNames, LayerKind, Secret, TenantConfig};
use crate::ids::TenantId;

use super::{Checker, deployment, redis_url};

/// What Lockgate's own keys begin with.
const OWN_PREFIX: &str = "lockgate:";

/// Tenants by endpoint, each with its prefix.
type Shared<'c> = BTreeMap<String, Vec<(&'c str, &'c TenantId)>>;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    let mut shared = Shared::new();
    for (id, tenant) in &config.tenants {
        check_layer(config, id, tenant, checker);
        if is_pubsub(config, tenant)
            && let Some(url) = redis_of(config, tenant)
            && let Ok(endpoint) = redis_url::endpoint(url.expose())
        {
            let prefix = tenant.layer.prefix.as_str();
            shared.entry(endpoint).or_default().push((prefix, id));
        }
    }
    for (endpoint, tenants) in shared {
        if tenants.len() > 1 {
            check_prefixes(&endpoint, tenants, checker);
        }
    }
}

/// The Redis that carries a tenant's events.
fn redis_of<'c>(config: &'c Config, tenant: &'c TenantConfig) -> Option<&'c Secret> {
    let own = tenant.redis.as_ref().and_then(|redis| redis.url.as_ref());
    let host = tenant.layer.hosts.first();
    host.or(own).or(config.redis.url.as_ref())
}

fn is_pubsub(config: &Config, tenant: &TenantConfig) -> bool {
    match tenant.layer.kind {
        Some(kind) => kind == LayerKind::PubSub,
        None => redis_of(config, tenant).is_some(),
    }
}

fn check_layer(config: &Config, id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let layer = &tenant.layer;
    let at = |name: &str| format!("tenants.{id}.layer.{name}");
    match (layer.kind, redis_of(config, tenant)) {
        (Some(LayerKind::PubSub), None) => {
            let expected = "redis.url, tenants.NAME.redis or hosts";
            checker.mistake(&at("kind"), "\"pubsub\" without a Redis", expected, "");
        }
        (None, None) => {
            let text = "no Redis is configured, so events stay in this process; kind = \"memory\" says that it is meant";
            checker.warn(&format!("tenants.{id}.layer"), text);
        }
        _ => {}
    }
    if layer.kind == Some(LayerKind::Memory) && !layer.hosts.is_empty() {
        checker.mistake(
            &at("hosts"),
            "hosts of a memory layer",
            "kind = \"pubsub\", or no hosts",
            "",
        );
    }
    for (index, host) in layer.hosts.iter().enumerate() {
        deployment::redis(&at(&format!("hosts[{index}]")), Some(host), checker);
    }
    if layer.group_names == GroupNames::Any && !is_pubsub(config, tenant) {
        let expected = "\"channels\", or a pubsub layer";
        checker.mistake(
            &at("group_names"),
            "\"any\" on another layer than pubsub",
            expected,
            "",
        );
    }
}

/// Tenants on one Redis tell their groups apart by prefix alone; the database number does not separate pub/sub.
fn check_prefixes(endpoint: &str, mut tenants: Vec<(&str, &TenantId)>, checker: &mut Checker<'_>) {
    tenants.sort_unstable();
    for (prefix, id) in &tenants {
        let found = match *prefix {
            "" => "an empty prefix",
            own if own.starts_with(OWN_PREFIX) => "a prefix that begins with lockgate:",
            own if OWN_PREFIX.starts_with(own) => "a prefix that lockgate: begins with",
            own if own.contains("__group__") => "a prefix with __group__",
            _ => continue,
        };
        report(id, found.to_owned(), endpoint, checker);
    }
    // In order, whatever begins with a prefix stands right behind it.
    for pair in tenants.windows(2) {
        let [(short, first), (long, second)] = pair else {
            continue;
        };
        if !short.is_empty() && long.starts_with(short) {
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
