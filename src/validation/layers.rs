//! Checks channel layers: the needs of each kind, and that tenants on one Redis do not share names.

use std::collections::BTreeSet;

use crate::channel_layer::core::Capacities;
use crate::config::{
    Config, Effective, GroupNames, LayerConfig, LayerKind, TenantConfig, names_cluster, names_meet,
    prefix_fault,
};
use crate::ids::TenantId;
use crate::stores::redis_url::RedisUrl;

use super::{Checker, Shared, SharedLayer, deployment, workers};

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    let mut shared = Shared::new();
    for (id, tenant) in &config.tenants {
        let effective = config.effective(tenant);
        check_layer(id, &effective, checker);
        // A name that could not be read is empty here, and would seem to meet those of others.
        let named = ["prefix", "namespace"];
        let named = named.map(|name| format!("tenants.{id}.layer.{name}"));
        let is_wrong = named.iter().any(|key| checker.is_wrong(key));
        if is_wrong {
            continue;
        }
        for endpoint in endpoints(&effective) {
            let layer = &tenant.layer;
            let names = (layer.prefix.as_str(), layer.namespace.as_str());
            shared.entry(endpoint).or_default().insert((names, id));
        }
    }
    workers::check(config, &shared, checker);
    check_newcomer(config, &shared, checker);
    // Two tenants may meet on several hosts, or on several Sentinels of one master. Report the pair once.
    let mut told = BTreeSet::new();
    for (endpoint, tenants) in shared {
        if tenants.len() > 1 {
            check_prefixes(&endpoint, &tenants, &mut told, checker);
        }
    }
}

/// Returns the servers of a layer, in the form in which they are compared. A memory layer has none.
pub(super) fn endpoints(effective: &Effective<'_>) -> BTreeSet<String> {
    if effective.layer_kind() == LayerKind::Memory {
        return BTreeSet::new();
    }
    let urls = effective.layer_hosts().into_iter();
    // An invalid URL is reported with its own key.
    let urls = urls.filter_map(|url| RedisUrl::parse(url).ok());
    let endpoints = urls.flat_map(|url| url.endpoints());
    endpoints
        .map(|endpoint| endpoint.to_ascii_lowercase())
        .collect()
}

/// Returns the reason for which the tenant is right only while no other is on its server.
pub(super) fn reason_to_be_alone(config: &Config, tenant: &TenantConfig) -> Option<String> {
    let prefix = prefix_fault(&tenant.layer.prefix).map(str::to_owned);
    prefix.or_else(|| {
        let channel = workers::open_channel(config, tenant)?;
        Some(format!(
            "workers on {channel:?}, which does not begin with its prefix"
        ))
    })
}

/// Reports a newcomer on the server of a tenant that must have it alone.
fn check_newcomer(config: &Config, shared: &Shared<'_>, checker: &mut Checker<'_>) {
    let Some(newcomer) = checker.newcomer else {
        return;
    };
    let alone = shared.iter().find_map(|(endpoint, tenants)| {
        let others = tenants.iter().map(|(_, id)| *id);
        let (other, why) = { others }
            .filter(|id| checker.tells_newcomer_beside(id, tenants))
            .find_map(|id| Some((id, reason_to_be_alone(config, &config.tenants[id])?)))?;
        Some((endpoint, other, why))
    });
    if let Some((endpoint, other, why)) = alone {
        let found = format!("{endpoint}, where tenant {other} is, which has {why}");
        let expected = format!("another Redis: tenant {other} must have that one alone");
        let advice = format!("set layer.hosts or redis.url of this tenant, or mend tenant {other}");
        let key = format!("tenants.{newcomer}.layer");
        checker.mistake(&key, found, expected, advice);
    }
}

fn check_layer(id: &TenantId, effective: &Effective<'_>, checker: &mut Checker<'_>) {
    let layer = &effective.tenant.layer;
    let at = |name: &str| format!("tenants.{id}.layer.{name}");
    let expected = "redis.url, tenants.NAME.redis or hosts";
    match (layer.kind, effective.layer_hosts().is_empty()) {
        (Some(LayerKind::PubSub), true) => {
            checker.mistake(&at("kind"), "\"pubsub\" without a Redis", expected, "");
        }
        (Some(LayerKind::Core), true) => {
            checker.mistake(&at("kind"), "\"core\" without a Redis", expected, "");
        }
        (Some(LayerKind::Sharded), true) => {
            checker.mistake(&at("kind"), "\"sharded\" without a Redis", expected, "");
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
            "kind = \"pubsub\", \"core\" or \"sharded\", or no hosts",
            "",
        );
    }
    check_cluster(id, effective, checker);
    for (index, host) in layer.hosts.iter().enumerate() {
        deployment::redis(&at(&format!("hosts[{index}]")), Some(host), checker);
    }
    if effective.layer_kind() == LayerKind::Memory && !layer.namespace.is_empty() {
        let text = "a memory layer has no names that others see, so the namespace does nothing";
        checker.warn(&at("namespace"), text);
    }
    if layer.group_names == GroupNames::Any && effective.layer_kind() != LayerKind::PubSub {
        let expected = "\"channels\", or a pubsub layer";
        checker.mistake(
            &at("group_names"),
            "\"any\" on another layer than pubsub",
            expected,
            "",
        );
    }
    let capacities = Capacities::new(layer.capacity, &layer.channel_capacity);
    let records = { &effective.tenant.groups }
        .iter()
        .any(|group| group.history.is_some());
    if let Ok(capacities) = &capacities
        && layer.kind == Some(LayerKind::Core)
        && records
    {
        check_room(
            &at,
            capacities.of_histories(&layer.namespace),
            layer,
            checker,
        );
    }
    checker.faults(&format!("tenants.{id}.layer"), capacities);
    let leaves_process = effective.layer_kind() != LayerKind::Memory;
    if leaves_process && effective.redis.is_none() && effective.denylist_redis().is_none() {
        let text = "the hosts carry events alone: without redis.url revocations, cached users and suspensions stay in this process";
        checker.warn(&at("hosts"), text);
    }
}

/// Reports a kind of layer that does not go with a cluster, or that needs one.
fn check_cluster(id: &TenantId, effective: &Effective<'_>, checker: &mut Checker<'_>) {
    let layer = &effective.tenant.layer;
    let at = |name: &str| format!("tenants.{id}.layer.{name}");
    let hosts = effective.layer_hosts();
    let clusters = hosts.iter().filter(|host| names_cluster(host)).count();
    match effective.layer_kind() {
        LayerKind::PubSub if clusters > 0 => checker.mistake(
            &at("kind"),
            "\"pubsub\" on a Redis Cluster",
            "\"sharded\", or no kind",
            "every node of a cluster would carry every event of a plain channel; the back end takes the layer class of \
             deploy/django for a cluster",
        ),
        LayerKind::Core if clusters > 0 => checker.mistake(
            &at("kind"),
            "\"core\" on a Redis Cluster",
            "\"sharded\", or no kind",
            "the scripts of channels_redis.core use keys of several slots, which a cluster refuses",
        ),
        LayerKind::Sharded if clusters < hosts.len() => checker.mistake(
            &at("kind"),
            "\"sharded\" on a Redis that is no cluster",
            "redis+cluster:// or rediss+cluster:// as the URL, or another kind",
            "a single server, Sentinels and several hosts have \"pubsub\" or \"core\"",
        ),
        LayerKind::Sharded if hosts.len() > 1 => checker.mistake(
            &at("hosts"),
            format!("{} clusters", hosts.len()),
            "one URL with some nodes of one cluster",
            "the cluster itself spreads the groups over its shards",
        ),
        LayerKind::Sharded if layer.prefix.contains(['{', '}']) => checker.mistake(
            &at("prefix"),
            "a prefix with braces",
            "a prefix without { and }",
            "braces would move a group's history to another slot than its channel",
        ),
        _ => {}
    }
}

/// Reports mailboxes of histories that are full when a mark and an event lie there.
fn check_room(
    at: &dyn Fn(&str) -> String,
    capacity: u32,
    layer: &LayerConfig,
    checker: &mut Checker<'_>,
) {
    if capacity < 3 {
        let key = match layer.capacity < 3 {
            true => "capacity",
            false => "channel_capacity",
        };
        checker.mistake(
            &at(key),
            capacity.to_string(),
            "at least 3 beside groups with history, whose mailboxes hold a mark too",
            "raise it here and in CHANNEL_LAYERS, which must be the same",
        );
    }
}

/// Reports names that do not separate tenants on one Redis. The database number does not separate pub/sub.
fn check_prefixes<'c>(
    endpoint: &str,
    tenants: &BTreeSet<SharedLayer<'c>>,
    told: &mut BTreeSet<&'c TenantId>,
    checker: &mut Checker<'_>,
) {
    for ((prefix, _), id) in tenants {
        let Some(found) = prefix_fault(prefix) else {
            continue;
        };
        if !checker.tells_newcomer_beside(id, tenants) && told.insert(id) {
            report(id, "prefix", found.to_owned(), endpoint, checker);
        }
    }
    // In sorted order, names that begin with others directly follow them.
    let mut before: Option<&SharedLayer<'c>> = None;
    for layer in { tenants.iter() }.filter(|((prefix, _), _)| prefix_fault(prefix).is_none()) {
        match before {
            Some(other) if names_meet(other.0, layer.0) => {
                let (first, second) = match Some(other.1) == checker.newcomer {
                    true => (layer, other),
                    false => (other, layer),
                };
                if told.insert(second.1) {
                    meeting(*first, *second, endpoint, checker);
                }
            }
            _ => before = Some(layer),
        }
    }
}

/// Reports the second of two layers whose names meet.
fn meeting(
    (names, first): SharedLayer<'_>,
    (own, second): SharedLayer<'_>,
    endpoint: &str,
    checker: &mut Checker<'_>,
) {
    let both = !names.1.is_empty() && !own.1.is_empty();
    let (key, own, others) = match names.0 == own.0 && both {
        true => ("namespace", own.1, names.1),
        false => ("prefix", own.0, names.0),
    };
    let place = checker.place_of(&format!("tenants.{first}.layer.{key}"));
    let found = match own.starts_with(others) {
        true => format!("{own:?}, which begins with {others:?} of tenant {first}, at {place}"),
        false => format!("{own:?}, with which {others:?} of tenant {first} begins, at {place}"),
    };
    report(second, key, found, endpoint, checker);
}

fn report(id: &TenantId, key: &str, found: String, endpoint: &str, checker: &mut Checker<'_>) {
    let expected = format!("a {key} that keeps it apart from other tenants on {endpoint}");
    let advice = match key {
        "namespace" => format!(
            "for example namespace = \"{id}.\", which begins the groups that Django sends to"
        ),
        _ => format!(
            "for example prefix = \"{id}\", the same in CHANNEL_LAYERS; tenants of one project keep the prefix and \
             have each a namespace"
        ),
    };
    checker.mistake(
        &format!("tenants.{id}.layer.{key}"),
        found,
        expected,
        advice,
    );
}
