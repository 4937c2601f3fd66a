//! The relay connects the channel layer and the hub of one tenant.
//!
//! It passes events from the layer's inbox to the sockets, in order, one after another. It passes subscriptions of
//! groups from the hub to the layer. One task per tenant runs [`Relay::run`], so that tenants do not share a queue.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use crate::budget::MemoryBudget;
use crate::channel_layer::{ChannelLayer, Inbox, SocketChannel};
use crate::channel_names::allowed_group_name;
use crate::config::{GroupNames, LimitsConfig, OnGap};
use crate::event::Event;
use crate::frame::{Accounting, Frame, Opcode};
use crate::group_rules::GroupRules;
use crate::hub::{Channels, CloseOrder, Enqueued, Hub, Member, Pace, PassedFrames, WaitingEvent};
use crate::ids::{GroupName, TenantId};
use crate::metrics::{FanOutMetrics, TenantMetrics};
use crate::render::{Delivery, Rendered};
use crate::tasks;

mod acceptance;
mod audience;
mod gaps;
mod joining;
mod lifetimes;
mod lingering;
mod membership;
mod presence;
mod publishing;
mod rates;
mod reader;
mod reading;
mod recorded;
mod replay;
mod reports;
mod skips;
mod turn;
mod verdicts;
mod window;
mod wishes;

pub use acceptance::{Acceptance, AcceptanceError};
use gaps::{GapCloses, Gaps};
use lifetimes::Lifetimes;
use lingering::{LINGER, Lingering};
pub use membership::{Additions, begin};
pub use presence::PresenceError;
use presence::RelayPresence;
pub use publishing::{PublishError, Publisher};
use rates::PublishRates;
use reader::{IDLE_LOOK, READERS};
use reading::ReadTurns;
use recorded::HealingPages;
pub use replay::ResumeFrom;
use reports::GroupReports;
use skips::Skips;
use turn::Turn;
pub use verdicts::{Waiting, WorkerVerdict};

/// One event in this many is timed on its way to the sockets.
const LAG_SAMPLE: u64 = 64;

/// The way in which the sockets of one route get events.
pub struct RouteDelivery {
    /// Turns an event into a frame.
    pub delivery: Delivery,
    /// True if each socket's consumer handles the events; false if an event is rendered once for all sockets.
    pub through_consumer: bool,
    /// True if each socket's consumer may tell others its channel, so that events come to it through no group.
    pub tells_channel: bool,
    /// True if the gateway answers the pings that clients send as text.
    pub answers_pings: bool,
}

/// The parts of a relay.
pub struct Parts {
    /// The tenant that the relay serves.
    pub tenant: TenantId,
    /// The tenant's sockets.
    pub hub: Arc<Hub>,
    /// The transport for subscriptions and published events.
    pub layer: Arc<dyn ChannelLayer>,
    /// The messages that the layer has read for this tenant.
    pub inbox: Arc<Inbox>,
    /// The rule for group names.
    pub group_names: GroupNames,
    /// The rules of groups by their names.
    pub rules: Arc<GroupRules>,
    /// Counts the bytes of queued frames.
    pub budget: Arc<MemoryBudget>,
    /// The tenant's metrics.
    pub metrics: Arc<TenantMetrics>,
}

/// The settings that a reload may change while the sockets stay open.
#[derive(Clone)]
pub struct Settings {
    /// The deliveries by [`Member::delivery`]; `None` where the route is no longer configured.
    pub deliveries: Vec<Option<Arc<RouteDelivery>>>,
    /// The reaction to a gap.
    pub on_gap: OnGap,
    /// The tenant's limits.
    pub limits: LimitsConfig,
    /// Clients may refresh their tokens in place.
    pub refreshes_tokens: bool,
}

/// Passes events from the channel layer to the hub, and subscriptions from the hub to the channel layer.
pub struct Relay {
    parts: Parts,
    settings: ArcSwap<Settings>,
    publishes: PublishRates,
    fan_out: FanOutMetrics,
    /// The sockets that listen on their own channel.
    channels: Channels,
    /// The handshakes that wait for a worker's answer.
    waiting: Mutex<hashbrown::HashMap<SocketChannel, oneshot::Sender<WorkerVerdict>>>,
    /// The empty groups that are still subscribed, oldest first.
    lingering: Mutex<Lingering>,
    /// The event types and errors that were logged, so that each is logged once.
    reported: Mutex<hashbrown::HashSet<Box<str>>>,
    group_reports: Mutex<GroupReports>,
    gaps: Mutex<Gaps>,
    /// The users who are in the groups; `None` if no rule asks for them.
    presence: Option<RelayPresence>,
    skips: Skips,
    lifetimes: Lifetimes,
    /// Bounds the histories that are read at the same time.
    readers: Semaphore,
    turns: ReadTurns,
    /// The pages that were read for whole groups.
    pages: HealingPages,
    /// The tasks that tell workers of the ends of handshakes.
    last_words: TaskTracker,
    /// True while a task closes sockets because of a gap.
    closing: Mutex<GapCloses>,
}

impl Relay {
    /// Makes a relay of these parts; it works while [`Relay::run`] runs.
    pub fn new(parts: Parts, settings: Settings) -> Arc<Self> {
        let presence = RelayPresence::new(&parts.tenant, &parts.rules, &parts.metrics);
        Arc::new(Self {
            parts,
            settings: ArcSwap::from_pointee(settings),
            publishes: PublishRates::default(),
            fan_out: FanOutMetrics::default(),
            channels: Channels::default(),
            waiting: Mutex::default(),
            lingering: Mutex::default(),
            reported: Mutex::default(),
            group_reports: Mutex::default(),
            gaps: Mutex::default(),
            presence,
            skips: Skips::default(),
            lifetimes: Lifetimes::default(),
            readers: Semaphore::new(READERS),
            turns: ReadTurns::default(),
            pages: HealingPages::new(),
            last_words: TaskTracker::new(),
            closing: Mutex::default(),
        })
    }

    /// Replaces the settings; new limits apply to open sockets at once.
    pub fn reconfigure(&self, settings: Arc<Settings>) {
        let limits = settings.limits;
        self.settings.store(settings);
        self.parts.inbox.set_limit(limits.layer_queue);
        for member in self.parts.hub.members() {
            member.outbound().set_limit(limits.send_queue);
        }
    }

    /// Returns the current settings.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Returns the current limits.
    pub fn limits(&self) -> LimitsConfig {
        self.settings.load().limits
    }

    /// Returns true if clients may refresh their tokens in place.
    pub fn refreshes_tokens(&self) -> bool {
        self.settings.load().refreshes_tokens
    }

    /// Returns true if the gateway answers the pings that this socket sends as text.
    pub fn answers_pings(&self, member: &Member) -> bool {
        let settings = self.settings.load();
        let route = settings.delivery(member);
        route.is_some_and(|route| route.answers_pings)
    }

    /// Returns the hub that it delivers to.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.parts.hub
    }

    /// Returns the channel layer that it uses.
    pub fn layer(&self) -> &Arc<dyn ChannelLayer> {
        &self.parts.layer
    }

    /// Returns the tenant's metrics.
    pub fn metrics(&self) -> &Arc<TenantMetrics> {
        &self.parts.metrics
    }

    /// Returns the metrics of the path of events.
    pub fn fan_out_metrics(&self) -> &FanOutMetrics {
        &self.fan_out
    }

    /// Returns the name as a group name; `None` if the tenant's rule does not allow it.
    pub fn group_name(&self, name: &str) -> Option<GroupName> {
        let (rule, namespace) = (self.parts.group_names, self.parts.layer.namespace());
        allowed_group_name(name, rule, namespace).then(|| GroupName::from(name))
    }

    /// Lets `words` to a worker outlive the handshake that they are about.
    pub fn say_later(&self, words: impl Future<Output = ()> + Send + 'static) {
        tasks::brief(self.last_words.track_future(words));
    }

    /// Waits until all that [`Relay::say_later`] took is said.
    pub async fn last_words_said(&self) {
        self.last_words.close();
        self.last_words.wait().await;
    }

    /// Returns the accounting for frames of this tenant.
    pub fn accounting(&self) -> Accounting {
        Accounting {
            budget: Some(self.parts.budget.clone()),
            read_at: None,
        }
    }

    /// Returns the event as it waits for consumers.
    fn waiting(&self, event: &Arc<Event>) -> Arc<WaitingEvent> {
        WaitingEvent::new(event.clone(), &self.parts.budget)
    }

    /// Returns the frame that answers a ping.
    pub fn pong(&self, payload: &[u8]) -> Frame {
        Frame::encode(Opcode::Pong, payload, self.accounting())
    }

    /// Queues an event for these sockets, in turns with all other work. It is rendered once for each route; where a route's
    /// consumer handles events, each socket's consumer gets it first.
    pub async fn send_to_each(&self, members: &[Arc<Member>], event: &Arc<Event>) {
        let (mut pace, mut rendered) = (Pace::default(), hashbrown::HashMap::new());
        let mut waiting = None;
        for member in members {
            self.send_to(member, event, &mut rendered, &mut waiting);
            pace.spend(1).await;
        }
    }

    fn send_to(
        &self,
        member: &Member,
        event: &Arc<Event>,
        rendered: &mut hashbrown::HashMap<u16, Rendered>,
        waiting: &mut Option<Arc<WaitingEvent>>,
    ) {
        let settings = self.settings.load();
        let Some(route) = settings.delivery(member) else {
            return;
        };
        if route.through_consumer {
            let waiting = waiting.get_or_insert_with(|| self.waiting(event));
            self.hand_over(member, waiting);
            return;
        }
        let rendered = rendered
            .entry(member.delivery())
            .or_insert_with(|| self.render_at(route, event, None, &self.accounting()));
        enqueue(member, rendered);
    }

    /// Queues an event for the consumer of a socket. Counts the socket that it closes, because the consumer is too far behind.
    fn hand_over(&self, member: &Member, event: &Arc<WaitingEvent>) -> Enqueued {
        let outcome = member.outbound().push_event(event);
        if outcome == Enqueued::Late {
            self.parts.metrics.rate_limited("send_queue");
        }
        outcome
    }

    /// Counts the frames that a fan-out has written. The others are counted as they leave their queues.
    fn count_written(&self, written: &PassedFrames) {
        self.parts.metrics.frames_sent.increment(written.frames);
        self.parts.metrics.sent_bytes.increment(written.bytes);
        for lag in &written.lags {
            self.fan_out.lag.record(lag.as_secs_f64());
        }
    }

    /// Renders an event by the socket's route and queues the frame.
    pub fn deliver_to(&self, member: &Arc<Member>, event: &Event) {
        let settings = self.settings.load();
        let Some(route) = settings.delivery(member) else {
            return;
        };
        let rendered = self.render_at(route, event, None, &self.accounting());
        enqueue(member, &rendered);
    }

    /// Removes from Redis what would outlive this replica. No call may follow.
    pub async fn close(&self) {
        if let Some(presence) = &self.presence {
            presence.close().await;
        }
        self.parts.layer.close().await;
    }

    /// Serves the inbox. Never returns.
    pub async fn run(self: Arc<Self>) -> std::convert::Infallible {
        let mut linger = tokio::time::interval(LINGER / 4);
        linger.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = tokio::time::interval(IDLE_LOOK);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = Turn::default();
        let pages = self.pages.receiver.lock().take();
        let mut pages = pages.unwrap_or_else(|| tokio::sync::mpsc::channel(1).1);
        loop {
            tokio::select! {
                () = self.parts.inbox.filled() => self.serve(&mut turn).await,
                Some(page) = pages.recv() => self.serve_page(page, &mut turn).await,
                _ = idle.tick() => self.renew_idle(),
                _ = linger.tick() => {
                    self.expire_lingering();
                    self.tell_gap(&mut turn.pace).await;
                }
            }
        }
    }
}

fn enqueue(member: &Member, rendered: &Rendered) -> Option<Enqueued> {
    match rendered {
        Rendered::Frame(frame) => Some(member.outbound().push_frame(frame)),
        Rendered::Followed(frame, position) => {
            member.outbound().push_frame(frame);
            Some(member.outbound().push_frame(position))
        }
        Rendered::Close(close) => {
            member
                .outbound()
                .close(close.clone(), CloseOrder::AfterQueued);
            None
        }
        Rendered::Filtered => None,
    }
}

impl Settings {
    /// Returns the delivery of a socket's route; `None` if the route was removed and the socket is about to close.
    fn delivery(&self, member: &Member) -> Option<&Arc<RouteDelivery>> {
        self.deliveries
            .get(usize::from(member.delivery()))?
            .as_ref()
    }
}

#[cfg(test)]
mod tests;
