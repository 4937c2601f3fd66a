//! The rules for names in Channels, and the Redis channels of groups.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::config::GroupNames;
use crate::ids::GroupName;

/// The longest name of a group or channel in characters; Channels' own limit.
pub const MAX_NAME: usize = 99;

/// The text between a layer's prefix and the name of a group.
const GROUP_INFIX: &str = "__group__";

/// Returns true if `name` is valid for a group: 1 to 99 ASCII letters, digits, `-`, `_` and `.`.
///
/// Channels also accepts Unicode digits and one trailing newline; this function does not.
pub fn valid_group_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(in_name)
}

/// Returns true if `name` is valid for a group in a namespace: together they have at most 99 characters.
pub fn valid_in_namespace(name: &str, namespace: &str) -> bool {
    valid_group_name(name) && namespace.len() + name.len() <= MAX_NAME
}

/// Returns true if a tenant with this rule and namespace allows `name` for a group.
pub fn allowed_group_name(name: &str, rule: GroupNames, namespace: &str) -> bool {
    match rule {
        GroupNames::Channels => valid_in_namespace(name, namespace),
        GroupNames::Any => !name.is_empty(),
    }
}

/// Says why `name` is not valid for a group in a namespace. The text shows one character of it, never the whole.
pub fn fault_of_group_name(name: &str, namespace: &str) -> String {
    match foreign_character(name) {
        _ if name.is_empty() => "it is empty".to_owned(),
        Some(character) => format!("it has the character {character:?}"),
        None if namespace.is_empty() => {
            format!("it has {} characters, more than {MAX_NAME}", name.len())
        }
        None => format!(
            "it has {} characters, with those of layer.namespace more than {MAX_NAME}",
            name.len()
        ),
    }
}

/// Returns the first character of `text` that no name of a group has.
pub fn foreign_character(text: &str) -> Option<char> {
    text.chars()
        .find(|character| !u8::try_from(*character).is_ok_and(in_name))
}

/// Returns true if `name` is valid for a channel.
///
/// The rule for groups applies, and one `!` may stand anywhere but at the start. Channels also accepts any Unicode
/// word character after the `!`; this function accepts ASCII only.
pub fn valid_channel_name(name: &str) -> bool {
    let (shared, local) = name.split_once('!').unwrap_or((name, ""));
    (1..=MAX_NAME).contains(&name.len())
        && !shared.is_empty()
        && shared.bytes().chain(local.bytes()).all(in_name)
}

fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Returns what the Redis channels of a tenant's groups begin with in the pub/sub layer: `{prefix}__group__{namespace}`.
pub fn group_channel_beginning(prefix: &str, namespace: &str) -> String {
    format!("{prefix}{GROUP_INFIX}{namespace}")
}

/// Returns the Redis channel of a group from what those of its tenant begin with ([`group_channel_beginning`]).
pub fn channel_from_beginning(beginning: &str, group: &GroupName) -> Bytes {
    Bytes::from([beginning, group.as_str()].concat())
}

/// Returns the key of a group's members in the core layer, or with `*` for the group, the pattern of all of a tenant's.
pub fn core_group_key(prefix: &str, namespace: &str, group: &str) -> String {
    [prefix, ":group:", namespace, group].concat()
}

/// Returns the beginnings of the Redis channels of a pub/sub layer: first of groups, then of sockets and consumers.
pub fn own_channel_beginnings(prefix: &str) -> [String; 2] {
    [
        format!("{prefix}{GROUP_INFIX}"),
        format!("{prefix}specific."),
    ]
}

/// Returns the patterns of all channels that a pub/sub layer with `prefix` and `namespace` subscribes to.
///
/// The patterns are Redis ACL rules without the `&` of the first one.
pub fn channel_patterns(prefix: &str, namespace: &str) -> String {
    let [groups, single] = own_channel_beginnings(prefix);
    format!("{groups}{namespace}* &{single}*")
}

/// Returns what the names of members that stand for the histories of a namespace begin with in the core layer.
///
/// A digest stands for the namespace, which may be too long for the name of a channel.
pub fn history_member_beginning(namespace: &str) -> String {
    match namespace {
        "" => "lockgate.history.".to_owned(),
        namespace => format!("lockgate.history.{}.", hex_digest(namespace, 8)),
    }
}

/// Returns the patterns of the keys that a back end needs in a core layer with `namespace`, as Redis ACL rules.
///
/// Sockets and consumers have random names, which no pattern tells apart. A back end learns them from its own groups alone.
pub fn core_key_patterns(prefix: &str, namespace: &str) -> Vec<String> {
    let histories = history_member_beginning(namespace);
    vec![
        format!("~{}", core_group_key(prefix, namespace, "*")),
        format!("~{prefix}specific.*"),
        format!("~{prefix}{histories}*"),
    ]
}

/// Returns the first bytes of a digest of `text`, in hexadecimal.
pub fn hex_digest(text: &str, bytes: usize) -> String {
    let digest = Sha256::digest(text);
    hex::encode(&digest[..bytes])
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
    fn the_fault_of_a_name_is_one_character_or_its_length() {
        for (name, fault) in [
            ("", "it is empty".to_owned()),
            ("caf\u{e9} x", "it has the character 'é'".to_owned()),
            ("a/b", "it has the character '/'".to_owned()),
            ("a\n", "it has the character '\\n'".to_owned()),
            (
                &"a".repeat(100),
                "it has 100 characters, more than 99".to_owned(),
            ),
        ] {
            assert_eq!(fault_of_group_name(name, ""), fault, "{name:?}");
        }
        let long = fault_of_group_name(&"a".repeat(95), "acme.");
        assert!(
            long.contains("95 characters, with those of layer.namespace"),
            "{long}"
        );
    }
}
