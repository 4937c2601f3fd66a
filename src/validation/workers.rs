//! Checks routes with `kind = "worker"`: their layer must reach a worker, and their channel no other tenant's worker.

use crate::channel_names::own_channel_beginnings;
use crate::config::{Config, ConsumerConfig, LayerKind, TenantConfig};
use crate::ids::TenantId;

use super::{Checker, Shared};

pub(super) fn check(config: &Config, shared: &Shared<'_>, checker: &mut Checker<'_>) {
    for (id, tenant) in &config.tenants {
        for (index, route) in tenant.routes.iter().enumerate() {
            if route.consumer.kind == "worker" {
                let key = format!("tenants.{id}.routes[{index}].consumer");
                let kind = config.effective(tenant).layer_kind();
                check_layer(&key, kind, checker);
                if kind == LayerKind::PubSub {
                    check_names(&key, &route.consumer, id, tenant, shared, checker);
                }
            }
        }
    }
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

/// Reports channel names that other tenants could use. Channels publishes to a channel's name without the layer's
/// prefix, so that only the name separates tenants.
fn check_names(
    key: &str,
    worker: &ConsumerConfig,
    id: &TenantId,
    tenant: &TenantConfig,
    shared: &Shared<'_>,
    checker: &mut Checker<'_>,
) {
    let Some(name) = worker.channel.as_deref() else {
        return;
    };
    let prefix = tenant.layer.prefix.as_str();
    let key = format!("{key}.channel");
    if let Some(taken) = own_channel_beginnings(prefix)
        .into_iter()
        .find(|taken| name.starts_with(taken))
    {
        let found = format!("{name:?}, which begins with {taken:?} as groups and sockets do");
        checker.mistake(&key, found, "a channel of workers alone", "");
        return;
    }
    let mut meetings = shared.iter().filter(|(_, tenants)| {
        let is_here = tenants.iter().any(|(_, other)| *other == id);
        is_here && tenants.len() > 1
    });
    if !name.starts_with(prefix)
        && let Some((endpoint, _)) = meetings.next()
    {
        let found = format!("{name:?} on {endpoint}, where other tenants are too");
        let expected = format!("a channel that begins with the tenant's prefix {prefix:?}");
        let advice = "a pubsub layer publishes to channels without its prefix";
        checker.mistake(&key, found, expected, advice);
    }
}
