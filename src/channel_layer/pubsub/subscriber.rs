//! The task behind one subscriber link, to a server or to a shard of a cluster. It connects, subscribes the wishes, hands
//! messages to the tenants' inboxes, proves the path with canaries, and reconnects when the link is lost.
//!
//! It never waits for a tenant: a full inbox drops events, and joins wait in their own tasks.
//!
//! It replaces redis-rs' `PubSub`, whose queue has no bound, so that Redis never feels back pressure, and its
//! `ConnectionManager`, which stays dead after its last retry and ignores errors of the resubscription.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::info;

use crate::error::ErrorKind;
use crate::ids::{ReplicaId, TenantId};
use crate::metrics::GapCause;
use crate::position::Position;
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::stores::redis_stream::Stream;

use super::super::inbox::Inbox;
use super::super::link::canary::{Flight, Publishing, TICK};
use super::super::link::dial::{LinkError, dial};
use super::super::link::life::{End, LinkLife, Session};
use super::super::link::resp::Parser;
use super::super::target::Target;
use super::pulse::LinkPulse;
use super::repeats::RecentMessages;
use super::subscriptions::{ChannelRole, ChannelRoute, Heard, Subscriptions, Voice, Waiter};

/// Bytes of one read; large, so that a burst needs few system calls.
const READ_SIZE: usize = 64 * 1024;

/// An order of a layer to the task. The queue has no bound, because leaving a group cannot wait; the groups of this
/// replica bound it.
pub(super) enum SubscriberOrder {
    Attach {
        attachment: u64,
        layer: AttachedLayer,
    },
    Detach {
        attachment: u64,
    },
    Subscribe {
        attachment: u64,
        channel: Bytes,
        target: Target,
        role: ChannelRole,
        heard: Option<Heard>,
        /// Another link had the channel, and events may have been missed since.
        missed: bool,
        /// `None` where only one link may have the channel.
        voice: Option<Voice>,
        waiter: Waiter,
    },
    Unsubscribe {
        attachment: u64,
        channel: Bytes,
    },
    /// Replaces the channel of the canary, whose slot the shard no longer has.
    Canary(Bytes),
}

/// The place of a link among those to the shards of a cluster.
pub(super) struct ShardPlace {
    /// The cluster, to which the canaries are published.
    pub(super) cluster: Arc<RedisStore>,
    /// In a slot of the shard.
    pub(super) canary: Bytes,
    /// Takes the channels that the shard does not have, with the shard's `host:port`.
    pub(super) misplaced: mpsc::UnboundedSender<(Arc<str>, Bytes)>,
    pub(super) recent: Arc<RecentMessages>,
}

/// A layer, or another user of a link.
#[derive(Clone)]
pub(super) struct AttachedLayer {
    pub(super) inbox: Arc<Inbox>,
    /// The tenant whose groups it hears; `None` for channels of the replica.
    pub(super) tenant: Option<TenantId>,
    /// The ACL pattern that this layer needs, for the log.
    pub(super) pattern: String,
}

pub(super) struct Attachment {
    pub(super) layer: AttachedLayer,
    /// Redis refused it a channel, and the refusal was logged.
    pub(super) denied: bool,
}

/// The session of one link.
pub(super) struct Subscriber {
    /// The connection's name in `CLIENT LIST`.
    name: String,
    pub(super) canary_channel: Bytes,
    /// The command link; it knows the server's address.
    pub(super) store: Arc<RedisStore>,
    /// The command link that publishes the canaries.
    publisher: Arc<RedisStore>,
    /// Takes channels that another shard has; `None` on a link to a single server.
    pub(super) misplaced: Option<mpsc::UnboundedSender<(Arc<str>, Bytes)>>,
    /// The last messages, for the link that follows; `None` on a link to a single server.
    pub(super) recent: Option<Arc<RecentMessages>>,
    orders: mpsc::UnboundedReceiver<SubscriberOrder>,
    pub(super) wishes: Subscriptions,
    pub(super) attachments: HashMap<u64, Attachment>,
    /// The number of attachments to which Redis refuses channels.
    pub(super) denied: usize,
    /// Redis refused the canary's channel, and the refusal was logged.
    pub(super) canary_denied: bool,
    /// The position of the message that comes next, and the channel that announced it.
    pub(super) announced: Option<(Bytes, Position)>,
    /// Changes when the command link finds that the server is a replica. A subscriber on a replica hears its master's
    /// messages or none.
    demotions: watch::Receiver<u64>,
}

impl Subscriber {
    pub(super) fn new(
        store: &Arc<RedisStore>,
        replica: &ReplicaId,
        orders: mpsc::UnboundedReceiver<SubscriberOrder>,
    ) -> Self {
        let canary = redis_keys::canary(replica).into();
        Self::with_wishes(
            (store, store),
            replica,
            Subscriptions::default(),
            canary,
            orders,
        )
    }

    /// Makes the session of a link to a shard, whose master `store` leads to.
    pub(super) fn of_shard(
        store: &Arc<RedisStore>,
        replica: &ReplicaId,
        place: ShardPlace,
        orders: mpsc::UnboundedReceiver<SubscriberOrder>,
    ) -> Self {
        let (stores, wishes) = ((store, &place.cluster), Subscriptions::sharded());
        Self {
            misplaced: Some(place.misplaced),
            recent: Some(place.recent),
            ..Self::with_wishes(stores, replica, wishes, place.canary, orders)
        }
    }

    fn with_wishes(
        (store, publisher): (&Arc<RedisStore>, &Arc<RedisStore>),
        replica: &ReplicaId,
        mut wishes: Subscriptions,
        canary_channel: Bytes,
        orders: mpsc::UnboundedReceiver<SubscriberOrder>,
    ) -> Self {
        wishes.want_own(&canary_channel);
        Self {
            name: format!("lockgate-subscriber-{replica}"),
            canary_channel,
            store: store.clone(),
            publisher: publisher.clone(),
            misplaced: None,
            recent: None,
            orders,
            wishes,
            attachments: HashMap::new(),
            denied: 0,
            canary_denied: false,
            announced: None,
            demotions: store.demotions(),
        }
    }

    /// Serves one connection. Inputs: the socket, orders, the canary's publish, the server's role, the clock.
    async fn listen(
        &mut self,
        stream: Box<dyn Stream>,
        life: &mut LinkLife,
    ) -> Result<End, LinkError> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
        let mut parser = Parser::default();
        let (mut flushed, mut alone) = (true, false);
        let mut pulse = LinkPulse::new();
        let mut canary = Flight::new(life.endpoint());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            self.wishes.flush(&mut out);
            self.tell_restored(life);
            make_room(&mut input, &mut out);
            tokio::select! {
                read = reader.read_buf(&mut input) => {
                    if read? == 0 {
                        let text = "Redis closed the subscriber's connection";
                        return Err(LinkError::new(ErrorKind::Io, text));
                    }
                    pulse.heard = Instant::now();
                    if input.len() >= READ_SIZE {
                        canary.behind();
                    }
                    self.take(&mut parser, &mut input, &mut canary)?;
                }
                all = push(&mut writer, &mut out), if !out.is_empty() || !flushed => flushed = all?,
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return Ok(End::Stopped),
                },
                () = canary.published() => {}
                demoted = self.demotions.changed(), if !alone => match demoted {
                    Ok(()) => return Err(LinkError::demoted()),
                    // This does not happen: the sender lives as long as the store.
                    Err(_) => alone = true,
                },
                now = tick.tick() => {
                    if pulse.beat(now, &mut self.wishes, &mut out).is_break() {
                        let text = "no answer to PING in time";
                        return Err(LinkError::new(ErrorKind::Timeout, text));
                    }
                    let subscribed = self.wishes.subscribed(&self.canary_channel);
                    if canary.beat(now, subscribed, |text| self.publish(text)).is_break() {
                        return Ok(End::Deaf);
                    }
                }
            }
        }
    }

    fn publish(&self, canary: String) -> Publishing {
        let (store, channel) = (self.publisher.clone(), self.canary_channel.clone());
        Box::pin(async move { store.publish(&channel, canary.as_bytes()).await })
    }

    /// Marks a gap for every tenant after a lost link, once the new connection is subscribed. On a shard each group has its own,
    /// since the other shards lost nothing.
    fn tell_restored(&self, life: &mut LinkLife) {
        if life.is_whole() || !self.wishes.recovered() {
            return;
        }
        let loss = life.restored();
        if let Some(loss) = loss.filter(|_| self.misplaced.is_none()) {
            for attachment in self.attachments.values() {
                attachment.layer.inbox.push_gap(loss.cause);
            }
        }
        info!(
            redis.endpoint = life.endpoint(),
            count = self.wishes.len(),
            duration_ms = loss.map_or(0, |loss| loss.since.elapsed().as_millis() as u64),
            "The subscriber link to Redis is up"
        );
    }
}

impl Session for Subscriber {
    type Connection = Box<dyn Stream>;
    type Order = SubscriberOrder;

    fn connect(&self) -> BoxFuture<'static, Result<Box<dyn Stream>, LinkError>> {
        let (store, name) = (self.store.clone(), self.name.clone());
        Box::pin(async move { dial(&store, &name).await })
    }

    fn orders(&mut self) -> &mut mpsc::UnboundedReceiver<SubscriberOrder> {
        &mut self.orders
    }

    fn obey(&mut self, order: SubscriberOrder) {
        match order {
            SubscriberOrder::Attach { attachment, layer } => {
                let new = Attachment {
                    layer,
                    denied: false,
                };
                self.attachments.insert(attachment, new);
            }
            SubscriberOrder::Detach { attachment } => {
                self.wishes.detach(attachment);
                if let Some(gone) = self.attachments.remove(&attachment) {
                    self.denied -= usize::from(gone.denied);
                }
            }
            SubscriberOrder::Subscribe {
                attachment,
                channel,
                target,
                role,
                heard,
                missed,
                voice,
                waiter,
            } => {
                if let Some(known) = self.attachments.get(&attachment) {
                    let inbox = &known.layer.inbox;
                    let route = ChannelRoute {
                        attachment,
                        inbox: inbox.clone(),
                        target: target.clone(),
                        role,
                        heard,
                        voice,
                    };
                    self.wishes.want(&channel, route, waiter);
                    if missed && !self.wishes.subscribed(&channel) {
                        self.wishes.missed_before(&channel);
                    } else if missed && role != ChannelRole::Notices {
                        // The channel came back before its end was asked for, so no answer of Redis follows.
                        inbox.push_missed(target);
                    }
                }
            }
            SubscriberOrder::Unsubscribe {
                attachment,
                channel,
            } => self.wishes.unwant(&channel, attachment),
            SubscriberOrder::Canary(channel) => {
                let before = std::mem::replace(&mut self.canary_channel, channel);
                self.wishes.replace_own(&before, &self.canary_channel);
            }
        }
    }

    async fn serve(&mut self, stream: Box<dyn Stream>, life: &mut LinkLife) -> End {
        self.wishes.link_made();
        self.listen(stream, life).await.unwrap_or_else(End::Lost)
    }

    fn lost(&mut self, _: GapCause) {
        // A replica may have taken over while the command link to the master still stands.
        if self.misplaced.is_some() {
            self.publisher.doubt_cluster();
        }
        self.announced = None;
        self.wishes.link_lost();
    }
}

/// Makes room for one read, and gives back the memory that a long message or a resubscription needed.
fn make_room(input: &mut BytesMut, out: &mut BytesMut) {
    for buffer in [&mut *input, out] {
        if buffer.is_empty() && buffer.capacity() > 4 * READ_SIZE {
            *buffer = BytesMut::new();
        }
    }
    input.reserve(READ_SIZE);
}

/// Writes once; returns true when everything has left. No byte is lost if the future is dropped.
async fn push(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    out: &mut BytesMut,
) -> std::io::Result<bool> {
    if out.is_empty() {
        return writer.flush().await.map(|()| true);
    }
    match writer.write_buf(out).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        _ => Ok(false),
    }
}
