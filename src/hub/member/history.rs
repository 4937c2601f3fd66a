//! A group with history, as this replica knows it: how far its recorded events are delivered, and the work that waits for a
//! read of the history. [`crate::relay`] reads and delivers.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::track::{AfterPage, LiveOutcome, Track, TrackPage, TrackStep};
use super::super::{HoldId, ReplayEnd, ReplayRoom};
use super::Member;
use crate::budget::{HeldBytes, HeldKind};
use crate::event::Event;
use crate::frame::Accounting;
use crate::ids::ConnectionId;
use crate::position::{Epoch, Position};

/// An event on its way through a [`Track`].
#[derive(Debug)]
pub struct TrackedEvent {
    /// The event; `None` if its bytes are none.
    pub event: Option<Arc<Event>>,
    /// True if it was read from the history.
    pub healed: bool,
    /// The accounting of its frames.
    pub source: Accounting,
    /// The socket that sent it and must not get it.
    pub skipped: Option<ConnectionId>,
    /// Counts it while it waits for a read.
    pub held: Option<HeldBytes>,
}

/// A socket that gets the events which it missed.
#[derive(Debug)]
pub struct Returning {
    /// The socket. It holds the group's live events.
    pub member: Arc<Member>,
    /// That wait of the socket. Once it is over, the client wants no more of this replay.
    pub hold: HoldId,
    /// The last event that it has.
    pub has: Position,
    /// True if the client was told already that its events were recovered, or are missing.
    pub told: bool,
    /// The time at which it came, or was last served.
    pub asked: Instant,
    /// The number of the first read that began after it had joined: no earlier one shows all that comes before its live events.
    /// `None` until the reader has seen it.
    pub whole_from: Option<u64>,
}

impl Returning {
    /// Returns the socket and its wait.
    pub fn of(&self) -> (&Arc<Member>, HoldId) {
        (&self.member, self.hold)
    }
}

/// A reason to read the history of a group.
#[derive(Debug)]
pub enum ReadWish {
    /// The newest position; the sender is dropped once it is known, or cannot be read.
    Know(oneshot::Sender<()>),
    /// The events that a socket missed.
    Replay(Returning),
}

impl ReadWish {
    /// Returns true if the reader has not seen it.
    pub fn is_new(&self) -> bool {
        match self {
            Self::Know(_) => true,
            Self::Replay(returning) => returning.whole_from.is_none(),
        }
    }
}

/// A socket whose replay is over: its live events follow once those up to `end` have passed.
#[derive(Debug)]
pub struct Release {
    /// The socket.
    pub member: Arc<Member>,
    /// The wait that ends.
    pub hold: HoldId,
    /// The last event of the replay.
    pub end: ReplayEnd,
    /// The time at which the replay ended.
    pub since: Instant,
    /// The epoch of the delivered events at that time.
    delivered: Option<Epoch>,
}

/// The next work of a group's reader.
#[derive(Debug)]
pub enum Job {
    /// Read on from this position for the whole group.
    Heal(Position),
    /// Read for these.
    Batch(Vec<ReadWish>),
    /// Sockets wait for room, or for events that were read already.
    Wait,
    /// Nothing; another reader may start.
    Done,
}

/// The recorded events of one group on this replica.
#[derive(Debug, Default)]
pub struct GroupRecall {
    state: Mutex<HistoryState>,
}

#[derive(Debug, Default)]
struct HistoryState {
    track: Track<TrackedEvent>,
    /// True while delivered events of the track are on their way to the queues of sockets.
    in_turn: bool,
    /// True if no event has come since the last [`GroupRecall::idles`].
    idle: bool,
    /// `None` in ordinary life.
    work: Option<Box<Work>>,
}

#[derive(Debug, Default)]
struct Work {
    /// True while a reader is at work.
    reading: bool,
    wishes: Vec<ReadWish>,
    /// The sockets whose queues have no room for the rest of the replay.
    full: Vec<Returning>,
    releases: Vec<Release>,
    /// The sockets that have not joined yet: they wait for the newest position.
    joining: Vec<ConnectionId>,
}

impl HistoryState {
    /// Returns true if a reader has to start, if `wanted` is true.
    fn starts_reader(&mut self, wanted: bool) -> bool {
        wanted && !std::mem::replace(&mut self.work.get_or_insert_default().reading, true)
    }

    /// Gives back the memory of the work if there is none.
    fn rest(&mut self) {
        self.work.take_if(|work| {
            let waits = work.wishes.len() + work.full.len() + work.releases.len();
            !work.reading && waits + work.joining.len() == 0
        });
    }

    /// Returns true if all events up to the end of a replay are in the queues of the sockets.
    fn passed(&self, release: &Release) -> bool {
        match self.track.at() {
            Some(at) if at.epoch == release.end.at.epoch => at.offset >= release.end.at.offset,
            // The delivery has gone on to an epoch after that of the replay.
            Some(at) => release
                .delivered
                .as_ref()
                .is_some_and(|epoch| *epoch != at.epoch),
            None => false,
        }
    }

    fn take_passed(&mut self) -> Vec<Release> {
        if self.in_turn {
            return Vec::new();
        }
        let Some(mut work) = self.work.take() else {
            return Vec::new();
        };
        let (passed, left) = std::mem::take(&mut work.releases)
            .into_iter()
            .partition(|release| self.passed(release));
        work.releases = left;
        self.work = Some(work);
        passed
    }
}

impl GroupRecall {
    /// Takes a live event. If the result is [`LiveOutcome::Deliver`], call [`GroupRecall::turn_over`] after its delivery. Returns
    /// true too if a reader has to start.
    pub fn live(
        &self,
        at: Position,
        mut event: TrackedEvent,
        size: usize,
    ) -> (LiveOutcome<TrackedEvent>, bool) {
        let mut state = self.state.lock();
        state.idle = false;
        if let (Track::Healing(_), Some(budget)) = (&state.track, &event.source.budget) {
            event.held = Some(HeldBytes::of(budget, HeldKind::History, size));
        }
        let arrival = state.track.live(at, event, size);
        state.in_turn |= matches!(arrival, LiveOutcome::Deliver(_));
        let reads = matches!(arrival, LiveOutcome::Kept { reads: true });
        (arrival, state.starts_reader(reads))
    }

    /// Takes the position of an event that did not come itself. Returns true if a reader has to start.
    pub fn hole(&self, at: &Position) -> bool {
        let mut state = self.state.lock();
        let reads = state.track.hole(at);
        state.starts_reader(reads)
    }

    /// Notes that any events may have been missed. Returns true if a reader has to start.
    pub fn doubt(&self) -> bool {
        let mut state = self.state.lock();
        let reads = state.track.doubt();
        state.starts_reader(reads)
    }

    /// Notes that a socket joins, and waits for the newest position. Call [`GroupRecall::joined`] in the end.
    pub fn joins(&self, member: ConnectionId) {
        let mut state = self.state.lock();
        let work = state.work.get_or_insert_default();
        work.joining.push(member);
    }

    /// Notes that a socket waits for no position any more.
    pub fn joined(&self, member: ConnectionId) {
        let mut state = self.state.lock();
        if let Some(work) = &mut state.work {
            work.joining.retain(|joining| *joining != member);
            state.rest();
        }
    }

    /// Returns true if the socket needs no word about events that were missed: what is missing will be read, or came before
    /// the socket has joined.
    pub fn heals(&self, member: ConnectionId) -> bool {
        let state = self.state.lock();
        let joins = |work: &Work| work.joining.contains(&member);
        state.track.at().is_some() || state.work.as_deref().is_some_and(joins)
    }

    /// Returns true if no event has come since the last call.
    pub fn idles(&self) -> bool {
        std::mem::replace(&mut self.state.lock().idle, true)
    }

    /// Compares the newest position of the history with the delivered one. Returns true if a reader has to start.
    pub fn found(&self, end: &Position) -> bool {
        let mut state = self.state.lock();
        let reads = state.track.expects(end);
        state.starts_reader(reads)
    }

    /// Adds work. Returns true if a reader has to start.
    pub fn wish(&self, wish: ReadWish) -> bool {
        let mut state = self.state.lock();
        state.work.get_or_insert_default().wishes.push(wish);
        state.starts_reader(true)
    }

    /// Returns the position of the last event that is delivered, or is about to be. All members of the group get those after
    /// it.
    pub fn at(&self) -> Option<Position> {
        self.state.lock().track.at().cloned()
    }

    /// Returns true if a position is known, so that a hole after it is seen.
    pub fn is_known(&self) -> bool {
        self.state.lock().track.at().is_some()
    }

    /// Notes the newest position that a read for others has shown.
    pub fn seen(&self, end: &Position) {
        self.state.lock().track.seen(end);
    }

    /// Returns true if the live events have a hole, which the reader is to fill.
    pub fn is_healing(&self) -> bool {
        self.state.lock().track.is_healing()
    }

    /// Returns the next work of the reader, which called this last with all work done.
    pub fn next_job(&self) -> Job {
        let mut state = self.state.lock();
        if let Some(from) = state.track.begin_read() {
            return Job::Heal(from);
        }
        let Some(work) = &mut state.work else {
            return Job::Done;
        };
        if !work.wishes.is_empty() {
            return Job::Batch(std::mem::take(&mut work.wishes));
        }
        if !work.releases.is_empty() || !work.full.is_empty() {
            return Job::Wait;
        }
        work.reading = false;
        state.rest();
        Job::Done
    }

    /// Takes a page that was read for the whole group, and appends what is to be delivered. Call
    /// [`GroupRecall::turn_over`] after the delivery.
    pub fn page(
        &self,
        page: TrackPage<TrackedEvent>,
        out: &mut Vec<TrackStep<TrackedEvent>>,
    ) -> AfterPage {
        let mut state = self.state.lock();
        state.in_turn = true;
        state.track.page(page, out)
    }

    /// Notes that the epoch was asked to end.
    pub fn epoch_ended(&self) {
        self.state.lock().track.epoch_ended();
    }

    /// Notes that the delivered events are in the queues. Returns the sockets whose live events follow now.
    #[must_use]
    pub fn turn_over(&self) -> Vec<Release> {
        let mut state = self.state.lock();
        state.in_turn = false;
        state.take_passed()
    }

    /// Adds a socket whose replay is over. Returns the sockets whose live events follow now.
    #[must_use]
    pub fn release(&self, member: Arc<Member>, hold: HoldId, end: ReplayEnd) -> Vec<Release> {
        let mut state = self.state.lock();
        let release = Release {
            member,
            hold,
            end,
            since: Instant::now(),
            delivered: state.track.at().map(|at| at.epoch.clone()),
        };
        let work = state.work.get_or_insert_default();
        work.releases.push(release);
        state.take_passed()
    }

    /// Adds a socket whose queue has no room.
    pub fn wait_for_room(&self, returning: Returning) {
        let mut state = self.state.lock();
        let work = state.work.get_or_insert_default();
        work.full.push(returning);
    }

    /// Takes back sockets that want another read.
    pub fn go_on(&self, returning: Vec<Returning>) {
        let mut state = self.state.lock();
        let work = state.work.get_or_insert_default();
        work.wishes
            .extend(returning.into_iter().map(ReadWish::Replay));
    }

    /// Shows the last event of each socket whose replay is not over.
    pub fn visit_returning(&self, mut visit: impl FnMut(&Position)) {
        let state = self.state.lock();
        let Some(work) = &state.work else {
            return;
        };
        let wishes = work.wishes.iter().filter_map(|wish| match wish {
            ReadWish::Replay(returning) => Some(returning),
            ReadWish::Know(_) => None,
        });
        wishes
            .chain(&work.full)
            .for_each(|returning| visit(&returning.has));
    }

    /// Returns the wishes that wait, because the history cannot be read for the group now.
    pub fn take_wishes(&self) -> Vec<ReadWish> {
        let mut state = self.state.lock();
        let work = state.work.as_mut();
        work.map(|work| std::mem::take(&mut work.wishes))
            .unwrap_or_default()
    }

    /// Looks after the sockets that wait: replays go on where there is room, and events that have not come since `before` are
    /// read. Drops the sockets that are closed.
    pub fn look(&self, before: Instant) {
        let mut state = self.state.lock();
        let Some(work) = &mut state.work else {
            return;
        };
        for mut returning in std::mem::take(&mut work.full) {
            // A slow client is no history that cannot be read.
            returning.asked = Instant::now();
            let outbound = returning.member.outbound();
            if outbound.has_replay_room() {
                work.wishes.push(ReadWish::Replay(returning));
            } else if outbound.replay_room() != ReplayRoom::Closed {
                work.full.push(returning);
            }
        }
        let open = |release: &Release| !release.member.outbound().is_closing();
        work.releases.retain(open);
        let overdue = work.releases.iter().find(|release| release.since <= before);
        if let Some(end) = overdue.map(|release| release.end.at.clone()) {
            state.track.expects(&end);
        }
    }

    /// Gives up, because the group has no history or no members any more. Returns the sockets that wait.
    #[must_use]
    pub fn forget(&self) -> Vec<Arc<Member>> {
        let mut state = self.state.lock();
        state.track.forget();
        let Some(work) = state.work.take() else {
            return Vec::new();
        };
        let Work {
            wishes,
            full,
            releases,
            ..
        } = *work;
        let returning = wishes.into_iter().filter_map(|wish| match wish {
            ReadWish::Replay(returning) => Some(returning),
            ReadWish::Know(_) => None,
        });
        let returning = returning.chain(full).map(|returning| returning.member);
        let released = releases.into_iter().map(|release| release.member);
        returning.chain(released).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group's members share it. Only a socket that is alone in its group has all of it, beside nothing else: an epoch of
    /// Lockgate's own lies in the position, and work is `None`.
    #[test]
    fn a_history_costs_an_idle_socket_48_bytes_at_most() {
        assert!(
            size_of::<GroupRecall>() <= 48,
            "{}",
            size_of::<GroupRecall>()
        );
        let recall = GroupRecall::default();
        recall.seen(&Position {
            epoch: Epoch::random(),
            offset: 1,
        });
        let joined = ConnectionId(1);
        recall.joins(joined);
        assert!(recall.state.lock().work.is_some());
        recall.joined(joined);
        assert!(recall.is_known() && recall.state.lock().work.is_none());
    }
}
