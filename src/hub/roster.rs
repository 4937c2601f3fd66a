//! The list of a hub's connections with its indexes, and the budgets for new connections.
//!
//! One lock guards all of it. A revocation therefore finds a socket either as a handshake or as a member, and never
//! misses it between the two.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::eviction::{Index, Pending};
use super::id_hash::BuildIdHasher;
use super::member::NOT_REGISTERED;
use super::{Member, NextToken};
use crate::clock::is_under_cut_off;
use crate::ids::{ConnectionId, Jti, RevocationTarget, UserId};
use crate::rate::Bucket;

/// The limits of a tenant and its users; 0 means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// The most open connections of the tenant. With those that say goodbye it has at most twice as many.
    pub connections: u32,
    /// The most open connections without a user.
    pub anonymous_connections: u32,
    /// The most new connections of the tenant per second.
    pub connects_per_second: u32,
    /// The most new connections without a user per second.
    pub anonymous_connects_per_second: u32,
    /// The most open connections of one user.
    pub connections_per_user: u32,
    /// True if a connection over `connections_per_user` is admitted and the user's oldest one is closed for it.
    pub replaces: bool,
}

/// A budget without room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// The tenant has reached `connections`.
    Connections,
    /// The tenant has reached `anonymous_connections`.
    AnonymousConnections,
    /// The tenant has reached `connects_per_second`.
    ConnectRate,
    /// The tenant has reached `anonymous_connects_per_second`.
    AnonymousConnectRate,
    /// The user has reached `connections_per_user`.
    UserConnections,
}

/// A member in the order of channel names. Only the member stores its name: a copy as key would take three times the
/// memory of this entry.
#[derive(Debug)]
struct Listed(Arc<Member>);

impl Borrow<[u8; 16]> for Listed {
    fn borrow(&self) -> &[u8; 16] {
        &self.0.channel
    }
}

impl Ord for Listed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.channel.cmp(&other.0.channel)
    }
}

impl PartialOrd for Listed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.0.channel == other.0.channel
    }
}

impl Eq for Listed {}

/// The connections of one hub.
#[derive(Debug)]
pub(super) struct Roster {
    /// All members; each stores its index in this list.
    members: Vec<Arc<Member>>,
    /// All members in the order of their channel names, so that a page of a list walks over that page alone.
    by_channel: BTreeSet<Listed>,
    /// Those that have left the list and say goodbye, which takes seconds.
    dismissed: HashMap<ConnectionId, Arc<Member>, BuildIdHasher>,
    by_user: Index<UserId>,
    by_token: Index<Jti>,
    /// The number of members without a user.
    anonymous: usize,
    /// The handshakes and refreshes in progress. They are so few that a search goes through all.
    pub(super) pending: Vec<Arc<Pending>>,
    connects: Bucket,
    /// The part of `connects` that connections without a user have taken.
    anonymous_connects: Bucket,
}

impl Default for Roster {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            by_channel: BTreeSet::new(),
            dismissed: HashMap::default(),
            by_user: Index::new(|member| member.user().cloned()),
            by_token: Index::new(|member| member.jti()),
            anonymous: 0,
            pending: Vec::new(),
            connects: Bucket::default(),
            anonymous_connects: Bucket::default(),
        }
    }
}

impl Roster {
    /// Takes room from every budget, or from none.
    pub(super) fn reserve(
        &mut self,
        user: Option<&UserId>,
        budget: &Budget,
        now: Instant,
    ) -> Result<(), Excess> {
        let full = |most: u32, count: usize| most != 0 && count >= most as usize;
        // Those that say goodbye have a place on the replica still. A tenant whose sockets all come back at once has room for that.
        let with_goodbyes = (self.members.len() + self.dismissed.len()) / 2;
        if full(budget.connections, self.members.len()) || full(budget.connections, with_goodbyes) {
            return Err(Excess::Connections);
        }
        if !self.connects.has_one(now, budget.connects_per_second) {
            return Err(Excess::ConnectRate);
        }
        match user {
            None if full(budget.anonymous_connections, self.anonymous) => {
                return Err(Excess::AnonymousConnections);
            }
            None if !self
                .anonymous_connects
                .has_one(now, budget.anonymous_connects_per_second) =>
            {
                return Err(Excess::AnonymousConnectRate);
            }
            Some(user)
                if !budget.replaces
                    && budget.connections_per_user != 0
                    && full(budget.connections_per_user, self.by_user.count(user)) =>
            {
                return Err(Excess::UserConnections);
            }
            _ => {}
        }
        self.connects.take(now, budget.connects_per_second);
        if user.is_none() {
            let strangers = budget.anonymous_connects_per_second;
            self.anonymous_connects.take(now, strangers);
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, member: &Arc<Member>) {
        let slot = u32::try_from(self.members.len()).unwrap_or(NOT_REGISTERED);
        member.slot.store(slot, Ordering::Relaxed);
        self.members.push(member.clone());
        self.by_channel.replace(Listed(member.clone()));
        self.anonymous += usize::from(member.user().is_none());
        self.by_user.insert(member);
        self.by_token.insert(member);
    }

    /// Removes a member, and keeps it among those that say goodbye.
    pub(super) fn dismiss(&mut self, member: &Member) {
        let removed = self.remove(member);
        self.dismissed
            .extend(removed.map(|member| (member.id(), member)));
    }

    /// Forgets a member whose goodbye is over.
    pub(super) fn forget_dismissed(&mut self, member: &Member) {
        self.dismissed.remove(&member.id());
        if self.dismissed.is_empty() {
            // Frees the memory of a drain.
            self.dismissed = HashMap::default();
        }
    }

    /// Removes a member; the last member of the list moves to its index.
    pub(super) fn remove(&mut self, member: &Member) -> Option<Arc<Member>> {
        let slot = member.slot.swap(NOT_REGISTERED, Ordering::Relaxed);
        let there = self.members.get(slot as usize);
        if there.is_none_or(|there| there.id() != member.id()) {
            return None;
        }
        let removed = self.members.swap_remove(slot as usize);
        if let Some(moved) = self.members.get(slot as usize) {
            moved.slot.store(slot, Ordering::Relaxed);
        }
        let listed = self.by_channel.get(&member.channel);
        if listed.is_some_and(|listed| listed.0.id() == member.id()) {
            self.by_channel.remove(&member.channel);
        }
        self.anonymous -= usize::from(member.user().is_none());
        self.by_user.remove(member);
        self.by_token.remove(member);
        Some(removed)
    }

    /// Puts another token in the place of a member's own. Returns false if the member is not in the list.
    pub(super) fn renew(&mut self, member: &Arc<Member>, next: NextToken) -> bool {
        if member.slot.load(Ordering::Relaxed) == NOT_REGISTERED {
            return false;
        }
        // The index finds a member by the id of the token that it has.
        self.by_token.remove(member);
        member.set_token(next);
        self.by_token.insert(member);
        true
    }

    /// Returns the first `most` members whose channels come after `from`, in the order of their channels.
    pub(super) fn after(&self, from: Bound<[u8; 16]>, most: usize) -> Vec<Arc<Member>> {
        let rest = self.by_channel.range((from, Bound::Unbounded));
        rest.take(most).map(|listed| listed.0.clone()).collect()
    }

    pub(super) fn forget_pending(&mut self, pending: &Arc<Pending>) {
        let at = self.pending.iter().position(|p| Arc::ptr_eq(p, pending));
        if let Some(at) = at {
            self.pending.swap_remove(at);
        }
    }

    /// Returns the members that a revocation concerns.
    pub(super) fn concerned(&self, target: &RevocationTarget) -> Vec<Arc<Member>> {
        let mut found = Vec::new();
        match target {
            RevocationTarget::Token(jti) => self
                .by_token
                .visit(jti, |member| found.push(member.clone())),
            RevocationTarget::User(user, cut_off) => self.by_user.visit(user, |member| {
                if is_under_cut_off(member.issued_at(), *cut_off) {
                    found.push(member.clone());
                }
            }),
            RevocationTarget::All(cut_off) => {
                let under = |m: &&Arc<Member>| {
                    let token = m.token();
                    token.is_some_and(|token| is_under_cut_off(token.issued_at, *cut_off))
                };
                found.extend(self.members.iter().filter(under).cloned());
            }
        }
        found
    }

    pub(super) fn of_user(&self, user: &UserId) -> Vec<Arc<Member>> {
        let mut found = Vec::new();
        self.by_user
            .visit(user, |member| found.push(member.clone()));
        found
    }

    pub(super) fn by_channel(&self, bits: [u8; 16]) -> Option<Arc<Member>> {
        let listed = self.by_channel.get(&bits);
        listed.map(|listed| listed.0.clone())
    }

    pub(super) fn users(&self) -> Vec<UserId> {
        let one_each = self.by_user.one_each();
        one_each
            .filter_map(|member| member.user().cloned())
            .collect()
    }

    pub(super) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Returns the members that say goodbye.
    pub(super) fn dismissed(&self) -> impl ExactSizeIterator<Item = &Arc<Member>> {
        self.dismissed.values()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::Profile;
    use super::*;

    /// A token with the id `t{number}`, or one without id and time of issue.
    fn next_token(number: Option<u8>) -> NextToken {
        NextToken {
            jti: number.map(|number| format!("t{number}").into()),
            issued_at: number.map(|number| f64::from(number) + 0.5),
            expires_at: None,
            password: None,
        }
    }

    fn member(user: Option<&str>, jti: Option<Jti>, issued_at: Option<f64>) -> Arc<Member> {
        Member::new(Profile {
            user: user.map(UserId::from),
            jti,
            issued_at,
            ..Profile::default()
        })
    }

    fn ids(members: &[Arc<Member>]) -> BTreeSet<u64> {
        members.iter().map(|member| member.id().0).collect()
    }

    /// Before, clients that closed and did not read the answer took any number of places.
    #[test]
    fn sockets_that_say_goodbye_take_as_many_places_as_open_ones() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let budget = Budget {
            connections: 3,
            ..Budget::default()
        };
        let open = |roster: &mut Roster| -> Result<_, Excess> {
            roster.reserve(None, &budget, now)?;
            let member = member(None, None, None);
            roster.insert(&member);
            Ok(member)
        };
        // A tenant whose sockets close all at once has room for those that come back.
        let first = [(); 3].map(|()| open(&mut roster).unwrap());
        assert_eq!(open(&mut roster).unwrap_err(), Excess::Connections);
        first.iter().for_each(|member| roster.dismiss(member));
        let second = [(); 3].map(|()| open(&mut roster).unwrap());
        second.iter().for_each(|member| roster.dismiss(member));
        assert_eq!(open(&mut roster).unwrap_err(), Excess::Connections);
        roster.forget_dismissed(&first[0]);
        assert!(open(&mut roster).is_ok());
    }

    proptest! {
        /// After any sequence of joins, leaves and refreshes, an index finds exactly the members that a walk over the list finds.
        #[test]
        fn indexes_find_what_a_scan_finds(
            steps in prop::collection::vec((0..6u8, 0..5u8, prop::option::of(0..4u8), any::<prop::sample::Index>()), 1..200)
        ) {
            let mut roster = Roster::default();
            let mut model: Vec<Arc<Member>> = Vec::new();
            for (kind, user, token, at) in steps {
                if kind == 0 && !model.is_empty() {
                    let gone = model.swap_remove(at.index(model.len()));
                    roster.remove(&gone);
                    roster.remove(&gone);
                    prop_assert!(!roster.renew(&gone, next_token(token)));
                } else if kind <= 2 && !model.is_empty() {
                    let one = &model[at.index(model.len())];
                    // An anonymous socket never gets a token.
                    if one.user().is_none() {
                        continue;
                    }
                    prop_assert!(roster.renew(one, next_token(token)));
                    prop_assert_eq!(one.jti(), next_token(token).jti);
                } else {
                    // The last number is that of no user.
                    let user = (user < 4).then(|| format!("u{user}"));
                    let token = next_token(token.filter(|_| user.is_some()));
                    let new = member(user.as_deref(), token.jti, token.issued_at);
                    roster.insert(&new);
                    model.push(new);
                }
                prop_assert_eq!(ids(roster.members()), ids(&model));
                for key in 0..5u8 {
                    let target = [
                        RevocationTarget::Token(format!("t{key}").as_str().into()),
                        RevocationTarget::User(format!("u{key}").as_str().into(), 1.0),
                        RevocationTarget::All(f64::from(key)),
                    ];
                    for target in target {
                        let scan = model.iter().filter(|member| match &target {
                            RevocationTarget::Token(jti) => member.jti().as_ref() == Some(jti),
                            RevocationTarget::User(user, at) => member.user() == Some(user) && is_under_cut_off(member.issued_at(), *at),
                            RevocationTarget::All(at) => member.user().is_some() && is_under_cut_off(member.issued_at(), *at),
                        });
                        let scan: Vec<_> = scan.cloned().collect();
                        prop_assert_eq!(ids(&roster.concerned(&target)), ids(&scan));
                    }
                }
                let users: BTreeSet<_> = model.iter().filter_map(|member| member.user().cloned()).collect();
                prop_assert_eq!(roster.users().into_iter().collect::<BTreeSet<_>>(), users);
            }
        }
    }

    #[test]
    fn a_refused_connection_takes_nothing_from_any_budget() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let budget = Budget {
            connections: 3,
            connects_per_second: 2,
            connections_per_user: 1,
            replaces: false,
            ..Budget::default()
        };
        let first = member(Some("1"), None, None);
        assert_eq!(roster.reserve(first.user(), &budget, now), Ok(()));
        roster.insert(&first);
        for _ in 0..10 {
            let again = roster.reserve(first.user(), &budget, now);
            assert_eq!(again, Err(Excess::UserConnections));
        }
        for user in [Some("2"), None] {
            let other = member(user, None, None);
            assert_eq!(roster.reserve(other.user(), &budget, now), Ok(()));
            roster.insert(&other);
        }
        let fourth = roster.reserve(Some(&"4".into()), &budget, now);
        assert_eq!(fourth, Err(Excess::Connections));
        roster.remove(&first);
        assert_eq!(roster.reserve(Some(&"4".into()), &budget, now), Ok(()));
        // Four connections at two per second take the room of two seconds.
        let fifth = roster.reserve(Some(&"5".into()), &budget, now);
        assert_eq!(fifth, Err(Excess::ConnectRate));
    }

    #[test]
    fn sockets_without_a_user_leave_connects_for_users() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let budget = Budget {
            connects_per_second: 3,
            anonymous_connects_per_second: 1,
            ..Budget::default()
        };
        for _ in 0..2 {
            assert_eq!(roster.reserve(None, &budget, now), Ok(()));
        }
        let user = UserId::from("1");
        for _ in 0..4 {
            let refused = roster.reserve(None, &budget, now);
            assert_eq!(refused, Err(Excess::AnonymousConnectRate));
            assert_eq!(roster.reserve(Some(&user), &budget, now), Ok(()));
        }
        for user in [None, Some(&user)] {
            let refused = roster.reserve(user, &budget, now);
            assert_eq!(refused, Err(Excess::ConnectRate));
        }
    }

    #[test]
    fn sockets_without_a_user_leave_places_for_users() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let budget = Budget {
            connections: 3,
            anonymous_connections: 1,
            ..Budget::default()
        };
        let stranger = member(None, None, None);
        assert_eq!(roster.reserve(None, &budget, now), Ok(()));
        roster.insert(&stranger);
        for user in ["1", "2"] {
            let refused = roster.reserve(None, &budget, now);
            assert_eq!(refused, Err(Excess::AnonymousConnections));
            assert_eq!(roster.reserve(Some(&user.into()), &budget, now), Ok(()));
            roster.insert(&member(Some(user), None, None));
        }
        assert_eq!(roster.reserve(None, &budget, now), Err(Excess::Connections));
        // The second removal of one member takes no other's place.
        roster.remove(&stranger);
        roster.remove(&stranger);
        assert_eq!(roster.reserve(None, &budget, now), Ok(()));
    }
}
