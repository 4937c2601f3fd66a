//! Indexes that find the connections of a token or a user without a walk over all connections.
//!
//! Revocations, operators and changed users need them. A socket enters the hub before its handshake reads the
//! denylist: as [`Pending`] during the handshake, and as a member from its admission on. A revocation that is announced
//! after the read therefore finds the socket.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashTable;
use indexmap::IndexMap;

use super::id_hash::BuildIdHasher;
use super::{Member, TokenOf};
use crate::clock::is_under_cut_off;
use crate::ids::{ConnectionId, Jti, RevocationTarget, UserId};

/// A token that is verified and is not yet the token of a socket: that of a handshake, or of a refresh.
#[derive(Debug)]
pub struct Pending {
    user: UserId,
    jti: Option<Jti>,
    issued_at: Option<f64>,
    /// The open socket whose token it is about to replace.
    socket: Option<Arc<Member>>,
    revoked: AtomicBool,
    /// True if the user was invalidated, so that the user record read for this handshake may be old.
    stale: AtomicBool,
}

impl Pending {
    /// Makes the entry of a handshake from the claims of its token.
    pub fn new(user: UserId, jti: Option<Jti>, issued_at: Option<f64>) -> Self {
        Self {
            user,
            jti,
            issued_at,
            socket: None,
            revoked: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        }
    }

    /// Makes the entry of a refresh: `socket` is about to get the token, and closes if that is revoked.
    pub fn for_socket(self, socket: Option<Arc<Member>>) -> Self {
        Self { socket, ..self }
    }

    /// Returns the open socket that is about to get the token; `None` for a handshake.
    pub(super) fn socket(&self) -> Option<&Arc<Member>> {
        self.socket.as_ref()
    }

    /// Returns the properties of the token by which a revocation finds it.
    pub fn token(&self) -> TokenOf<'_> {
        TokenOf {
            user: &self.user,
            jti: self.jti.clone(),
            issued_at: self.issued_at,
        }
    }

    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Marks the token if the revocation concerns it. Returns true if so.
    pub(super) fn mark_revoked(&self, target: &RevocationTarget) -> bool {
        let concerned = match target {
            RevocationTarget::Token(jti) => self.jti.as_ref() == Some(jti),
            RevocationTarget::User(user, cut_off) => {
                self.user == *user && is_under_cut_off(self.issued_at, *cut_off)
            }
            RevocationTarget::All(cut_off) => is_under_cut_off(self.issued_at, *cut_off),
        };
        if concerned {
            self.revoke();
        }
        concerned
    }

    pub(super) fn mark_stale(&self, user: &UserId) {
        if self.user == *user {
            self.stale();
        }
    }

    pub(super) fn stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }
}

/// All members of a key that several members have.
type Sharing = IndexMap<ConnectionId, Arc<Member>, BuildIdHasher>;

/// An index of members by one of their properties. Only the members store the key, which saves a copy of it. The key of a
/// member must not change while the member is in the index.
#[derive(Debug)]
pub(super) struct Index<K> {
    /// One member of each key. Most keys have no other, so that an entry is a pointer and nothing else.
    firsts: HashTable<Arc<Member>>,
    /// The members of the keys that several have, by the id of the member in `firsts`, who is among them.
    sharing: HashMap<ConnectionId, Sharing, BuildIdHasher>,
    hasher: RandomState,
    key: fn(&Member) -> Option<K>,
}

impl<K: Hash + Eq> Index<K> {
    pub(super) fn new(key: fn(&Member) -> Option<K>) -> Self {
        Self {
            firsts: HashTable::new(),
            sharing: HashMap::default(),
            hasher: RandomState::new(),
            key,
        }
    }

    pub(super) fn insert(&mut self, member: &Arc<Member>) {
        let Some(key) = (self.key)(member) else {
            return;
        };
        let (hash, key_of) = (self.hasher.hash_one(&key), self.key);
        if let Some(first) = self.firsts.find(hash, |first| has_key(first, &key, key_of)) {
            let of_first = || Sharing::from_iter([(first.id(), first.clone())]);
            let sharing = self.sharing.entry(first.id()).or_insert_with(of_first);
            sharing.insert(member.id(), member.clone());
            return;
        }
        let rehash = rehash(&self.hasher, key_of);
        self.firsts.insert_unique(hash, member.clone(), rehash);
    }

    pub(super) fn remove(&mut self, member: &Member) {
        let Some(key) = (self.key)(member) else {
            return;
        };
        let (hash, key_of) = (self.hasher.hash_one(&key), self.key);
        let found = self
            .firsts
            .find_entry(hash, |first| has_key(first, &key, key_of));
        let Ok(mut entry) = found else {
            return;
        };
        let first = entry.get_mut();
        if first.id() != member.id() {
            let first = first.id();
            if let Some(sharing) = self.sharing.get_mut(&first) {
                sharing.swap_remove(&member.id());
                if sharing.len() == 1 {
                    self.sharing.remove(&first);
                }
            }
            return;
        }
        let mut rest = self.sharing.remove(&member.id()).unwrap_or_default();
        rest.swap_remove(&member.id());
        if let Some((_, next)) = rest.first() {
            *first = next.clone();
            if rest.len() > 1 {
                self.sharing.insert(first.id(), rest);
            }
            return;
        }
        entry.remove();
        self.give_back();
    }

    /// Returns the memory of a storm of connections that is over.
    fn give_back(&mut self) {
        if self.firsts.len() * 8 < self.firsts.capacity() {
            let rehash = rehash(&self.hasher, self.key);
            self.firsts.shrink_to(self.firsts.len() * 2, rehash);
        }
        if self.sharing.len() * 8 < self.sharing.capacity() {
            self.sharing.shrink_to(self.sharing.len() * 2);
        }
    }

    /// Returns the member of the key in `firsts`, and all that share it, if it has several.
    fn find(&self, key: &K) -> Option<(&Arc<Member>, Option<&Sharing>)> {
        let hash = self.hasher.hash_one(key);
        let first = self
            .firsts
            .find(hash, |first| has_key(first, key, self.key))?;
        Some((first, self.sharing.get(&first.id())))
    }

    /// Calls `visit` for every member with the key.
    pub(super) fn visit(&self, key: &K, mut visit: impl FnMut(&Arc<Member>)) {
        match self.find(key) {
            None => {}
            Some((only, None)) => visit(only),
            Some((_, Some(sharing))) => sharing.values().for_each(visit),
        }
    }

    /// Returns the number of members with the key.
    pub(super) fn count(&self, key: &K) -> usize {
        let found = self.find(key);
        found.map_or(0, |(_, sharing)| sharing.map_or(1, Sharing::len))
    }

    /// Returns one member of every key.
    pub(super) fn one_each(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.firsts.iter()
    }
}

/// The table stores no hashes, so growing it hashes the key of each entry again.
fn rehash<K: Hash>(
    hasher: &RandomState,
    key_of: fn(&Member) -> Option<K>,
) -> impl Fn(&Arc<Member>) -> u64 {
    move |first| key_of(first).map_or(0, |key| hasher.hash_one(key))
}

fn has_key<K: Eq>(first: &Member, key: &K, key_of: fn(&Member) -> Option<K>) -> bool {
    key_of(first).as_ref() == Some(key)
}

#[cfg(test)]
mod tests;
