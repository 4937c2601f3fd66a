//! The reads of a group's history for sockets that come back.
//!
//! A read has no more than the sockets at its place can take, and what it has stays while sockets wait behind it
//! ([`super::window`]): a storm of sockets reads each event once, and a slow one no more than its own. Each socket gets its part
//! in [`super::replay`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Relay;
use super::reader::{Failures, patience};
use super::reports::GroupReport;
use super::window::{OpenedPage, ReplayWindow, ReplayedEvent, Replays};
use crate::budget::{HeldBytes, HeldKind};
use crate::channel_layer::{HistoryFrom, HistoryPage, LayerError, RecordedEvent};
use crate::hub::{Group, Pace, ReadWish, ReplayEnd, ReplayRoom, Returning};
use crate::ids::GroupName;
use crate::metrics::RecoveryResult;
use crate::position::Position;

/// The longest wait between two attempts: clients wait for them.
const RETRY: Duration = Duration::from_millis(500);

impl Relay {
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
        if !unread.is_empty() && self.is_reported_now(GroupReport::UnreadByReturning) {
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
