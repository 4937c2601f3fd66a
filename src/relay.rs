//! Where the channel layer and the hub of one tenant meet.
//!
//! Events go from the layer's inbox to the sockets, in order, one after another; wishes for groups go from the hub
//! to the layer. One task per tenant runs [`Relay::run`], so that a tenant's load is its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::channel_layer::{ChannelLayer, Inbox, LayerError, SocketChannel, Target};
use crate::channel_names::valid_group_name;
use crate::close_code::CloseReason;
use crate::config::{GroupNames, LimitsConfig, OnGap};
use crate::event::Event;
use crate::frame::{Accounting, Frame, Opcode, QueueBudget};
use crate::hub::{Channels, CloseOrder, Enqueued, Hub, Joined, Member, close_paced};
use crate::ids::{ChannelName, GroupName, TenantId};
use crate::metrics::{DropCause, EventSource, FanOutMetrics, GapCause, TenantMetrics};
use crate::rate::Bucket;
use crate::render::{Delivery, Rendered};

mod audience;
mod turn;
mod verdicts;

use turn::Turn;
pub use verdicts::{Verdict, Waiting};

/// A group stays subscribed this long after its last member left: a page reload joins it again.
const LINGER: Duration = Duration::from_secs(1);
/// One event in this many has its way to the sockets timed.
const LAG_SAMPLE: u64 = 64;
/// With `on_gap = "close"`: sockets closed per second, so that their clients do not come back all at once.
const GAP_CLOSES_PER_SECOND: f64 = 300.0;
/// Gaps within this time are told as one.
const GAP_TOLD_EVERY: Duration = Duration::from_secs(1);
/// Of a type that senders choose, so much is remembered and logged.
const TYPE_SHOWN: usize = 100;
/// What a client is told with `on_gap = "notify"`.
const GAP_NOTICE: &str = r#"{"type":"lockgate.gap"}"#;

/// How the sockets of one route get events.
pub struct RouteDelivery {
    /// From event to frame.
    pub delivery: Delivery,
    /// Events go through the consumer of each socket instead of being rendered once for all.
    pub through_consumer: bool,
}

/// What a relay is made of.
pub struct Parts {
    /// Whose events these are.
    pub tenant: TenantId,
    /// The sockets.
    pub hub: Arc<Hub>,
    /// Where groups are subscribed and events published.
    pub layer: Arc<dyn ChannelLayer>,
    /// What the layer read for this tenant.
    pub inbox: Arc<Inbox>,
    /// Which names groups may have.
    pub group_names: GroupNames,
    /// Counts the bytes of frames that wait.
    pub budget: Arc<QueueBudget>,
    /// The tenant's metrics.
    pub metrics: Arc<TenantMetrics>,
}

/// What of a relay a reload may change while its sockets stay.
#[derive(Clone)]
pub struct Settings {
    /// By the index that members carry; `None` where a route is gone.
    pub deliveries: Vec<Option<Arc<RouteDelivery>>>,
    /// What clients are told of a gap.
    pub on_gap: OnGap,
    /// The tenant's limits.
    pub limits: LimitsConfig,
}

/// An event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// `limits.publishes_per_second`
    #[error("limits.publishes_per_second is reached")]
    RateLimited,
    /// The layer did not confirm it, or the event has no form on it.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// What clients were told of gaps.
#[derive(Default)]
struct Gaps {
    told: Option<Instant>,
    /// The newest gap that they were not told of.
    untold: Option<GapCause>,
}

/// Events from channel layer to hub, wishes from hub to channel layer.
pub struct Relay {
    parts: Parts,
    settings: ArcSwap<Settings>,
    publishes: Mutex<Bucket>,
    fan_out: FanOutMetrics,
    /// Sockets that hear their own channel.
    channels: Channels,
    /// Handshakes that wait for a worker's word.
    waiting: Mutex<hashbrown::HashMap<SocketChannel, oneshot::Sender<Verdict>>>,
    /// Groups that were left empty, oldest first.
    lingering: Mutex<VecDeque<(Instant, GroupName)>>,
    /// Types whose events could not be carried, so that each is logged once.
    reported: Mutex<hashbrown::HashSet<Box<str>>>,
    gaps: Mutex<Gaps>,
    /// Sockets are being closed because of a gap.
    closing: AtomicBool,
}

impl Relay {
    /// Returns a relay of these parts; [`Relay::run`] makes it move.
    pub fn new(parts: Parts, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            parts,
            settings: ArcSwap::from_pointee(settings),
            publishes: Mutex::default(),
            fan_out: FanOutMetrics::default(),
            channels: Channels::default(),
            waiting: Mutex::default(),
            lingering: Mutex::default(),
            reported: Mutex::default(),
            gaps: Mutex::default(),
            closing: AtomicBool::new(false),
        })
    }

    /// Puts new settings in the place of the old ones; new limits hold for open sockets at once.
    pub fn reconfigure(&self, settings: Arc<Settings>) {
        let limits = settings.limits;
        self.settings.store(settings);
        self.parts.inbox.set_limit(limits.layer_queue);
        for member in self.parts.hub.members() {
            member.outbound().set_limit(limits.send_queue);
        }
    }

    /// What holds now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The limits that hold now.
    pub fn limits(&self) -> LimitsConfig {
        self.settings.load().limits
    }

    /// Returns the sockets that it delivers to.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.parts.hub
    }

    /// Returns the channel layer that it stands on.
    pub fn layer(&self) -> &Arc<dyn ChannelLayer> {
        &self.parts.layer
    }

    /// Returns the tenant's metrics.
    pub fn metrics(&self) -> &Arc<TenantMetrics> {
        &self.parts.metrics
    }

    /// Where the way of events is timed.
    pub fn fan_out_metrics(&self) -> &FanOutMetrics {
        &self.fan_out
    }

    /// Returns the name as a group name of this tenant, if it may be one.
    pub fn group_name(&self, name: &str) -> Option<GroupName> {
        let valid = match self.parts.group_names {
            GroupNames::Channels => valid_group_name(name),
            GroupNames::Any => !name.is_empty(),
        };
        valid.then(|| GroupName::from(name))
    }

    /// Returns true if the socket may join one more group.
    pub fn has_room_for_group(&self, member: &Member) -> bool {
        let most = self.limits().groups_per_socket as usize;
        most == 0 || member.groups().len() < most
    }

    /// Puts the socket into the group; once this returns, events published from now on reach it.
    ///
    /// # Errors
    /// If the layer does not acknowledge in time; the socket is then in the group all the same, and its
    /// unregistering takes it out.
    pub async fn join(&self, member: &Arc<Member>, group: &GroupName) -> Result<(), LayerError> {
        // In the hub first: `expire_lingering` must see the socket before the layer is asked.
        match self.parts.hub.join(member, group) {
            Joined::New => self.parts.metrics.subscriptions.increment(1.0),
            Joined::Already => {}
            // Nobody would end the subscription.
            Joined::Gone => return Ok(()),
        }
        self.parts.layer.subscribe(group).await
    }

    /// Takes the socket out of one group.
    pub fn leave(&self, member: &Member, group: &GroupName) {
        self.forget(self.parts.hub.leave(member, group));
    }

    /// Takes the socket out of the hub and of all its groups.
    pub fn unregister(&self, member: &Member) {
        self.forget(self.parts.hub.unregister(member));
    }

    fn forget(&self, left: crate::hub::Left) {
        self.parts
            .metrics
            .subscriptions
            .decrement(left.memberships as f64);
        if !left.emptied.is_empty() {
            let now = Instant::now();
            self.lingering
                .lock()
                .extend(left.emptied.into_iter().map(|group| (now, group)));
        }
    }

    /// Publishes an event to a group, on every replica.
    ///
    /// # Errors
    /// Over `limits.publishes_per_second`, or if the layer did not confirm it. After a lost link or a timeout it may have
    /// been published all the same.
    pub async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        source: EventSource,
    ) -> Result<(), PublishError> {
        let per_second = self.limits().publishes_per_second;
        if per_second != 0 && !self.publishes.lock().take(Instant::now(), per_second) {
            self.parts.metrics.rate_limited("publishes_per_second");
            return Err(PublishError::RateLimited);
        }
        self.parts.layer.publish(group, event).await?;
        self.parts.metrics.event(source);
        Ok(())
    }

    /// Sends what a socket says to one channel, of a worker.
    ///
    /// # Errors
    /// [`LayerError`]. After a lost link or a timeout it may have been sent all the same.
    pub async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        self.parts.layer.send(channel, event).await?;
        self.parts.metrics.event(EventSource::Socket);
        Ok(())
    }

    /// Counts an event that no worker took; logged once per channel and cause.
    pub fn not_sent(&self, channel: &str, cause: DropCause, error: &LayerError) {
        self.parts.metrics.dropped(cause);
        if self.first_report(&format!("{channel} {cause:?}")) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, channel.name = channel, error = %error,
                "A worker did not get an event of a socket; further ones are only counted"
            );
        }
    }

    /// What frames of this tenant count against.
    pub fn accounting(&self) -> Accounting {
        Accounting {
            budget: Some(self.parts.budget.clone()),
            read_at: None,
        }
    }

    /// Returns the answer to a ping.
    pub fn pong(&self, payload: &[u8]) -> Frame {
        Frame::encode(Opcode::Pong, payload, self.accounting())
    }

    /// Queues an event for one socket, through its consumer where the route has one that sees events.
    pub fn send_to(&self, member: &Arc<Member>, event: &Arc<Event>) {
        let settings = self.settings.load();
        match settings.delivery(member) {
            Some(route) if route.through_consumer => drop(member.outbound().push_event(event)),
            Some(_) => self.deliver_to(member, event),
            None => {}
        }
    }

    /// Queues an event for one socket as its route says.
    pub fn deliver_to(&self, member: &Arc<Member>, event: &Event) {
        let settings = self.settings.load();
        let Some(route) = settings.delivery(member) else {
            return;
        };
        match route.delivery.render(event, &self.accounting()) {
            Ok(rendered) => drop(enqueue(member, &rendered)),
            Err(error) => self.not_carried(event, DropCause::NotRendered, &error),
        }
    }

    /// Serves the inbox for ever.
    pub async fn run(self: Arc<Self>) -> std::convert::Infallible {
        let mut linger = tokio::time::interval(LINGER / 4);
        linger.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = Turn::default();
        loop {
            tokio::select! {
                () = self.parts.inbox.filled() => self.serve(&mut turn).await,
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

    /// True once per word, for at most 1,000 words: senders choose event types.
    fn first_report(&self, word: &str) -> bool {
        let mut reported = self.reported.lock();
        reported.len() < 1000 && reported.insert(word.into())
    }

    /// Under sustained overload gaps come by the hundred: those of a second are told as one, after the last event
    /// that is known to be missing.
    fn gap(self: &Arc<Self>, cause: GapCause) {
        self.gaps.lock().untold = Some(cause);
        self.tell_gap();
    }

    fn tell_gap(self: &Arc<Self>) {
        let mut gaps = self.gaps.lock();
        if gaps
            .told
            .is_some_and(|told| told.elapsed() < GAP_TOLD_EVERY)
        {
            return;
        }
        let Some(cause) = gaps.untold.take() else {
            return;
        };
        gaps.told = Some(Instant::now());
        drop(gaps);
        let members = self.parts.hub.members();
        tracing::warn!(
            tenant.id = %self.parts.tenant, cause = ?cause, count = members.len(), "Events may have been missed"
        );
        match self.settings.load().on_gap {
            OnGap::Count => {}
            OnGap::Notify => {
                let notice = Frame::encode(Opcode::Text, GAP_NOTICE.as_bytes(), self.accounting());
                for member in &members {
                    // A queue that is full closes its socket by itself.
                    member.outbound().push_frame(&notice);
                }
            }
            OnGap::Close => {
                if !self.closing.swap(true, Ordering::AcqRel) {
                    let relay = self.clone();
                    tokio::spawn(async move {
                        close_paced(members, GAP_CLOSES_PER_SECOND, CloseReason::EventsLost).await;
                        relay.closing.store(false, Ordering::Release);
                    });
                }
            }
        }
    }

    /// Unsubscribes groups that have been empty for [`LINGER`].
    fn expire_lingering(&self) {
        let mut lingering = self.lingering.lock();
        while let Some((since, _)) = lingering.front() {
            if since.elapsed() < LINGER {
                return;
            }
            if let Some((_, group)) = lingering.pop_front() {
                self.parts
                    .hub
                    .groups()
                    .remove_if_empty(&group, || self.parts.layer.unsubscribe(&group));
            }
        }
    }
}

fn enqueue(member: &Member, rendered: &Rendered) -> Option<Enqueued> {
    match rendered {
        Rendered::Frame(frame) => Some(member.outbound().push_frame(frame)),
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
    /// How a socket's route delivers; `None` if the route is gone, and the socket about to close.
    fn delivery(&self, member: &Member) -> Option<&Arc<RouteDelivery>> {
        self.deliveries
            .get(usize::from(member.delivery()))?
            .as_ref()
    }
}
