//! Finds tenants whose events could meet on one Redis server under different URLs.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::finding::{Findings, Severity};
use super::servers::{RedisServer, Usage};
use crate::error::Dependency;
use crate::ids::TenantId;
use crate::stores::redis::RedisStore;
use crate::tenant::Makings;
use crate::tenant::neighbours::{Stand, obstacles};

/// Compares the servers of the tenants' layers by the identities that they report, else by their addresses. `makings` are those
/// of the tenants of the registry. With `only` the others are told nothing.
pub(super) async fn look(
    servers: &[RedisServer],
    makings: &Makings,
    only: Option<&TenantId>,
) -> Findings {
    let with_layers = servers.iter().filter(|server| !layers(server).is_empty());
    let identities = with_layers.map(async |server| {
        // A store that cannot be made is reported by another check.
        let store = RedisStore::to_inspect(&server.url, Dependency::Redis).ok()?;
        Some((server, store.identity().await))
    });
    let mut stands: BTreeMap<TenantId, Stand> = BTreeMap::new();
    for (server, identity) in join_all(identities).await.into_iter().flatten() {
        for (usage, prefix) in layers(server) {
            let stand = stands.entry(usage.tenant.clone()).or_insert_with(|| Stand {
                making: makings.get(&usage.tenant).copied(),
                prefix: prefix.to_owned(),
                namespace: usage.namespace.clone(),
                servers: Vec::new(),
            });
            stand.servers.push(identity.clone());
        }
    }
    let mut findings = Findings::default();
    let obstacles = obstacles(&stands).into_iter();
    for (tenant, why) in obstacles.filter(|(id, _)| only.is_none_or(|only| only == id)) {
        findings.add(
            (&format!("tenant {tenant}"), "shared_redis"),
            Severity::Fail,
            why,
            "`serve` does not serve this tenant until then",
        );
    }
    findings
}

/// Returns the uses of the tenants whose layers are on the server, with their prefixes.
fn layers(server: &RedisServer) -> Vec<(&Usage, &str)> {
    let tenants = server.tenants.iter();
    let layers = tenants.filter_map(|usage| Some((usage, usage.layer.as_ref()?)));
    layers
        .map(|(usage, (_, prefix))| (usage, prefix.as_str()))
        .collect()
}
