//! The history of a group as a layer reads it.

use crate::position::{Epoch, PastEpochs, Position};

use super::Payload;

/// The place from which a history is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFrom {
    /// The epoch of the offset: a history of another epoch is read from its beginning. `None`: the offset holds in any.
    pub epoch: Option<Epoch>,
    /// The offset of the last event that is known already.
    pub after: u64,
    /// No further event follows in the page after so many bytes of events. A layer has a bound of its own beside it.
    pub most: usize,
}

impl Default for HistoryFrom {
    /// Reads from the first event on.
    fn default() -> Self {
        Self {
            epoch: None,
            after: 0,
            most: usize::MAX,
        }
    }
}

impl HistoryFrom {
    /// Reads no event, and so the newest position alone.
    pub const END: Self = Self {
        epoch: None,
        after: u64::MAX,
        most: usize::MAX,
    };

    /// Returns the offset after which a history is read that is in `epoch` and goes on from `past`.
    pub fn after_in(&self, epoch: &Epoch, past: &PastEpochs) -> u64 {
        match &self.epoch {
            Some(other) if other != epoch => match past.last_of(other) {
                Some(last) => self.after.min(last),
                None => 0,
            },
            _ => self.after,
        }
    }
}

impl From<&Position> for HistoryFrom {
    fn from(position: &Position) -> Self {
        Self {
            epoch: Some(position.epoch.clone()),
            after: position.offset,
            ..Self::default()
        }
    }
}

/// The most events of a page, and the bytes after which no further one follows.
pub(super) const PAGE: (usize, usize) = (1000, 1024 * 1024);

/// A part of a history, at one moment.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    /// The position of the newest event at that moment; offset 0 if there was none in the epoch yet.
    pub end: Position,
    /// The epochs that the present one goes on from.
    pub past: PastEpochs,
    /// Events after the place that was asked for, in the order of their offsets. Offsets are missing where events were
    /// trimmed by size or age, or deleted by others.
    pub entries: Vec<RecordedEvent>,
    /// True if events follow that did not fit into the page; read on after the last one.
    pub more: bool,
    /// The number of values that were found and that no history has: the position, or entries of the part that was read.
    pub unreadable: u64,
}

/// An event of a history.
#[derive(Clone, Debug)]
pub struct RecordedEvent {
    /// Its place in the epoch of the page.
    pub offset: u64,
    /// The event as it was published.
    pub payload: Payload,
}
