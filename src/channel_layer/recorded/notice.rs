//! The messages of a group's channel that gateways alone hear: `lockgate:TENANT:group:{CHANNEL}`.
//!
//! A message begins with the version `1` and a word. Unknown versions and words are ignored, so that replicas of two
//! versions work side by side.

use crate::position::{Epoch, Position};

/// A message to the gateways of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::channel_layer) enum GroupNotice<'a> {
    /// `1 r EPOCH OFFSET`: an event was recorded. The group's own channel carries it, and it comes next on the same
    /// connection.
    Recorded(Position),
    /// `1 e EPOCH OFFSET` and, after a line feed, the event that was recorded.
    Event(Position, &'a [u8]),
    /// `1 p JSON`: users joined or left. The meaning of the JSON belongs to [`crate::presence`].
    Presence(&'a [u8]),
    /// `1 h EPOCH OFFSET`: the offset stays without an event, because events were lost before they were recorded.
    Hole(Position),
    /// `1 u`: the position of the group was not readable, and its history began again.
    Unreadable,
}

impl<'a> GroupNotice<'a> {
    /// Reads a message; `None` if it is none that this version knows.
    pub(in crate::channel_layer) fn parse(message: &'a [u8]) -> Option<Self> {
        let rest = message.strip_prefix(b"1 ")?;
        if rest == b"u" {
            return Some(Self::Unreadable);
        }
        if let Some(at) = rest.strip_prefix(b"h ") {
            return Some(Self::Hole(position(at)?));
        }
        if let Some(at) = rest.strip_prefix(b"r ") {
            return Some(Self::Recorded(position(at)?));
        }
        if let Some(notice) = rest.strip_prefix(b"p ") {
            return Some(Self::Presence(notice));
        }
        let rest = rest.strip_prefix(b"e ")?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        Some(Self::Event(position(&rest[..end])?, &rest[end + 1..]))
    }
}

/// Reads `EPOCH OFFSET`, as the scripts write it.
pub(in crate::channel_layer) fn position(text: &[u8]) -> Option<Position> {
    let (epoch, offset) = str::from_utf8(text).ok()?.split_once(' ')?;
    let digits = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
    Some(Position {
        epoch: Epoch::parse(epoch)?,
        offset: offset.parse().ok().filter(|_| digits)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: &str, offset: u64) -> Position {
        let epoch = Epoch::parse(epoch).unwrap();
        Position { epoch, offset }
    }

    #[test]
    fn messages_of_the_scripts_are_understood_and_garbage_is_not() {
        for (message, expected) in [
            (&b"1 r ab 7"[..], Some(GroupNotice::Recorded(at("ab", 7)))),
            (
                b"1 e ab 8\n\x81\n",
                Some(GroupNotice::Event(at("ab", 8), b"\x81\n")),
            ),
            (b"1 h ab 9", Some(GroupNotice::Hole(at("ab", 9)))),
            (b"1 p {}", Some(GroupNotice::Presence(b"{}"))),
            (b"", None),
            (b"1", None),
            (b"2 h ab 9", None),
            (b"1 x 1", None),
            (b"1 h ", None),
            (b"1 r ab", None),
            (b"1 r ab +7", None),
            (b"1 r ab 7 ", None),
            (b"1 r a~b 7", None),
            (b"1 r  7", None),
            (b"1 r ab 18446744073709551616", None),
            (b"1 r \xff 7", None),
            (b"1 e ab 8", None),
        ] {
            assert_eq!(GroupNotice::parse(message), expected, "{message:?}");
        }
    }
}
