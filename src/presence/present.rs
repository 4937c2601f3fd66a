//! The sockets of this replica in groups with presence, and what of them is not written yet. Without IO.

use std::sync::Arc;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};
use indexmap::IndexSet;

use super::PresencePlace;
use crate::config::PresenceConfig;
use crate::ids::{ConnectionId, GroupName, UserId};
use crate::stores::redis::RedisStore;

/// Users of one write. Redis takes 13 µs for each, and other commands wait meanwhile.
pub(super) const USERS_PER_WRITE: usize = 100;
/// The most bytes of a user's fields. A field that does not fit is left out.
const MOST_FIELD_BYTES: usize = 4096;

/// The record of a user as it was when a socket connected.
pub trait UserFields: Send + Sync {
    /// Returns the fields of these names as the JSON text of each value.
    fn json_of(&self, names: &[String]) -> Vec<(String, String)>;
}

/// One open socket.
struct PresentSocket {
    user: UserId,
    record: Arc<dyn UserFields>,
    groups: Vec<GroupName>,
}

/// One user in one group.
struct UserHere {
    sockets: u32,
    /// The fields of the newest socket, as a JSON object.
    fields: Arc<str>,
}

/// One group.
struct PresentGroup {
    rule: Arc<PresenceConfig>,
    place: Option<PresencePlace>,
    users: HashMap<UserId, UserHere>,
    sockets: u64,
    /// Users whose entry is not written yet.
    changed: HashSet<UserId>,
    /// Everything is written again, and what stands there otherwise is removed.
    whole: bool,
    /// The time at which the next user who lingers has left.
    settles_at: Option<Instant>,
}

/// The change of one user in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The user.
    pub user: UserId,
    /// The user's sockets on this replica; 0 if there is none any more.
    pub sockets: u32,
    /// A JSON object.
    pub fields: Arc<str>,
}

/// The part of one group that is written at once.
#[derive(Clone)]
pub struct Write {
    /// The group.
    pub group: GroupName,
    /// Its place; `None` in memory.
    pub place: Option<PresencePlace>,
    /// Its rule.
    pub rule: Arc<PresenceConfig>,
    /// The users whose entries change.
    pub changes: Vec<Change>,
    /// The sockets of this replica in the group.
    pub sockets: u64,
    /// The changes are all users of this replica in the group.
    pub whole: bool,
    /// The number of users of this replica that stand there afterwards; `None` while more is to be written.
    pub users: Option<u64>,
}

impl Write {
    /// Returns a write without changes, which only looks at a group.
    pub fn look(group: &GroupName, place: Option<&PresencePlace>, rule: &PresenceConfig) -> Self {
        Self {
            group: group.clone(),
            place: place.cloned(),
            rule: Arc::new(rule.clone()),
            changes: Vec::new(),
            sockets: 0,
            whole: false,
            users: Some(0),
        }
    }

    /// Returns the server that it goes to; `None` in memory.
    pub fn store(&self) -> Option<Arc<RedisStore>> {
        Some(self.place.as_ref()?.store.clone())
    }
}

/// The sockets of one tenant in groups with presence.
#[derive(Default)]
pub struct PresentSockets {
    sockets: HashMap<ConnectionId, PresentSocket>,
    groups: HashMap<GroupName, PresentGroup>,
    /// The groups with something to write, those that wait longest first.
    due: IndexSet<GroupName>,
    entries: usize,
}

impl PresentSockets {
    /// Notes that a socket is open. [`PresentSockets::join`] puts it into groups.
    pub fn open(&mut self, id: ConnectionId, user: UserId, record: Arc<dyn UserFields>) {
        let socket = PresentSocket {
            user,
            record,
            groups: Vec::new(),
        };
        self.sockets.insert(id, socket);
    }

    /// Puts an open socket into a group; nothing if it is not open or in it already.
    pub fn join(
        &mut self,
        id: ConnectionId,
        name: &GroupName,
        rule: &PresenceConfig,
        place: impl FnOnce() -> Option<PresencePlace>,
    ) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        if socket.groups.contains(name) {
            return;
        }
        socket.groups.push(name.clone());
        let group = self.groups.entry_ref(name).or_insert_with(|| PresentGroup {
            rule: Arc::new(rule.clone()),
            place: place(),
            users: HashMap::new(),
            sockets: 0,
            changed: HashSet::new(),
            whole: false,
            settles_at: None,
        });
        let fields: Arc<str> = object_of(socket.record.json_of(&group.rule.fields)).into();
        group.sockets += 1;
        let entries = &mut self.entries;
        let user = group.users.entry_ref(&socket.user).or_insert_with(|| {
            *entries += 1;
            UserHere {
                sockets: 0,
                fields: fields.clone(),
            }
        });
        user.sockets += 1;
        user.fields = fields;
        group.changed.insert(socket.user.clone());
        self.due.insert(name.clone());
    }

    /// Takes a socket out of a group.
    pub fn leave(&mut self, id: ConnectionId, name: &GroupName) {
        let Some(socket) = self.sockets.get_mut(&id) else {
            return;
        };
        let Some(at) = socket.groups.iter().position(|group| group == name) else {
            return;
        };
        socket.groups.swap_remove(at);
        let user = socket.user.clone();
        self.take_out(name, &user);
    }

    /// Takes a socket out of all groups, for good.
    pub fn close(&mut self, id: ConnectionId) {
        if let Some(socket) = self.sockets.remove(&id) {
            for name in &socket.groups {
                self.take_out(name, &socket.user);
            }
        }
    }

    /// Takes every socket out of all groups.
    pub fn close_all(&mut self) {
        let ids: Vec<ConnectionId> = self.sockets.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close(id));
    }

    fn take_out(&mut self, name: &GroupName, user: &UserId) {
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        let Some(known) = group.users.get_mut(user) else {
            return;
        };
        known.sockets -= 1;
        group.sockets -= 1;
        if known.sockets == 0 {
            group.users.remove(user);
            self.entries -= 1;
        }
        group.changed.insert(user.clone());
        self.due.insert(name.clone());
    }

    /// Returns the number of entries: users, each in each of its groups.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Returns the number of groups that are kept.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Returns true if no group is kept.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns the number of groups with something to write.
    pub fn due(&self) -> usize {
        self.due.len()
    }

    /// Returns the names of all groups.
    pub fn names(&self) -> Vec<GroupName> {
        self.groups.keys().cloned().collect()
    }

    /// Lets a group be looked at, also if nothing of it changed.
    pub fn touch(&mut self, name: &GroupName) {
        if self.groups.contains_key(name) {
            self.due.insert(name.clone());
        }
    }

    /// Lets a group be written again as a whole.
    pub fn rewrite(&mut self, name: &GroupName) {
        if let Some(group) = self.groups.get_mut(name) {
            group.whole = true;
            self.due.insert(name.clone());
        }
    }

    /// Lets the groups at places that `is_there` knows be looked at, or be written again as a `whole`.
    pub fn each_at(&mut self, is_there: impl Fn(&PresencePlace) -> bool, whole: bool) {
        for (name, group) in &mut self.groups {
            if group.place.as_ref().is_some_and(&is_there) {
                group.whole |= whole;
                self.due.insert(name.clone());
            }
        }
    }

    /// Takes what is to be written of up to `most` groups.
    pub fn take(&mut self, most: usize) -> Vec<Write> {
        let first = self.due.len().min(most);
        let names: Vec<GroupName> = self.due.drain(..first).collect();
        names
            .into_iter()
            .filter_map(|name| self.take_one(name))
            .collect()
    }

    fn take_one(&mut self, name: GroupName) -> Option<Write> {
        let group = self.groups.get_mut(&name)?;
        let whole = std::mem::take(&mut group.whole);
        let changed: Vec<UserId> = if whole {
            // A whole group is one write, so that no user of it is taken for gone in between.
            group.changed.clear();
            group.users.keys().cloned().collect()
        } else {
            let mut left = USERS_PER_WRITE;
            let few = group.changed.extract_if(|_| {
                let taken = left > 0;
                left -= usize::from(taken);
                taken
            });
            few.collect()
        };
        let change = |user: UserId| match group.users.get(&user) {
            Some(known) => Change {
                user,
                sockets: known.sockets,
                fields: known.fields.clone(),
            },
            None => Change {
                user,
                sockets: 0,
                fields: "{}".into(),
            },
        };
        let write = Write {
            place: group.place.clone(),
            rule: group.rule.clone(),
            changes: changed.into_iter().map(change).collect(),
            sockets: group.sockets,
            whole,
            users: group.changed.is_empty().then_some(group.users.len() as u64),
            group: name.clone(),
        };
        if !group.changed.is_empty() {
            self.due.insert(name);
        }
        Some(write)
    }

    /// Notes that a write did not arrive, or may not have. It is due again.
    pub fn not_written(&mut self, write: &Write) {
        let Some(group) = self.groups.get_mut(&write.group) else {
            return;
        };
        group.whole |= write.whole;
        let users = write.changes.iter().map(|change| change.user.clone());
        group.changed.extend(users);
        self.due.insert(write.group.clone());
    }

    /// Notes that a write arrived; the next user there has left at `settles_at`. A group without users is forgotten once
    /// no one of it lingers.
    pub fn written(&mut self, write: &Write, settles_at: Option<Instant>) {
        if let Some(group) = self.groups.get_mut(&write.group) {
            group.settles_at = settles_at;
            let is_over = group.users.is_empty() && group.changed.is_empty();
            if is_over && settles_at.is_none() && !self.due.contains(&write.group) {
                self.groups.remove(&write.group);
            }
        }
    }
}

/// Returns a JSON object of these members, without those that would make it too long.
fn object_of(members: Vec<(String, String)>) -> String {
    let mut object = String::from("{");
    for (name, value) in members {
        if object.len() + name.len() + value.len() + 5 > MOST_FIELD_BYTES {
            continue;
        }
        if object.len() > 1 {
            object.push(',');
        }
        object.push_str(&serde_json::Value::from(name).to_string());
        object.push(':');
        object.push_str(&value);
    }
    object.push('}');
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OneName(&'static str);

    impl UserFields for OneName {
        fn json_of(&self, names: &[String]) -> Vec<(String, String)> {
            let value = |name: &String| (name.clone(), format!("\"{}\"", self.0));
            names.iter().map(value).collect()
        }
    }

    fn rule() -> PresenceConfig {
        PresenceConfig {
            fields: vec!["name".to_owned()],
            ..PresenceConfig::default()
        }
    }

    fn joined(present: &mut PresentSockets, id: u64, user: &str, name: &'static str, group: &str) {
        present.open(ConnectionId(id), user.into(), Arc::new(OneName(name)));
        present.join(ConnectionId(id), &group.into(), &rule(), || None);
    }

    fn change(user: &str, sockets: u32, fields: &str) -> Change {
        Change {
            user: user.into(),
            sockets,
            fields: fields.into(),
        }
    }

    #[test]
    fn sockets_of_one_user_are_one_entry_and_the_newest_names_the_fields() {
        let mut present = PresentSockets::default();
        joined(&mut present, 1, "7", "old", "g");
        joined(&mut present, 2, "7", "new", "g");
        present.join(ConnectionId(2), &"g".into(), &rule(), || None);
        let [write] = &present.take(9)[..] else {
            panic!("one group");
        };
        assert_eq!(write.changes, [change("7", 2, r#"{"name":"new"}"#)]);
        assert_eq!((write.sockets, write.users), (2, Some(1)));
        assert_eq!((present.entries(), present.due()), (1, 0));
        present.written(write, None);
        present.close(ConnectionId(1));
        present.leave(ConnectionId(2), &"g".into());
        present.leave(ConnectionId(2), &"g".into());
        let [write] = &present.take(9)[..] else {
            panic!("one group");
        };
        assert_eq!(write.changes, [change("7", 0, "{}")]);
        present.written(write, None);
        assert_eq!((present.entries(), present.len()), (0, 0));
    }

    #[test]
    fn a_write_that_failed_is_due_again_with_what_changed_since() {
        let mut present = PresentSockets::default();
        joined(&mut present, 1, "7", "a", "g");
        let [write] = &present.take(9)[..] else {
            panic!("one group");
        };
        present.close(ConnectionId(1));
        joined(&mut present, 2, "8", "b", "g");
        present.not_written(write);
        let mut again = present.take(9).remove(0);
        again.changes.sort_by(|a, b| a.user.cmp(&b.user));
        assert_eq!(
            again.changes,
            [change("7", 0, "{}"), change("8", 1, r#"{"name":"b"}"#)]
        );
    }

    #[test]
    fn a_large_group_is_written_in_parts_and_again_as_a_whole() {
        let mut present = PresentSockets::default();
        for id in 0..USERS_PER_WRITE as u64 + 50 {
            joined(&mut present, id, &id.to_string(), "x", "g");
        }
        let parts: Vec<_> = (0..3).flat_map(|_| present.take(9)).collect();
        let sizes: Vec<_> = parts.iter().map(|part| part.changes.len()).collect();
        assert_eq!(sizes, [USERS_PER_WRITE, 50]);
        assert_eq!((parts[0].users, parts[1].users), (None, Some(150)));
        present.rewrite(&"g".into());
        let whole = present.take(9).remove(0);
        assert!(whole.whole && whole.changes.len() == 150);
    }

    #[test]
    fn a_group_stays_while_a_user_lingers_and_one_that_was_joined_again_is_not_forgotten() {
        let mut present = PresentSockets::default();
        joined(&mut present, 1, "7", "a", "g");
        let write = present.take(9).remove(0);
        present.written(&write, None);
        present.close(ConnectionId(1));
        let write = present.take(9).remove(0);
        present.written(&write, Some(Instant::now()));
        assert_eq!(present.len(), 1);
        present.touch(&"g".into());
        let write = present.take(9).remove(0);
        joined(&mut present, 2, "8", "b", "g");
        present.written(&write, None);
        assert_eq!((present.len(), present.due()), (1, 1));
    }

    #[test]
    fn fields_that_do_not_fit_are_left_out() {
        let long = format!("\"{}\"", "x".repeat(MOST_FIELD_BYTES));
        let members = [("a", "1"), ("b", &long), ("c\"", "{}")];
        let members = members.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(object_of(members.into()), r#"{"a":1,"c\"":{}}"#);
        assert_eq!(object_of(Vec::new()), "{}");
    }
}
