//! A layer inside one process: for `lockgate dev`, for tests, and where no Redis is configured.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use hashbrown::HashSet;
use parking_lot::Mutex;

use crate::config::SerializerFormat;
use crate::ids::{ChannelName, GroupName};

use super::history::{HistoryFrom, HistoryPage};
use super::inbox::{Inbox, Incoming, Payload};
use super::target::{SocketChannel, Target};
use super::{ChannelLayer, Codec, LayerError};
use crate::event::{Event, MAX_VALUES};
use crate::group_rules::GroupRules;
use crate::position::{Epoch, Position};

use history::Histories;

mod history;

/// The memory layer of one tenant.
pub struct MemoryLayer {
    /// This lock, or that of `channels`, is held while an event is queued; that gives the layer its order.
    groups: Mutex<HashSet<GroupName>>,
    channels: Mutex<HashSet<SocketChannel>>,
    /// Locked while `groups` is, so that events are queued in the order of their offsets.
    histories: Mutex<Histories>,
    rules: Arc<GroupRules>,
    channel_prefix: Box<str>,
    inbox: Arc<Inbox>,
    codec: Codec,
}

impl MemoryLayer {
    /// Builds a layer that delivers into `inbox`. Socket channels have the names of a pub/sub layer with `prefix`.
    pub fn new(prefix: &str, rules: Arc<GroupRules>, inbox: Arc<Inbox>) -> Self {
        Self {
            groups: Mutex::default(),
            channels: Mutex::default(),
            histories: Mutex::default(),
            rules,
            channel_prefix: format!("{prefix}specific.").into(),
            inbox,
            codec: Codec::new(SerializerFormat::MsgPack, &[]),
        }
    }

    /// Returns the event if other layers could carry one as large.
    fn carried(&self, event: &Event) -> Result<Arc<Event>, LayerError> {
        // A value takes a byte of memory at least, so that short events need no look.
        if event.memory() > MAX_VALUES
            && let Err(error) = self.codec.encode(event)
            && error.is_size()
        {
            return Err(error.into());
        }
        Ok(Arc::new(event.clone()))
    }

    fn push(&self, target: Target, event: Arc<Event>, recorded: Option<Position>) {
        let size = event.memory();
        let incoming = Incoming {
            target,
            payload: Payload::Decoded(event),
            recorded,
            read_at: Instant::now(),
        };
        self.inbox.push(incoming, size);
    }
}

#[async_trait]
impl ChannelLayer for MemoryLayer {
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError> {
        self.groups.lock().insert(group.clone());
        Ok(())
    }

    fn unsubscribe(&self, group: &GroupName) {
        self.groups.lock().remove(group);
    }

    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
    ) -> Result<Option<Position>, LayerError> {
        let (event, kept) = (self.carried(event)?, self.rules.history(group));
        let groups = self.groups.lock();
        let record = |kept| {
            let mut histories = self.histories.lock();
            histories.record(group, event.clone(), kept, Instant::now())
        };
        let recorded = kept.map(record);
        if let Some(group) = groups.get(group) {
            self.push(Target::Group(group.clone()), event, recorded.clone());
        }
        Ok(recorded)
    }

    async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        let read = |kept| {
            let mut histories = self.histories.lock();
            histories.read(group, &from, kept, Instant::now())
        };
        Ok(self.rules.history(group).map(read))
    }

    async fn renew_history(
        &self,
        group: &GroupName,
        lost: &Epoch,
    ) -> Result<Option<Position>, LayerError> {
        let renew = |kept| {
            let mut histories = self.histories.lock();
            histories.renew(group, lost, kept, Instant::now())
        };
        Ok(self.rules.history(group).map(renew))
    }

    fn channel_prefix(&self) -> &str {
        &self.channel_prefix
    }

    async fn open_channel(&self, socket: SocketChannel) -> Result<(), LayerError> {
        self.channels.lock().insert(socket);
        Ok(())
    }

    fn close_channel(&self, socket: SocketChannel) {
        self.channels.lock().remove(&socket);
    }

    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        let digits = channel.as_str().strip_prefix(&*self.channel_prefix);
        let channels = self.channels.lock();
        let socket = digits.and_then(SocketChannel::of_digits);
        let socket = socket.filter(|socket| channels.contains(socket));
        let socket = socket.ok_or(LayerError::NoReceiver)?;
        self.push(Target::Socket(socket), self.carried(event)?, None);
        Ok(())
    }

    async fn ready(&self) -> bool {
        true
    }

    fn codec(&self) -> &Codec {
        &self.codec
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_layer::Signal;
    use crate::metrics::TenantMetrics;

    #[tokio::test]
    async fn only_subscribed_groups_are_heard_and_in_order() {
        let tenant = "acme".parse().unwrap();
        let inbox = Inbox::new(0, Arc::new(TenantMetrics::new(&tenant, true)));
        let layer = MemoryLayer::new("asgi", Arc::default(), inbox.clone());
        let event = |n: i64| Event {
            fields: vec![("n".into(), n.into())],
        };
        let group = GroupName::from("a");
        layer.publish(&group, &event(0)).await.unwrap();
        layer.subscribe(&group).await.unwrap();
        for n in 1..=3 {
            layer.publish(&group, &event(n)).await.unwrap();
            layer.publish(&"b".into(), &event(n)).await.unwrap();
        }
        layer.unsubscribe(&group);
        layer.publish(&group, &event(4)).await.unwrap();
        for n in 1..=3 {
            let Some(Signal::Event(incoming)) = inbox.try_next() else {
                panic!("event {n} is missing");
            };
            assert_eq!(
                incoming.payload.decode(layer.codec()).as_deref(),
                Ok(&event(n))
            );
        }
        assert!(inbox.try_next().is_none());
    }
}
