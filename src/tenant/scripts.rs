//! The parts of a tenant that live on scripts in Redis, and the text about a server that runs none.
//!
//! Managed servers may hide EVAL, and a login may lack the right to it. All other parts work without.

use std::sync::Arc;

use super::Tenant;
use crate::config::{LayerKind, TenantConfig};
use crate::stores::redis::RedisStore;
use crate::stores::scripting;

/// The parts of a tenant that need scripts on one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScriptNeeds {
    /// Its layer is `core`, and the server is one of its hosts.
    pub core: bool,
    /// Groups have a history there.
    pub history: bool,
    /// Groups keep presence there.
    pub presence: bool,
    /// The server holds its denylist.
    pub denylist: bool,
}

impl ScriptNeeds {
    /// Returns the needs of the tenant's layer on its hosts.
    pub fn of_layer(config: &TenantConfig) -> Self {
        let mut groups = config.groups.iter();
        Self {
            core: config.layer.kind == Some(LayerKind::Core),
            history: groups.clone().any(|group| group.history.is_some()),
            presence: groups.any(|group| group.presence.is_some()),
            denylist: false,
        }
    }

    /// Returns the parts that do not work without scripts; empty if everything does.
    pub fn lacking(self) -> String {
        let parts = [
            (self.core, "the layer core delivers nothing"),
            (self.history, "events of groups with a history are refused"),
            (self.presence, "presence is not kept"),
            (
                self.denylist,
                "revocations of users and of the whole tenant are refused (those of one token work), and no call can tell the number of replicas",
            ),
        ];
        let parts = parts.iter().filter(|(needed, _)| *needed);
        let parts: Vec<_> = parts.map(|(_, text)| *text).collect();
        parts.join(", ")
    }
}

/// The remedy.
pub const ADVICE: &str =
    "grant +@scripting (doctor --acl prints the whole line), or choose a Redis that has EVAL";

/// Returns the reason why a layer that needs scripts for everything cannot be served.
pub(super) async fn obstacle(tenant: &Tenant) -> Option<String> {
    if !ScriptNeeds::of_layer(&tenant.config).core {
        return None;
    }
    for server in tenant.servers.iter() {
        // A server that does not answer is told by the checks behind this one.
        if let Ok(Some(why)) = scripting::refusal(server).await {
            let endpoint = server.endpoint();
            return Some(format!(
                "the layer core needs scripts, which Redis at {endpoint} refuses ({why}): {ADVICE}, or use the layer pubsub"
            ));
        }
    }
    None
}

/// Returns what a served tenant lacks, a text for each server that refuses scripts.
pub(super) async fn faults(tenant: &Tenant) -> Vec<String> {
    let mut faults = Vec::new();
    for (server, needs) in servers(tenant) {
        let lacking = needs.lacking();
        if lacking.is_empty() {
            continue;
        }
        // The users of all nodes of a cluster are the same, and so are their rights.
        let nodes = server.servers().await;
        let Some(server) = nodes.first() else {
            continue;
        };
        if let Ok(Some(why)) = scripting::refusal(server).await {
            let endpoint = server.endpoint();
            faults.push(format!(
                "Redis at {endpoint} refuses scripts ({why}): {lacking}; {ADVICE}"
            ));
        }
    }
    faults
}

/// Returns the servers of a tenant's denylist and layer, each once.
fn servers(tenant: &Tenant) -> Vec<(&Arc<RedisStore>, ScriptNeeds)> {
    let mut servers: Vec<(&Arc<RedisStore>, ScriptNeeds)> = Vec::new();
    let of_layer = ScriptNeeds::of_layer(&tenant.config);
    servers.extend(tenant.servers.iter().map(|server| (server, of_layer)));
    if let Some(denylist) = tenant.authenticator.denylist.store.redis() {
        let same = |(server, _): &&mut (&Arc<RedisStore>, _)| Arc::ptr_eq(server, denylist);
        match servers.iter_mut().find(same) {
            Some((_, needs)) => needs.denylist = true,
            None => {
                let denylist_alone = ScriptNeeds {
                    denylist: true,
                    ..ScriptNeeds::default()
                };
                servers.push((denylist, denylist_alone));
            }
        }
    }
    servers
}
