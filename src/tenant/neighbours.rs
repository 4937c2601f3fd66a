//! Tenants whose events could meet: their layers use one Redis server, under whatever URLs, and their prefixes do not
//! keep their names apart.
//!
//! The check of a configuration can only compare URLs. This module compares the identities that the servers report
//! once they are reached. Of two tenants that meet the one of a file is served, then the one that was made first, then the
//! first by name: every replica decides alike, and no customer who signs up can shut out one that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Making, Tenant};
use crate::config::{names_meet, prefix_fault};
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
#[derive(Default)]
pub(super) struct Neighbours {
    stands: Mutex<Stands>,
    unrecorded: Mutex<Unrecorded>,
}

/// The tenants of a list whose servers are not known.
struct Unrecorded {
    of: Weak<[Arc<Tenant>]>,
    ids: Vec<TenantId>,
}

impl Default for Unrecorded {
    fn default() -> Self {
        Self {
            of: Weak::<[Arc<Tenant>; 0]>::new(),
            ids: Vec::new(),
        }
    }
}

impl Neighbours {
    /// Removes a tenant that is no longer served.
    pub(super) fn forget(&self, id: &TenantId) {
        self.stands.lock().remove(id);
    }

    /// Returns those of `ids`, the tenants of `all`, that have not recorded their servers. They are gone through once for each
    /// list of tenants, and not at each look of each tenant.
    pub(super) fn unrecorded<'i>(
        &self,
        all: &Arc<[Arc<Tenant>]>,
        ids: impl Iterator<Item = &'i TenantId>,
    ) -> Vec<TenantId> {
        let (stands, mut known) = (self.stands.lock(), self.unrecorded.lock());
        let is_unrecorded = |id: &TenantId| !stands.by_id.contains_key(id);
        if Weak::ptr_eq(&known.of, &Arc::downgrade(all)) {
            known.ids.retain(is_unrecorded);
        } else {
            known.of = Arc::downgrade(all);
            known.ids = ids.filter(|id| is_unrecorded(id)).cloned().collect();
        }
        known.ids.clone()
    }

    /// Records the tenant's servers. `others` are tenants that have not recorded theirs themselves yet. Returns the reason for
    /// every tenant that may not be served because of it: itself, or those after it. One that `is_served` no more stays out: its
    /// servers were asked for a while, and what is forgotten meanwhile must not come back.
    pub(super) fn enter(
        &self,
        id: &TenantId,
        stand: Stand,
        others: BTreeMap<TenantId, Stand>,
        is_served: impl FnOnce() -> bool,
    ) -> Vec<(TenantId, String)> {
        let mut stands = self.stands.lock();
        // Under the lock, since a tenant is forgotten after it has left.
        if !is_served() {
            return Vec::new();
        }
        stands.insert(id.clone(), stand.clone());
        let own = stands.obstacle(id).or_else(|| {
            let mut with = Stands::of(others);
            with.insert(id.clone(), stand.clone());
            with.obstacle(id)
        });
        let own = own.map(|why| (id.clone(), why));
        let met = |(later, other): (&TenantId, &Stand)| {
            let is_later = stand.rank(id) < other.rank(later);
            shared_server(&stand, other).filter(|_| is_later)?;
            Some((later.clone(), stands.obstacle(later)?))
        };
        let later = stands.with_meeting_names(&stand).into_iter();
        own.into_iter().chain(later.filter_map(met)).collect()
    }
}

/// Tenants by name, and by the names that their layers make: of ten thousand each is compared with the few whose names can
/// meet its own.
#[derive(Debug, Default)]
struct Stands {
    by_id: BTreeMap<TenantId, Stand>,
    /// By prefix, then by namespace.
    by_names: BTreeMap<String, BTreeMap<String, BTreeSet<TenantId>>>,
    /// Those whose prefix meets every other one.
    faulty: BTreeSet<TenantId>,
}

impl Stands {
    fn of(stands: BTreeMap<TenantId, Stand>) -> Self {
        let mut all = Self::default();
        for (id, stand) in stands {
            all.insert(id, stand);
        }
        all
    }

    fn insert(&mut self, id: TenantId, stand: Stand) {
        if let Some(known) = self.by_id.get_mut(&id)
            && known.names() == stand.names()
        {
            *known = stand;
            return;
        }
        self.remove(&id);
        match prefix_fault(&stand.prefix) {
            Some(_) => drop(self.faulty.insert(id.clone())),
            None => {
                let spaces = self.by_names.entry(stand.prefix.clone()).or_default();
                let ids = spaces.entry(stand.namespace.clone()).or_default();
                ids.insert(id.clone());
            }
        }
        self.by_id.insert(id, stand);
    }

    fn remove(&mut self, id: &TenantId) {
        let Some(stand) = self.by_id.remove(id) else {
            return;
        };
        self.faulty.remove(id);
        let Some(spaces) = self.by_names.get_mut(&stand.prefix) else {
            return;
        };
        if let Some(ids) = spaces.get_mut(&stand.namespace) {
            ids.remove(id);
            if ids.is_empty() {
                spaces.remove(&stand.namespace);
            }
        }
        if spaces.is_empty() {
            self.by_names.remove(&stand.prefix);
        }
    }

    /// Returns the tenants whose names can meet these, by name. It may return others, too.
    fn with_meeting_names(&self, own: &Stand) -> BTreeMap<&TenantId, &Stand> {
        let (prefix, space) = own.names();
        if prefix_fault(prefix).is_some() {
            return self.by_id.iter().collect();
        }
        let of_others = longer_and_shorter(&self.by_names, prefix).flat_map(BTreeMap::values);
        let spaces = self.by_names.get(prefix);
        let alike = spaces.into_iter().flat_map(|spaces| {
            let same = spaces.get(space).into_iter();
            same.chain(longer_and_shorter(spaces, space))
        });
        let found = of_others.chain(alike).flatten();
        let found = found.chain(&self.faulty);
        found
            .filter_map(|id| self.by_id.get_key_value(id))
            .collect()
    }

    /// Returns the reason if a tenant that comes before it can have the same names on the same server.
    fn obstacle(&self, id: &TenantId) -> Option<String> {
        let own = self.by_id.get(id)?;
        let met = self.with_meeting_names(own).into_iter();
        let mut before = met.filter(|(first, stand)| stand.rank(first) < own.rank(id));
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
}

/// Returns the values of the texts that begin with `text`, and of those that it begins with; its own is not among them.
fn longer_and_shorter<'m, V>(
    map: &'m BTreeMap<String, V>,
    text: &str,
) -> impl Iterator<Item = &'m V> {
    let longer = map.range::<str, _>((Bound::Excluded(text), Bound::Unbounded));
    let longer = longer.take_while(move |(other, _)| other.starts_with(text));
    let shorter = { text.char_indices() }.filter_map(|(end, _)| map.get(&text[..end]));
    longer.map(|(_, value)| value).chain(shorter)
}

/// Returns every tenant that may not be served, with the reason.
pub fn obstacles(stands: &BTreeMap<TenantId, Stand>) -> Vec<(TenantId, String)> {
    let all = Stands::of(stands.clone());
    let of = |id: &TenantId| Some((id.clone(), all.obstacle(id)?));
    stands.keys().filter_map(of).collect()
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
        let enter = |name: &str, stand| losers(neighbours.enter(&id(name), stand, none(), || true));
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
        let entered = neighbours.enter(&id("bb"), stand(Some(1), "x"), unrecorded(), || true);
        assert_eq!(losers(entered), ["bb"]);
        let both = [id("of-file"), id("bb")];
        let none: Arc<[Arc<Tenant>]> = Arc::new([]);
        // Twice: a list that was seen before is asked again.
        for _ in 0..2 {
            assert_eq!(neighbours.unrecorded(&none, both.iter()), [id("of-file")]);
        }
        // It is refused at each look, until the other one is gone.
        let entered = neighbours.enter(&id("bb"), stand(Some(1), "x"), unrecorded(), || true);
        assert_eq!(losers(entered), ["bb"]);
        let entered = neighbours.enter(&id("cc"), stand(Some(2), "y"), unrecorded(), || true);
        assert_eq!(losers(entered), [""; 0]);
    }

    /// A look that ended after its tenant was let go recorded it for good, in the way of those that came later.
    #[test]
    fn a_tenant_that_has_left_records_nothing() {
        let neighbours = Neighbours::default();
        let none = BTreeMap::new;
        let entered = neighbours.enter(&id("gone"), stand(Some(1), "x"), none(), || false);
        assert_eq!(losers(entered), [""; 0]);
        let entered = neighbours.enter(&id("later"), stand(Some(2), "x"), none(), || true);
        assert_eq!(losers(entered), [""; 0]);
    }

    /// The index finds the same tenants as the comparison with all of them.
    #[test]
    fn the_index_finds_each_tenant_whose_names_meet() {
        let texts = [
            "",
            "a",
            "a:",
            "a:b",
            "ab",
            "lock",
            "lockgate:x",
            "x__group__",
            "é",
            "éa",
            "z",
        ];
        let spaces = ["", "t", "t1", "u"];
        let mut stands = Stands::default();
        for (n, text) in texts.iter().enumerate() {
            for (m, space) in spaces.iter().enumerate() {
                let mut stand = stand(Some(1), text);
                stand.namespace = (*space).to_owned();
                let own = id(&format!("t{n}-{m}"));
                // The second entry of a tenant takes the place of the first.
                let mut before = stand.clone();
                before.prefix.push('z');
                stands.insert(own.clone(), before);
                stands.insert(own, stand);
            }
        }
        stands.remove(&id("t1-1"));
        assert_eq!(stands.by_id.len(), texts.len() * spaces.len() - 1);
        for own in stands.by_id.values() {
            let found = stands.with_meeting_names(own);
            let meets = |other: &Stand| names_meet(own.names(), other.names());
            let found: Vec<_> = found
                .into_iter()
                .filter(|(_, other)| meets(other))
                .collect();
            let all: Vec<_> = stands
                .by_id
                .iter()
                .filter(|(_, other)| meets(other))
                .collect();
            assert_eq!(
                found.iter().map(|(id, _)| id).collect::<Vec<_>>(),
                all.iter().map(|(id, _)| id).collect::<Vec<_>>(),
                "{:?}",
                own.names()
            );
        }
    }

    /// Before, each look of each tenant was a comparison with all that were made: of ten thousand, more than a core could do.
    #[test]
    fn a_tenant_is_compared_with_those_alone_whose_names_are_near() {
        let mut stands = Stands::default();
        for n in 0..1_000 {
            stands.insert(id(&format!("t{n}")), stand(Some(n), &format!("t{n}:")));
        }
        let own = stand(Some(1), "t1:");
        assert_eq!(stands.with_meeting_names(&own).len(), 1);
        let mut spaced = stand(Some(1), "asgi");
        for n in 0..1_000 {
            spaced.namespace = format!("n{n}:");
            stands.insert(id(&format!("s{n}")), spaced.clone());
        }
        assert_eq!(stands.with_meeting_names(&spaced).len(), 1);
    }
}
