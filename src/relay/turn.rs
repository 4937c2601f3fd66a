//! Events of one tenant on their way to its sockets: in order, several at once where they wait, and in turn with the
//! other tenants.
//!
//! Events that follow each other to one group make a run, which each of its sockets gets at once: one wake-up and one
//! write for all of them. Runs are bounded, and [`Pace`] ends the tenant's turn after so many sockets.

use std::sync::Arc;
use std::time::Instant;

use super::audience::Audience;
use super::{LAG_SAMPLE, Relay, RouteDelivery, Settings, enqueue};
use crate::channel_layer::{Incoming, Signal};
use crate::event::Event;
use crate::frame::Accounting;
use crate::hub::{Enqueued, Group, Member, Pace, walk};
use crate::metrics::{DropCause, EventSource};
use crate::render::Rendered;

/// Events that are taken from the inbox at once: what they cost before the first socket is served stays below a slice.
const RUN: usize = 32;
/// Their bytes, far below the default `send_queue`: a socket that reads must not be taken for one that is too slow.
const RUN_BYTES: u64 = 64 * 1024;

/// Where a relay stands with its events.
#[derive(Default)]
pub(super) struct Turn {
    pace: Pace,
    taken: Vec<Signal>,
    /// Events that wait for the end of their run.
    run: Vec<Opened>,
    /// Whose run it is.
    group: Option<Arc<Group>>,
    /// Counts events, of which one in [`LAG_SAMPLE`] is timed.
    count: u64,
}

/// An event, and what its frames count against.
struct Opened {
    event: Arc<Event>,
    source: Accounting,
}

/// What the events of a run look like to each of the tenant's routes; made for those that have a socket here.
struct Renderings {
    settings: Arc<Settings>,
    by_delivery: Vec<Option<Box<[Rendered]>>>,
}

impl Relay {
    /// Serves what waits in the inbox, up to a run.
    pub(super) async fn serve(self: &Arc<Self>, turn: &mut Turn) {
        let mut taken = std::mem::take(&mut turn.taken);
        let most = match self.limits().send_queue {
            0 => RUN_BYTES,
            // As JSON a payload may be several times as long; one event is taken in any case.
            bound => RUN_BYTES.min(bound / 8).max(1),
        };
        self.parts.inbox.drain_into(&mut taken, RUN, most);
        for signal in taken.drain(..) {
            match signal {
                Signal::Event(incoming) => self.take(incoming, turn).await,
                Signal::Gap(cause) => {
                    self.end_run(turn).await;
                    self.gap(cause);
                }
            }
        }
        turn.taken = taken;
        self.end_run(turn).await;
    }

    /// Puts an event into the run of its group, or serves it apart.
    async fn take(&self, incoming: Incoming, turn: &mut Turn) {
        turn.count = turn.count.wrapping_add(1);
        turn.pace.spend(1).await;
        self.parts.metrics.event(EventSource::Layer);
        let sampled = turn.count.is_multiple_of(LAG_SAMPLE);
        let source = Accounting {
            budget: Some(self.parts.budget.clone()),
            read_at: sampled.then_some(incoming.read_at),
        };
        let Some((audience, event)) = self.open(incoming) else {
            return;
        };
        let opened = Opened { event, source };
        let group = audience.only_group();
        let continues = |group: &Arc<Group>| {
            let run = turn.group.as_ref();
            run.is_some_and(|run| Arc::ptr_eq(run, group))
        };
        if !group.is_some_and(continues) {
            self.end_run(turn).await;
        }
        if self.obeyed(&audience, &opened.event) {
            return;
        }
        match audience.only_group() {
            Some(group) => {
                turn.group = Some(group.clone());
                turn.run.push(opened);
            }
            None => self.deliver(audience, &[opened], &mut turn.pace).await,
        }
    }

    async fn end_run(&self, turn: &mut Turn) {
        if let Some(group) = turn.group.take() {
            let run = std::mem::take(&mut turn.run);
            self.deliver(Audience::of_group(group), &run, &mut turn.pace)
                .await;
        }
    }

    /// Queues the events for everybody who is meant.
    async fn deliver(&self, mut audience: Audience, events: &[Opened], pace: &mut Pace) {
        let started = Instant::now();
        let mut renderings = Renderings::of(self.settings());
        let mut queued = 0;
        for group in &audience.groups {
            let serve = |member: &Arc<Member>| {
                Audience::served(&mut audience.sockets, member);
                queued += self.push(member, events, &mut renderings);
            };
            walk(group, pace, serve).await;
        }
        for member in &audience.sockets {
            queued += self.push(member, events, &mut renderings);
            pace.spend(1).await;
        }
        self.parts.metrics.deliveries.increment(queued);
        if events.iter().any(|opened| opened.source.read_at.is_some()) {
            // Of one event, where several went together.
            let events = events.len() as f64;
            let took = started.elapsed().as_secs_f64();
            self.fan_out.duration.record(took / events);
            self.fan_out.recipients.record(queued as f64 / events);
        }
    }

    /// Queues the events for one socket; returns how many wait for it.
    fn push(&self, member: &Arc<Member>, events: &[Opened], renderings: &mut Renderings) -> u64 {
        let Some(route) = renderings.settings.delivery(member) else {
            return 0;
        };
        let is_queued = |outcome: &Enqueued| *outcome == Enqueued::Queued;
        let outbound = member.outbound();
        if route.through_consumer {
            let outcomes = events
                .iter()
                .map(|opened| outbound.push_event(&opened.event));
            return outcomes.filter(is_queued).count() as u64;
        }
        let at = usize::from(member.delivery());
        let rendered = renderings.by_delivery[at].get_or_insert_with(|| {
            let render = |opened: &Opened| self.render(route, opened);
            events.iter().map(render).collect()
        });
        let outcomes = rendered
            .iter()
            .filter_map(|rendered| enqueue(member, rendered));
        outcomes.filter(is_queued).count() as u64
    }

    fn render(&self, route: &RouteDelivery, opened: &Opened) -> Rendered {
        let Opened { event, source } = opened;
        let rendered = route.delivery.render(event, source);
        rendered.unwrap_or_else(|error| {
            self.not_carried(event, DropCause::NotRendered, &error);
            Rendered::Filtered
        })
    }
}

impl Renderings {
    fn of(settings: Arc<Settings>) -> Self {
        let mut by_delivery = Vec::new();
        by_delivery.resize_with(settings.deliveries.len(), || None);
        Self {
            settings,
            by_delivery,
        }
    }
}
