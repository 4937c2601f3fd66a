//! The core layer: `channels_redis.core.RedisChannelLayer` on the wire, on one Redis host or several.
//!
//! A replica joins each group once, under a channel name of its own for that group. A message names its channels, so the
//! name tells the group. All messages for a replica come under one key, on every host: group sends on one host, direct
//! sends of Channels on any host (channels#1492).
//!
//! `reader` waits for messages, `membership` keeps the groups, `send` writes.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use hashbrown::HashSet;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::LayerConfig;
use crate::error::ErrorKind;
use crate::event::{DecodeError, Event};
use crate::ids::{ChannelName, GroupName, ReplicaId};
use crate::position::Position;
use crate::stores::redis::RedisStore;
use crate::stores::standing::LinkWords;
use crate::tasks::{self, Task};

use super::inbox::{Inbox, Incoming, Payload};
use super::link::{self, endpoint::Endpoints};
use super::notices::NoticeLines;
use super::recorded::watch_memory;
use super::target::{Members, SocketChannel, Target};
use super::{CallId, ChannelLayer, Codec, HistoryFrom, HistoryPage, LayerError, Unread};

pub use capacity::Capacities;
pub use envelope::{Envelope, Named};

use history::GroupMover;
use mailbox::Mailbox;
use membership::MembershipKeeper;
use names::{LocalName, Names};
use reader::MailboxReader;
use roster::{GroupRoster, HostNumber, Wish};
use send::{Clock, Sender, expired};

mod capacity;
mod envelope;
mod history;
mod host_times;
mod idle;
mod mailbox;
mod membership;
mod names;
mod reader;
mod refusals;
mod roster;
mod script;
mod seen;
mod send;

/// The log lines of a lost link.
const WORDS: LinkWords = LinkWords {
    refused: "Redis refuses the reading link's user or password; correct the URL's credentials",
    lost: "No reading link to Redis; events may be missed until it is back",
};

type Endpoint = link::endpoint::Endpoint<reader::ReaderOrder>;

/// The reading links of this replica, one per server, login and database.
pub struct CoreEndpoints {
    replica: ReplicaId,
    links: Endpoints<reader::ReaderOrder>,
}

impl CoreEndpoints {
    /// Builds a registry without links.
    pub fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            links: Endpoints::default(),
        }
    }

    /// Builds a layer on the servers of `stores`, in the order of its hosts; its events go to `inbox`. Events of groups with
    /// history come by `notices`.
    ///
    /// # Errors
    /// If a key of `channel_capacity` is not a shell glob.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn attach(
        &self,
        stores: &[Arc<RedisStore>],
        config: &LayerConfig,
        notices: NoticeLines,
        inbox: Arc<Inbox>,
    ) -> Result<CoreLayer, crate::config::Faults> {
        let codec = Codec::new(config.serializer_format, &config.symmetric_encryption_keys);
        let names = Arc::new(Names::new(&config.prefix, &config.namespace, stores.len()));
        let layer = Layer {
            mover: Arc::new(GroupMover {
                stores: stores.into(),
                times: stores.iter().map(|_| Arc::default()).collect(),
                names: names.clone(),
                roster: Arc::default(),
                histories: notices.histories().cloned(),
                capacities: Arc::new(Capacities::new(config.capacity, &config.channel_capacity)?),
                envelope: Envelope::new(codec, config.random_prefix_length, config.expiry),
                expiry: config.expiry,
                inbox: inbox.clone(),
                wanted: Mutex::default(),
                quiet: Mutex::default(),
                wake: Notify::new(),
            }),
            config,
        };
        let shard = |(index, store)| {
            let names = names.clone();
            layer.shard(self.endpoint(store), store, HostNumber { index, names })
        };
        let shards = stores.iter().enumerate().map(shard).collect();
        let mover = layer.mover;
        let any = mover.any();
        let moving = any.then(|| mover.clone().run());
        let memory = any.then(|| watch_memory(stores.to_vec()));
        Ok(CoreLayer {
            shards,
            _moving: moving.map(|task| tasks::lasting("the histories of a core layer", task)),
            _memory: memory.map(|watch| tasks::lasting("the memory of histories", watch)),
            sender: Sender {
                stores: stores.into(),
                names: names.clone(),
                envelope: mover.envelope.clone(),
                capacities: mover.capacities.clone(),
                expiry: config.expiry,
                group_expiry: config.group_expiry,
                inbox: inbox.clone(),
                clock: Clock::default(),
                turn: 0.into(),
            },
            names,
            roster: mover.roster.clone(),
            mover,
            notices,
        })
    }

    fn endpoint(&self, store: &Arc<RedisStore>) -> Arc<Endpoint> {
        let url = store.url();
        let serves =
            |other: &RedisStore| other.url().same_login(url) && other.url().db() == url.db();
        self.links.shared(serves, || {
            let reader = |orders| MailboxReader::new(store, &self.replica, orders);
            Endpoint::start(store, WORDS, reader)
        })
    }
}

/// The parts that all hosts of a layer share while it is built.
struct Layer<'a> {
    mover: Arc<GroupMover>,
    config: &'a LayerConfig,
}

impl Layer<'_> {
    fn shard(&self, endpoint: Arc<Endpoint>, store: &Arc<RedisStore>, shard: HostNumber) -> Host {
        let (orders, taken) = mpsc::unbounded_channel();
        let failure = Arc::default();
        let GroupMover {
            names,
            roster,
            capacities,
            inbox,
            times,
            ..
        } = &*self.mover;
        let keeper = MembershipKeeper {
            store: store.clone(),
            names: names.clone(),
            mover: self.mover.clone(),
            roster: roster.clone(),
            inbox: inbox.clone(),
            shard: shard.clone(),
            group_expiry: self.config.group_expiry,
            orders: taken,
            failure: Arc::clone(&failure),
        };
        // The task ends after it has cleaned up, once the layer has dropped the sender of its orders.
        tasks::lasting("the memberships of a core layer", keeper.run()).detach();
        let mailbox = |key| Mailbox {
            key,
            inbox: inbox.clone(),
            capacity: capacities.of(&names.member(0)),
            expiry: self.config.expiry,
            roster: roster.clone(),
            shard: shard.clone(),
            times: times[shard.index].clone(),
            keeper: orders.downgrade(),
            pattern: names.key_pattern(),
        };
        let attach = |key| {
            let id = endpoint.next_user();
            endpoint.order(reader::ReaderOrder::Attach(id, mailbox(key)));
            id
        };
        let lane = names.lane_key(shard.index);
        let lane = lane.filter(|_| self.mover.any());
        let keys = std::iter::once(names.own_key()).chain(lane);
        Host {
            ids: keys.map(attach).collect(),
            endpoint,
            orders,
            failure,
        }
    }
}

/// One host of a layer.
struct Host {
    endpoint: Arc<Endpoint>,
    /// The numbers of its mailboxes on the reading link.
    ids: Box<[u64]>,
    /// Orders to the task that keeps the memberships.
    orders: mpsc::UnboundedSender<membership::MembershipOrder>,
    failure: Arc<Mutex<Option<ErrorKind>>>,
}

impl Host {
    fn order(&self, order: membership::MembershipOrder) {
        // Sending fails only after the layer was closed.
        drop(self.orders.send(order));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in &self.ids {
            self.endpoint.order(reader::ReaderOrder::Detach(*id));
        }
    }
}

/// The core layer of one tenant.
pub struct CoreLayer {
    /// In the order of the hosts; at least one.
    shards: Box<[Host]>,
    mover: Arc<GroupMover>,
    _moving: Option<Task>,
    _memory: Option<Task>,
    names: Arc<Names>,
    roster: Arc<GroupRoster>,
    sender: Sender,
    /// The messages between gateways about groups, by pub/sub.
    notices: NoticeLines,
}

impl CoreLayer {
    /// Returns the number of a group's host, and the layer's own name of the group.
    fn home_of(&self, group: &GroupName) -> (usize, String) {
        (self.names.host_of(group), self.names.group_key(group))
    }

    /// Returns the host of a group's members.
    fn shard(&self, group: &GroupName) -> &Host {
        &self.shards[self.names.host_of(group)]
    }

    /// Joins a group, so that Channels sends to this process.
    async fn join(&self, group: &GroupName) -> Result<(), LayerError> {
        let shard = self.shard(group);
        let confirmed = match self.roster.want(group) {
            Wish::Joined => return Ok(()),
            Wish::Joining(confirmed) => confirmed,
            Wish::Order(confirmed) => {
                shard.order(membership::MembershipOrder::Join(group.clone()));
                confirmed
            }
        };
        link::endpoint::confirmed(confirmed, || *shard.failure.lock()).await
    }

    /// Notes that an event of a group with history came: its content is in the mailbox.
    fn wake(&self, number: u64) {
        if let Some(group) = self.roster.group(number) {
            self.mover.wake(group);
        }
    }

    /// Returns the recipients in this process; `None` if there are none.
    fn target(&self, named: Named) -> Option<Target> {
        match named {
            Named::Nobody => None,
            Named::One(name) => match self.names.local(&name)? {
                LocalName::Socket(socket) => Some(Target::Socket(socket)),
                LocalName::Group(number) => self.roster.group(number).map(Target::Group),
                LocalName::RecordedGroup(number) => {
                    self.wake(number);
                    None
                }
            },
            Named::Members(names) => self.members(&names),
        }
    }

    /// Returns the named members in this process, each once, also if a message names it twice.
    fn members(&self, names: &[Box<str>]) -> Option<Target> {
        let (mut members, mut known) = (Members::default(), HashSet::new());
        let named = names.iter().filter(|name| known.insert(*name));
        for local in named.filter_map(|name| self.names.local(name)) {
            match local {
                LocalName::Socket(socket) => members.sockets.push(socket),
                LocalName::Group(number) => members.groups.extend(self.roster.group(number)),
                LocalName::RecordedGroup(number) => self.wake(number),
            }
        }
        match (members.groups.as_slice(), members.sockets.as_slice()) {
            ([], []) => None,
            ([group], []) => Some(Target::Group(group.clone())),
            _ => Some(Target::Members(Box::new(members))),
        }
    }
}

#[async_trait]
impl ChannelLayer for CoreLayer {
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError> {
        let (host, channel) = self.home_of(group);
        let notices = self.notices.subscribe(group, (host, &channel));
        let (is_new, ()) = futures_util::try_join!(notices, self.join(group))?;
        if is_new && self.mover.records(group) {
            // What was sent while no replica had a member in the group waits in its mailbox.
            self.mover.wake(group.clone());
        }
        Ok(())
    }

    fn unsubscribe(&self, group: &GroupName) {
        let (host, channel) = self.home_of(group);
        self.notices.unsubscribe(group, (host, &channel));
        let idle = self.mover.kept_idle(group).and_then(|kept| {
            let until = Instant::now() + kept;
            Some((group.clone(), self.roster.idle(group, until)?, until))
        });
        if let Some(idle) = idle {
            self.shard(group)
                .order(membership::MembershipOrder::Idle(idle));
        } else if let Some(number) = self.roster.unwant(group) {
            let order = membership::MembershipOrder::Leave(group.clone(), number);
            self.shard(group).order(order);
        }
    }

    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        call: Option<&CallId>,
    ) -> Result<Option<Position>, LayerError> {
        let Some(moved) = self.mover.of(group) else {
            self.sender.send_to_group(group, event).await?;
            return Ok(None);
        };
        let lapsed = expired(self.sender.group_expiry);
        let sent = self.mover.record(&moved, event, lapsed, call).await?;
        // Consumers of Channels, and gateways whose configuration gives the group no history.
        self.sender.send_to_members(sent.members, event).await?;
        Ok(Some(sent.position))
    }

    async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        match self.mover.of(group) {
            Some(moved) => self.mover.read(&moved, &from).await.map(Some),
            None => Ok(None),
        }
    }

    fn home(&self, group: &GroupName) -> Option<(Arc<RedisStore>, String)> {
        let (host, channel) = self.home_of(group);
        Some((self.sender.stores.get(host)?.clone(), channel))
    }

    async fn renew_history(
        &self,
        group: &GroupName,
        lost: &Position,
    ) -> Result<Option<Position>, LayerError> {
        match self.mover.of(group) {
            Some(moved) => self.mover.renew(&moved, lost).await.map(Some),
            None => Ok(None),
        }
    }

    fn namespace(&self) -> &str {
        self.names.namespace()
    }

    fn channel_prefix(&self) -> &str {
        self.names.own()
    }

    /// There is nothing to ask for: messages to any name of this process come under its one key.
    async fn open_channel(&self, _: SocketChannel) -> Result<(), LayerError> {
        Ok(())
    }

    fn close_channel(&self, _: SocketChannel) {}

    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        self.sender.send(channel, event).await
    }

    async fn unread(&self, channels: &[ChannelName]) -> Result<Option<Unread>, LayerError> {
        self.sender.unread(channels).await.map(Some)
    }

    async fn close(&self) {
        let closed = self.shards.iter().filter_map(|shard| {
            let (waiter, closed) = oneshot::channel();
            let order = membership::MembershipOrder::Close(waiter);
            shard.orders.send(order).ok().map(|()| closed)
        });
        join_all(closed).await;
    }

    async fn ready(&self) -> bool {
        for shard in &self.shards {
            if !shard.endpoint.ready().await {
                return false;
            }
        }
        self.notices.ready().await
    }

    fn open(&self, incoming: Incoming) -> Result<Option<(Target, Arc<Event>)>, DecodeError> {
        // Messages of Channels name their members inside; those of a group are events of its history.
        if let Target::Group(group) = &incoming.target {
            let event = match &incoming.payload {
                Payload::Encoded(body) => Arc::new(self.sender.envelope.open_recorded(body)?),
                Payload::Decoded(event) => event.clone(),
            };
            return Ok(Some((Target::Group(group.clone()), event)));
        }
        let (named, event) = match &incoming.payload {
            Payload::Encoded(message) => self.sender.envelope.open(message)?,
            Payload::Decoded(event) => (Named::Nobody, (**event).clone()),
        };
        Ok(self.target(named).map(|target| (target, Arc::new(event))))
    }

    fn codec(&self) -> &Codec {
        self.sender.envelope.codec()
    }
}
