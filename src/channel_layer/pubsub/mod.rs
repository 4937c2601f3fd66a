//! The pub/sub layer: `channels_redis.pubsub.RedisPubSubChannelLayer` on the wire, on one Redis host or several; and the layer
//! `sharded`, which is the same with the sharded channels of a Redis Cluster.
//!
//! It sends one SUBSCRIBE per group and replica and one PUBLISH per event, each to the host that the name belongs to. All
//! tenants that log in to one server as one user share one subscriber link; its reader tells them apart by channel name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::StoreError;
use crate::ids::{ChannelName, GroupName, ReplicaId, TenantId};
use crate::stores::redis::RedisStore;
use crate::stores::standing::LinkWords;

use super::inbox::Inbox;
use super::link::{self, endpoint::Endpoints};
use super::recorded::{GroupHistories, RecordedGroup, RulesAtHost, keep_rules, watch_memory};
use super::shards::shard_of;
use super::target::{SocketChannel, Target};
use super::{CallId, ChannelLayer, Codec, HistoryFrom, HistoryPage, LayerError};
use crate::channel_names::{channel_from_beginning, channel_patterns, group_channel_beginning};
use crate::event::Event;
use crate::position::Position;
use crate::tasks::{self, Task};

use subscriber::{AttachedLayer, Subscriber, SubscriberOrder};
use subscriptions::ChannelRole;
pub(super) use subscriptions::Heard;
use switchboard::Switchboard;

mod batch;
mod pulse;
mod repeats;
mod replies;
mod sent;
mod subscriber;
mod subscriptions;
mod switchboard;

/// The log lines of a lost link.
const WORDS: LinkWords = LinkWords {
    refused: "Redis refuses the subscriber's user or password; correct the URL's credentials",
    lost: "No subscriber link to Redis; events may be missed until it is back",
};

type Endpoint = link::endpoint::Endpoint<SubscriberOrder>;

/// The pattern of Lockgate's own channels, in the form of an ACL rule.
const OWN_CHANNELS: &str = "lockgate:*";

/// The subscriber links of this replica, one per server and login.
pub struct PubSubEndpoints {
    replica: ReplicaId,
    links: Endpoints<SubscriberOrder>,
}

impl PubSubEndpoints {
    /// Builds a registry without links.
    pub fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            links: Endpoints::default(),
        }
    }

    /// Builds a layer on the servers of `stores`, in the order of its hosts; its events go to `inbox`. Layers with the same
    /// login share a link: the first one starts it, the last one ends it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn attach(
        &self,
        stores: &[Arc<RedisStore>],
        prefix: &str,
        codec: Codec,
        histories: GroupHistories,
        inbox: Arc<Inbox>,
    ) -> PubSubLayer {
        let tenant = Some(histories.tenant());
        let line = |store: &Arc<RedisStore>| {
            let pattern = channel_patterns(prefix, histories.namespace());
            LinkShare::new(self.endpoint(store), store, inbox.clone(), tenant, pattern)
        };
        let hosts = stores.iter();
        let hosts = hosts.map(|store| RulesAtHost::new(store, &histories));
        let rules = keep_rules(hosts.collect());
        let memory = { histories.any() }.then(|| watch_memory(stores.to_vec()));
        PubSubLayer {
            lines: stores.iter().map(line).collect(),
            groups: Mutex::default(),
            group_beginning: group_channel_beginning(prefix, histories.namespace()).into(),
            channel_prefix: format!("{prefix}specific.").into(),
            codec,
            histories,
            _rules: tasks::lasting("the rules for back ends", rules),
            _memory: memory.map(|watch| tasks::lasting("the memory of histories", watch)),
        }
    }

    /// Returns shares for the channels that gateways alone hear, on the servers of `stores`.
    pub(super) fn notice_lines(
        &self,
        stores: &[Arc<RedisStore>],
        tenant: &TenantId,
        inbox: &Arc<Inbox>,
    ) -> Box<[LinkShare]> {
        let line = |store: &Arc<RedisStore>| {
            let pattern = OWN_CHANNELS.to_owned();
            let tenant = Some(tenant);
            LinkShare::new(self.endpoint(store), store, inbox.clone(), tenant, pattern)
        };
        stores.iter().map(line).collect()
    }

    /// Returns a share for the replica's own channels, on the link of the layers on the server of `store`.
    pub(super) fn own_line(&self, store: &Arc<RedisStore>, inbox: Arc<Inbox>) -> LinkShare {
        let pattern = OWN_CHANNELS.to_owned();
        LinkShare::new(self.endpoint(store), store, inbox, None, pattern)
    }

    fn endpoint(&self, store: &Arc<RedisStore>) -> Arc<Endpoint> {
        let serves = |other: &RedisStore| other.url().same_login(store.url());
        self.links.shared(serves, || {
            if store.is_cluster() {
                return Endpoint::run(store, |orders, statuses| {
                    Switchboard::new(store, &self.replica, orders, statuses).run()
                });
            }
            let subscriber = |orders| Subscriber::new(store, &self.replica, orders);
            Endpoint::start(store, WORDS, subscriber)
        })
    }
}

/// One user of a link. Messages of the channels that it subscribes go to its inbox alone.
pub(super) struct LinkShare {
    endpoint: Arc<Endpoint>,
    attachment: u64,
    store: Arc<RedisStore>,
}

impl LinkShare {
    fn new(
        endpoint: Arc<Endpoint>,
        store: &Arc<RedisStore>,
        inbox: Arc<Inbox>,
        tenant: Option<&TenantId>,
        pattern: String,
    ) -> Self {
        let attachment = endpoint.next_user();
        let tenant = tenant.cloned();
        let layer = AttachedLayer {
            inbox,
            tenant,
            pattern,
        };
        endpoint.order(SubscriberOrder::Attach { attachment, layer });
        Self {
            endpoint,
            attachment,
            store: store.clone(),
        }
    }

    /// Asks for a channel, whose messages are for `target`; returns once Redis has confirmed.
    pub(super) async fn subscribe(&self, channel: Bytes, target: Target) -> Result<(), LayerError> {
        let role = ChannelRole::Events;
        self.listen(channel, target, role, None).await
    }

    /// Asks for a channel as [`LinkShare::subscribe`] does; `heard` is true while Redis has confirmed it.
    async fn listen(
        &self,
        channel: Bytes,
        target: Target,
        role: ChannelRole,
        heard: Option<Heard>,
    ) -> Result<(), LayerError> {
        let (waiter, confirmed) = oneshot::channel();
        self.endpoint.order(SubscriberOrder::Subscribe {
            attachment: self.attachment,
            channel,
            target,
            role,
            heard,
            missed: false,
            voice: None,
            waiter,
        });
        link::endpoint::confirmed(confirmed, || self.endpoint.failure()).await
    }

    /// Asks for the channel of a group that gateways alone hear; `heard` is true while Redis has confirmed it.
    pub(super) async fn listen_to_notices(
        &self,
        channel: Bytes,
        group: &GroupName,
        heard: Heard,
    ) -> Result<(), LayerError> {
        let target = Target::Group(group.clone());
        self.listen(channel, target, ChannelRole::Notices, Some(heard))
            .await
    }

    /// Returns true if every wish was answered and the server takes commands.
    pub(super) async fn ready(&self) -> bool {
        self.endpoint.ready().await
    }

    pub(super) fn unsubscribe(&self, channel: Bytes) {
        self.endpoint.order(SubscriberOrder::Unsubscribe {
            attachment: self.attachment,
            channel,
        });
    }

    pub(super) async fn publish(&self, channel: &[u8], payload: &[u8]) -> Result<u64, StoreError> {
        self.store.publish(channel, payload).await
    }

    /// Returns true if both use one link.
    pub(super) fn is_same_link(&self, other: &LinkShare) -> bool {
        Arc::ptr_eq(&self.endpoint, &other.endpoint)
    }
}

impl Drop for LinkShare {
    fn drop(&mut self) {
        self.endpoint.order(SubscriberOrder::Detach {
            attachment: self.attachment,
        });
    }
}

/// The pub/sub layer of one tenant.
pub struct PubSubLayer {
    /// In the order of the hosts; at least one.
    lines: Box<[LinkShare]>,
    /// The groups that are wished for.
    groups: Mutex<HashMap<GroupName, HeardGroup>>,
    /// The channel of a group is this and its name.
    group_beginning: Box<str>,
    channel_prefix: Box<str>,
    codec: Codec,
    histories: GroupHistories,
    _rules: Task,
    _memory: Option<Task>,
}

/// The confirmed channels of a group.
#[derive(Clone, Debug)]
struct HeardGroup {
    events: Heard,
    /// The channel that gateways alone hear; `None` if they tell each other nothing of the group.
    notices: Option<Heard>,
}

impl HeardGroup {
    fn new(has_notices: bool) -> Self {
        Self {
            events: Heard::default(),
            notices: has_notices.then(Heard::default),
        }
    }

    /// Returns true if Redis has confirmed all of them.
    fn is_whole(&self) -> bool {
        let mut channels = std::iter::once(&self.events).chain(&self.notices);
        channels.all(|heard| heard.load(Ordering::Acquire))
    }
}

impl PubSubLayer {
    /// Returns the share on the host of a Redis channel; the whole name is hashed, with its prefix.
    fn shard(&self, channel: &[u8]) -> &LinkShare {
        &self.lines[shard_of(channel, self.lines.len())]
    }

    fn group_channel(&self, group: &GroupName) -> Bytes {
        channel_from_beginning(&self.group_beginning, group)
    }

    /// Returns a group's channel, and the rest of it if it has a history.
    fn names(&self, group: &GroupName) -> (Bytes, Option<RecordedGroup>) {
        let channel = self.group_channel(group);
        // A group's name is text, and so is its channel's.
        let recorded = str::from_utf8(&channel).ok();
        let recorded = recorded.and_then(|channel| self.histories.of(group, channel));
        (channel, recorded)
    }

    /// Returns a group's channel, and the one that gateways alone hear, if they tell each other of it.
    fn channels(&self, group: &GroupName) -> (Bytes, Option<Bytes>) {
        let channel = self.group_channel(group);
        let notices = str::from_utf8(&channel).ok();
        let notices = notices.and_then(|channel| self.histories.notices(group, channel));
        (channel, notices.map(Bytes::from))
    }

    fn socket_channel(&self, socket: SocketChannel) -> Bytes {
        Bytes::from(socket.name(&self.channel_prefix))
    }

    /// Publishes an event; returns the number of connections that heard it.
    async fn publish_to(&self, channel: &[u8], event: &Event) -> Result<u64, LayerError> {
        let payload = self.codec.encode(event)?;
        Ok(self.shard(channel).store.publish(channel, &payload).await?)
    }
}

#[async_trait]
impl ChannelLayer for PubSubLayer {
    /// A group that is subscribed needs no word with the link's task, so most joins wait for no other task.
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError> {
        let heard = {
            let mut groups = self.groups.lock();
            let new = || HeardGroup::new(self.histories.rules().has_notices(group));
            groups.entry_ref(group).or_insert_with(new).clone()
        };
        if heard.is_whole() {
            return Ok(());
        }
        let (channel, notices) = self.channels(group);
        let line = self.shard(&channel);
        let target = || Target::Group(group.clone());
        let role = match self.histories.records(group) {
            true => ChannelRole::Recorded,
            false => ChannelRole::Events,
        };
        let (Some(notices), Some(notices_heard)) = (notices, heard.notices) else {
            let events = Some(heard.events);
            return line.listen(channel.clone(), target(), role, events).await;
        };
        // Both orders are given at once, that of the notices first.
        let notices = line.listen_to_notices(notices, group, notices_heard);
        let events = line.listen(channel.clone(), target(), role, Some(heard.events));
        futures_util::try_join!(notices, events)?;
        Ok(())
    }

    fn unsubscribe(&self, group: &GroupName) {
        // Before the order, and for good: a join that comes now gets flags of its own and orders after this.
        self.groups.lock().remove(group);
        let (channel, notices) = self.channels(group);
        let line = self.shard(&channel);
        line.unsubscribe(channel.clone());
        if let Some(notices) = notices {
            line.unsubscribe(notices);
        }
    }

    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        call: Option<&CallId>,
    ) -> Result<Option<Position>, LayerError> {
        let (channel, recorded) = self.names(group);
        let Some(recorded) = recorded else {
            self.publish_to(&channel, event).await?;
            return Ok(None);
        };
        let (payload, store) = (self.codec.encode(event)?, &self.shard(&channel).store);
        let position = recorded.record(store, &channel, &payload, call).await?;
        Ok(Some(position))
    }

    async fn publish_each(
        &self,
        events: &[(GroupName, Event)],
    ) -> Vec<Result<Option<Position>, LayerError>> {
        batch::publish(self, events).await
    }

    async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        let (channel, Some(recorded)) = self.names(group) else {
            return Ok(None);
        };
        let page = recorded.read(&self.shard(&channel).store, &from).await?;
        Ok(Some(page))
    }

    async fn renew_history(
        &self,
        group: &GroupName,
        lost: &Position,
    ) -> Result<Option<Position>, LayerError> {
        let (channel, Some(recorded)) = self.names(group) else {
            return Ok(None);
        };
        let position = recorded.renew(&self.shard(&channel).store, lost).await?;
        Ok(Some(position))
    }

    fn home(&self, group: &GroupName) -> Option<(Arc<RedisStore>, String)> {
        let channel = self.group_channel(group);
        let store = self.shard(&channel).store.clone();
        Some((store, String::from_utf8(channel.into()).ok()?))
    }

    fn channel_prefix(&self) -> &str {
        &self.channel_prefix
    }

    fn namespace(&self) -> &str {
        self.histories.namespace()
    }

    /// Each channel costs a SUBSCRIBE, so a socket gets one only where a sender may use it.
    fn hears_every_socket(&self) -> bool {
        false
    }

    async fn open_channel(&self, socket: SocketChannel) -> Result<(), LayerError> {
        let channel = self.socket_channel(socket);
        let target = Target::Socket(socket);
        self.shard(&channel)
            .subscribe(channel.clone(), target)
            .await
    }

    fn close_channel(&self, socket: SocketChannel) {
        let channel = self.socket_channel(socket);
        self.shard(&channel).unsubscribe(channel.clone());
    }

    /// The channel on Redis has the name itself, without the layer's prefix, as in Channels.
    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        match self.publish_to(channel.as_str().as_bytes(), event).await? {
            0 => Err(LayerError::NoReceiver),
            _ => Ok(()),
        }
    }

    async fn ready(&self) -> bool {
        for line in &self.lines {
            if !line.endpoint.ready().await {
                return false;
            }
        }
        true
    }

    fn codec(&self) -> &Codec {
        &self.codec
    }
}
