//! Replays: what sockets that come back have missed, from the history of a group.
//!
//! The sockets that came while the last read was under way are served by one read, from the smallest of their positions on.
//! Each event is rendered once for each route. A socket without room goes on later, with another read.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::audience::is_order;
use super::reader::Failures;
use super::{Relay, RouteDelivery, enqueue};
use crate::channel_layer::{HistoryFrom, HistoryPage, LayerError};
use crate::event::Event;
use crate::hub::{Enqueued, Group, Member, Pace, ReadWish, ReplayRoom, Returning};
use crate::ids::GroupName;
use crate::metrics::RecoveryResult;
use crate::position::Position;
use crate::render::{EventPlace, Rendered, gap_notice};

/// A socket is told that its events cannot be read after this time.
const PATIENCE: Duration = Duration::from_secs(5);
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

/// The events of a page, decoded.
struct ReplayPage {
    end: Position,
    events: Vec<(u64, Option<Arc<Event>>)>,
    /// No offset is missing from this event on.
    whole_from: u64,
    more: bool,
}

impl ReplayPage {
    /// Returns the index of the first event that a socket has not; an error if the history does not have all of them.
    fn after(&self, has: &Position) -> Result<usize, RecoveryResult> {
        if has.epoch != self.end.epoch || has.offset > self.end.offset {
            return Err(RecoveryResult::Epoch);
        }
        let last = self.events.last().map_or(0, |(offset, _)| *offset);
        let is_whole = self.more || last >= self.end.offset || has.offset == self.end.offset;
        if !is_whole || has.offset < self.end.offset && has.offset + 1 < self.whole_from {
            return Err(RecoveryResult::TooOld);
        }
        Ok(self
            .events
            .partition_point(|(offset, _)| *offset <= has.offset))
    }
}

/// The frames of a page, by the delivery of a route.
type Renderings = HashMap<u16, Vec<Rendered>>;

/// The outcome of a page for one socket.
enum Portion {
    /// It has all of the page.
    Whole,
    /// Its queue has no room for the rest.
    Full,
    /// The history does not have what it missed.
    Lost(RecoveryResult),
    /// It is closed.
    Closed,
}

impl Relay {
    /// Lets the live events of those groups that have a history wait until the socket has what it missed. Call it before it
    /// joins them.
    pub fn hold(&self, member: &Member, groups: &[GroupName]) {
        let recorded = groups.iter().filter(|group| self.has_history(group));
        member.outbound().hold(recorded.cloned());
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
            member.outbound().release(group, None);
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
                    has,
                    told: false,
                    asked: Instant::now(),
                };
                return self.wish(&group, ReadWish::Replay(returning));
            }
        };
        let at = group.history().at();
        self.end_replay(&group, member, at, recovered);
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
        member: &Arc<Member>,
        end: Option<Position>,
        recovered: Option<bool>,
    ) {
        let (name, outbound) = (group.name(), member.outbound());
        if recovered == Some(false) {
            outbound.push_frame(&gap_notice(name, self.accounting()));
        }
        let Some(end) = end else {
            outbound.release(name, None);
            return;
        };
        let place = EventPlace {
            group: name,
            at: &end,
        };
        outbound.push_frame(&place.notice(recovered, self.accounting()));
        let passed = group.history().release(member.clone(), end);
        self.release_all(group, passed);
    }

    /// Reads for these wishes, and serves them.
    pub(super) async fn serve_wishes(self: &Arc<Self>, group: &Arc<Group>, wishes: Vec<ReadWish>) {
        let (mut returning, mut known) = sorted(wishes);
        let mut from = self.first_of(group, &returning);
        let (mut pace, mut failures) = (Pace::default(), Failures::default());
        loop {
            let page = match self.read_page(group, from).await {
                Ok(Some(page)) => page,
                Ok(None) => return self.end_without_history(group, returning),
                Err(error) => {
                    tokio::time::sleep(failures.wait().min(RETRY)).await;
                    let (more, ask) = sorted(group.history().take_wishes());
                    returning.extend(more);
                    known.extend(ask);
                    returning = self.patient(group, returning, &error);
                    if group.is_empty() || returning.is_empty() && known.is_empty() {
                        return;
                    }
                    from = self.first_of(group, &returning);
                    continue;
                }
            };
            group.history().seen(&page.end);
            known.clear();
            failures = Failures::default();
            // Only a history that cannot be read tries their patience.
            for socket in &mut returning {
                socket.asked = Instant::now();
            }
            let held = self.held(&page);
            let page = self.opened(group.name(), page);
            returning = self.replay(group, returning, &page, &mut pace).await;
            drop(held);
            match page.events.last() {
                Some((last, _)) if page.more && !returning.is_empty() => {
                    from = HistoryFrom {
                        epoch: Some(page.end.epoch),
                        after: *last,
                    };
                }
                _ => {
                    for socket in returning {
                        self.finish(group, socket, page.end.clone());
                    }
                    return;
                }
            }
        }
    }

    /// Returns the place from which on all of these sockets can be served, if the epoch is still the current one. The history
    /// of another epoch is read from its beginning in any case.
    fn first_of(&self, group: &Group, returning: &[Returning]) -> HistoryFrom {
        let at = group.history().at();
        let epoch = match (&at, returning.first()) {
            (Some(at), _) => at.epoch.clone(),
            (None, Some(socket)) => socket.has.epoch.clone(),
            (None, None) => return HistoryFrom::END,
        };
        let of_epoch = returning.iter().filter(|socket| socket.has.epoch == epoch);
        let after = of_epoch.map(|socket| socket.has.offset).min();
        HistoryFrom {
            epoch: Some(epoch),
            after: after.unwrap_or(u64::MAX),
        }
    }

    fn opened(&self, group: &GroupName, page: HistoryPage) -> ReplayPage {
        let mut whole_from = page.entries.first().map_or(0, |entry| entry.offset);
        let mut before = whole_from;
        for entry in page.entries.iter().skip(1) {
            if entry.offset != before + 1 {
                whole_from = entry.offset;
            }
            before = entry.offset;
        }
        let more = !page.entries.is_empty();
        let entries = page.entries.into_iter();
        let events =
            entries.map(|entry| (entry.offset, self.decode_recorded(group, entry.payload)));
        ReplayPage {
            end: page.end,
            events: events.collect(),
            whole_from,
            // Without an event there is nothing to read on from.
            more: page.more && more,
        }
    }

    /// Queues the events of a page, and returns the sockets that have all of it.
    async fn replay(
        self: &Arc<Self>,
        group: &Arc<Group>,
        returning: Vec<Returning>,
        page: &ReplayPage,
        pace: &mut Pace,
    ) -> Vec<Returning> {
        let (mut renderings, mut whole) = (Renderings::default(), Vec::new());
        for mut socket in returning {
            match self.portion(group.name(), &mut socket, page, &mut renderings) {
                Portion::Whole => whole.push(socket),
                Portion::Full => group.history().wait_for_room(socket),
                Portion::Lost(result) => {
                    self.parts.metrics.recovery(result);
                    self.end_replay(group, &socket.member, Some(page.end.clone()), Some(false));
                }
                Portion::Closed => {}
            }
            pace.spend(1).await;
        }
        whole
    }

    fn portion(
        &self,
        group: &GroupName,
        socket: &mut Returning,
        page: &ReplayPage,
        renderings: &mut Renderings,
    ) -> Portion {
        let start = match page.after(&socket.has) {
            Ok(start) => start,
            Err(result) => return Portion::Lost(result),
        };
        let settings = self.settings();
        let Some(route) = settings.delivery(&socket.member) else {
            return Portion::Closed;
        };
        let outbound = socket.member.outbound();
        let room = match outbound.replay_room() {
            ReplayRoom::Closed => return Portion::Closed,
            ReplayRoom::Bytes(_) if self.parts.budget.is_exhausted() => 0,
            ReplayRoom::Bytes(room) => room,
        };
        let frames = renderings
            .entry(socket.member.delivery())
            .or_insert_with(|| self.frames(group, route, page));
        let (mut queued, mut count) = (0, 0);
        let mut portion = Portion::Whole;
        for ((offset, _), rendered) in page.events[start..].iter().zip(&frames[start..]) {
            let size = rendered.size();
            if room == 0 || (queued > 0 && queued + size > room) {
                portion = Portion::Full;
                break;
            }
            if enqueue(&socket.member, rendered).is_some_and(Enqueued::is_queued) {
                (queued, count) = (queued + size, count + 1);
            }
            socket.has.offset = *offset;
        }
        self.parts.metrics.recovered_events.increment(count);
        portion
    }

    /// Renders a page for one route. A close is not replayed: it has closed its sockets, and those that come back are new.
    fn frames(&self, group: &GroupName, route: &RouteDelivery, page: &ReplayPage) -> Vec<Rendered> {
        let frame = |(offset, event): &(u64, Option<Arc<Event>>)| {
            let Some(event) = event.as_ref().filter(|event| !is_order(event)) else {
                return Rendered::Filtered;
            };
            let at = Position {
                epoch: page.end.epoch.clone(),
                offset: *offset,
            };
            let place = EventPlace { group, at: &at };
            match self.render_at(route, event, Some(place), &self.accounting()) {
                Rendered::Close(_) => Rendered::Filtered,
                rendered => rendered,
            }
        };
        page.events.iter().map(frame).collect()
    }

    fn finish(self: &Arc<Self>, group: &Arc<Group>, socket: Returning, end: Position) {
        if socket.told {
            let passed = group.history().release(socket.member, end);
            return self.release_all(group, passed);
        }
        self.parts.metrics.recovery(RecoveryResult::Recovered);
        self.end_replay(group, &socket.member, Some(end), Some(true));
    }

    fn end_without_history(self: &Arc<Self>, group: &Arc<Group>, returning: Vec<Returning>) {
        for socket in returning {
            self.end_replay(group, &socket.member, None, Some(false));
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
        let waits = |socket: &Returning| socket.asked.elapsed() < PATIENCE;
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
            self.end_replay(group, &socket.member, at.clone(), Some(false));
        }
        waiting
    }
}

/// Sorts wishes into those of sockets and those of handshakes.
fn sorted(wishes: Vec<ReadWish>) -> (Vec<Returning>, Vec<oneshot::Sender<()>>) {
    let (mut returning, mut known) = (Vec::new(), Vec::new());
    for wish in wishes {
        match wish {
            ReadWish::Know(asked) => known.push(asked),
            ReadWish::Replay(mut socket) => {
                // A wish may have waited for other reads.
                socket.asked = Instant::now();
                returning.push(socket);
            }
        }
    }
    (returning, known)
}
