//! Routes with `kind = "worker"`: a channel that can reach a worker, and nobody else.

use std::time::Duration;

use crate::channel_names::{MAX_NAME, own_channel_beginnings, valid_group_name};
use crate::config::{Accept, Config, ConsumerConfig, LayerKind, TenantConfig};
use crate::ids::TenantId;

use super::{Checker, Shared};

/// The whole answer to a handshake may take 30 s.
const LONGEST_WAIT: Duration = Duration::from_secs(25);

pub(super) fn check(config: &Config, shared: &Shared<'_>, checker: &mut Checker<'_>) {
    for (id, tenant) in &config.tenants {
        for (index, route) in tenant.routes.iter().enumerate() {
            if route.consumer.kind == "worker" {
                let key = format!("tenants.{id}.routes[{index}].consumer");
                let kind = config.effective(tenant).layer_kind();
                check_worker(&key, &route.consumer, kind, checker);
                if kind == LayerKind::PubSub {
                    check_names(&key, &route.consumer, id, tenant, shared, checker);
                }
            }
        }
    }
}

fn check_worker(key: &str, worker: &ConsumerConfig, kind: LayerKind, checker: &mut Checker<'_>) {
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
    let channel = format!("{key}.channel");
    let last = worker.partitions.saturating_sub(1);
    match worker.channel.as_deref() {
        None => {
            let advice = "such as channel = \"chat\", with `manage.py runworker chat`";
            checker.mistake(
                &channel,
                "no channel",
                "the channel that a worker listens to",
                advice,
            );
        }
        Some(name) if !valid_group_name(name) => {
            let expected = format!("1 to {MAX_NAME} of ASCII letters, digits, \"-\", \"_\", \".\"");
            checker.mistake(&channel, format!("{name:?}"), expected, "");
        }
        Some(name) if worker.partitions > 0 && name.len() + 1 + digits(last) > MAX_NAME => {
            let found = format!("{name:?}, which leaves no room for .{last}");
            let expected = format!("a name of at most {MAX_NAME} characters with its partition");
            checker.mistake(&channel, found, expected, "");
        }
        Some(_) => {}
    }
    if worker.accept == Accept::Worker && worker.worker_timeout > LONGEST_WAIT {
        checker.mistake(
            &format!("{key}.worker_timeout"),
            format!("{:?}", worker.worker_timeout),
            "at most \"25s\"",
            "an unanswered handshake ends after 30 seconds",
        );
    }
}

fn digits(number: u32) -> usize {
    number.to_string().len()
}

/// Channels publishes to a channel's name as it is, without the layer's prefix: only the name keeps tenants apart.
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
