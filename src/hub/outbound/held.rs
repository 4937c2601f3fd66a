//! The frames that wait behind a replay.
//!
//! A socket that comes back gets the events that it missed from the history of each group. Live events of the group wait here
//! until then, and count as its queue. Over the bound of the queue they are forgotten: the history has them too, and the replay
//! reads on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Enqueued, ITEM, Item, Marks, NO_LIMIT, Outbound, Rare, State, push_to, wake};
use crate::frame::Frame;
use crate::ids::GroupName;
use crate::position::{PastEpochs, PlaceInHistory, Position};

/// The queue that replays and what waits behind them share where `limits.send_queue` is 0.
const UNLIMITED: usize = 1024 * 1024;

/// The frames of a socket that wait.
#[derive(Debug)]
pub(super) struct Held {
    groups: Vec<HeldGroup>,
    bytes: usize,
}

/// One wait of a socket for the events of a group: each join has its own, so that the end of an earlier one is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldId(u64);

impl HoldId {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct HeldGroup {
    name: GroupName,
    id: HoldId,
    /// True if a replay comes first.
    returns: bool,
    /// In the order in which the events came.
    frames: VecDeque<(Position, Frame)>,
    /// The newest event that was forgotten.
    forgotten: Option<Position>,
}

/// The last event of a replay, in its history.
#[derive(Clone, Debug)]
pub struct ReplayEnd {
    /// Its position.
    pub at: Position,
    /// The epochs that the history goes on from.
    pub past: PastEpochs,
}

impl From<Position> for ReplayEnd {
    fn from(at: Position) -> Self {
        let past = PastEpochs::default();
        Self { at, past }
    }
}

impl ReplayEnd {
    /// Returns true if the replay has gone beyond the event.
    fn has(&self, event: &Position) -> bool {
        match self.past.find(&self.at.epoch, event) {
            PlaceInHistory::Kept(offset) => offset <= self.at.offset,
            PlaceInHistory::Broken(_) => true,
            PlaceInHistory::Foreign => false,
        }
    }
}

/// The result of [`Outbound::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The group is not held any more.
    Free,
    /// Events after the position were forgotten: the history has to be read on from there.
    ReadOn,
}

/// The room for a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayRoom {
    /// The socket takes nothing more.
    Closed,
    /// The bytes that fit; 0 if the socket has to write first.
    Bytes(usize),
}

impl Held {
    fn group(&self, name: &GroupName) -> Option<usize> {
        self.groups.iter().position(|group| group.name == *name)
    }

    /// Returns the number of frames that wait.
    pub(super) fn len(&self) -> usize {
        self.groups.iter().map(|group| group.frames.len()).sum()
    }
}

impl HeldGroup {
    fn bytes(&self) -> usize {
        self.frames.iter().map(|(_, frame)| size(frame)).sum()
    }

    /// Forgets the frames up to `end`. An event of another epoch is newer if it came after all those of this one.
    fn skip_to(&mut self, end: &ReplayEnd) {
        let mut frames = self.frames.iter();
        if let Some(last) = frames.rposition(|(at, _)| end.has(at)) {
            self.frames.drain(..=last);
        }
    }
}

fn held_in(rare: &mut Option<Box<Rare>>) -> Option<&mut Held> {
    rare.as_mut()?.held.as_mut()
}

fn size(frame: &Frame) -> usize {
    ITEM + frame.len()
}

impl Outbound {
    /// Lets live events of these groups wait until [`Outbound::end_hold`]. Call it before the socket joins them. With true the
    /// socket comes back to the group, and a replay comes first.
    pub fn hold(&self, groups: impl Iterator<Item = (GroupName, bool)>) {
        let group = |(name, returns)| HeldGroup {
            name,
            id: HoldId::next(),
            returns,
            frames: VecDeque::new(),
            forgotten: None,
        };
        let mut groups: Vec<_> = groups.map(group).collect();
        if groups.is_empty() {
            return;
        }
        match &mut self.state.lock().rare.get_or_insert_default().held {
            none @ None => *none = Some(Held { groups, bytes: 0 }),
            // A back end put the socket into a group while it waits for others.
            Some(held) => {
                groups.retain(|group| held.group(&group.name).is_none());
                held.groups.append(&mut groups);
            }
        }
    }

    /// Returns true while events of the group wait.
    pub fn holds(&self, group: &GroupName) -> bool {
        self.hold_of(group).is_some()
    }

    /// Returns the present wait for events of the group, if there is one.
    pub fn hold_of(&self, group: &GroupName) -> Option<HoldId> {
        let state = self.state.lock();
        let held = state.held()?;
        let index = held.group(group)?;
        Some(held.groups[index].id)
    }

    /// Returns true while events of any group wait.
    pub fn holds_any(&self) -> bool {
        self.state.lock().held().is_some()
    }

    /// Queues the frame of a recorded event, behind a replay of its group if there is one.
    pub fn push_recorded(&self, frame: &Frame, group: &GroupName, at: &Position) -> Enqueued {
        let mut state = self.state.lock();
        match state.keep(frame, group, at) {
            Some(held) => held,
            None => push_to(state, size(frame), || Item::Frame(frame.clone())),
        }
    }

    /// Ends the wait for a group: all that waits follows.
    pub fn release(&self, group: &GroupName) {
        if let Some(id) = self.hold_of(group) {
            self.end_hold(group, id, None);
        }
    }

    /// Ends the wait for a group that the socket has left. What waits behind a replay is forgotten: it would seem to the
    /// client to follow what the replay has brought so far.
    pub fn leave(&self, group: &GroupName) {
        let mut state = self.state.lock();
        let State { rare, bytes, .. } = &mut *state;
        let Some(waiting) = held_in(rare) else {
            return;
        };
        let Some(index) = waiting.group(group) else {
            return;
        };
        if !waiting.groups[index].returns {
            drop(state);
            return self.release(group);
        }
        let of_group = waiting.groups.swap_remove(index);
        waiting.bytes -= of_group.bytes();
        *bytes -= of_group.bytes();
        if waiting.groups.is_empty() {
            state.end_holds();
        }
    }

    /// Ends the wait `id` for a group whose events up to `end` are in the queue: those after it follow.
    ///
    /// If events after `end` were forgotten, the group stays held. Without an `end` all that waits follows. Has no effect if
    /// the wait is over: the socket has left the group, and has perhaps joined it again.
    pub fn end_hold(&self, group: &GroupName, id: HoldId, end: Option<&ReplayEnd>) -> Released {
        let mut state = self.state.lock();
        let State {
            rare, queue, bytes, ..
        } = &mut *state;
        let Some(waiting) = held_in(rare) else {
            return Released::Free;
        };
        let Some(index) = waiting.group(group) else {
            return Released::Free;
        };
        let of_group = &mut waiting.groups[index];
        if of_group.id != id {
            return Released::Free;
        }
        let before = of_group.bytes();
        if let Some(end) = end {
            of_group.skip_to(end);
            let newer = |forgotten: &Position| !end.has(forgotten);
            if of_group.forgotten.as_ref().is_some_and(newer) {
                // What is left may follow events that were forgotten.
                of_group.frames.clear();
                (waiting.bytes, *bytes) = (waiting.bytes - before, *bytes - before);
                of_group.forgotten = None;
                return Released::ReadOn;
            }
        }
        let of_group = waiting.groups.swap_remove(index);
        *bytes -= before - of_group.bytes();
        waiting.bytes -= before;
        let frames = of_group.frames.into_iter().map(|(_, frame)| frame);
        queue.extend(frames.map(Item::Frame));
        if waiting.groups.is_empty() {
            state.end_holds();
        }
        if !state.is(Marks::BLOCKED) {
            wake(state);
        }
        Released::Free
    }

    /// Returns true once a replay that found no room should go on: not for a few bytes, since each step of it may be a read.
    pub fn has_replay_room(&self) -> bool {
        let state = self.state.lock();
        let step = (state.replay_bound() / 8).max(1);
        matches!(state.replay_room(), ReplayRoom::Bytes(room) if room >= step)
    }

    /// Returns the room for a replay: it fills half of the queue at most, so that a replay makes no socket slow.
    pub fn replay_room(&self) -> ReplayRoom {
        self.state.lock().replay_room()
    }
}

impl State {
    fn replay_room(&self) -> ReplayRoom {
        if self.takes_nothing() {
            return ReplayRoom::Closed;
        }
        let held = self.held().map_or(0, |held| held.bytes);
        let queued = self.bytes - held + self.in_hand();
        match self.replay_bound() / 2 {
            // A frame of any size goes into an empty queue.
            most if queued == 0 => ReplayRoom::Bytes(most.max(1)),
            most => ReplayRoom::Bytes(most.saturating_sub(queued)),
        }
    }

    fn replay_bound(&self) -> usize {
        match self.limit {
            NO_LIMIT => UNLIMITED,
            limit => limit as usize,
        }
    }

    /// Lets a frame wait if its group is held.
    fn keep(&mut self, frame: &Frame, group: &GroupName, at: &Position) -> Option<Enqueued> {
        // The replay has the other half, so that what waits is within the socket's bound.
        let most = self.replay_bound() / 2;
        let rare = self.rare.as_mut()?;
        let held = rare.held.as_mut()?;
        let index = held.group(group)?;
        if rare.closing.is_some() || self.marks.contains(Marks::FINISHED) {
            return Some(Enqueued::Closed);
        }
        let (size, of_group) = (size(frame), &mut held.groups[index]);
        if held.bytes + size > most {
            let freed = of_group.bytes();
            of_group.frames = VecDeque::new();
            of_group.forgotten = Some(at.clone());
            held.bytes -= freed;
            self.bytes -= freed;
            return Some(Enqueued::Queued);
        }
        of_group.frames.push_back((at.clone(), frame.clone()));
        held.bytes += size;
        self.bytes += size;
        Some(Enqueued::Queued)
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::super::{Next, Takes};
    use super::*;
    use crate::position::Epoch;

    fn at(epoch: &str, offset: u64) -> Position {
        Position {
            epoch: Epoch::parse(epoch).unwrap(),
            offset,
        }
    }

    fn held(limit: u64, groups: &[&str]) -> Outbound {
        let queue = Outbound::new(limit);
        let groups = groups.iter().map(|group| GroupName::from(*group));
        queue.hold(groups.map(|group| (group, true)));
        queue
    }

    /// Ends the wait for a group.
    fn release(queue: &Outbound, group: &str, end: Option<ReplayEnd>) -> Released {
        let group = group.into();
        match queue.hold_of(&group) {
            Some(id) => queue.end_hold(&group, id, end.as_ref()),
            None => Released::Free,
        }
    }

    /// Returns what the task would write now.
    fn written(queue: &Outbound) -> String {
        let (mut batch, mut texts) = (Vec::new(), Vec::new());
        let mut context = Context::from_waker(Waker::noop());
        let ping = Frame::ping(b"");
        while let Poll::Ready(Next::Frames) =
            queue.poll_next(&mut context, Takes::All, &ping, &mut batch)
        {
            let text = |frame: Frame| String::from_utf8_lossy(&frame.as_bytes()[2..]).into_owned();
            texts.extend(batch.drain(..).map(text));
        }
        texts.join(" ")
    }

    fn push(queue: &Outbound, group: &str, epoch: &str, offsets: std::ops::RangeInclusive<u64>) {
        for offset in offsets {
            let frame = Frame::text(&format!("{epoch}{offset}"));
            queue.push_recorded(&frame, &group.into(), &at(epoch, offset));
        }
    }

    #[test]
    fn live_frames_follow_the_replay_of_their_group_and_no_other() {
        let queue = held(0, &["a", "b"]);
        push(&queue, "a", "e", 3..=6);
        push(&queue, "c", "x", 1..=1);
        queue.push_frame(&Frame::text("own"));
        assert_eq!(written(&queue), "x1 own");
        assert!(queue.holds(&"a".into()) && !queue.holds(&"c".into()));
        queue.push_frame(&Frame::text("replay"));
        let end = at("e", 4).into();
        assert_eq!(release(&queue, "a", Some(end)), Released::Free);
        push(&queue, "a", "e", 7..=7);
        push(&queue, "b", "f", 1..=1);
        assert_eq!(written(&queue), "replay e5 e6 e7");
        assert_eq!(release(&queue, "b", None), Released::Free);
        assert_eq!(release(&queue, "b", None), Released::Free);
        assert_eq!(written(&queue), "f1");
        assert_eq!(queue.queued_bytes(), 0);
    }

    #[test]
    fn frames_of_another_epoch_are_newer_if_they_came_behind() {
        let queue = held(0, &["a"]);
        push(&queue, "a", "e", 8..=9);
        push(&queue, "a", "f", 1..=3);
        release(&queue, "a", Some(at("f", 2).into()));
        assert_eq!(written(&queue), "f3");
        let queue = held(0, &["a"]);
        push(&queue, "a", "e", 8..=9);
        push(&queue, "a", "f", 1..=1);
        release(&queue, "a", Some(at("e", 8).into()));
        assert_eq!(written(&queue), "e9 f1");
    }

    #[test]
    fn frames_of_an_epoch_that_the_history_goes_on_from_are_known() {
        let queue = held(0, &["a"]);
        push(&queue, "a", "e", 8..=9);
        let end = ReplayEnd {
            at: at("f", 10),
            past: PastEpochs::parse("e 9"),
        };
        push(&queue, "a", "f", 10..=11);
        release(&queue, "a", Some(end.clone()));
        assert_eq!(written(&queue), "f11");
        let queue = held(0, &["a"]);
        push(&queue, "a", "e", 8..=9);
        release(&queue, "a", Some(end));
        assert_eq!(written(&queue), "");
    }

    #[test]
    fn frames_over_the_bound_are_forgotten_and_read_again() {
        let queue = held(1000, &["a"]);
        push(&queue, "a", "e", 1..=50);
        assert!(queue.queued_bytes() <= 1000);
        let end = at("e", 5).into();
        assert_eq!(release(&queue, "a", Some(end)), Released::ReadOn);
        assert_eq!(queue.queued_bytes(), 0);
        push(&queue, "a", "e", 51..=52);
        let end = at("e", 51).into();
        assert_eq!(release(&queue, "a", Some(end)), Released::Free);
        assert_eq!(written(&queue), "e52");
    }

    /// Before, they followed what the replay had brought so far, and the client believed that it had all up to them.
    #[test]
    fn what_waits_behind_a_replay_is_forgotten_when_the_socket_leaves() {
        let queue = held(0, &["a", "b"]);
        let (a, b) = (GroupName::from("a"), GroupName::from("b"));
        push(&queue, "a", "e", 3..=4);
        push(&queue, "b", "e", 1..=1);
        let first = queue.hold_of(&a).unwrap();
        queue.leave(&a);
        assert!(queue.hold_of(&a).is_none() && queue.hold_of(&b).is_some());
        queue.leave(&b);
        assert_eq!((queue.queued_bytes(), queue.holds_any()), (0, false));
        // It joins again, without a replay. The end of the first wait is none of the second.
        queue.hold([(a.clone(), false)].into_iter());
        push(&queue, "a", "e", 7..=8);
        let end = ReplayEnd::from(at("e", 8));
        queue.end_hold(&a, first, Some(&end));
        assert_eq!(written(&queue), "");
        queue.leave(&a);
        assert_eq!(written(&queue), "e7 e8");
        assert_eq!(queue.queued_bytes(), 0);
    }

    #[test]
    fn a_replay_fills_half_of_the_queue_and_held_frames_count() {
        let queue = held(1000, &["a"]);
        assert_eq!(queue.replay_room(), ReplayRoom::Bytes(500));
        queue.push_frame(&Frame::text(&"x".repeat(100)));
        push(&queue, "a", "e", 1..=3);
        assert_eq!(queue.replay_room(), ReplayRoom::Bytes(302));
        queue.push_frame(&Frame::text(&"x".repeat(1000)));
        assert_eq!(queue.replay_room(), ReplayRoom::Bytes(0));
        queue.finish();
        assert_eq!(queue.replay_room(), ReplayRoom::Closed);
        assert_eq!(queue.queued_bytes(), 0);
        push(&queue, "a", "e", 4..=4);
        assert_eq!(queue.queued_bytes(), 0);
    }
}
