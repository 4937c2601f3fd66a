//! The relay connects the channel layer and the hub of one tenant.
//!
//! It passes events from the layer's inbox to the sockets, in order, one after another. It passes subscriptions of
//! groups from the hub to the layer. One task per tenant runs [`Relay::run`], so that tenants do not share a queue.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::MemoryBudget;
use crate::channel_layer::{ChannelLayer, Inbox, LayerError, SocketChannel, Target};
use crate::channel_names::valid_in_namespace;
use crate::config::{GroupNames, LimitsConfig, OnGap};
use crate::event::Event;
use crate::frame::{Accounting, Frame, Opcode};
use crate::group_rules::GroupRules;
use crate::hub::{Channels, CloseOrder, Enqueued, Hub, Joined, Member, Pace, WaitingEvent};
use crate::ids::{ChannelName, GroupName, TenantId};
use crate::metrics::{DropCause, EventSource, FanOutMetrics, TenantMetrics};
use crate::position::Position;
use crate::render::{Delivery, Rendered};
use crate::tasks;

mod acceptance;
mod audience;
mod gaps;
mod lifetimes;
mod lingering;
mod membership;
mod presence;
mod rates;
mod reader;
mod recorded;
mod replay;
mod skips;
mod turn;
mod verdicts;
mod window;

pub use acceptance::{Acceptance, AcceptanceError};
use gaps::Gaps;
use lifetimes::Lifetimes;
use lingering::{LINGER, Lingering};
pub use membership::{Additions, begin};
pub use presence::PresenceError;
use presence::RelayPresence;
use rates::PublishRates;
use reader::{IDLE_LOOK, READERS};
use recorded::HealingPages;
pub use replay::ResumeFrom;
use skips::Skips;
use turn::Turn;
pub use verdicts::{Waiting, WorkerVerdict};

/// One event in this many is timed on its way to the sockets.
const LAG_SAMPLE: u64 = 64;
/// Bytes of an event type kept for logging; senders choose it.
const TYPE_SHOWN: usize = 100;

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

/// The sender of an event to a group.
#[derive(Clone, Copy)]
pub enum Publisher<'a> {
    /// A back end, by the management API.
    BackEnd,
    /// A socket.
    Socket(&'a Member),
}

/// An event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// `limits.publishes_per_second`, or for a socket without a user `limits.anonymous_publishes_per_second`
    #[error("limits.{0} is reached")]
    RateLimited(&'static str),
    /// The layer did not confirm the event, or cannot express it.
    #[error(transparent)]
    Layer(#[from] LayerError),
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
    gaps: Mutex<Gaps>,
    /// Who is in the groups; `None` if no rule asks for it.
    presence: Option<RelayPresence>,
    skips: Skips,
    lifetimes: Lifetimes,
    /// Bounds the histories that are read at the same time.
    readers: Semaphore,
    /// What was read for whole groups.
    pages: HealingPages,
    /// The tasks that tell workers of the ends of handshakes.
    last_words: TaskTracker,
    /// True while a task closes sockets because of a gap.
    closing: AtomicBool,
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
            gaps: Mutex::default(),
            presence,
            skips: Skips::default(),
            lifetimes: Lifetimes::default(),
            readers: Semaphore::new(READERS),
            pages: HealingPages::new(),
            last_words: TaskTracker::new(),
            closing: AtomicBool::new(false),
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
        let valid = match self.parts.group_names {
            GroupNames::Channels => valid_in_namespace(name, self.parts.layer.namespace()),
            GroupNames::Any => !name.is_empty(),
        };
        valid.then(|| GroupName::from(name))
    }

    /// Returns true if the socket may join one more group. Counts the refusal if it may not.
    pub fn has_room_for_group(&self, member: &Member) -> bool {
        let most = self.limits().groups_per_socket as usize;
        let has_room = most == 0 || member.groups().len() < most;
        if !has_room {
            self.parts.metrics.dropped(DropCause::Limit);
        }
        has_room
    }

    /// Puts the socket into the group. Events published after this returns reach the socket.
    ///
    /// # Errors
    /// Fails if the layer does not acknowledge in time. The socket is in the group even then;
    /// [`Relay::unregister`] takes it out.
    pub async fn join(
        self: &Arc<Self>,
        member: &Arc<Member>,
        group: &GroupName,
    ) -> Result<(), LayerError> {
        if !self.enter_hub(member, group) {
            return Ok(());
        }
        let joining = self.joining(member, group);
        self.follow(member, group).await?;
        if let Some(joining) = joining {
            self.know(&joining.group).await;
        }
        Ok(())
    }

    /// Puts the socket into the group as [`Relay::join`] does. Holes in its events are seen from the first one on.
    ///
    /// # Errors
    /// As [`Relay::join`].
    pub async fn add_to_group(
        &self,
        member: &Arc<Member>,
        group: &GroupName,
    ) -> Result<(), LayerError> {
        match self.enter_hub(member, group) {
            true => self.follow(member, group).await,
            false => Ok(()),
        }
    }

    /// Puts the socket into the group in the hub: `expire_lingering` must see it before the layer is asked. Returns false if the
    /// socket is gone: no member would be left to end the subscription.
    fn enter_hub(&self, member: &Arc<Member>, group: &GroupName) -> bool {
        let joined = self.parts.hub.join(member, group);
        if joined == Joined::New {
            self.parts.metrics.subscriptions.increment(1.0);
        }
        joined != Joined::Gone
    }

    /// Waits for the subscription of a group that the socket has entered.
    async fn follow(&self, member: &Member, group: &GroupName) -> Result<(), LayerError> {
        let subscribed = self.parts.layer.subscribe(group).await;
        self.joined(member, group);
        subscribed
    }

    fn joined(&self, member: &Member, group: &GroupName) {
        if let Some(presence) = &self.presence {
            presence.joined(member, group, &*self.parts.layer);
        }
    }

    /// Takes the socket out of one group.
    pub fn leave(&self, member: &Member, group: &GroupName) {
        self.forget(self.parts.hub.leave(member, group));
        // Nothing is told to a socket that waits for its position in the group.
        member.outbound().leave(group);
        if let Some(presence) = &self.presence {
            presence.left(member, group);
        }
    }

    /// Takes the socket out of the hub and of all its groups.
    pub fn unregister(&self, member: &Member) {
        self.forget(self.parts.hub.unregister(member));
        if let Some(presence) = &self.presence {
            presence.closed(member);
        }
        self.lifetimes.end(member);
    }

    /// Ends the tasks that wait for the end of the socket, which is closing.
    pub fn end_tasks(&self, member: &Member) {
        self.lifetimes.end(member);
    }

    /// Returns the token that is cancelled once the socket is closed.
    pub fn end_of(&self, member: &Member) -> CancellationToken {
        self.lifetimes.of(member)
    }

    fn forget(&self, left: crate::hub::Left) {
        self.parts
            .metrics
            .subscriptions
            .decrement(left.memberships as f64);
        if !left.emptied.is_empty() {
            self.lingering
                .lock()
                .add(left.emptied, tokio::time::Instant::now());
        }
    }

    /// Publishes an event to a group on every replica. Returns its position if the group has a history.
    ///
    /// # Errors
    /// Fails over the limit of the publisher ([`PublishError::RateLimited`]), and if the layer does not confirm. After a
    /// lost link or a timeout the event may be published even so.
    pub async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        publisher: Publisher<'_>,
    ) -> Result<Option<Position>, PublishError> {
        let (source, is_stranger) = match publisher {
            Publisher::BackEnd => (EventSource::Api, false),
            Publisher::Socket(member) => (EventSource::Socket, member.user().is_none()),
        };
        if let Err(limit) = self.publishes.take(&self.limits(), is_stranger) {
            self.parts.metrics.rate_limited(limit);
            return Err(PublishError::RateLimited(limit));
        }
        let position = self.parts.layer.publish(group, event).await?;
        self.published(&position, source);
        Ok(position)
    }

    /// Publishes events of a back end to groups on every replica, each as [`Relay::publish`] does, in their order. Returns
    /// the outcome of each.
    pub async fn publish_each(
        &self,
        events: Vec<(GroupName, Event)>,
    ) -> Vec<Result<Option<Position>, PublishError>> {
        let allowed = self.publishes.take_up_to(&self.limits(), events.len());
        let published = self.parts.layer.publish_each(&events[..allowed]).await;
        let mut outcomes: Vec<_> = { published.into_iter() }
            .map(|outcome| outcome.map_err(PublishError::from))
            .collect();
        for position in outcomes.iter().flatten() {
            self.published(position, EventSource::Api);
        }
        outcomes.resize_with(events.len(), || {
            let limit = "publishes_per_second";
            self.parts.metrics.rate_limited(limit);
            Err(PublishError::RateLimited(limit))
        });
        outcomes
    }

    fn published(&self, position: &Option<Position>, source: EventSource) {
        self.parts.metrics.event(source);
        if position.is_some() {
            self.parts.metrics.recorded.increment(1);
        }
    }

    /// Publishes an event of a socket, which does not get it itself.
    ///
    /// # Errors
    /// As [`Relay::publish`].
    pub async fn publish_to_others(
        &self,
        sender: &Member,
        group: &GroupName,
        event: &Event,
    ) -> Result<Option<Position>, PublishError> {
        // Before the publish: the event may come back before the layer has confirmed it.
        let noted = self.skips.note(group, event, sender.id(), Instant::now());
        let publisher = Publisher::Socket(sender);
        let published = self.publish(group, event, publisher).await;
        if let (Some(note), Err(_)) = (&noted, &published) {
            self.skips.forget(group, note);
        }
        published
    }

    /// Sends an event of a socket to one channel, which a worker reads.
    ///
    /// # Errors
    /// [`LayerError`]. After a lost link or a timeout the event may be sent even so.
    pub async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        self.parts.layer.send(channel, event).await?;
        self.parts.metrics.event(EventSource::Socket);
        Ok(())
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

    /// Counts an event that no worker took, and logs it once per channel and cause.
    pub fn not_sent(&self, channel: &str, cause: DropCause, error: &LayerError) {
        self.parts.metrics.dropped(cause);
        if self.first_report(&format!("{channel} {cause:?}")) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, channel.name = channel, error = %error,
                "A worker did not get an event of a socket; further ones are only counted"
            );
        }
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
            member.outbound().push_event(waiting);
            return;
        }
        let rendered = rendered
            .entry(member.delivery())
            .or_insert_with(|| self.render_at(route, event, None, &self.accounting()));
        enqueue(member, rendered);
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
                    self.tell_gap();
                }
            }
        }
    }

    fn not_decoded(&self, target: &Target, error: &dyn std::error::Error) {
        self.parts.metrics.dropped(DropCause::NotDecoded);
        let group = match target {
            Target::Group(group) => Some(group.as_str()),
            _ => None,
        };
        if self.first_report("") {
            tracing::warn!(
                tenant.id = %self.parts.tenant, group.name = group, error = %error,
                "Dropped a message that is no event; further ones are only counted"
            );
        }
    }

    fn not_carried(&self, event: &Event, cause: DropCause, error: &dyn std::error::Error) {
        self.parts.metrics.dropped(cause);
        let event_type = event.event_type().unwrap_or("(none)");
        let event_type = &event_type[..event_type.floor_char_boundary(TYPE_SHOWN)];
        if self.first_report(event_type) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, event.r#type = event_type, error = %error,
                "Dropped an event that cannot be rendered; further ones of its type are only counted"
            );
        }
    }

    /// Counts an answer of a worker that cannot be carried out, and logs its error once.
    pub fn not_accepted(&self, error: &AcceptanceError) {
        self.parts.metrics.dropped(DropCause::NotValid);
        if self.first_report(&error.to_string()) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, error = %error,
                "A worker's websocket.accept is not valid, and its handshake gets 503; further ones are only counted"
            );
        }
    }

    /// True once per word, for at most 1,000 words: senders choose event types.
    fn first_report(&self, word: &str) -> bool {
        let mut reported = self.reported.lock();
        reported.len() < 1000 && reported.insert(word.into())
    }

    /// Unsubscribes groups that have been empty for [`LINGER`].
    fn expire_lingering(&self) {
        let now = tokio::time::Instant::now();
        let mut lingering = self.lingering.lock();
        while let Some(group) = lingering.expired(now) {
            // Under the lock of the groups: a socket that joins the group now subscribes after this.
            self.parts.hub.groups().remove_if_empty(&group, || {
                self.parts.layer.unsubscribe(&group);
                if let Some(presence) = &self.presence {
                    presence.emptied(&group);
                }
            });
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
