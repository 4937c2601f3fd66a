//! The delivery of one group's recorded events: in the order of their offsets, each once. It does no input or output.
//!
//! Events come live, and their positions show what is missing. A hole, or a link in doubt, makes the track read the history
//! from the last delivered event on. Events that come meanwhile are kept until the read has filled the hole.

use std::collections::VecDeque;

use crate::position::{PastEpochs, PlaceInHistory, Position};

/// The most live events that are kept during a read. More are forgotten and read again.
const MOST_KEPT: usize = 256;
/// The most bytes of them.
const MOST_KEPT_BYTES: usize = 256 * 1024;

/// The progress of a group through its recorded events: those that are delivered.
#[derive(Debug, Default)]
pub enum Track<E> {
    /// No event and no position is known.
    #[default]
    Unknown,
    /// All events up to this position are delivered, and the next one is expected live.
    Live(Position),
    /// Events may be missing, and the history has to be read.
    Healing(Box<Healing<E>>),
}

/// The state of a track that reads.
#[derive(Debug)]
pub struct Healing<E> {
    /// The last event that was delivered.
    at: Position,
    /// Live events that came meanwhile, in the order of their arrival, with their sizes.
    kept: VecDeque<(Position, E, usize)>,
    /// The number of kept events that came before the read under way began.
    before_read: usize,
    bytes: usize,
    /// True if the read under way may not show all that is missing.
    again: bool,
    /// True if kept events were forgotten; none is kept until the next read.
    forgot: bool,
    /// True if events of the present epoch are missing, or may be, which are lost if the history begins again.
    doubt: bool,
    /// True if the loss of the newest events was noted in the history, and no page has shown it yet. Another loss of the same
    /// read is to be noted, too.
    renewed: bool,
}

/// The fate of a live event.
#[derive(Debug, PartialEq)]
pub enum LiveOutcome<E> {
    /// It is the next one.
    Deliver(E),
    /// It was delivered before.
    Old,
    /// It waits for a read, which has to begin if `reads` is true.
    Kept {
        /// True if no read is wanted yet.
        reads: bool,
    },
}

/// A part of a history, as a track takes it.
#[derive(Debug)]
pub struct TrackPage<E> {
    /// The newest position at the time of the read.
    pub end: Position,
    /// The epochs that the present one goes on from.
    pub past: PastEpochs,
    /// The events with their offsets, in their order.
    pub entries: Vec<(u64, E)>,
    /// True if more events follow.
    pub more: bool,
}

/// A step of the delivery.
#[derive(Debug, PartialEq)]
pub enum TrackStep<E> {
    /// Deliver this event of the history.
    Event(Position, E),
    /// Tell the group that events are missing before this place.
    Gap(Position),
}

/// The state after a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterPage {
    /// Events come live again.
    Live,
    /// Read again, from the last delivered event on.
    ReadOn,
    /// The history has lost events up to this one, which were delivered. Its epoch must end, since the next events would have
    /// offsets that clients know already; or it has ended, and others must be told.
    EndEpoch(Position),
}

/// The place of an event after another one.
enum Order {
    Old,
    Next,
    Later,
}

/// Places an event by the one before it. The history tells whether another epoch is a newer one: a late event of an older one
/// must not lead back to it.
fn order(last: &Position, next: &Position) -> Order {
    match next.offset.checked_sub(last.offset) {
        _ if next.epoch != last.epoch => Order::Later,
        None | Some(0) => Order::Old,
        Some(1) => Order::Next,
        Some(_) => Order::Later,
    }
}

impl<E> Track<E> {
    /// Takes a live event of `size` bytes.
    pub fn live(&mut self, at: Position, event: E, size: usize) -> LiveOutcome<E> {
        match self {
            Track::Unknown => {
                *self = Track::Live(at);
                LiveOutcome::Deliver(event)
            }
            Track::Live(last) => match order(last, &at) {
                Order::Old => LiveOutcome::Old,
                Order::Next => {
                    last.offset = at.offset;
                    LiveOutcome::Deliver(event)
                }
                Order::Later => {
                    let mut healing = Healing::after(last.clone());
                    healing.doubt = last.epoch == at.epoch;
                    healing.keep(at, event, size);
                    *self = Track::Healing(healing);
                    LiveOutcome::Kept { reads: true }
                }
            },
            Track::Healing(healing) => {
                healing.keep(at, event, size);
                LiveOutcome::Kept { reads: false }
            }
        }
    }

    /// Takes the position of an event that did not come itself. Returns true if a read has to begin.
    pub fn hole(&mut self, at: &Position) -> bool {
        match self {
            Track::Unknown => {
                let before = Position {
                    offset: at.offset.saturating_sub(1),
                    ..at.clone()
                };
                *self = Track::doubting(before);
                true
            }
            Track::Live(last) if matches!(order(last, at), Order::Old) => false,
            Track::Live(last) => {
                *self = Track::doubting(last.clone());
                true
            }
            Track::Healing(healing) => {
                (healing.doubt, healing.again) = (true, true);
                false
            }
        }
    }

    /// Reads the history from this position on, since any events behind it may have been missed.
    fn doubting(at: Position) -> Self {
        let mut healing = Healing::after(at);
        healing.doubt = true;
        Track::Healing(healing)
    }

    /// Notes that any events may have been missed. Returns true if a read has to begin.
    pub fn doubt(&mut self) -> bool {
        match self {
            Track::Unknown => false,
            Track::Live(last) => {
                *self = Track::doubting(last.clone());
                true
            }
            Track::Healing(healing) => {
                (healing.doubt, healing.again) = (true, true);
                false
            }
        }
    }

    /// Notes the newest position that a read for others has shown.
    pub fn seen(&mut self, end: &Position) {
        if matches!(self, Track::Unknown) {
            *self = Track::Live(end.clone());
        }
    }

    /// Reads if the events up to `end` have not come by now. Returns true if a read has to begin.
    pub fn expects(&mut self, end: &Position) -> bool {
        match self {
            Track::Live(last) if last.epoch != end.epoch || last.offset < end.offset => {
                let mut healing = Healing::after(last.clone());
                healing.doubt = last.epoch == end.epoch;
                *self = Track::Healing(healing);
                true
            }
            _ => false,
        }
    }

    /// Returns the place of the last delivered event.
    pub fn at(&self) -> Option<&Position> {
        match self {
            Track::Unknown => None,
            Track::Live(at) => Some(at),
            Track::Healing(healing) => Some(&healing.at),
        }
    }

    /// Returns true if a read is wanted.
    pub fn is_healing(&self) -> bool {
        matches!(self, Track::Healing(_))
    }

    /// Returns the place to read from, if a read is wanted; the read begins now.
    pub fn begin_read(&mut self) -> Option<Position> {
        let Track::Healing(healing) = self else {
            return None;
        };
        healing.before_read = healing.kept.len();
        (healing.again, healing.forgot) = (false, false);
        Some(healing.at.clone())
    }

    /// Notes that the epoch was asked to end, so that the next page is of another one.
    pub fn epoch_ended(&mut self) {
        if let Track::Healing(healing) = self {
            (healing.doubt, healing.renewed) = (true, true);
        }
    }

    /// Gives up the history, because the group has none any more.
    pub fn forget(&mut self) {
        *self = Track::Unknown;
    }

    /// Takes the page of the read that began last. Appends the steps to `out`.
    pub fn page(&mut self, page: TrackPage<E>, out: &mut Vec<TrackStep<E>>) -> AfterPage {
        let Track::Healing(healing) = self else {
            return AfterPage::Live;
        };
        let after = healing.page(page, out);
        if after == AfterPage::Live {
            *self = Track::Live(healing.at.clone());
        }
        after
    }
}

impl<E> Healing<E> {
    fn after(at: Position) -> Box<Self> {
        Box::new(Self {
            at,
            kept: VecDeque::new(),
            before_read: 0,
            bytes: 0,
            again: false,
            forgot: false,
            doubt: false,
            renewed: false,
        })
    }

    fn keep(&mut self, at: Position, event: E, size: usize) {
        if self.forgot {
            return;
        }
        if self.kept.len() >= MOST_KEPT || self.bytes + size > MOST_KEPT_BYTES {
            self.kept = VecDeque::new();
            (self.bytes, self.before_read) = (0, 0);
            (self.forgot, self.doubt) = (true, true);
            return;
        }
        self.bytes += size;
        self.kept.push_back((at, event, size));
    }

    fn page(&mut self, page: TrackPage<E>, out: &mut Vec<TrackStep<E>>) -> AfterPage {
        let before = self.at.offset;
        if page.end.epoch != self.at.epoch {
            self.deliver_following(out);
        }
        let (mut gap, mut break_at) = match self.find_in(&page) {
            Ok(found) => found,
            Err(lost) => return AfterPage::EndEpoch(lost),
        };
        self.rename_kept(&page);
        // Kept events may have gone beyond the page.
        let before = before.min(self.at.offset);
        for (offset, event) in page.entries {
            if offset <= self.at.offset {
                continue;
            }
            if break_at.is_some_and(|last| offset > last) {
                (gap, break_at) = (true, None);
                self.at.epoch = page.end.epoch.clone();
            }
            if gap || offset - self.at.offset > 1 {
                self.at.offset = offset - 1;
                out.push(TrackStep::Gap(self.at.clone()));
                gap = false;
            }
            self.at.offset = offset;
            out.push(TrackStep::Event(self.at.clone(), event));
        }
        let reads_on = page.more && self.at.offset > before;
        if !reads_on && (self.at.offset < page.end.offset || break_at.is_some()) {
            (gap, self.at) = (true, page.end.clone());
        }
        if gap {
            out.push(TrackStep::Gap(self.at.clone()));
        }
        if reads_on {
            return AfterPage::ReadOn;
        }
        self.deliver_kept(out);
        match self.again || self.forgot {
            true => AfterPage::ReadOn,
            false => AfterPage::Live,
        }
    }

    /// Finds the place of the last delivered event in the history of a page. Returns true if events are missing behind it, and
    /// the offset behind which others are; an error if that has to be noted in the history first.
    fn find_in(&mut self, page: &TrackPage<E>) -> Result<(bool, Option<u64>), Position> {
        let present = page.end.epoch.clone();
        let renewed = std::mem::take(&mut self.renewed);
        match page.past.find(&present, &self.at) {
            PlaceInHistory::Kept(offset) if offset <= page.end.offset => {
                self.at.epoch = present;
                Ok((false, None))
            }
            PlaceInHistory::Broken(last) if self.at.offset <= last.offset => {
                self.at.epoch = last.epoch;
                Ok((false, Some(last.offset)))
            }
            PlaceInHistory::Kept(_) | PlaceInHistory::Broken(_) if !renewed => Err(self.at.clone()),
            PlaceInHistory::Broken(last) => {
                let offset = last.offset;
                self.at = Position {
                    epoch: present,
                    offset,
                };
                Ok((true, None))
            }
            PlaceInHistory::Kept(_) => {
                // The epoch could not be ended.
                self.at.offset = page.end.offset;
                Ok((true, None))
            }
            PlaceInHistory::Foreign => {
                // The read may be ahead of the link, which may not have told yet what it lost of the old epoch.
                let gap = self.doubt || self.at.offset > 0;
                self.at = Position {
                    epoch: present,
                    offset: 0,
                };
                Ok((gap, None))
            }
        }
    }

    /// Gives kept events the names that they have in the present epoch, if the history goes on from theirs.
    fn rename_kept(&mut self, page: &TrackPage<E>) {
        for (at, ..) in &mut self.kept {
            if let PlaceInHistory::Kept(_) = page.past.find(&page.end.epoch, at) {
                at.epoch = page.end.epoch.clone();
            }
        }
    }

    /// Delivers the kept events that follow. The history that was read shows all that came before the read: such an event that
    /// it does not show is lost to those that come back, and is a gap.
    fn deliver_kept(&mut self, out: &mut Vec<TrackStep<E>>) {
        loop {
            self.deliver_following(out);
            if self.kept.is_empty() {
                break;
            }
            if self.before_read == 0 {
                self.again = true;
                break;
            }
            self.pop_kept();
            if !matches!(out.last(), Some(TrackStep::Gap(_))) {
                out.push(TrackStep::Gap(self.at.clone()));
            }
        }
        self.doubt &= self.again || self.forgot;
    }

    /// Delivers kept events up to the first one that does not follow.
    fn deliver_following(&mut self, out: &mut Vec<TrackStep<E>>) {
        while let Some((at, ..)) = self.kept.front() {
            let order = order(&self.at, at);
            if matches!(order, Order::Later) {
                return;
            }
            if let Some((at, event)) = self.pop_kept()
                && matches!(order, Order::Next)
            {
                self.at.offset = at.offset;
                out.push(TrackStep::Event(at, event));
            }
        }
    }

    fn pop_kept(&mut self) -> Option<(Position, E)> {
        let (at, event, size) = self.kept.pop_front()?;
        self.before_read = self.before_read.saturating_sub(1);
        self.bytes -= size;
        Some((at, event))
    }
}

#[cfg(test)]
mod tests;
