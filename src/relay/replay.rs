//! Replays: what a socket that comes back has missed, from the window of a group's history that was read
//! ([`super::wishes`]), and its position. Each event is rendered once for each route.

use std::sync::Arc;

use tokio::time::Instant;

use super::audience::is_order;
use super::reader::LOOK;
use super::window::{ReplayPlace, ReplayWindow};
use super::{Relay, RouteDelivery, enqueue};
use crate::event::Event;
use crate::hub::{
    Enqueued, Group, HoldId, Member, Pace, ReadWish, ReplayEnd, ReplayRoom, Returning,
};
use crate::ids::GroupName;
use crate::metrics::RecoveryResult;
use crate::position::Position;
use crate::render::{EventPlace, Rendered, gap_notice};

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
    pub(super) fn end_replay(
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

    /// Queues the events of a window as far as there is room. Returns the sockets that have room for more than it has. Each
    /// socket writes what it got before the next one gets anything, since that is as much as many sockets of a fan-out write. What
    /// takes longer goes on after a hole in the live events of the group is filled.
    pub(super) async fn replay(
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
}
