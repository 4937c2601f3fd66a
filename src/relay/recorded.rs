//! Recorded events of groups: live ones in the order of their offsets, and those that were read to fill a hole.
//!
//! The task of the relay alone delivers them, so that each group has one order. [`super::reader`] reads.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Relay;
use super::audience::Audience;
use super::turn::{Opened, RUN, Turn};
use crate::budget::HeldBytes;
use crate::channel_layer::{Incoming, Target};
use crate::frame::Accounting;
use crate::hub::{
    AfterPage, Group, LiveOutcome, ReadWish, Release, Released, Returning, TrackPage, TrackStep,
    TrackedEvent,
};
use crate::ids::GroupName;
use crate::metrics::GapCause;
use crate::position::Position;

/// A page of a group's history for all its members, on its way to the relay's task.
pub(super) struct HealingPage {
    pub(super) group: Arc<Group>,
    pub(super) page: TrackPage<TrackedEvent>,
    /// Told once the page is delivered.
    pub(super) after: oneshot::Sender<AfterPage>,
    /// Counts the page.
    pub(super) held: HeldBytes,
}

/// The way of pages to the relay's task.
pub(super) struct HealingPages {
    pub(super) sender: mpsc::Sender<HealingPage>,
    /// Taken by the task.
    pub(super) receiver: parking_lot::Mutex<Option<mpsc::Receiver<HealingPage>>>,
}

impl HealingPages {
    pub(super) fn new() -> Self {
        // Readers wait for the delivery of their pages, and few read at a time.
        let (sender, receiver) = mpsc::channel(1);
        Self {
            sender,
            receiver: Some(receiver).into(),
        }
    }
}

impl Relay {
    /// Takes a live event that was recorded at `at`.
    pub(super) async fn take_recorded(
        self: &Arc<Self>,
        incoming: Incoming,
        at: Position,
        source: Accounting,
        turn: &mut Turn,
    ) {
        let Target::Group(name) = &incoming.target else {
            return;
        };
        // Without a member here the event has no audience, and the history no reader.
        let Some(group) = self.parts.hub.groups().get(name) else {
            return;
        };
        let size = incoming.payload.size();
        let event = self.decode(incoming);
        let skipped = event
            .as_ref()
            .and_then(|event| self.skips.sender(group.name(), event));
        let kept = TrackedEvent {
            event,
            healed: false,
            source,
            skipped,
            held: None,
        };
        let (arrival, starts_reader) = group.history().live(at.clone(), kept, size);
        if starts_reader {
            self.start_reader(&group);
        }
        if let LiveOutcome::Deliver(event) = arrival {
            self.add_recorded(&group, at, event, turn).await;
        }
    }

    /// Reads what the history has at a position whose event did not come.
    pub(super) fn unheard(self: &Arc<Self>, group: &GroupName, at: &Position) {
        if let Some(group) = self.parts.hub.groups().get(group)
            && group.history().hole(at)
        {
            self.start_reader(&group);
        }
    }

    /// Adds an event to the run of its group.
    async fn add_recorded(
        self: &Arc<Self>,
        group: &Arc<Group>,
        at: Position,
        event: TrackedEvent,
        turn: &mut Turn,
    ) {
        self.begin_run(group, turn).await;
        turn.recorded = true;
        let TrackedEvent {
            event,
            source,
            skipped,
            ..
        } = event;
        let Some(event) = event else {
            return;
        };
        if !self.obeyed(&Audience::of_group(group.clone()), &event) {
            turn.run.push(Opened {
                event,
                source,
                skipped,
                at: Some(at),
            });
        }
    }

    /// Delivers a page that was read to fill a hole, and what was kept behind it.
    pub(super) async fn serve_page(self: &Arc<Self>, page: HealingPage, turn: &mut Turn) {
        let HealingPage {
            group,
            page,
            after,
            held,
        } = page;
        let mut steps = Vec::new();
        let next = group.history().page(page, &mut steps);
        let mut healed = 0;
        for step in steps {
            match step {
                TrackStep::Event(at, event) => {
                    healed += u64::from(event.healed && event.event.is_some());
                    self.add_recorded(&group, at, event, turn).await;
                    if turn.run.len() >= RUN {
                        self.deliver_run(turn).await;
                    }
                }
                TrackStep::Gap(at) => {
                    self.end_run(turn).await;
                    self.parts.metrics.gap(GapCause::History);
                    let (lost, pace) = (GapCause::History, &mut turn.pace);
                    self.tell_group_gap((&group, lost), Some(&at), pace).await;
                }
            }
        }
        self.begin_run(&group, turn).await;
        turn.recorded = true;
        self.end_run(turn).await;
        self.parts.metrics.healed_events.increment(healed);
        drop(held);
        // A reader that is gone needs no answer.
        after.send(next).ok();
    }

    /// Lets the sockets go on whose replays are over and whose last replayed event has passed.
    pub(super) fn release_all(self: &Arc<Self>, group: &Arc<Group>, passed: Vec<Release>) {
        for Release {
            member, hold, end, ..
        } in passed
        {
            let released = member.outbound().end_hold(group.name(), hold, Some(&end));
            if released == Released::ReadOn {
                let returning = Returning {
                    member,
                    hold,
                    has: end.at,
                    told: true,
                    asked: Instant::now(),
                    whole_from: None,
                };
                self.wish(group, ReadWish::Replay(returning));
            }
        }
    }
}
