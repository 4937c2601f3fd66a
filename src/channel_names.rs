//! Which names Channels allows, and how a group's name becomes a Redis channel and back.

use bytes::Bytes;

use crate::ids::GroupName;

/// The longest name of a group or channel, in characters.
pub const MAX_NAME: usize = 99;

/// What stands between a layer's prefix and the name of a group.
const GROUP_INFIX: &str = "__group__";

/// Whether `name` may name a group: 1 to 99 of ASCII letters, digits, `-`, `_` and `.`.
///
/// Channels lets Unicode digits and one trailing newline through as well; these are refused here.
pub fn valid_group_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(in_name)
}

/// Whether `name` may name a channel: like a group, and once, not at the start, a `!`, after which nothing need follow.
///
/// Channels lets any Unicode word character through after the `!`; here it is ASCII.
pub fn valid_channel_name(name: &str) -> bool {
    let (shared, local) = name.split_once('!').unwrap_or((name, ""));
    (1..=MAX_NAME).contains(&name.len())
        && !shared.is_empty()
        && shared.bytes().chain(local.bytes()).all(in_name)
}

fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// The Redis channel of a group in the pub/sub layer: `{prefix}__group__{group}`.
pub fn group_channel(prefix: &str, group: &GroupName) -> Bytes {
    Bytes::from(format!("{prefix}{GROUP_INFIX}{group}"))
}

/// The group whose Redis channel this is, if it is one of `prefix`.
pub fn group_of_channel<'a>(prefix: &str, channel: &'a [u8]) -> Option<&'a str> {
    let group = channel
        .strip_prefix(prefix.as_bytes())?
        .strip_prefix(GROUP_INFIX.as_bytes())?;
    str::from_utf8(group).ok()
}

/// What the channels of a pub/sub layer with `prefix` begin with: those of groups, and those of sockets and consumers.
pub fn own_channel_beginnings(prefix: &str) -> [String; 2] {
    [
        format!("{prefix}{GROUP_INFIX}"),
        format!("{prefix}specific."),
    ]
}

/// The patterns of all channels that a pub/sub layer with `prefix` subscribes to, as ACL rules without their first `&`.
pub fn channel_patterns(prefix: &str) -> String {
    let [groups, single] = own_channel_beginnings(prefix);
    format!("{groups}* &{single}*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_from_1_to_99() {
        for (len, good) in [(0, false), (1, true), (99, true), (100, false)] {
            assert_eq!(valid_group_name(&"a".repeat(len)), good, "{len}");
            assert_eq!(valid_channel_name(&"a".repeat(len)), good, "{len}");
        }
    }

    #[test]
    fn only_ascii_passes() {
        for name in [
            "room\n", "\u{661}", "é", "a b", "a*", "a{b}", "a:b", "a/b", "a\0",
        ] {
            assert!(!valid_group_name(name), "{name:?}");
            assert!(!valid_channel_name(name), "{name:?}");
        }
        for name in ["a!é", "a!x\n", "!", "!a", "a!!", "a!b!c"] {
            assert!(!valid_channel_name(name), "{name:?}");
        }
        assert!(valid_channel_name("specific.abc!"));
        assert!(valid_channel_name("specific.abc!def"));
        assert!(!valid_group_name("specific.abc!def"));
    }

    #[test]
    fn a_group_comes_back_from_its_channel() {
        for group in ["room.1", "asgi__group__x", "__group__"] {
            let channel = group_channel("asgi", &group.into());
            assert_eq!(group_of_channel("asgi", &channel), Some(group));
        }
        assert_eq!(group_of_channel("asgi", b"asgi2__group__a"), None);
        assert_eq!(group_of_channel("asgi", b"asgi__group__\xff"), None);
    }
}
