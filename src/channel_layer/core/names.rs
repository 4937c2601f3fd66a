//! Keys and channel names of the core layer, in the form of `channels_redis.core`.

use crate::ids::{GroupName, random_hex};

use super::super::target::SocketChannel;

/// The names of one tenant's layer in this process.
#[derive(Debug)]
pub(super) struct Names {
    prefix: Box<str>,
    /// The prefix of this layer's channel names: `specific.{32 hex}!`, random for each layer.
    own: Box<str>,
}

/// The recipient that a channel name of this process stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalName {
    /// The members of a group, by the group's number in this process.
    Group(u64),
    Socket(SocketChannel),
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
            own: format!("specific.{}!", random_hex()).into(),
        }
    }

    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// The one key for the messages of all channels of this process.
    pub(super) fn own_key(&self) -> String {
        self.message_key(&self.own)
    }

    /// The key for the messages of a channel.
    pub(super) fn message_key(&self, channel: &str) -> String {
        format!("{}{}", self.prefix, non_local(channel))
    }

    /// The key for the members of a group.
    pub(super) fn group_key(&self, group: &GroupName) -> String {
        format!("{}:group:{group}", self.prefix)
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

    /// Reads a channel name; `None` if it is not one of this process.
    pub(super) fn local(&self, channel: &str) -> Option<LocalName> {
        let local = channel.strip_prefix(&*self.own)?;
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
        let names = Names::new("asgi");
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
        assert_eq!(names.local(&Names::new("asgi").member(1)), None);
    }

    #[test]
    fn names_fit_channels_rule() {
        let names = Names::new("asgi");
        let socket = SocketChannel([255; 16]).name(names.own());
        assert!(crate::channel_names::valid_channel_name(&socket));
        assert_eq!(socket.len(), 74);
        let member = names.member(u64::MAX);
        assert!(crate::channel_names::valid_channel_name(&member));
    }
}
