//! The pub/sub layer: `channels_redis.pubsub.RedisPubSubChannelLayer` on the wire, on one Redis host or several.
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
use crate::ids::{ChannelName, GroupName, ReplicaId};
use crate::stores::redis::RedisStore;
use crate::stores::standing::LinkWords;

use super::inbox::Inbox;
use super::link::{self, endpoint::Endpoints};
use super::shards::shard_of;
use super::target::{SocketChannel, Target};
use super::{ChannelLayer, Codec, HistoryFrom, HistoryPage, LayerError};
use crate::channel_names::{channel_patterns, group_channel};
use crate::event::Event;
use crate::position::Position;

use subscriber::{Subscriber, SubscriberOrder};
use subscriptions::Heard;

mod pulse;
mod replies;
mod sent;
mod subscriber;
mod subscriptions;

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
        inbox: Arc<Inbox>,
    ) -> PubSubLayer {
        let line = |store: &Arc<RedisStore>| {
            let pattern = channel_patterns(prefix);
            LinkShare::new(self.endpoint(store), store, inbox.clone(), pattern)
        };
        PubSubLayer {
            lines: stores.iter().map(line).collect(),
            groups: Mutex::default(),
            prefix: prefix.into(),
            channel_prefix: format!("{prefix}specific.").into(),
            codec,
        }
    }

    /// Returns a share for the replica's own channels, on the link of the layers on the server of `store`.
    pub(super) fn own_line(&self, store: &Arc<RedisStore>, inbox: Arc<Inbox>) -> LinkShare {
        LinkShare::new(self.endpoint(store), store, inbox, OWN_CHANNELS.to_owned())
    }

    fn endpoint(&self, store: &Arc<RedisStore>) -> Arc<Endpoint> {
        let serves = |other: &RedisStore| other.url().same_login(store.url());
        self.links.shared(serves, || {
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
        pattern: String,
    ) -> Self {
        let attachment = endpoint.next_user();
        endpoint.order(SubscriberOrder::Attach {
            attachment,
            inbox,
            pattern,
        });
        Self {
            endpoint,
            attachment,
            store: store.clone(),
        }
    }

    /// Asks for a channel, whose messages are for `target`; returns once Redis has confirmed.
    pub(super) async fn subscribe(&self, channel: Bytes, target: Target) -> Result<(), LayerError> {
        self.listen(channel, target, None).await
    }

    /// Asks for a channel as [`LinkShare::subscribe`] does; `heard` is true while Redis has confirmed it.
    async fn listen(
        &self,
        channel: Bytes,
        target: Target,
        heard: Option<Heard>,
    ) -> Result<(), LayerError> {
        let (waiter, confirmed) = oneshot::channel();
        self.endpoint.order(SubscriberOrder::Subscribe {
            attachment: self.attachment,
            channel,
            target,
            heard,
            waiter,
        });
        link::endpoint::confirmed(confirmed, || self.endpoint.failure()).await
    }

    fn unsubscribe(&self, channel: Bytes) {
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
    groups: Mutex<HashMap<GroupName, Heard>>,
    prefix: Box<str>,
    channel_prefix: Box<str>,
    codec: Codec,
}

impl PubSubLayer {
    /// Returns the share on the host of a Redis channel; the whole name is hashed, with its prefix.
    fn shard(&self, channel: &[u8]) -> &LinkShare {
        &self.lines[shard_of(channel, self.lines.len())]
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
        let heard = self.groups.lock().entry_ref(group).or_default().clone();
        if heard.load(Ordering::Acquire) {
            return Ok(());
        }
        let channel = group_channel(&self.prefix, group);
        let target = Target::Group(group.clone());
        self.shard(&channel)
            .listen(channel.clone(), target, Some(heard))
            .await
    }

    fn unsubscribe(&self, group: &GroupName) {
        // Before the order, and for good: a join that comes now gets a flag of its own and orders after this.
        self.groups.lock().remove(group);
        let channel = group_channel(&self.prefix, group);
        self.shard(&channel).unsubscribe(channel.clone());
    }

    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
    ) -> Result<Option<Position>, LayerError> {
        self.publish_to(&group_channel(&self.prefix, group), event)
            .await?;
        Ok(None)
    }

    async fn history(
        &self,
        _: &GroupName,
        _: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        Ok(None)
    }

    fn channel_prefix(&self) -> &str {
        &self.channel_prefix
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
