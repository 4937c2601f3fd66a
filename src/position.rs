//! Positions in the history of a group: an epoch and an offset.
//!
//! A new epoch begins where the history was lost or begins again; within it the offsets of events are 1, 2, 3, …. Clients
//! get a position as opaque text and send it back when they return.

use std::fmt;
use std::sync::Arc;

use crate::ids::{GroupName, random_hex};

/// The longest text of an epoch, in bytes. Epochs of Lockgate have 32.
const MAX_EPOCH: usize = 64;
/// The character between the parts of a position. A group's name may contain it, so that texts are split from the right.
const SEPARATOR: char = '~';

/// The name of one uninterrupted history of a group: letters and digits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// Makes an epoch that no history has had: 128 random bits.
    pub fn random() -> Self {
        Self(random_hex().into())
    }

    /// Reads an epoch; `None` unless it has 1 to 64 ASCII letters and digits.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_EPOCH).contains(&text.len());
        let valid = fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        valid.then(|| Self(text.into()))
    }

    /// Returns the text that Redis and positions show.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({:?})", &*self.0)
    }
}

/// A place in the history of a group: after the event of that offset; 0 is the place before the first event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The history.
    pub epoch: Epoch,
    /// The event's offset within it.
    pub offset: u64,
}

impl Position {
    /// Returns the text for clients: `GROUP~EPOCH~OFFSET`.
    pub fn text(&self, group: &GroupName) -> String {
        let Self { epoch, offset } = self;
        format!("{group}{SEPARATOR}{}{SEPARATOR}{offset}", epoch.as_str())
    }

    /// Reads the text of a client; `None` for any text that [`Position::text`] does not write.
    pub fn parse(text: &str) -> Option<(GroupName, Self)> {
        let (rest, offset) = text.rsplit_once(SEPARATOR)?;
        let (group, epoch) = rest.rsplit_once(SEPARATOR)?;
        // `parse` alone would take a sign and leading zeroes.
        let digits = offset.bytes().all(|byte| byte.is_ascii_digit());
        let canonical = digits && (offset == "0" || !offset.starts_with('0'));
        let position = Self {
            epoch: Epoch::parse(epoch)?,
            offset: offset.parse().ok().filter(|_| canonical)?,
        };
        (!group.is_empty()).then(|| (GroupName::from(group), position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for group in ["chat_a", "a~b~1", "~", "é {x}"] {
            let position = Position {
                epoch: Epoch::random(),
                offset: u64::MAX,
            };
            let group = GroupName::from(group);
            let text = position.text(&group);
            assert_eq!(Position::parse(&text), Some((group, position)), "{text}");
        }
    }

    #[test]
    fn any_other_text_is_no_position() {
        let long = format!("g~{}~1", "a".repeat(65));
        for text in [
            "",
            "g",
            "g~e",
            "~e~1",
            "g~~1",
            "g~e~",
            "g~e~-1",
            "g~e~+1",
            "g~e~01",
            "g~e~1 ",
            "g~e~18446744073709551616",
            "g~e e~1",
            "g~\u{e9}~1",
            "g~e~\u{661}",
            &long,
        ] {
            assert_eq!(Position::parse(text), None, "{text:?}");
        }
    }
}
