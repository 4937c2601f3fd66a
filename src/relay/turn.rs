//! Delivery of one tenant's events to its sockets: in order, in runs, and in turn with other tenants.
//!
//! Consecutive events to one group make a run. Each socket of the group gets the whole run with one wake-up and one
//! write. Runs are bounded, and [`Pace`] ends the tenant's turn after a number of sockets.

use std::sync::Arc;
use std::time::Instant;

use super::audience::Audience;
use super::{LAG_SAMPLE, Relay, RouteDelivery, Settings, enqueue};
use crate::channel_layer::{Incoming, Signal};
use crate::event::Event;
use crate::frame::Accounting;
use crate::hub::{Enqueued, Group, Member, Pace, WaitingEvent, visit, walk};
use crate::ids::{ConnectionId, GroupName};
use crate::metrics::{DropCause, EventSource};
use crate::position::Position;
use crate::render::{EventPlace, Rendered};

/// Events taken from the inbox at once. Decoding them costs less than serving one slice of sockets.
pub(super) const RUN: usize = 32;
/// Bytes of these events. A socket then writes about as much as one `writev` takes before the next run.
const RUN_BYTES: u64 = 64 * 1024;

/// The state of a relay between two calls of [`Relay::serve`].
#[derive(Default)]
pub(super) struct Turn {
    pub(super) pace: Pace,
    taken: Vec<Signal>,
    /// The events of the run so far.
    pub(super) run: Vec<Opened>,
    /// The group that gets the run.
    group: Option<Arc<Group>>,
    /// True if events of the run were recorded.
    pub(super) recorded: bool,
    /// The number of events; one in [`LAG_SAMPLE`] is timed.
    count: u64,
}

/// A decoded event with the accounting of its frames.
pub(super) struct Opened {
    pub(super) event: Arc<Event>,
    pub(super) source: Accounting,
    /// The socket that sent it and must not get it.
    pub(super) skipped: Option<ConnectionId>,
    /// Its position, if it was recorded.
    pub(super) at: Option<Position>,
}

impl Opened {
    fn place<'a>(&'a self, group: Option<&'a GroupName>) -> Option<EventPlace<'a>> {
        let at = self.at.as_ref()?;
        group.map(|group| EventPlace { group, at })
    }
}

/// The events of a run as each route renders them. A route's entry is made for its first socket.
struct Renderings {
    settings: Arc<Settings>,
    by_delivery: Vec<Option<Box<[Rendered]>>>,
    /// The events for consumers. They are made for the first socket whose consumer handles events.
    waiting: Option<Box<[Arc<WaitingEvent>]>>,
    /// True if a socket that takes bytes has enough to write.
    crowded: bool,
    /// True if a socket must not get one of the events.
    skips: bool,
}

impl Relay {
    /// Serves the messages in the inbox, up to one run.
    pub(super) async fn serve(self: &Arc<Self>, turn: &mut Turn) {
        let mut taken = std::mem::take(&mut turn.taken);
        self.parts.inbox.drain_into(&mut taken, RUN, RUN_BYTES);
        for signal in taken.drain(..) {
            match signal {
                Signal::Event(incoming) => self.take(incoming, turn).await,
                Signal::Gap(cause) => {
                    self.end_run(turn).await;
                    self.gap(cause, &mut turn.pace).await;
                }
                Signal::Presence(group, notice) => self.noticed(group, notice),
                Signal::Unheard(group, at) => self.unheard(&group, &at),
                Signal::Missed(target) => {
                    self.end_run(turn).await;
                    self.missed(target, turn).await;
                }
            }
        }
        turn.taken = taken;
        self.end_run(turn).await;
    }

    /// Adds an event to the run of its group, or ends the run and serves the event alone.
    async fn take(self: &Arc<Self>, incoming: Incoming, turn: &mut Turn) {
        turn.count = turn.count.wrapping_add(1);
        turn.pace.spend(1).await;
        self.parts.metrics.event(EventSource::Layer);
        let sampled = turn.count.is_multiple_of(LAG_SAMPLE);
        let source = Accounting {
            budget: Some(self.parts.budget.clone()),
            read_at: sampled.then_some(incoming.read_at),
        };
        if let Some(at) = incoming.recorded.clone() {
            return self.take_recorded(incoming, at, source, turn).await;
        }
        let Some((audience, event)) = self.open(incoming) else {
            return;
        };
        let mut senders = audience.groups.iter();
        let skipped = senders.find_map(|group| self.skips.sender(group.name(), &event));
        let opened = Opened {
            event,
            source,
            skipped,
            at: None,
        };
        match audience.only_group() {
            Some(group) => self.begin_run(group, turn).await,
            None => self.end_run(turn).await,
        }
        if self.obeyed(&audience, &opened.event) {
            return;
        }
        match audience.only_group() {
            Some(_) => turn.run.push(opened),
            None => self.deliver(audience, &[opened], &mut turn.pace).await,
        }
    }

    /// Makes the next event part of a run of the group. An event to another audience must not overtake the run before it.
    pub(super) async fn begin_run(self: &Arc<Self>, group: &Arc<Group>, turn: &mut Turn) {
        let run = turn.group.as_ref();
        if !run.is_some_and(|run| Arc::ptr_eq(run, group)) {
            self.end_run(turn).await;
            turn.group = Some(group.clone());
        }
    }

    /// Delivers the run so far.
    pub(super) async fn deliver_run(&self, turn: &mut Turn) {
        if let Some(group) = turn.group.clone()
            && !turn.run.is_empty()
        {
            let run = std::mem::take(&mut turn.run);
            self.deliver(Audience::of_group(group), &run, &mut turn.pace)
                .await;
        }
    }

    pub(super) async fn end_run(self: &Arc<Self>, turn: &mut Turn) {
        self.deliver_run(turn).await;
        let group = turn.group.take();
        if let Some(group) = group.filter(|_| std::mem::take(&mut turn.recorded)) {
            let passed = group.history().turn_over();
            self.release_all(&group, passed);
        }
    }

    /// Queues the events for every socket of the audience.
    async fn deliver(&self, mut audience: Audience, events: &[Opened], pace: &mut Pace) {
        let started = Instant::now();
        let mut renderings = Renderings::of(self.settings(), events);
        let mut queued = 0;
        for group in &audience.groups {
            let serve = |member: &Arc<Member>| {
                Audience::served(&mut audience.sockets, member);
                queued += self.push(member, Some(group.name()), events, &mut renderings);
            };
            let written = walk(group, pace, serve).await;
            self.count_written(&written);
        }
        for member in &audience.sockets {
            let serve = |member: &_| queued += self.push(member, None, events, &mut renderings);
            let written = visit(member, pace, serve).await;
            self.count_written(&written);
        }
        self.parts.metrics.deliveries.increment(queued);
        if renderings.crowded {
            pace.give_way().await;
        }
        if events.iter().any(|opened| opened.source.read_at.is_some()) {
            // The metrics are per event; a run of several shares the time.
            let events = events.len() as f64;
            let took = started.elapsed().as_secs_f64();
            self.fan_out.duration.record(took / events);
            self.fan_out.recipients.record(queued as f64 / events);
        }
    }

    /// Queues the events for one socket, and returns the number queued.
    fn push(
        &self,
        member: &Arc<Member>,
        group: Option<&GroupName>,
        events: &[Opened],
        renderings: &mut Renderings,
    ) -> u64 {
        let Some(route) = renderings.settings.delivery(member) else {
            return 0;
        };
        let (crowded, skips) = (&mut renderings.crowded, renderings.skips);
        let gets = |opened: &Opened| !skips || opened.skipped != Some(member.id());
        let mut is_queued = |outcome: &Enqueued| {
            *crowded |= *outcome == Enqueued::Crowded;
            outcome.is_queued()
        };
        if route.through_consumer {
            let waiting = renderings.waiting.get_or_insert_with(|| {
                let wait = |opened: &Opened| self.waiting(&opened.event);
                events.iter().map(wait).collect()
            });
            let outcomes = waiting
                .iter()
                .zip(events)
                .filter(|(_, opened)| gets(opened));
            let outcomes = outcomes.map(|(event, _)| self.hand_over(member, event));
            return outcomes.filter(&mut is_queued).count() as u64;
        }
        let at = usize::from(member.delivery());
        let rendered = renderings.by_delivery[at].get_or_insert_with(|| {
            let render = |opened: &Opened| {
                self.render_at(route, &opened.event, opened.place(group), &opened.source)
            };
            events.iter().map(render).collect()
        });
        let outcomes = rendered.iter().zip(events);
        if route.delivery.resumes() {
            let outcomes = outcomes.filter_map(|(rendered, opened)| {
                self.push_placed(member, rendered, opened.place(group), gets(opened))
            });
            return outcomes.filter(&mut is_queued).count() as u64;
        }
        let outcomes = outcomes.filter(|(_, opened)| gets(opened));
        let outcomes = outcomes.filter_map(|(rendered, _)| enqueue(member, rendered));
        outcomes.filter(&mut is_queued).count() as u64
    }

    /// Queues an event for a socket of a route with `resume`. A socket that does not get its own event is told its position,
    /// so that it does not get the event when it comes back.
    fn push_placed(
        &self,
        member: &Member,
        rendered: &Rendered,
        place: Option<EventPlace<'_>>,
        gets: bool,
    ) -> Option<Enqueued> {
        let Some(place) = place else {
            return gets.then(|| enqueue(member, rendered)).flatten();
        };
        let push = |frame| {
            let outbound = member.outbound();
            outbound.push_recorded(frame, place.group, place.at)
        };
        match rendered {
            Rendered::Filtered => None,
            Rendered::Close(_) if gets => enqueue(member, rendered),
            Rendered::Frame(frame) if gets => Some(push(frame)),
            Rendered::Followed(frame, position) if gets => {
                push(frame);
                Some(push(position))
            }
            Rendered::Followed(_, position) => {
                push(position);
                None
            }
            Rendered::Frame(_) | Rendered::Close(_) => {
                push(&place.notice(None, self.accounting()));
                None
            }
        }
    }

    /// Renders an event for a route. One that cannot be rendered is counted.
    pub(super) fn render_at(
        &self,
        route: &RouteDelivery,
        event: &Event,
        place: Option<EventPlace<'_>>,
        source: &Accounting,
    ) -> Rendered {
        let rendered = route.delivery.render(event, place, source);
        rendered.unwrap_or_else(|error| {
            self.not_carried(event, DropCause::NotRendered, &error);
            Rendered::Filtered
        })
    }
}

impl Renderings {
    fn of(settings: Arc<Settings>, events: &[Opened]) -> Self {
        let mut by_delivery = Vec::new();
        by_delivery.resize_with(settings.deliveries.len(), || None);
        Self {
            settings,
            by_delivery,
            waiting: None,
            crowded: false,
            skips: events.iter().any(|opened| opened.skipped.is_some()),
        }
    }
}
