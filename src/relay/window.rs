//! The events of a group that were read for sockets that come back. They stay while sockets wait for room behind them, so that
//! the sockets of one storm share their reads. It does no input or output.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::RouteDelivery;
use crate::budget::HeldBytes;
use crate::event::Event;
use crate::hub::{ReadWish, ReplayEnd, Returning};
use crate::metrics::RecoveryResult;
use crate::position::{PlaceInHistory, Position};
use crate::render::Rendered;

/// The most bytes of events that stay: about as many as one page of a layer has.
const MOST_BYTES: u64 = 1024 * 1024;

/// The state of a group's reader about sockets that come back.
#[derive(Default)]
pub(super) struct Replays {
    /// The events that sockets wait behind.
    pub(super) window: Option<ReplayWindow>,
    /// The number of reads so far.
    pub(super) reads: u64,
    /// True if the last read went on where the one before had ended.
    pub(super) went_on: bool,
}

/// A part of a history, decoded.
pub(super) struct OpenedPage {
    /// The newest position at the time of the read.
    pub(super) end: ReplayEnd,
    /// The place from which was read.
    pub(super) after: u64,
    pub(super) events: Vec<ReplayedEvent>,
    /// True if more events follow.
    pub(super) more: bool,
}

/// An event for replays.
pub(super) struct ReplayedEvent {
    pub(super) offset: u64,
    /// `None` if its bytes are no event.
    pub(super) event: Option<Arc<Event>>,
    /// Counts it.
    pub(super) held: HeldBytes,
    /// Its frames, by the delivery of a route.
    rendered: Vec<(u16, Rendered)>,
}

/// The events that were read, without a break in the reading.
pub(super) struct ReplayWindow {
    end: ReplayEnd,
    /// Events after this offset were read.
    after: u64,
    /// The offset up to which was read.
    last: u64,
    /// No offset between this one and the last one is missing.
    whole_after: u64,
    events: VecDeque<ReplayedEvent>,
    bytes: u64,
    /// The number of the read that `end` is from.
    read: u64,
}

/// The place of a socket in a window.
#[derive(Debug, PartialEq)]
pub(super) enum ReplayPlace {
    /// The event of this index is its next one.
    Before(usize),
    /// It has all events.
    AtEnd,
    /// The history does not have all that it missed.
    Lost(RecoveryResult),
    /// Its next events are to be read.
    Unread,
    /// Another read has to tell whether it has all.
    Unsure,
}

impl Replays {
    /// Sorts wishes into those of sockets and those of handshakes.
    pub(super) fn sorted(
        &self,
        wishes: Vec<ReadWish>,
    ) -> (Vec<Returning>, Vec<oneshot::Sender<()>>) {
        let (mut returning, mut known) = (Vec::new(), Vec::new());
        for wish in wishes {
            match wish {
                ReadWish::Know(asked) => known.push(asked),
                ReadWish::Replay(mut socket) => {
                    socket.whole_from.get_or_insert(self.reads + 1);
                    // A wish may have waited for other reads.
                    socket.asked = Instant::now();
                    returning.push(socket);
                }
            }
        }
        (returning, known)
    }
}

impl ReplayedEvent {
    pub(super) fn new(offset: u64, event: Option<Arc<Event>>, held: HeldBytes) -> Self {
        Self {
            offset,
            event,
            held,
            rendered: Vec::new(),
        }
    }

    /// Returns its frames for a route, which are made for the first socket of the route.
    pub(super) fn rendered(
        &mut self,
        delivery: u16,
        route: &RouteDelivery,
        render: impl FnOnce(&RouteDelivery, Option<&Event>) -> Rendered,
    ) -> &Rendered {
        let known = self.rendered.iter().position(|(of, _)| *of == delivery);
        let index = known.unwrap_or_else(|| {
            let rendered = render(route, self.event.as_deref());
            self.rendered.push((delivery, rendered));
            self.rendered.len() - 1
        });
        &self.rendered[index].1
    }
}

impl ReplayWindow {
    /// Makes a window of one page, which the read of this number has brought.
    pub(super) fn of(page: OpenedPage, read: u64) -> Self {
        let after = page.after.min(page.end.at.offset);
        let mut window = Self {
            end: page.end.clone(),
            after,
            last: after,
            whole_after: after,
            events: VecDeque::new(),
            bytes: 0,
            read,
        };
        window.append(page, read);
        window
    }

    /// Returns the offset up to which was read, and the newest position.
    pub(super) fn last(&self) -> (u64, &ReplayEnd) {
        (self.last, &self.end)
    }

    /// Returns true if the page goes on where the window ends.
    pub(super) fn is_followed_by(&self, page: &OpenedPage) -> bool {
        self.is_of(&page.end) && page.after == self.last
    }

    /// Returns true if the newest position is of the same history.
    pub(super) fn is_of(&self, end: &ReplayEnd) -> bool {
        end.at.epoch == self.end.at.epoch && end.at.offset >= self.end.at.offset
    }

    /// Returns true if a socket that has `has` finds its next events here.
    pub(super) fn covers(&self, has: &Position) -> bool {
        has.epoch == self.end.at.epoch && (self.after..=self.last).contains(&has.offset)
    }

    /// Adds a page that goes on where the window ends.
    pub(super) fn append(&mut self, page: OpenedPage, read: u64) {
        self.saw_end(page.end, read);
        for event in page.events {
            if event.offset <= self.last {
                continue;
            }
            if event.offset != self.last + 1 {
                self.whole_after = event.offset - 1;
            }
            self.last = event.offset;
            self.bytes += event.held.bytes();
            self.events.push_back(event);
        }
        let end = self.end.at.offset;
        if !page.more && self.last < end {
            // The newest events are gone.
            (self.last, self.whole_after) = (end, end);
        }
    }

    /// Notes the newest position that another read has shown.
    pub(super) fn saw_end(&mut self, end: ReplayEnd, read: u64) {
        (self.end, self.read) = (end, read);
    }

    /// Forgets the oldest events over the bound. Sockets that wait behind them read them again.
    pub(super) fn bound(&mut self) {
        self.forget_to(0);
    }

    /// Forgets the events up to `lowest`, and what is over the bound.
    pub(super) fn forget_to(&mut self, lowest: u64) {
        while let Some(first) = self.events.front()
            && (first.offset <= lowest || self.bytes > MOST_BYTES)
        {
            self.bytes -= first.held.bytes();
            self.after = first.offset;
            self.events.pop_front();
        }
    }

    /// Gives a position the name that it has in the present epoch, if the history goes on from its own.
    pub(super) fn rename(&self, has: &mut Position) {
        let ReplayEnd { at, past } = &self.end;
        if let PlaceInHistory::Kept(_) = past.find(&at.epoch, has) {
            has.epoch = at.epoch.clone();
        }
    }

    /// Returns the place of a socket whose position was renamed.
    pub(super) fn place(&self, socket: &Returning) -> ReplayPlace {
        let (has, ReplayEnd { at: end, past }) = (&socket.has, &self.end);
        let is_sure = socket.whole_from.is_some_and(|read| read <= self.read);
        let is_kept = matches!(past.find(&end.epoch, has), PlaceInHistory::Kept(_));
        if !is_kept || has.offset > end.offset {
            return match is_sure {
                true => ReplayPlace::Lost(RecoveryResult::Epoch),
                false => ReplayPlace::Unsure,
            };
        }
        if has.offset == end.offset {
            return match is_sure {
                true => ReplayPlace::AtEnd,
                false => ReplayPlace::Unsure,
            };
        }
        if !self.covers(has) {
            return ReplayPlace::Unread;
        }
        if has.offset < self.whole_after {
            return ReplayPlace::Lost(RecoveryResult::TooOld);
        }
        if has.offset == self.last {
            return ReplayPlace::Unread;
        }
        let next = self
            .events
            .partition_point(|event| event.offset <= has.offset);
        ReplayPlace::Before(next)
    }

    /// Returns the newest position, and the events from an index on.
    pub(super) fn from(
        &mut self,
        index: usize,
    ) -> (&Position, impl Iterator<Item = &mut ReplayedEvent>) {
        (&self.end.at, self.events.range_mut(index..))
    }
}

#[cfg(test)]
mod tests;
