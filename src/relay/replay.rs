//! Replays: what sockets that come back have missed, from the history of a group.
//!
//! A read has no more than the sockets at its place can take, and what it has stays while sockets wait behind it
//! ([`super::window`]): a storm of sockets reads each event once, and a slow one no more than its own. Each event is rendered
//! once for each route.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::audience::is_order;
use super::reader::{Failures, LOOK, patience};
use super::window::{OpenedPage, ReplayPlace, ReplayWindow, ReplayedEvent, Replays};
use super::{Relay, RouteDelivery, enqueue};
use crate::budget::{HeldBytes, HeldKind};
use crate::channel_layer::{HistoryFrom, HistoryPage, LayerError, RecordedEvent};
use crate::event::Event;
use crate::hub::{
    Enqueued, Group, HoldId, Member, Pace, ReadWish, ReplayEnd, ReplayRoom, Returning,
};
use crate::ids::GroupName;
use crate::metrics::RecoveryResult;
use crate::position::Position;
use crate::render::{EventPlace, Rendered, gap_notice};

/// The longest wait between two attempts: clients wait for them.
const RETRY: Duration = Duration::from_millis(500);

/// The place from which a client that comes back wants the events of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResumeFrom {
    /// After the event at this position.
    Position(Position),
    /// The client has sent a text that is no position.
    Unreadable,
}

/// The outcome of a replay's step for one socket.
enum Portion {
    /// It has all events of the history.
    Whole,
    /// It has room for more than was read.
    Hungry,
    /// Its queue has no room for the rest.
    Full,
    /// The history does not have what it missed.
    Lost(RecoveryResult),
    /// It is closed.
    Closed,
}

impl Relay {
    /// Lets the live events of those groups that have a history wait until the socket has what it missed. Call it before it
    /// joins them. `returns` tells for which groups the client has sent a position.
    pub fn hold(
        &self,
        member: &Member,
        groups: &[GroupName],
        returns: impl Fn(&GroupName) -> bool,
    ) {
        let recorded = groups.iter().filter(|group| self.has_history(group));
        let holds = recorded.map(|group| (group.clone(), returns(group)));
        member.outbound().hold(holds);
    }

    /// Tells a socket that has joined a group with history its position there. A socket that comes back gets what it missed
    /// first.
    pub async fn resume(
        self: &Arc<Self>,
        member: &Arc<Member>,
        group: &GroupName,
        since: Option<ResumeFrom>,
    ) {
        if !self.has_history(group) {
            return;
        }
        let Some(group) = self.parts.hub.groups().get(group) else {
            // It has left the group again.
            member.outbound().leave(group);
            return;
        };
        let Some(hold) = member.outbound().hold_of(group.name()) else {
            return;
        };
        if !matches!(since, Some(ResumeFrom::Position(_))) {
            self.know(&group).await;
        }
        let recovered = match since {
            None => None,
            Some(ResumeFrom::Unreadable) => {
                self.parts.metrics.recovery(RecoveryResult::Epoch);
                Some(false)
            }
            // Also where the relay has delivered no more than the client has: recorded events may be on their way.
            Some(ResumeFrom::Position(has)) => {
                let returning = Returning {
                    member: member.clone(),
                    hold,
                    has,
                    told: false,
                    asked: Instant::now(),
                    whole_from: None,
                };
                return self.wish(&group, ReadWish::Replay(returning));
            }
        };
        let at = group.history().at().map(ReplayEnd::from);
        self.end_replay(&group, (member, hold), at, recovered);
    }

    /// Tells a socket that comes back for a group without history, or for one that its route does not join.
    pub fn tell_stranger(&self, member: &Member, group: &GroupName) {
        self.parts.metrics.recovery(RecoveryResult::Epoch);
        let notice = gap_notice(group, self.accounting());
        member.outbound().push_frame(&notice);
    }

    /// Tells a socket its position, and lets its live events follow.
    fn end_replay(
        self: &Arc<Self>,
        group: &Arc<Group>,
        (member, hold): (&Arc<Member>, HoldId),
        end: Option<ReplayEnd>,
        recovered: Option<bool>,
    ) {
        let (name, outbound) = (group.name(), member.outbound());
        if outbound.hold_of(name) != Some(hold) {
            // It has left the group.
            return;
        }
        if recovered == Some(false) {
            outbound.push_frame(&gap_notice(name, self.accounting()));
        }
        let Some(end) = end else {
            outbound.end_hold(name, hold, None);
            return;
        };
        let place = EventPlace {
            group: name,
            at: &end.at,
        };
        outbound.push_frame(&place.notice(recovered, self.accounting()));
        let passed = group.history().release(member.clone(), hold, end);
        self.release_all(group, passed);
    }

    /// Serves these wishes from what was read already, and by one read more if that is not enough.
    pub(super) async fn serve_wishes(
        self: &Arc<Self>,
        group: &Arc<Group>,
        wishes: Vec<ReadWish>,
        replays: &mut Replays,
    ) {
        let (returning, mut known) = replays.sorted(wishes);
        let (mut pace, mut failures) = (Pace::spent(), Failures::default());
        let window = replays.window.take();
        let mut hungry = returning;
        if let Some(mut window) = window {
            hungry = self.replay(group, hungry, &mut window, &mut pace).await;
            replays.window = Some(window);
        }
        // Only a history that cannot be read tries their patience.
        for socket in &mut hungry {
            socket.asked = Instant::now();
        }
        while !(hungry.is_empty() && known.is_empty()) {
            let from = self.next_read(group, &hungry, replays);
            match self.read_page(group, from.clone()).await {
                Ok(Some(mut page)) => {
                    self.compare(group, &mut page);
                    known.clear();
                    let page = self.opened(group.name(), &from, page, &mut pace).await;
                    let hungry = self
                        .replay_page(group, hungry, (page, replays), &mut pace)
                        .await;
                    return group.history().go_on(hungry);
                }
                Ok(None) => return self.end_without_history(group, hungry),
                Err(error) => {
                    tokio::time::sleep(failures.wait().min(RETRY)).await;
                    let (more, ask) = replays.sorted(group.history().take_wishes());
                    hungry.extend(more);
                    known.extend(ask);
                    hungry = self.patient(group, hungry, &error);
                    if group.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// Returns the place from which to read for these sockets, and as many bytes as one of those that stand there has room
    /// for. The places are taken in turn: where the last read ended, and the lowest one of the others.
    fn next_read(&self, group: &Group, hungry: &[Returning], replays: &mut Replays) -> HistoryFrom {
        replays.reads += 1;
        let window = replays.window.as_ref().map(ReplayWindow::last);
        let epoch = match (window, group.history().at(), hungry.first()) {
            (Some((_, end)), ..) => end.at.epoch.clone(),
            (None, Some(at), _) => at.epoch,
            (None, None, Some(socket)) => socket.has.epoch.clone(),
            (None, None, None) => return HistoryFrom::END,
        };
        let places = hungry.iter().filter(|socket| socket.has.epoch == epoch);
        let places = places.map(|socket| socket.has.offset);
        let end = window.map(|(last, _)| last);
        let lowest = places.clone().filter(|has| Some(*has) != end).min();
        let end = end.filter(|end| places.clone().any(|has| has == *end));
        let after = match replays.went_on {
            true => lowest.or(end),
            false => end.or(lowest),
        };
        let Some(after) = after else {
            return HistoryFrom::END;
        };
        let there = hungry.iter().filter(|socket| socket.has.offset == after);
        let room = there.map(|socket| match socket.member.outbound().replay_room() {
            ReplayRoom::Bytes(room) if !self.parts.budget.is_exhausted() => room,
            ReplayRoom::Bytes(_) | ReplayRoom::Closed => 0,
        });
        let room = room.max().unwrap_or(0);
        HistoryFrom {
            epoch: Some(epoch),
            after,
            // A frame is longer than what is recorded, by its position and by JSON. What did not fit would be read again.
            most: (room - room / 8).max(1),
        }
    }

    /// Notes what a page tells about the delivery to the whole group, and the other way round: events that were delivered, and
    /// that the history has lost.
    fn compare(self: &Arc<Self>, group: &Arc<Group>, page: &mut HistoryPage) {
        group.history().seen(&page.end);
        if let Some(at) = group.history().at()
            && page.past.note_given(&at)
            && group.history().doubt()
        {
            self.start_reader(group);
        }
    }

    async fn opened(
        &self,
        group: &GroupName,
        from: &HistoryFrom,
        page: HistoryPage,
        pace: &mut Pace,
    ) -> OpenedPage {
        let more = page.more && !page.entries.is_empty();
        let hold = |entry: &RecordedEvent| {
            let size = entry.payload.size();
            HeldBytes::of(&self.parts.budget, HeldKind::History, size)
        };
        // All of them count from here on, and not as their turns come.
        let held: Vec<_> = page.entries.iter().map(hold).collect();
        let mut events = Vec::with_capacity(held.len());
        for (entry, held) in page.entries.into_iter().zip(held) {
            let event = self.decode_recorded(group, entry.payload);
            events.push(ReplayedEvent::new(entry.offset, event, held));
            pace.spend(1).await;
        }
        OpenedPage {
            after: from.after_in(&page.end.epoch, &page.past),
            events,
            // Without an event there is nothing to read on from.
            more,
            end: ReplayEnd {
                at: page.end,
                past: page.past,
            },
        }
    }

    /// Serves these sockets from a page that was read for them. Returns those that it had nothing more for.
    async fn replay_page(
        self: &Arc<Self>,
        group: &Arc<Group>,
        hungry: Vec<Returning>,
        (page, replays): (OpenedPage, &mut Replays),
        pace: &mut Pace,
    ) -> Vec<Returning> {
        let read = replays.reads;
        replays.went_on = false;
        let mut window = match replays.window.take() {
            Some(mut window) if window.is_followed_by(&page) => {
                replays.went_on = true;
                window.append(page, read);
                window
            }
            // It is for sockets apart from those that wait behind the window.
            Some(mut window) if window.is_of(&page.end) && is_needed(group, &window) => {
                window.saw_end(page.end.clone(), read);
                replays.window = Some(window);
                let mut apart = ReplayWindow::of(page, read);
                return self.replay(group, hungry, &mut apart, pace).await;
            }
            _ => ReplayWindow::of(page, read),
        };
        let hungry = self.replay(group, hungry, &mut window, pace).await;
        replays.window = Some(window);
        hungry
    }

    /// Forgets the events that were read and that no socket waits behind.
    pub(super) fn keep_needed(&self, group: &Group, replays: &mut Replays) {
        let Some(window) = &mut replays.window else {
            return;
        };
        let mut lowest = None;
        group.history().visit_returning(|has| {
            if window.covers(has) {
                lowest = Some(lowest.unwrap_or(u64::MAX).min(has.offset));
            }
        });
        match lowest {
            Some(lowest) if !self.parts.budget.is_over() => window.forget_to(lowest),
            _ => replays.window = None,
        }
    }

    /// Queues the events of a window as far as there is room. Returns the sockets that have room for more than it has. Each
    /// socket writes what it got before the next one gets anything, since that is as much as many sockets of a fan-out write. What
    /// takes longer goes on after a hole in the live events of the group is filled.
    async fn replay(
        self: &Arc<Self>,
        group: &Arc<Group>,
        returning: Vec<Returning>,
        window: &mut ReplayWindow,
        pace: &mut Pace,
    ) -> Vec<Returning> {
        let (mut hungry, mut returning) = (Vec::new(), returning.into_iter());
        let began = Instant::now();
        while let Some(mut socket) = returning.next() {
            window.rename(&mut socket.has);
            let had = socket.has.offset;
            let portion = self.portion(group.name(), &mut socket, window);
            let got = socket.has.offset != had;
            match portion {
                Portion::Whole => {
                    let end = window.last().1.clone();
                    self.finish(group, socket, end);
                }
                Portion::Hungry => hungry.push(socket),
                Portion::Full => group.history().wait_for_room(socket),
                Portion::Lost(result) => {
                    self.parts.metrics.recovery(result);
                    let end = window.last().1.clone();
                    self.end_replay(group, socket.of(), Some(end), Some(false));
                }
                Portion::Closed => {}
            }
            match got {
                true => pace.give_way().await,
                false => pace.spend(1).await,
            }
            if began.elapsed() >= LOOK && group.history().is_healing() {
                group.history().go_on(returning.collect());
                break;
            }
        }
        hungry
    }

    fn portion(
        &self,
        group: &GroupName,
        socket: &mut Returning,
        window: &mut ReplayWindow,
    ) -> Portion {
        let outbound = socket.member.outbound();
        // It has left the group, and its client wants no more of it, even if it has joined again.
        if outbound.hold_of(group) != Some(socket.hold) {
            return Portion::Closed;
        }
        let room = match outbound.replay_room() {
            ReplayRoom::Closed => return Portion::Closed,
            ReplayRoom::Bytes(room) => room,
        };
        let mut place = window.place(socket);
        if let ReplayPlace::Before(next) = place {
            let room = match self.parts.budget.is_exhausted() {
                true => 0,
                false => room,
            };
            if !self.queue_events(group, socket, (window, next), room) {
                return Portion::Full;
            }
            place = window.place(socket);
        }
        match place {
            ReplayPlace::AtEnd => Portion::Whole,
            ReplayPlace::Lost(result) => Portion::Lost(result),
            ReplayPlace::Unread if room == 0 => Portion::Full,
            ReplayPlace::Unread | ReplayPlace::Unsure => Portion::Hungry,
            // Its route is gone, and it is about to close.
            ReplayPlace::Before(_) => Portion::Closed,
        }
    }

    /// Queues the events of a window from an index on for one socket. Returns false if there was no room for all of them.
    fn queue_events(
        &self,
        group: &GroupName,
        socket: &mut Returning,
        (window, next): (&mut ReplayWindow, usize),
        room: usize,
    ) -> bool {
        let settings = self.settings();
        let Some(route) = settings.delivery(&socket.member) else {
            return true;
        };
        let delivery = socket.member.delivery();
        let (mut queued, mut count, mut all) = (0, 0, true);
        let (end, events) = window.from(next);
        for recorded in events {
            let at = Position {
                epoch: end.epoch.clone(),
                offset: recorded.offset,
            };
            let render = |route: &_, event: Option<&_>| self.replayed(route, event, group, &at);
            let rendered = recorded.rendered(delivery, route, render);
            let size = rendered.size();
            if room == 0 || (queued > 0 && queued + size > room) {
                all = false;
                break;
            }
            if enqueue(&socket.member, rendered).is_some_and(Enqueued::is_queued) {
                (queued, count) = (queued + size, count + 1);
            }
            socket.has.offset = at.offset;
        }
        self.parts.metrics.recovered_events.increment(count);
        all
    }

    /// Renders an event for one route. A close is not replayed: it has closed its sockets, and those that come back are new.
    fn replayed(
        &self,
        route: &RouteDelivery,
        event: Option<&Event>,
        group: &GroupName,
        at: &Position,
    ) -> Rendered {
        let Some(event) = event.filter(|event| !is_order(event)) else {
            return Rendered::Filtered;
        };
        let place = EventPlace { group, at };
        match self.render_at(route, event, Some(place), &self.accounting()) {
            Rendered::Close(_) => Rendered::Filtered,
            rendered => rendered,
        }
    }

    fn finish(self: &Arc<Self>, group: &Arc<Group>, socket: Returning, end: ReplayEnd) {
        if socket.told {
            let passed = group.history().release(socket.member, socket.hold, end);
            return self.release_all(group, passed);
        }
        self.parts.metrics.recovery(RecoveryResult::Recovered);
        self.end_replay(group, socket.of(), Some(end), Some(true));
    }

    fn end_without_history(self: &Arc<Self>, group: &Arc<Group>, returning: Vec<Returning>) {
        for socket in returning {
            self.end_replay(group, socket.of(), None, Some(false));
        }
        self.give_up(group);
    }

    /// Tells the sockets that have waited for too long that their events are missing. Returns the others.
    fn patient(
        self: &Arc<Self>,
        group: &Arc<Group>,
        returning: Vec<Returning>,
        error: &LayerError,
    ) -> Vec<Returning> {
        let patience = patience(error);
        let waits = |socket: &Returning| socket.asked.elapsed() < patience;
        let (waiting, unread): (Vec<_>, Vec<_>) = returning.into_iter().partition(waits);
        if !unread.is_empty() {
            tracing::warn!(
                tenant.id = %self.parts.tenant, group.name = %group.name(), error = %error, count = unread.len(),
                "Could not read the history of a group for sockets that came back"
            );
        }
        let at = group.history().at();
        for socket in unread {
            self.parts.metrics.recovery(RecoveryResult::Error);
            let end = at.clone().map(ReplayEnd::from);
            self.end_replay(group, socket.of(), end, Some(false));
        }
        waiting
    }
}

/// Returns true if sockets that have no room yet will go on in this window.
fn is_needed(group: &Group, window: &ReplayWindow) -> bool {
    let mut needed = false;
    let visit = |has: &Position| needed |= window.covers(has);
    group.history().visit_returning(visit);
    needed
}
