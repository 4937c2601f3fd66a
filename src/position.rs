//! Positions in the history of a group: an epoch and an offset.
//!
//! A new epoch begins where the history was lost or begins again; within it the offsets of events are 1, 2, 3, …. Clients
//! get a position as opaque text and send it back when they return.

use std::fmt;
use std::sync::Arc;

use crate::ids::GroupName;

/// The longest text of an epoch, in bytes.
const MAX_EPOCH: usize = 64;
/// The hexadecimal digits of Lockgate's own epochs: with one more byte, an epoch would take 24 bytes and not 16.
const OWN_DIGITS: usize = 30;
/// The character between the parts of a position. A group's name may contain it, so that texts are split from the right.
const SEPARATOR: char = '~';

/// The name of one uninterrupted history of a group: letters and digits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Epoch(EpochText);

#[derive(Clone, PartialEq, Eq, Hash)]
enum EpochText {
    /// [`OWN_DIGITS`] digits in lower case. They need no memory of their own.
    Own([u8; OWN_DIGITS / 2]),
    /// The text of a back end, or of an earlier version. A pointer to a `str` takes 16 bytes, one to a `Box` 8.
    Other(Arc<Box<str>>),
}

impl EpochText {
    /// Returns the bytes of digits as Lockgate writes them.
    fn own(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != OWN_DIGITS || !text.bytes().all(is_digit) {
            return None;
        }
        let number = u128::from_str_radix(text, 16).ok()?;
        let [_, own @ ..] = number.to_be_bytes();
        Some(Self::Own(own))
    }
}

impl Epoch {
    /// Makes an epoch that no history has had: 120 random bits.
    pub fn random() -> Self {
        Self(EpochText::Own(rand::random()))
    }

    /// Reads an epoch; `None` unless it has 1 to 64 ASCII letters and digits.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_EPOCH).contains(&text.len());
        let valid = fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let other = || EpochText::Other(Arc::new(text.into()));
        valid.then(|| Self(EpochText::own(text).unwrap_or_else(other)))
    }
}

/// Writes the text that Redis and positions show.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            EpochText::Other(text) => f.write_str(text),
            EpochText::Own(own) => {
                let mut number = [0; 16];
                number[1..].copy_from_slice(own);
                write!(f, "{:0OWN_DIGITS$x}", u128::from_be_bytes(number))
            }
        }
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
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
        format!("{group}{SEPARATOR}{epoch}{SEPARATOR}{offset}")
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

/// The epochs from which a history goes on in its present one, newest first. An epoch ends when another server process takes
/// over the data: it may have fewer events than clients do, and offsets that were given once must not be given to other events
/// of the same epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PastEpochs(Vec<PastEpoch>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct PastEpoch {
    /// The last event that the next epoch has, too.
    last: Position,
    /// True if events after it were delivered, and are lost.
    lost: bool,
}

/// The place of a position in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceInHistory {
    /// After the event of this offset. All that follows is in the history, or was trimmed.
    Kept(u64),
    /// The history has lost events after this place. The position is beyond it, or comes to it.
    Broken(Position),
    /// It is of another history.
    Foreign,
}

impl PastEpochs {
    /// Reads what Redis keeps: `EPOCH OFFSET`, perhaps ` lost`, with commas between. What is not readable ends it.
    pub fn parse(text: &str) -> Self {
        let epoch = |text: &str| {
            let mut words = text.split(' ');
            let epoch = Epoch::parse(words.next()?)?;
            let offset = words.next()?.parse().ok()?;
            let last = Position { epoch, offset };
            let lost = words.next() == Some("lost");
            Some(PastEpoch { last, lost })
        };
        Self(text.split(',').map_while(epoch).collect())
    }

    /// Adds an epoch that ends now. What it has lost of the epochs before is lost in them, too.
    pub fn end(&mut self, last: Position) {
        for past in &mut self.0 {
            past.last.offset = past.last.offset.min(last.offset);
        }
        self.0.insert(0, PastEpoch { last, lost: false });
    }

    /// Notes that events up to `given` were delivered. Those that its epoch has no more are lost, also to the epochs that have
    /// ended at the same place. Returns true if that was not known.
    pub fn note_given(&mut self, given: &Position) -> bool {
        let Some(last) = self.last_of(&given.epoch) else {
            return false;
        };
        let ends_there = |past: &&mut PastEpoch| past.last.offset == last;
        let newest = self.0.iter_mut().find(ends_there);
        let unknown = newest.filter(|past| last < given.offset && !past.lost);
        unknown.map(|past| past.lost = true).is_some()
    }

    /// Returns the offset at which an epoch has ended; `None` if the history does not go on from it.
    pub fn last_of(&self, epoch: &Epoch) -> Option<u64> {
        let past = self.0.iter().find(|past| past.last.epoch == *epoch)?;
        Some(past.last.offset)
    }

    /// Returns the place of a position in the history, whose present epoch is `epoch`.
    pub fn find(&self, epoch: &Epoch, position: &Position) -> PlaceInHistory {
        let of_epoch = |past: &PastEpoch| past.last.epoch == position.epoch;
        let after = match self.0.iter().position(of_epoch) {
            _ if position.epoch == *epoch => &*self.0,
            None => return PlaceInHistory::Foreign,
            Some(index) if position.offset > self.0[index].last.offset => {
                return PlaceInHistory::Broken(self.0[index].last.clone());
            }
            Some(index) => &self.0[..=index],
        };
        // The place of a loss is told to those before it. In the present epoch it is the place of those that were told.
        let comes_to = |past: &&PastEpoch| {
            let told = position.epoch == *epoch && past.last.offset == position.offset;
            past.lost && past.last.offset >= position.offset && !told
        };
        match after.iter().rev().find(comes_to) {
            Some(past) => PlaceInHistory::Broken(past.last.clone()),
            None => PlaceInHistory::Kept(position.offset),
        }
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
    fn an_epoch_of_our_own_takes_no_memory_beside_its_16_bytes() {
        assert_eq!(size_of::<Epoch>(), 16);
        assert_eq!(size_of::<Position>(), 24);
        let own = Epoch::random();
        assert!(matches!(own.0, EpochText::Own(_)));
        assert_eq!(own.to_string().len(), OWN_DIGITS);
        let digits = "0".repeat(29);
        for text in [&own.to_string(), &format!("{digits}a")] {
            let read = Epoch::parse(text).unwrap();
            assert!(matches!(read.0, EpochText::Own(_)), "{text}");
            assert_eq!(read.to_string(), *text);
        }
        let earlier = "0123456789abcdef0123456789abcdef";
        for text in [earlier, &earlier[..29], &format!("{digits}A"), "e", "G7"] {
            assert_eq!(Epoch::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_position_of_an_epoch_before_has_its_place_up_to_where_that_ended() {
        use PlaceInHistory::*;
        let at = |epoch: &str, offset| Position {
            epoch: Epoch::parse(epoch).unwrap(),
            offset,
        };
        let present = Epoch::parse("c").unwrap();
        let mut past = PastEpochs::parse("b 9,a 5");
        for (position, place) in [
            (at("c", 70), Kept(70)),
            (at("b", 9), Kept(9)),
            (at("b", 10), Broken(at("b", 9))),
            (at("a", 0), Kept(0)),
            (at("a", 5), Kept(5)),
            (at("a", 6), Broken(at("a", 5))),
            (at("d", 1), Foreign),
        ] {
            assert_eq!(past.find(&present, &position), place, "{position:?}");
        }
        assert!(!past.note_given(&at("b", 9)));
        assert_eq!(past, PastEpochs::parse("b 9,a 5"));
        assert!(past.note_given(&at("b", 12)) && !past.note_given(&at("b", 12)));
        assert_eq!(past, PastEpochs::parse("b 9 lost,a 5"));
        for position in [at("b", 9), at("b", 1), at("a", 5), at("c", 8)] {
            let place = past.find(&present, &position);
            assert_eq!(place, Broken(at("b", 9)), "{position:?}");
        }
        let beyond = past.find(&present, &at("a", 6));
        assert_eq!(beyond, Broken(at("a", 5)));
        assert_eq!(past.find(&present, &at("c", 9)), Kept(9));
        assert_eq!(past.last_of(&Epoch::parse("a").unwrap()), Some(5));
        // The second epoch has lost more than the first one.
        let mut past = PastEpochs::parse("a 9");
        past.end(at("b", 5));
        assert_eq!(past, PastEpochs::parse("b 5,a 5"));
        let beyond = past.find(&present, &at("a", 8));
        assert_eq!(beyond, Broken(at("a", 5)));
        assert_eq!(past.find(&present, &at("a", 5)), Kept(5));
        assert!(past.note_given(&at("a", 8)) && !past.note_given(&at("a", 7)));
        assert_eq!(past, PastEpochs::parse("b 5 lost,a 5"));
        for position in [at("a", 5), at("b", 3)] {
            let place = past.find(&present, &position);
            assert_eq!(place, Broken(at("b", 5)), "{position:?}");
        }
        let garbage = [
            ("", 0),
            ("a 5,b", 1),
            ("a x", 0),
            ("a 5 lost,", 1),
            ("a~ 5", 0),
        ];
        for (text, count) in garbage {
            assert_eq!(PastEpochs::parse(text).0.len(), count, "{text}");
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
