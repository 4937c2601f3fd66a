//! Tenants whose events could meet: their layers use one Redis server, under whatever URLs, and their prefixes do not
//! keep their names apart.
//!
//! The check of a configuration can only compare URLs. This module compares the identities that the servers report
//! once they are reached. Of two tenants that meet the one of a file is served, then the one that was made first, then the
//! first by name: every replica decides alike, and no customer who signs up can shut out one that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Making;
use crate::config::names_meet;
use crate::ids::TenantId;
use crate::stores::server_identity::ServerIdentity;

/// The names and the servers of a tenant's layer.
#[derive(Clone, Debug)]
pub struct Stand {
    /// The making of a tenant of the registry; `None` for one of the files, which goes first.
    pub making: Option<Making>,
    /// `layer.prefix`
    pub prefix: String,
    /// `layer.namespace`
    pub namespace: String,
    /// The servers of its hosts.
    pub servers: Vec<Arc<ServerIdentity>>,
}

impl Stand {
    /// The place of a tenant among those that meet: the first one is served.
    fn rank<'i>(&self, id: &'i TenantId) -> (Option<Making>, &'i TenantId) {
        (self.making, id)
    }

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

    /// Returns true if the tenant's servers are recorded.
    pub(super) fn knows(&self, id: &TenantId) -> bool {
        self.0.lock().contains_key(id)
    }

    /// Records the tenant's servers. `others` are tenants that have not recorded theirs themselves yet. Returns the reason for
    /// every tenant that may not be served because of it: itself, or those after it.
    pub(super) fn enter(
        &self,
        id: &TenantId,
        stand: Stand,
        others: BTreeMap<TenantId, Stand>,
    ) -> Vec<(TenantId, String)> {
        let mut stands = self.0.lock();
        stands.insert(id.clone(), stand.clone());
        let own = obstacle(id, &stands).or_else(|| {
            let mut with = others;
            with.insert(id.clone(), stand.clone());
            obstacle(id, &with)
        });
        let own = own.map(|why| (id.clone(), why));
        let met = |(later, other): (&TenantId, &Stand)| {
            let is_later = stand.rank(id) < other.rank(later);
            shared_server(&stand, other).filter(|_| is_later)?;
            Some((later.clone(), obstacle(later, &stands)?))
        };
        let later = stands.iter().filter_map(met);
        own.into_iter().chain(later).collect()
    }
}

/// Returns every tenant that may not be served, with the reason.
pub fn obstacles(stands: &BTreeMap<TenantId, Stand>) -> Vec<(TenantId, String)> {
    let of = |id: &TenantId| Some((id.clone(), obstacle(id, stands)?));
    stands.keys().filter_map(of).collect()
}

/// Returns the reason if a tenant that comes before it can have the same names on the same server.
fn obstacle(id: &TenantId, stands: &BTreeMap<TenantId, Stand>) -> Option<String> {
    let own = stands.get(id)?;
    let mut before = { stands.iter() }.filter(|(first, stand)| stand.rank(first) < own.rank(id));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    /// A tenant on the one server, of a file or made by the change `made`.
    fn stand(made: Option<i64>, prefix: &str) -> Stand {
        let making = made.map(|serial| Making {
            serial,
            created_at: 0,
        });
        Stand {
            making,
            prefix: prefix.to_owned(),
            namespace: String::new(),
            servers: vec![Arc::new(ServerIdentity::new("redis:6379", None, []))],
        }
    }

    fn losers(entered: Vec<(TenantId, String)>) -> Vec<String> {
        entered.into_iter().map(|(id, _)| id.to_string()).collect()
    }

    /// The second one by name lost, so a call could shut out a tenant of the files.
    #[test]
    fn of_two_that_meet_the_files_one_stays_then_the_one_that_was_made_first() {
        let neighbours = Neighbours::default();
        let none = BTreeMap::new;
        let enter = |name: &str, stand| losers(neighbours.enter(&id(name), stand, none()));
        assert_eq!(enter("of-file", stand(None, "x")), [""; 0]);
        assert_eq!(enter("bb", stand(Some(1), "x")), ["bb"]);
        assert_eq!(enter("second", stand(Some(9), "y")), [""; 0]);
        assert_eq!(enter("first", stand(Some(3), "y")), ["second"]);
        assert_eq!(enter("a-late", stand(Some(10), "y")), ["a-late"]);
        // Names decide among files only.
        assert_eq!(enter("a-file", stand(None, "x")), ["bb", "of-file"]);
        let stands = [("b", stand(None, "x")), ("a", stand(Some(1), "x"))];
        let stands = stands.map(|(name, stand)| (id(name), stand)).into();
        assert_eq!(losers(obstacles(&stands)), ["a"]);
    }

    /// A newcomer opened its sockets while the servers of the tenant that it meets were not known yet.
    #[test]
    fn a_newcomer_waits_for_no_other_to_record_its_servers() {
        let neighbours = Neighbours::default();
        let unrecorded = || BTreeMap::from([(id("of-file"), stand(None, "x"))]);
        let entered = neighbours.enter(&id("bb"), stand(Some(1), "x"), unrecorded());
        assert_eq!(losers(entered), ["bb"]);
        assert!(!neighbours.knows(&id("of-file")) && neighbours.knows(&id("bb")));
        let entered = neighbours.enter(&id("cc"), stand(Some(2), "y"), unrecorded());
        assert_eq!(losers(entered), [""; 0]);
    }
}
