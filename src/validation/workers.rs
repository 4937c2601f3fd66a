//! Checks routes with `kind = "worker"`: their layer must reach a worker, and their channel neither another tenant's
//! worker nor a partition of another route.

use std::collections::{BTreeMap, BTreeSet};

use crate::channel_names::own_channel_beginnings;
use crate::config::{Config, ConsumerConfig, LayerKind, TenantConfig};
use crate::ids::TenantId;

use super::{Checker, Shared};

/// The name of a worker's channel on a server: the prefix, if the layer has one there, and the channel.
pub(super) type WorkerQueue<'c> = (Option<&'c str>, String);

/// The most tenants that a warning names.
const SHOWN: usize = 3;

pub(super) fn check(config: &Config, shared: &Shared<'_>, checker: &mut Checker<'_>) {
    check_sharing(config, shared, checker);
    for (id, tenant) in &config.tenants {
        check_partitions(id, tenant, checker);
        for (index, route) in tenant.routes.iter().enumerate() {
            if route.consumer.kind == "worker" {
                let key = format!("tenants.{id}.routes[{index}].consumer");
                let kind = config.effective(tenant).layer_kind();
                check_layer(&key, kind, checker);
                if kind.has_channels() {
                    let key = format!("{key}.channel");
                    check_names(&key, &route.consumer, (id, tenant, kind), shared, checker);
                }
            }
        }
    }
}

/// Returns the channels that a tenant's workers listen to, each with the index of its route.
pub(super) fn queues<'c>(
    config: &'c Config,
    tenant: &'c TenantConfig,
) -> impl Iterator<Item = (usize, WorkerQueue<'c>)> {
    let kind = config.effective(tenant).layer_kind();
    let prefix = kind.worker_prefix(&tenant.layer.prefix);
    let routes = tenant.routes.iter().enumerate();
    routes.flat_map(move |(index, route)| {
        let channels = route.consumer.worker_channels().into_iter();
        channels.map(move |channel| (index, (prefix, channel)))
    })
}

/// Returns a channel of the tenant's workers that keeps it apart from no other tenant on its server.
pub(super) fn open_channel<'c>(config: &Config, tenant: &'c TenantConfig) -> Option<&'c str> {
    let kind = config.effective(tenant).layer_kind();
    let mut routes = tenant.routes.iter();
    routes.find_map(|route| without_prefix(&route.consumer, tenant, kind))
}

/// Returns the channel of a worker if only its name could separate tenants, and does not. Channels publishes to a channel's
/// name without the layer's prefix.
fn without_prefix<'c>(
    worker: &'c ConsumerConfig,
    tenant: &TenantConfig,
    kind: LayerKind,
) -> Option<&'c str> {
    let name = worker.channel.as_deref();
    name.filter(|name| {
        let is_published_to = worker.kind == "worker" && kind.has_channels();
        is_published_to && !name.starts_with(&tenant.layer.prefix)
    })
}

/// Warns of tenants whose workers listen to one channel. Only the schemas of one project do so on purpose.
fn check_sharing(config: &Config, shared: &Shared<'_>, checker: &mut Checker<'_>) {
    for (endpoint, tenants) in { shared.iter() }.filter(|(_, tenants)| tenants.len() > 1) {
        let mut listeners: BTreeMap<WorkerQueue<'_>, Vec<(&TenantId, usize)>> = BTreeMap::new();
        for (_, id) in tenants {
            for (index, queue) in queues(config, &config.tenants[*id]) {
                let users = listeners.entry(queue).or_default();
                if users.last().is_none_or(|(last, _)| last != id) {
                    users.push((id, index));
                }
            }
        }
        // The partitions of one route have the same users.
        let mut told = BTreeSet::new();
        for users in listeners.into_values().filter(|users| users.len() > 1) {
            let of_newcomer = { users.iter() }.find(|(id, _)| Some(*id) == checker.newcomer);
            let (id, index) = *of_newcomer.unwrap_or(&users[1]);
            if told.insert((id, index)) {
                let others = users.iter().map(|(other, _)| *other);
                let text = shared_channel(others.filter(|other| *other != id), endpoint);
                let key = format!("tenants.{id}.routes[{index}].consumer.channel");
                checker.warn(&key, text);
            }
        }
    }
}

fn shared_channel<'c>(others: impl Iterator<Item = &'c TenantId>, endpoint: &str) -> String {
    let mut others: Vec<_> = others.map(TenantId::as_str).collect();
    let rest = others.len().saturating_sub(SHOWN);
    others.truncate(SHOWN);
    let (names, more) = (
        others.join(", "),
        match rest {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        },
    );
    format!(
        "the workers of {names}{more} have the same channel on {endpoint}: each reads the frames of all of their sockets, and a Redis user of one \
         may do so too; let one project serve them all, which tells them apart by the tenant of an event, or give each a channel"
    )
}

/// Reports a channel that is a partition of another route: its worker would get frames of both.
fn check_partitions(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let workers = || {
        let routes = tenant.routes.iter().map(|route| &route.consumer);
        let routes = routes
            .enumerate()
            .filter(|(_, worker)| worker.kind == "worker");
        routes.filter_map(|(index, worker)| Some((index, worker, worker.channel.as_deref()?)))
    };
    let key = |index: usize| format!("tenants.{id}.routes[{index}].consumer.channel");
    for (index, _, name) in workers().filter(|(_, worker, _)| worker.partitions == 0) {
        let parent = workers().find(|(_, other, base)| is_partition(name, base, other.partitions));
        if let Some((parent, _, base)) = parent {
            let place = checker.place_of(&key(parent));
            let found = format!("{name:?}, which is a partition of {base:?} at {place}");
            let expected = "a channel that no other route's workers listen to";
            checker.mistake(&key(index), found, expected, "choose another name");
        }
    }
}

/// Returns true if `name` is `base.K` with K below `partitions`, written as the gateway writes it.
fn is_partition(name: &str, base: &str, partitions: u32) -> bool {
    let rest = name.strip_prefix(base);
    let number = rest.and_then(|rest| rest.strip_prefix('.'));
    let parsed = number.and_then(|number| number.parse::<u32>().ok());
    parsed.is_some_and(|k| k < partitions && number == Some(&k.to_string()))
}

fn check_layer(key: &str, kind: LayerKind, checker: &mut Checker<'_>) {
    if kind == LayerKind::Memory {
        let expected = "a pubsub or core layer";
        let advice = "a worker is a process of its own, which a memory layer does not reach";
        checker.mistake(
            &format!("{key}.kind"),
            "a worker on a memory layer",
            expected,
            advice,
        );
    }
}

/// Reports channel names that other tenants could use.
fn check_names(
    key: &str,
    worker: &ConsumerConfig,
    (id, tenant, kind): (&TenantId, &TenantConfig, LayerKind),
    shared: &Shared<'_>,
    checker: &mut Checker<'_>,
) {
    let Some(name) = worker.channel.as_deref() else {
        return;
    };
    let prefix = tenant.layer.prefix.as_str();
    if let Some(taken) = own_channel_beginnings(prefix)
        .into_iter()
        .find(|taken| name.starts_with(taken))
    {
        let found = format!("{name:?}, which begins with {taken:?} as groups and sockets do");
        checker.mistake(key, found, "a channel of workers alone", "");
        return;
    }
    let mut meetings = shared.iter().filter(|(_, tenants)| {
        let is_here = tenants.iter().any(|(_, other)| *other == id);
        is_here && tenants.len() > 1 && !checker.tells_newcomer_beside(id, tenants)
    });
    if without_prefix(worker, tenant, kind).is_some()
        && let Some((endpoint, _)) = meetings.next()
    {
        let found = format!("{name:?} on {endpoint}, where other tenants are too");
        let expected = format!("a channel that begins with the tenant's prefix {prefix:?}");
        let advice = "a pubsub layer publishes to channels without its prefix";
        checker.mistake(key, found, expected, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_a_name_that_the_gateway_would_write() {
        for (name, is) in [
            ("x.0", true),
            ("x.3", true),
            ("x.4", false),
            ("x.00", false),
            ("x.+1", false),
            ("x", false),
            ("x.", false),
            ("x.0.1", false),
            ("y.0", false),
        ] {
            assert_eq!(is_partition(name, "x", 4), is, "{name}");
        }
    }
}
