//! What the configuration can say and this version does not do: told.

use crate::config::{ApiConfig, Config, DenylistConfig, LimitsConfig, OnExcess};

use super::Checker;

pub(super) fn check(config: &Config, checker: &mut Checker<'_>) {
    deployment(config, checker);
    for (id, tenant) in &config.tenants {
        limits(&format!("tenants.{id}.limits"), &tenant.limits, checker);
    }
}

/// Warns where a key asks for something: it has another value than its default.
fn tell(key: &str, is_set: bool, checker: &mut Checker<'_>) {
    if is_set {
        checker.warn(key, "not enforced by this version");
    }
}

fn deployment(config: &Config, checker: &mut Checker<'_>) {
    tell("watch", config.watch, checker);
    tell("denylist.replicas", config.denylist.replicas > 0, checker);
    tell(
        "denylist.max_unverified",
        config.denylist.max_unverified.is_some(),
        checker,
    );
    let (denylist, api) = (DenylistConfig::default(), ApiConfig::default());
    let changed = [
        (
            "denylist.recheck",
            config.denylist.recheck != denylist.recheck,
        ),
        ("denylist.keep", config.denylist.keep != denylist.keep),
        ("api.timeout", config.api.timeout != api.timeout),
    ];
    for (key, is_set) in changed {
        tell(key, is_set, checker);
    }
}

fn limits(table: &str, limits: &LimitsConfig, checker: &mut Checker<'_>) {
    let key = |name: &str| format!("{table}.{name}");
    tell(&key("connections"), limits.connections > 0, checker);
    tell(
        &key("connects_per_second"),
        limits.connects_per_second > 0,
        checker,
    );
    tell(
        &key("connections_per_user"),
        limits.connections_per_user > 0,
        checker,
    );
    tell(
        &key("on_excess"),
        limits.on_excess != OnExcess::Refuse,
        checker,
    );
    tell(
        &key("publishes_per_second"),
        limits.publishes_per_second > 0,
        checker,
    );
}
