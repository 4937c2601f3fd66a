//! Indexes that find the connections of a token or a user without a walk over all connections.
//!
//! Revocations, operators and changed users need them. A socket enters the hub before its handshake reads the
//! denylist: as [`Pending`] during the handshake, and as a member from its admission on. A revocation that is announced
//! after the read therefore finds the socket.

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

/// The members that share a key. Most keys have one member, and a list would take more memory than the member.
#[derive(Debug)]
enum Few {
    One(Arc<Member>),
    Many(Box<IndexMap<ConnectionId, Arc<Member>, BuildIdHasher>>),
}

impl Few {
    fn any(&self) -> Option<&Arc<Member>> {
        match self {
            Few::One(member) => Some(member),
            Few::Many(members) => members.first().map(|(_, member)| member),
        }
    }
}

/// An index of members by one of their properties. Only the members store the key, which saves a copy of it. The key of a
/// member must not change while the member is in the index.
#[derive(Debug)]
pub(super) struct Index<K> {
    table: HashTable<Few>,
    hasher: RandomState,
    key: fn(&Member) -> Option<K>,
}

impl<K: Hash + Eq> Index<K> {
    pub(super) fn new(key: fn(&Member) -> Option<K>) -> Self {
        Self {
            table: HashTable::new(),
            hasher: RandomState::new(),
            key,
        }
    }

    pub(super) fn insert(&mut self, member: &Arc<Member>) {
        let Some(key) = (self.key)(member) else {
            return;
        };
        let (hash, key_of) = (self.hasher.hash_one(&key), self.key);
        if let Some(few) = self.table.find_mut(hash, |few| has_key(few, &key, key_of)) {
            match few {
                Few::One(first) => {
                    let both = [first.clone(), member.clone()];
                    let both = both.map(|member| (member.id(), member));
                    *few = Few::Many(Box::new(both.into_iter().collect()));
                }
                Few::Many(members) => drop(members.insert(member.id(), member.clone())),
            }
            return;
        }
        // The table stores no hashes, so growing it hashes the key of a member of each entry again.
        let hasher = &self.hasher;
        let rehash = |few: &Few| {
            few.any()
                .and_then(|member| key_of(member))
                .map_or(0, |key| hasher.hash_one(key))
        };
        self.table
            .insert_unique(hash, Few::One(member.clone()), rehash);
    }

    pub(super) fn remove(&mut self, member: &Member) {
        let Some(key) = (self.key)(member) else {
            return;
        };
        let (hash, key_of) = (self.hasher.hash_one(&key), self.key);
        let found = self
            .table
            .find_entry(hash, |few| has_key(few, &key, key_of));
        let Ok(mut entry) = found else {
            return;
        };
        let last = match entry.get_mut() {
            Few::One(only) => only.id() == member.id(),
            Few::Many(members) => {
                members.swap_remove(&member.id());
                members.is_empty()
            }
        };
        if last {
            entry.remove();
            // Returns the memory of a storm of connections that is over.
            if self.table.len() * 8 < self.table.capacity() {
                let hasher = &self.hasher;
                self.table.shrink_to(self.table.len() * 2, |few| {
                    few.any()
                        .and_then(|member| key_of(member))
                        .map_or(0, |key| hasher.hash_one(key))
                });
            }
        }
    }

    /// Calls `visit` for every member with the key.
    pub(super) fn visit(&self, key: &K, mut visit: impl FnMut(&Arc<Member>)) {
        let hash = self.hasher.hash_one(key);
        match self.table.find(hash, |few| has_key(few, key, self.key)) {
            None => {}
            Some(Few::One(member)) => visit(member),
            Some(Few::Many(members)) => members.values().for_each(visit),
        }
    }

    /// Returns the number of members with the key.
    pub(super) fn count(&self, key: &K) -> usize {
        let hash = self.hasher.hash_one(key);
        match self.table.find(hash, |few| has_key(few, key, self.key)) {
            None => 0,
            Some(Few::One(_)) => 1,
            Some(Few::Many(members)) => members.len(),
        }
    }

    /// Returns one member of every key.
    pub(super) fn one_each(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.table.iter().filter_map(Few::any)
    }
}

fn has_key<K: Eq>(few: &Few, key: &K, key_of: fn(&Member) -> Option<K>) -> bool {
    few.any().and_then(|member| key_of(member)).as_ref() == Some(key)
}

#[cfg(test)]
mod tests;
