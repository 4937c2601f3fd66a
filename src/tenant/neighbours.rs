//! Tenants whose events could meet: their layers use one Redis server, under whatever URLs, and their prefixes do not
//! keep their names apart.
//!
//! The check of a configuration can only compare URLs. This module compares the identities that the servers report
//! once they are reached. Of two tenants that meet, the second by name is not served.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::names_meet;
use crate::ids::TenantId;
use crate::stores::server_identity::ServerIdentity;

/// The names and the servers of a tenant's layer.
#[derive(Clone, Debug)]
pub struct Stand {
    /// `layer.prefix`
    pub prefix: String,
    /// `layer.namespace`
    pub namespace: String,
    /// The servers of its hosts.
    pub servers: Vec<Arc<ServerIdentity>>,
}

impl Stand {
    fn names(&self) -> (&str, &str) {
        (&self.prefix, &self.namespace)
    }
}

/// The tenants whose servers are known.
#[derive(Debug, Default)]
pub(super) struct Neighbours(Mutex<BTreeMap<TenantId, Stand>>);

impl Neighbours {
    /// Removes a tenant that is no longer served.
    pub(super) fn forget(&self, id: &TenantId) {
        self.0.lock().remove(id);
    }

    /// Records the tenant's servers. Returns the reason for every tenant that may not be served because of it: itself, or
    /// later ones by name.
    pub(super) fn enter(&self, id: &TenantId, stand: Stand) -> Vec<(TenantId, String)> {
        let mut stands = self.0.lock();
        stands.insert(id.clone(), stand);
        let own = obstacle(id, &stands).map(|why| (id.clone(), why));
        let met = |later: &TenantId| {
            let (one, other) = (stands.get(id)?, stands.get(later)?);
            shared_server(one, other)?;
            Some((later.clone(), obstacle(later, &stands)?))
        };
        let later = stands.range(id.clone()..).map(|(later, _)| later).skip(1);
        let later = later.filter_map(met);
        own.into_iter().chain(later).collect()
    }
}

/// Returns every tenant that may not be served, with the reason.
pub fn obstacles(stands: &BTreeMap<TenantId, Stand>) -> Vec<(TenantId, String)> {
    let of = |id: &TenantId| Some((id.clone(), obstacle(id, stands)?));
    stands.keys().filter_map(of).collect()
}

/// Returns the reason if an earlier tenant by name can have the same names on the same server.
fn obstacle(id: &TenantId, stands: &BTreeMap<TenantId, Stand>) -> Option<String> {
    let own = stands.get(id)?;
    let mut before = stands.range(..id.clone());
    before.find_map(|(first, stand)| {
        let (theirs, ours) = shared_server(stand, own)?;
        Some(format!(
            "its events could meet those of tenant {first}: {ours} and {theirs} are one Redis server, and the prefixes \
             {:?} and {:?} do not keep their names apart; give it another layer.prefix, the same in CHANNEL_LAYERS, \
             or both a layer.namespace",
            own.prefix, stand.prefix
        ))
    })
}

/// Returns the endpoints under which both know the server where their names could meet.
fn shared_server<'s>(one: &'s Stand, other: &'s Stand) -> Option<(&'s str, &'s str)> {
    if !names_meet(one.names(), other.names()) {
        return None;
    }
    let mut pairs = one
        .servers
        .iter()
        .flat_map(|a| other.servers.iter().map(move |b| (a, b)));
    let (a, b) = pairs.find(|(a, b)| a.is_same(b))?;
    Some((a.endpoint(), b.endpoint()))
}
