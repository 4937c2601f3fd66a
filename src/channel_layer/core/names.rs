//! Keys and channel names of the core layer, in the form of `channels_redis.core`.

use crate::channel_names::{core_group_key, hex_digest, history_member_beginning};
use crate::ids::{GroupName, random_hex};

use super::super::shards::shard_of;
use super::super::target::SocketChannel;

/// The names of one tenant's layer in this process.
#[derive(Debug)]
pub(super) struct Names {
    prefix: Box<str>,
    /// The beginning of every group's name on the wire.
    namespace: Box<str>,
    /// The prefix of this layer's channel names: `specific.{32 hex}!`, random for each layer.
    own: Box<str>,
    /// A prefix for each host, whose messages lie on that host. One of them is `own`.
    lanes: Box<[Box<str>]>,
}

/// The recipient that a channel name of this process stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalName {
    /// The members of a group, by the group's number in this process.
    Group(u64),
    /// The same for a group with history, whose events come another way: the message only says that there is one.
    RecordedGroup(u64),
    Socket(SocketChannel),
}

impl Names {
    /// Draws the names for a layer on this number of hosts.
    pub(super) fn new(prefix: &str, namespace: &str, hosts: usize) -> Self {
        let draw = || format!("specific.{}!", random_hex()).into_boxed_str();
        let own = draw();
        let lane = |host| {
            let is_there = |lane: &str| shard_of(lane.as_bytes(), hosts) == host;
            let mut lanes = std::iter::once(own.clone()).chain(std::iter::repeat_with(draw));
            lanes.find(|lane| is_there(lane)).unwrap_or_default()
        };
        Self {
            prefix: prefix.into(),
            namespace: namespace.into(),
            lanes: (0..hosts).map(lane).collect(),
            own,
        }
    }

    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// The one key for the messages of all channels of this process.
    pub(super) fn own_key(&self) -> String {
        self.message_key(&self.own)
    }

    /// The key for messages that must lie on this host; `None` if it is [`Names::own_key`].
    pub(super) fn lane_key(&self, host: usize) -> Option<String> {
        let lane = self.lanes.get(host).filter(|lane| **lane != self.own)?;
        Some(self.message_key(lane))
    }

    /// The key for the messages of a channel.
    pub(super) fn message_key(&self, channel: &str) -> String {
        format!("{}{}", self.prefix, non_local(channel))
    }

    /// The key for the members of a group.
    pub(super) fn group_key(&self, group: &GroupName) -> String {
        core_group_key(&self.prefix, &self.namespace, group.as_str())
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The number of the host of a group; its name on the wire is hashed, without the prefix.
    pub(super) fn host_of(&self, group: &GroupName) -> usize {
        let hosts = self.lanes.len();
        match self.namespace.is_empty() || hosts == 1 {
            true => shard_of(group.as_str().as_bytes(), hosts),
            false => shard_of(self.on_the_wire(group).as_bytes(), hosts),
        }
    }

    fn on_the_wire(&self, group: &GroupName) -> String {
        format!("{}{group}", self.namespace)
    }

    /// The key of the mark that disappears when the layer's keys are flushed. Channels does not know it.
    pub(super) fn alive_key(&self) -> String {
        format!("{}$alive", self.own_key())
    }

    /// The pattern of all keys of the layer, in the form of an ACL rule.
    pub(super) fn key_pattern(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// The channel that stands for all members of a group in this process. It begins with `g` and has at most 17
    /// characters behind the prefix, so it cannot be taken for a socket's 32 digits.
    pub(super) fn member(&self, number: u64) -> String {
        format!("{}g{number:x}", self.own)
    }

    /// The channel that stands for all members of a group with history in this process. Its messages lie on the host of the
    /// group, so that one step of Channels writes them and those for the history.
    pub(super) fn recorded_member(&self, group: &GroupName, number: u64) -> String {
        format!("{}h{number:x}", self.lanes[self.host_of(group)])
    }

    /// The member that stands for the history of a group: the same in every replica, with messages on the host of the group.
    pub(super) fn history_member(&self, group: &GroupName) -> String {
        let hosts = self.lanes.len();
        let host = self.host_of(group);
        let beginning = history_member_beginning(&self.namespace);
        let digest = hex_digest(&self.on_the_wire(group), 16);
        let name = |count: u32| format!("{beginning}{digest}.{count}!");
        let mut names = (0..).map(name);
        let found = names.find(|name| shard_of(name.as_bytes(), hosts) == host);
        found.unwrap_or_default()
    }

    /// Reads a channel name; `None` if it is not one of this process.
    pub(super) fn local(&self, channel: &str) -> Option<LocalName> {
        let lanes = std::iter::once(&self.own).chain(&self.lanes);
        let local = { lanes }.find_map(|lane| channel.strip_prefix(&**lane))?;
        if let Some(digits) = local.strip_prefix('h') {
            let number = u64::from_str_radix(digits, 16).ok()?;
            return Some(LocalName::RecordedGroup(number));
        }
        if let Some(socket) = SocketChannel::of_digits(local) {
            return Some(LocalName::Socket(socket));
        }
        let number = u64::from_str_radix(local.strip_prefix('g')?, 16).ok()?;
        Some(LocalName::Group(number))
    }
}

/// The key for the messages of `message_key` that are being read.
pub(super) fn inflight_key(message_key: &str) -> String {
    format!("{message_key}$inflight")
}

/// Returns a channel name up to and including its `!`; the whole name if it has none.
pub(super) fn non_local(channel: &str) -> &str {
    channel.find('!').map_or(channel, |at| &channel[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_come_back_and_others_do_not() {
        let names = Names::new("asgi", "", 1);
        let socket = SocketChannel(*b"0123456789abcdef");
        assert_eq!(
            names.local(&socket.name(names.own())),
            Some(LocalName::Socket(socket))
        );
        for number in [0, 7, u64::MAX] {
            assert_eq!(
                names.local(&names.member(number)),
                Some(LocalName::Group(number))
            );
        }
        let own = names.own().to_owned();
        for other in ["", "g", "x1", "g1 ", "0123"] {
            assert_eq!(names.local(&format!("{own}{other}")), None, "{other}");
        }
        assert_eq!(names.local(&Names::new("asgi", "", 1).member(1)), None);
    }

    #[test]
    fn members_of_recorded_groups_lie_on_the_hosts_of_their_groups() {
        for hosts in [1, 3, 7] {
            let (names, others) = (Names::new("asgi", "", hosts), Names::new("asgi", "", hosts));
            for number in 0..50 {
                let group = GroupName::from(format!("g{number}"));
                let host = shard_of(group.as_str().as_bytes(), hosts);
                let (own, history) = (
                    names.recorded_member(&group, number),
                    names.history_member(&group),
                );
                for member in [&own, &history] {
                    assert_eq!(shard_of(non_local(member).as_bytes(), hosts), host);
                    assert!(crate::channel_names::valid_channel_name(member), "{member}");
                }
                let read = names.local(&own);
                assert_eq!(read, Some(LocalName::RecordedGroup(number)));
                assert_eq!((names.local(&history), others.local(&own)), (None, None));
                assert_eq!(history, others.history_member(&group));
            }
            let keys = (0..hosts).filter_map(|host| names.lane_key(host));
            assert_eq!(keys.count(), hosts - 1);
        }
    }

    /// Equal groups of two tenants that share a prefix have no name in common, and hosts as Channels chooses them.
    #[test]
    fn a_namespace_begins_every_name_of_a_group() {
        let group = GroupName::from("lobby");
        let [one, other] = ["acme.", "globex."].map(|namespace| Names::new("asgi", namespace, 3));
        assert_eq!(one.group_key(&group), "asgi:group:acme.lobby");
        // Redis users are given the messages of a namespace by their beginning.
        let beginning = history_member_beginning("acme.");
        assert!(one.history_member(&group).starts_with(&beginning));
        assert!(!other.history_member(&group).starts_with(&beginning));
        assert_ne!(one.own(), other.own());
        for number in 0..50 {
            let group = GroupName::from(format!("g{number}"));
            let host = shard_of(format!("acme.g{number}").as_bytes(), 3);
            assert_eq!(one.host_of(&group), host);
            for member in [
                one.recorded_member(&group, number),
                one.history_member(&group),
            ] {
                assert_eq!(shard_of(non_local(&member).as_bytes(), 3), host);
            }
        }
    }

    #[test]
    fn names_fit_channels_rule() {
        let names = Names::new("asgi", "", 1);
        let socket = SocketChannel([255; 16]).name(names.own());
        assert!(crate::channel_names::valid_channel_name(&socket));
        assert_eq!(socket.len(), 74);
        let member = names.member(u64::MAX);
        assert!(crate::channel_names::valid_channel_name(&member));
    }
}
