//! The groups of a tenant with their connections on this replica.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::member::{Group, Member};
use crate::ids::{ConnectionId, GroupName};

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
        let group = by_name
            .entry_ref(name)
            .or_insert_with(|| Arc::new(Group::new(name.clone())))
            .clone();
        // Still under the lock of `by_name`, so that `remove_if_empty` cannot remove the new group before it has a
        // member.
        let new = group.add(member);
        (group, new)
    }

    /// Takes the member out; returns true if it was the last one. The empty group stays until
    /// [`Groups::remove_if_empty`].
    pub fn remove(&self, group: &Group, member: ConnectionId) -> bool {
        group.remove(member)
    }

    /// Removes the group if it is still empty, and calls `gone` before a member can join it again.
    pub fn remove_if_empty(&self, name: &GroupName, gone: impl FnOnce()) {
        let mut by_name = self.by_name.lock();
        if by_name.get(name).is_some_and(|group| group.is_empty()) {
            by_name.remove(name);
            gone();
        }
    }

    /// Calls `absent` if there is no such group, before a member can join it.
    pub fn if_absent(&self, name: &GroupName, absent: impl FnOnce()) {
        let by_name = self.by_name.lock();
        if !by_name.contains_key(name) {
            absent();
        }
    }

    /// Returns the groups whose history was used.
    pub fn with_history(&self) -> Vec<Arc<Group>> {
        let by_name = self.by_name.lock();
        let groups = by_name.values();
        let with_history = groups.filter(|group| group.known_history().is_some());
        with_history.cloned().collect()
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
