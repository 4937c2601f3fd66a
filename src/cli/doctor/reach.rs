//! Checks that a Redis server can be reached and fits its URL, and advises on one that cannot.

use std::sync::Arc;

use super::finding::{CERTIFICATE_ADVICE, Findings, Severity, certificate_fails, with_kind};
use super::servers::{RedisServer, Usage};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::stores::redis::RedisStore;

pub(super) const UNCHECKED_ADVICE: &str =
    "any server may answer in its place: name its authority in ca, and take verify = \"none\" away";
pub(super) const ACL_ADVICE: &str = "grant what `lockgate doctor --acl` prints for the gateway";
const ABSENT_ADVICE: &str = "check that it runs, its address, the network between, and whether its port speaks TLS (rediss://)";
/// As [`ABSENT_ADVICE`]. The address of a node stands in no URL.
const ABSENT_NODE_ADVICE: &str = "check that it runs and the network between. CLUSTER SHARDS announces this address: if the node is reached at another \
     one, set cluster-announce-ip and cluster-announce-port, or cluster-announce-hostname, on it";

/// The text of the failure says which of them to change.
const MISFIT_ADVICE: &str = "the URL and the server do not fit: change what the reason names";

/// Connects to the server, or to a cluster; returns nothing if that fails.
pub(super) async fn look(
    findings: &mut Findings,
    on: (&str, &'static str),
    server: &RedisServer,
) -> Option<Arc<RedisStore>> {
    let store = match connect(server).await {
        Ok(store) => store,
        Err(error) => {
            findings.add(on, Severity::Fail, with_kind(&error), advice(&error));
            return None;
        }
    };
    // Each node of a cluster states its version.
    if !store.is_cluster()
        && let Some(misfit) = store.misfit().await
    {
        findings.add(on, Severity::Fail, misfit.to_string(), misfit.remedy());
        return None;
    }
    let (severity, advice) = match server.url.is_unchecked() {
        true => (Severity::Warn, UNCHECKED_ADVICE),
        false => (Severity::Ok, ""),
    };
    findings.add(on, severity, used_for(server), advice);
    Some(store)
}

/// Connects to the server, or to a node of a cluster that tells the others.
async fn connect(server: &RedisServer) -> Result<Arc<RedisStore>, StoreError> {
    let dependency = match server.holds_denylist() {
        true => Dependency::Denylist,
        false => Dependency::Redis,
    };
    let store = RedisStore::to_inspect(&server.url, dependency)?;
    // Each node of a known map is looked at by itself.
    if !store.is_cluster() || store.servers().await.is_empty() {
        store.ping().await?;
    }
    Ok(store)
}

/// Describes the uses of the server.
fn used_for(server: &RedisServer) -> String {
    let names = |of: fn(&Usage) -> bool| {
        let tenants = server.tenants.iter().filter(|usage| of(usage));
        tenants
            .map(|usage| usage.tenant.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let uses = [
        ("denylist", names(|usage| usage.denylist)),
        ("users", names(|usage| usage.users)),
        ("events", names(|usage| usage.layer.is_some())),
    ];
    let uses = uses.iter().filter(|(_, tenants)| !tenants.is_empty());
    let uses: Vec<_> = uses
        .map(|(what, tenants)| format!("{what} of {tenants}"))
        .collect();
    let link = match (server.url.tls(), server.url.is_unchecked()) {
        (true, true) => "TLS, its certificate is not checked",
        (true, false) => "TLS",
        (false, _) => "no TLS",
    };
    let uses = match (uses.is_empty(), server.deployment) {
        (false, _) => uses.join("; "),
        (true, true) => "the deployment's Redis; no tenant uses it".to_owned(),
        (true, false) => "nothing".to_owned(),
    };
    format!("answers ({link}); {uses}")
}

/// Returns the advice on a server that does not answer, or refuses a command.
pub(super) fn advice(error: &StoreError) -> &'static str {
    advice_or(ABSENT_ADVICE, error)
}

/// Returns the advice on a node of a cluster, as [`advice`] does.
pub(super) fn advice_on_node(error: &StoreError) -> &'static str {
    advice_or(ABSENT_NODE_ADVICE, error)
}

fn advice_or(absent: &'static str, error: &StoreError) -> &'static str {
    match error.kind {
        ErrorKind::Auth => "correct user and password in its URL",
        ErrorKind::Permission => ACL_ADVICE,
        ErrorKind::Protocol => MISFIT_ADVICE,
        _ if certificate_fails(error) => CERTIFICATE_ADVICE,
        _ => absent,
    }
}
