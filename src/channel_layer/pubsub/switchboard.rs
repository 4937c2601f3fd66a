//! The subscriber links to a Redis Cluster: one to each shard, and the record of which channel is on which.
//!
//! It takes the orders of the layers, as the task of a single link does, and hands each to the link of the shard that has the
//! channel's slot. When slots move, a channel is subscribed on its new shard before the old one is told to end it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hashbrown::{DefaultHashBuilder, HashMap, HashSet};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::error::ErrorKind;
use crate::ids::ReplicaId;
use crate::stores::redis::RedisStore;
use crate::stores::redis::cluster::{ClusterMap, ShardNode, slot_of};
use crate::stores::redis_keys;
use crate::tasks::{self, Task};

use super::super::link::endpoint::Statuses;
use super::super::link::life::{LinkLife, Status, keep};
use super::super::target::Target;
use super::WORDS;
use super::repeats::{RecentMessages, Repeats};
use super::subscriber::{AttachedLayer, ShardPlace, Subscriber, SubscriberOrder};
use super::subscriptions::{ChannelRole, Heard, Voice, Waiter};

/// Time between two attempts for channels whose slot no known shard has.
const AGAIN: Duration = Duration::from_millis(250);

/// One layer's wish for a channel.
struct WishedRoute {
    attachment: u64,
    target: Target,
    role: ChannelRole,
    heard: Option<Heard>,
    /// The shard of [`WishedChannel::at`] has been asked for it.
    asked: bool,
}

#[derive(Default)]
struct WishedChannel {
    routes: Vec<WishedRoute>,
    waiters: Vec<Waiter>,
    /// The `host:port` of the shard that has been asked for it.
    at: Option<Arc<str>>,
    /// The number of the question whose answer is awaited from `at`.
    pending: Option<u64>,
    /// The shard that had it before, until `at` has confirmed it.
    before: Option<Arc<str>>,
    /// A shard has confirmed it at least once.
    confirmed: bool,
    /// The number of the link whose messages are delivered: that of `at`.
    counting: Arc<AtomicU32>,
    /// The last messages of that link.
    recent: Option<Arc<RecentMessages>>,
    /// Messages of links before that may come again.
    repeats: Option<Arc<Repeats>>,
}

/// The link to one shard. Dropping it ends the link.
struct ShardLine {
    /// Counts from 1, over all links of the switchboard.
    number: u32,
    endpoint: Arc<str>,
    store: Arc<RedisStore>,
    canary: Bytes,
    recent: Arc<RecentMessages>,
    orders: mpsc::UnboundedSender<SubscriberOrder>,
    status: Arc<Status>,
    _task: Task,
}

impl ShardLine {
    fn order(&self, order: SubscriberOrder) {
        // Sending fails only if the task panicked, which stops the server.
        drop(self.orders.send(order));
    }

    /// Ends the wishes for a channel.
    fn give_up(&self, channel: &Bytes, routes: &[WishedRoute]) {
        for route in routes {
            self.order(SubscriberOrder::Unsubscribe {
                attachment: route.attachment,
                channel: channel.clone(),
            });
        }
    }
}

/// A shard's answer to a wish for a channel.
struct Confirmation {
    channel: Bytes,
    /// The number of the question.
    question: u64,
    /// `None` if the link was ended, or the shard does not have the channel.
    outcome: Option<Result<(), ErrorKind>>,
}

/// The links to the shards of one cluster.
pub(super) struct Switchboard {
    cluster: Arc<RedisStore>,
    replica: ReplicaId,
    orders: mpsc::UnboundedReceiver<SubscriberOrder>,
    statuses: Arc<Statuses>,
    attachments: HashMap<u64, AttachedLayer>,
    wishes: HashMap<Bytes, WishedChannel>,
    lines: Vec<ShardLine>,
    confirmations: FuturesUnordered<BoxFuture<'static, Confirmation>>,
    /// Channels that the shard at this `host:port` does not have.
    misplaced: mpsc::UnboundedReceiver<(Arc<str>, Bytes)>,
    misplacing: mpsc::UnboundedSender<(Arc<str>, Bytes)>,
    /// Channels to place again at the next tick.
    homeless: HashSet<Bytes>,
    /// The number of questions so far.
    questions: u64,
    /// The number of links so far.
    started: u32,
    /// Makes the digests of messages.
    hasher: DefaultHashBuilder,
}

impl Switchboard {
    pub(super) fn new(
        cluster: &Arc<RedisStore>,
        replica: &ReplicaId,
        orders: mpsc::UnboundedReceiver<SubscriberOrder>,
        statuses: Arc<Statuses>,
    ) -> Self {
        let (misplacing, misplaced) = mpsc::unbounded_channel();
        Self {
            cluster: cluster.clone(),
            replica: replica.clone(),
            orders,
            statuses,
            attachments: HashMap::new(),
            wishes: HashMap::new(),
            lines: Vec::new(),
            confirmations: FuturesUnordered::new(),
            misplaced,
            misplacing,
            homeless: HashSet::new(),
            questions: 0,
            started: 0,
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Serves until the last user has left. Inputs: orders, the map of the cluster, confirmations and refusals of the shards, the
    /// clock.
    pub(super) async fn run(mut self) {
        let Some(mut maps) = self.cluster.cluster_maps() else {
            return;
        };
        let mut tick = interval(AGAIN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.follow(&mut maps);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order, &maps),
                    None => return,
                },
                // The sender lives as long as the store.
                Ok(()) = maps.changed() => self.follow(&mut maps),
                Some((endpoint, channel)) = self.misplaced.recv() => self.unplace(&endpoint, channel),
                Some(confirmation) = self.confirmations.next() => self.confirm(confirmation),
                _ = tick.tick() => self.place_homeless(&maps),
            }
        }
    }

    fn obey(&mut self, order: SubscriberOrder, maps: &watch::Receiver<Arc<ClusterMap>>) {
        match order {
            SubscriberOrder::Attach { attachment, layer } => {
                for line in &self.lines {
                    let layer = layer.clone();
                    line.order(SubscriberOrder::Attach { attachment, layer });
                }
                self.attachments.insert(attachment, layer);
            }
            SubscriberOrder::Detach { attachment } => {
                self.attachments.remove(&attachment);
                for line in &self.lines {
                    line.order(SubscriberOrder::Detach { attachment });
                }
                self.wishes.retain(|_, wish| {
                    wish.routes.retain(|route| route.attachment != attachment);
                    !wish.routes.is_empty()
                });
            }
            SubscriberOrder::Subscribe {
                attachment,
                channel,
                target,
                role,
                heard,
                waiter,
                ..
            } => {
                let wish = self.wishes.entry(channel.clone()).or_default();
                let known = |route: &WishedRoute| route.attachment == attachment;
                if !wish.routes.iter().any(known) {
                    wish.routes.push(WishedRoute {
                        attachment,
                        target,
                        role,
                        heard,
                        asked: false,
                    });
                }
                // During an outage handshakes come and give up.
                wish.waiters.retain(|waiter| !waiter.is_closed());
                wish.waiters.push(waiter);
                self.place(&channel, &maps.borrow());
            }
            SubscriberOrder::Unsubscribe {
                attachment,
                channel,
            } => self.forget(attachment, channel),
            // A cluster has a canary for each shard.
            SubscriberOrder::Canary(_) => {}
        }
    }

    fn forget(&mut self, attachment: u64, channel: Bytes) {
        let Some(wish) = self.wishes.get_mut(&channel) else {
            return;
        };
        wish.routes.retain(|route| route.attachment != attachment);
        for endpoint in wish.at.iter().chain(&wish.before) {
            if let Some(line) = line_at(&self.lines, endpoint) {
                line.order(SubscriberOrder::Unsubscribe {
                    attachment,
                    channel: channel.clone(),
                });
            }
        }
        if wish.routes.is_empty() {
            self.wishes.remove(&channel);
        }
    }

    /// Brings links and channels to a new map.
    fn follow(&mut self, maps: &mut watch::Receiver<Arc<ClusterMap>>) {
        let map = maps.borrow_and_update().clone();
        if map.shards.is_empty() {
            // Joins that give up meanwhile say why.
            let failed = map.failure().map(|kind| Arc::new(Status::failed(kind)));
            self.statuses.set(failed.into_iter().collect());
            return;
        }
        // The link to a node that is no master any more would lead nowhere.
        let is_here = |line: &ShardLine| {
            let mut nodes = map.shards.iter();
            nodes.any(|node| Arc::ptr_eq(&node.store, &line.store))
        };
        let gone: Vec<ShardLine> = self.lines.extract_if(.., |line| !is_here(line)).collect();
        for wish in self.wishes.values_mut() {
            let is_gone = |at: &Arc<str>| gone.iter().any(|line| line.endpoint == *at);
            if wish.at.take_if(|at| is_gone(at)).is_some() {
                wish.pending = None;
                // Joins ask again, and wait for the shard that takes over.
                let heard = wish.routes.iter().filter_map(|route| route.heard.as_ref());
                heard.for_each(|heard| heard.store(false, Ordering::Release));
            }
            wish.before.take_if(|before| is_gone(before));
        }
        for node in map.shards.iter().filter(|node| node.has_slots()) {
            let line = { self.lines.iter_mut() }.find(|line| Arc::ptr_eq(&line.store, &node.store));
            match line {
                Some(line) => keep_canary(line, &map, node, &self.replica),
                None => {
                    let line = self.start(node, &map);
                    self.lines.push(line);
                }
            }
        }
        let statuses = self.lines.iter().map(|line| line.status.clone());
        self.statuses.set(statuses.collect());
        let channels: Vec<Bytes> = self.wishes.keys().cloned().collect();
        for channel in channels {
            let owner = map.owner(slot_of(&channel));
            let wish = &self.wishes[&channel];
            let is_there =
                owner.is_some_and(|node| wish.at.as_deref() == Some(node.store.endpoint()));
            if !is_there {
                self.place(&channel, &map);
            }
        }
    }

    fn start(&mut self, node: &ShardNode, map: &ClusterMap) -> ShardLine {
        self.started += 1;
        let (orders, taken) = mpsc::unbounded_channel();
        let canary = canary_of(node, map, &self.replica);
        let recent = Arc::new(RecentMessages::new(&self.hasher));
        let place = ShardPlace {
            cluster: self.cluster.clone(),
            canary: canary.clone(),
            misplaced: self.misplacing.clone(),
            recent: recent.clone(),
        };
        let session = Subscriber::of_shard(&node.store, &self.replica, place, taken);
        let status = Arc::new(Status::default());
        let life = LinkLife::new(node.store.endpoint(), WORDS, status.clone());
        let line = ShardLine {
            number: self.started,
            endpoint: node.store.endpoint().into(),
            store: node.store.clone(),
            canary,
            recent,
            orders,
            status,
            _task: tasks::lasting("a link to a shard", keep(session, life)),
        };
        for (attachment, layer) in &self.attachments {
            line.order(SubscriberOrder::Attach {
                attachment: *attachment,
                layer: layer.clone(),
            });
        }
        line
    }

    /// Asks the shard that has the channel's slot for it.
    fn place(&mut self, channel: &Bytes, map: &ClusterMap) {
        let Some(wish) = self.wishes.get_mut(channel) else {
            return;
        };
        let owner = map.owner(slot_of(channel));
        let line = owner.and_then(|node| line_at(&self.lines, node.store.endpoint()));
        let Some(line) = line else {
            self.homeless.insert(channel.clone());
            return;
        };
        let moves = wish.at.as_ref() != Some(&line.endpoint);
        let missed = moves && wish.confirmed;
        if moves
            && let Some(last) = wish.at.replace(line.endpoint.clone())
            && let Some(older) = wish.before.replace(last)
            && older != line.endpoint
            && let Some(older) = line_at(&self.lines, &older)
        {
            older.give_up(channel, &wish.routes);
        }
        if moves {
            wish.routes.iter_mut().for_each(|route| route.asked = false);
            // From here on the link before is not listened to, so all comes in order. What comes until the answer is missed, which is
            // told.
            wish.counting.store(line.number, Ordering::Release);
            let before = wish.recent.replace(line.recent.clone());
            wish.repeats = before.and_then(|recent| {
                recent.may_repeat(channel, wish.repeats.as_deref(), Instant::now())
            });
        }
        let is_known = wish.routes.iter().all(|route| route.asked);
        if is_known && wish.pending.is_some() {
            return;
        }
        // A link obeys in order, so the answer to the last question is the answer to all. Waiters during an outage share it.
        let mut last = None;
        for (at, route) in wish.routes.iter_mut().enumerate() {
            if std::mem::replace(&mut route.asked, true) && !(is_known && at == 0) {
                continue;
            }
            let (waiter, answer) = oneshot::channel();
            line.order(SubscriberOrder::Subscribe {
                attachment: route.attachment,
                channel: channel.clone(),
                target: route.target.clone(),
                role: route.role,
                heard: route.heard.clone(),
                missed,
                voice: Some(Voice {
                    link: line.number,
                    counting: wish.counting.clone(),
                    repeats: wish.repeats.clone(),
                }),
                waiter,
            });
            last = Some(answer);
        }
        let Some(answer) = last else { return };
        self.questions += 1;
        let (channel, question) = (channel.clone(), self.questions);
        wish.pending = Some(question);
        self.confirmations.push(Box::pin(async move {
            Confirmation {
                channel,
                question,
                outcome: answer.await.ok(),
            }
        }));
    }

    /// Notes that a shard does not have a channel. The next map tells which one has it.
    fn unplace(&mut self, endpoint: &str, channel: Bytes) {
        self.cluster.doubt_cluster();
        if let Some(wish) = self.wishes.get_mut(&channel)
            && wish.at.as_deref() == Some(endpoint)
        {
            wish.pending = None;
            self.homeless.insert(channel);
        }
    }

    fn place_homeless(&mut self, maps: &watch::Receiver<Arc<ClusterMap>>) {
        let map = maps.borrow().clone();
        for channel in std::mem::take(&mut self.homeless) {
            self.place(&channel, &map);
        }
        if !self.homeless.is_empty() {
            self.cluster.doubt_cluster();
        }
    }

    fn confirm(&mut self, confirmation: Confirmation) {
        let Confirmation {
            channel,
            question,
            outcome,
        } = confirmation;
        let Some(wish) = self.wishes.get_mut(&channel) else {
            return;
        };
        if wish
            .pending
            .take_if(|pending| *pending == question)
            .is_none()
        {
            return;
        }
        let Some(outcome) = outcome else { return };
        for waiter in std::mem::take(&mut wish.waiters) {
            let _caller_is_gone = waiter.send(outcome).is_err();
        }
        if outcome.is_err() {
            return;
        }
        wish.confirmed = true;
        let before = wish.before.take();
        let before = before.filter(|before| wish.at.as_ref() != Some(before));
        if let Some(line) = before.and_then(|before| line_at(&self.lines, &before)) {
            line.give_up(&channel, &wish.routes);
        }
    }
}

fn line_at<'a>(lines: &'a [ShardLine], endpoint: &str) -> Option<&'a ShardLine> {
    lines.iter().find(|line| *line.endpoint == *endpoint)
}

/// Gives the link a canary whose slot its shard has.
fn keep_canary(line: &mut ShardLine, map: &ClusterMap, node: &ShardNode, replica: &ReplicaId) {
    let owner = map.owner(slot_of(&line.canary));
    if owner.is_some_and(|owner| Arc::ptr_eq(&owner.store, &node.store)) {
        return;
    }
    line.canary = canary_of(node, map, replica);
    line.order(SubscriberOrder::Canary(line.canary.clone()));
}

/// Returns a canary's channel in a slot of the shard.
fn canary_of(node: &ShardNode, map: &ClusterMap, replica: &ReplicaId) -> Bytes {
    redis_keys::shard_canary(replica, map.number_in(node)).into()
}
