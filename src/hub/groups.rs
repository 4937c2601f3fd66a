//! The groups of a tenant with their connections on this replica.

use std::sync::Arc;

use hashbrown::HashMap;
use indexmap::IndexMap;
use parking_lot::Mutex;

use super::Member;
use crate::ids::{ConnectionId, GroupName};

/// One group. Its members are dense in memory, because fan-out walks over all of them.
#[derive(Debug)]
pub struct Group {
    name: GroupName,
    members: Mutex<IndexMap<ConnectionId, Arc<Member>, BuildIdHasher>>,
}

impl Group {
    /// Returns the group's name within its tenant.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Calls `visit` for every member under one lock, and returns the number of members.
    ///
    /// If there are more than `most`, it calls nothing and returns `None`.
    pub fn visit(&self, most: usize, visit: impl FnMut(&Arc<Member>)) -> Option<usize> {
        let members = self.members.lock();
        if members.len() > most {
            return None;
        }
        members.values().for_each(visit);
        Some(members.len())
    }

    /// Returns a copy of the member list.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().values().cloned().collect()
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.members.lock().len()
    }

    /// Returns true if the group has no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The groups of one tenant that have, or just had, a member on this replica.
#[derive(Debug, Default)]
pub struct Groups {
    by_name: Mutex<HashMap<GroupName, Arc<Group>>>,
}

impl Groups {
    /// Returns the group if it has, or just had, a member on this replica.
    pub fn get(&self, name: &GroupName) -> Option<Arc<Group>> {
        self.by_name.lock().get(name).cloned()
    }

    /// Adds the member if it is not in the group yet. Returns the group, and true if the member is new in it.
    pub fn add(&self, name: &GroupName, member: &Arc<Member>) -> (Arc<Group>, bool) {
        let mut by_name = self.by_name.lock();
        let group = by_name.entry_ref(name).or_insert_with(|| {
            Arc::new(Group {
                name: name.clone(),
                members: Mutex::new(IndexMap::default()),
            })
        });
        let group = group.clone();
        // Still under the lock of `by_name`, so that `remove_if_empty` cannot remove the new group before it has a
        // member.
        let new = group
            .members
            .lock()
            .insert(member.id(), member.clone())
            .is_none();
        (group, new)
    }

    /// Takes the member out; returns true if it was the last one. The empty group stays until
    /// [`Groups::remove_if_empty`].
    pub fn remove(&self, group: &Group, member: ConnectionId) -> bool {
        let mut members = group.members.lock();
        members.swap_remove(&member).is_some() && members.is_empty()
    }

    /// Removes the group if it is still empty, and calls `gone` before a member can join it again.
    pub fn remove_if_empty(&self, name: &GroupName, gone: impl FnOnce()) {
        let mut by_name = self.by_name.lock();
        if by_name.get(name).is_some_and(|group| group.is_empty()) {
            by_name.remove(name);
            gone();
        }
    }

    /// Returns the names and sizes of all groups.
    pub fn sizes(&self) -> Vec<(GroupName, usize)> {
        self.by_name
            .lock()
            .values()
            .map(|group| (group.name.clone(), group.len()))
            .collect()
    }
}

/// A fast hasher for connection ids. They are consecutive numbers that clients do not choose, so a multiplication by a
/// large odd number spreads them well enough.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

/// Builds [`IdHasher`]s.
pub(super) type BuildIdHasher = std::hash::BuildHasherDefault<IdHasher>;

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio. The upper bits are folded down because hash tables use the lower ones.
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}
