//! The presence of groups in memory: step by step what `script/update.lua` does in Redis, for a layer without Redis and as
//! the model of the tests.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use super::notice::{Entered, Notice};
use super::present::Write;
use super::store::{Announced, PresentUser, UserPage};
use crate::ids::{GroupName, UserId, random_hex};

/// The presence of all groups of one tenant.
#[derive(Default)]
pub struct Board {
    groups: HashMap<GroupName, BoardGroup>,
}

#[derive(Default)]
struct BoardGroup {
    epoch: String,
    /// The number of the last notice.
    changes: u64,
    replicas: BTreeMap<String, ReplicaUsers>,
    /// The users that members know of: those who are there and those who linger.
    users: BTreeSet<UserId>,
    /// The milliseconds at which each user who lingers has left.
    leaving: BTreeMap<UserId, u64>,
}

/// The users of one replica in one group.
#[derive(Default)]
struct ReplicaUsers {
    sockets: u64,
    users: BTreeMap<UserId, (u32, String)>,
}

/// The outcome of an update.
#[derive(Debug)]
pub struct Updated {
    /// Milliseconds until the next user who lingers has left.
    pub wait: Option<u64>,
    /// The number of users of the replica that stand there.
    pub held: u64,
    /// The users who joined and left, if members are told.
    pub notice: Option<Notice>,
}

impl Board {
    /// Writes what the replica `id` knows of a group, and takes back what the replicas `dead` left; `now` in milliseconds.
    pub fn update(&mut self, id: &str, write: &Write, dead: &[String], now: u64) -> Updated {
        let linger = write.rule.linger.as_millis() as u64;
        let group = self.groups.entry_ref(&write.group).or_default();
        let (mut joined, mut left) = (Vec::new(), group.settle(now));
        let before = match write.whole {
            true => std::mem::take(&mut group.own(id).users),
            false => BTreeMap::new(),
        };
        for change in write.changes.iter().filter(|change| change.sockets > 0) {
            let entry = (change.sockets, change.fields.to_string());
            group.own(id).users.insert(change.user.clone(), entry);
            group.leaving.remove(&change.user);
            if group.users.insert(change.user.clone()) {
                joined.push(Entered {
                    id: change.user.clone(),
                    fields: change.fields.clone(),
                });
            }
        }
        let mut gone: Vec<UserId> = Vec::new();
        for dead in dead {
            let users = group.replicas.remove(dead).unwrap_or_default().users;
            gone.extend(users.into_keys());
        }
        for change in write.changes.iter().filter(|change| change.sockets == 0) {
            group.own(id).users.remove(&change.user);
            gone.push(change.user.clone());
        }
        gone.extend(before.into_keys());
        for user in gone {
            left.extend(group.gone(user, now, linger));
        }
        let own = group.own(id);
        own.sockets = write.sockets;
        let held = own.users.len() as u64;
        if held == 0 && write.sockets == 0 {
            group.replicas.remove(id);
        }
        if group.epoch.is_empty() {
            group.epoch = random_hex();
        }
        let tells = write.rule.notify && !(joined.is_empty() && left.is_empty());
        group.changes += u64::from(tells);
        let notice = tells.then(|| Notice {
            epoch: group.epoch.clone(),
            number: group.changes,
            left,
            joined,
        });
        let next = group.leaving.values().min();
        Updated {
            wait: next.map(|at| at.saturating_sub(now)),
            held,
            notice,
        }
    }

    /// Returns the users that the members of a group know of.
    pub fn announced(&self, name: &GroupName) -> Announced {
        self.groups
            .get(name)
            .map(|group| Announced {
                epoch: group.epoch.clone(),
                number: group.changes,
                users: group.users.iter().cloned().collect(),
            })
            .unwrap_or_default()
    }

    /// Returns a page of the users that are there.
    pub fn page(&self, name: &GroupName, after: &str, limit: usize) -> UserPage {
        let Some(group) = self.groups.get(name) else {
            return UserPage::default();
        };
        let after = group
            .users
            .iter()
            .filter(|user| after.is_empty() || user.as_str() > after);
        let looked_at: Vec<&UserId> = after.take(limit).collect();
        let there = looked_at
            .iter()
            .filter(|user| !group.leaving.contains_key(**user));
        let entry = |user: &&&UserId| {
            let entries: Vec<_> = { group.replicas.values() }
                .filter_map(|replica| replica.users.get(**user))
                .collect();
            Some(PresentUser {
                id: (**user).clone(),
                sockets: entries.iter().map(|(sockets, _)| u64::from(*sockets)).sum(),
                fields: entries.first()?.1.clone(),
            })
        };
        let last = looked_at.last().filter(|_| looked_at.len() == limit);
        UserPage {
            sockets: group.replicas.values().map(|replica| replica.sockets).sum(),
            ids: (group.users.len() - group.leaving.len()) as u64,
            users: there.filter_map(|user| entry(&user)).collect(),
            next: last.map(|user| user.as_str().to_owned()),
        }
    }

    /// Forgets groups without users.
    pub fn tidy(&mut self) {
        self.groups
            .retain(|_, group| !(group.users.is_empty() && group.replicas.is_empty()));
    }

    /// Loses all data, as a Redis that restarts empty does.
    #[cfg(test)]
    pub(super) fn lose(&mut self) {
        self.groups.clear();
    }
}

impl BoardGroup {
    fn own(&mut self, id: &str) -> &mut ReplicaUsers {
        self.replicas.entry(id.to_owned()).or_default()
    }

    /// Takes out the users whose time has come.
    fn settle(&mut self, now: u64) -> Vec<UserId> {
        let due = self.leaving.iter().filter(|(_, at)| **at <= now);
        let due: Vec<UserId> = due.map(|(user, _)| user.clone()).collect();
        let left = due.into_iter().filter(|user| {
            self.leaving.remove(user);
            self.users.remove(user)
        });
        left.collect()
    }

    /// Lets a user linger who is on no replica any more; returns the user if there is no linger.
    fn gone(&mut self, user: UserId, now: u64, linger: u64) -> Option<UserId> {
        let has = |replica: &ReplicaUsers| replica.users.contains_key(&user);
        if self.replicas.values().any(has) || !self.users.contains(&user) {
            return None;
        }
        if linger > 0 {
            self.leaving.entry(user).or_insert(now + linger);
            return None;
        }
        self.users.remove(&user);
        Some(user)
    }
}
