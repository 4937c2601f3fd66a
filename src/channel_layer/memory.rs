//! A layer inside one process: for `lockgate dev`, for tests, and where no Redis is configured.
//!
//! The replicas of one process share it as they would share a Redis, through a [`MemoryBus`].

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::config::SerializerFormat;
use crate::ids::{ChannelName, GroupName};

use super::history::{HistoryFrom, HistoryPage};
use super::inbox::{Inbox, Incoming, Payload};
use super::target::{SocketChannel, Target};
use super::{CallId, ChannelLayer, Codec, LayerError};
use crate::event::{Event, MAX_VALUES};
use crate::group_rules::GroupRules;
use crate::position::Position;

pub(super) use bus::BusLine;
use bus::LayerMember;
pub use bus::{MemoryBus, SharedLayer};
use history::Histories;

mod bus;
mod history;

/// The memory layer of one tenant on one replica.
pub struct MemoryLayer {
    shared: Arc<SharedLayer>,
    member: Arc<LayerMember>,
    rules: Arc<GroupRules>,
    channel_prefix: Box<str>,
    codec: Codec,
}

impl MemoryLayer {
    /// Builds a layer that delivers into `inbox` what any layer on `shared` sends. Socket channels have the names of a
    /// pub/sub layer with `prefix`.
    pub fn new(
        shared: Arc<SharedLayer>,
        prefix: &str,
        rules: Arc<GroupRules>,
        inbox: Arc<Inbox>,
    ) -> Self {
        let member = Arc::new(LayerMember {
            groups: Mutex::default(),
            channels: Mutex::default(),
            inbox,
        });
        let mut state = shared.0.lock();
        state.members.retain(|member| member.strong_count() > 0);
        state.members.push(Arc::downgrade(&member));
        drop(state);
        Self {
            shared,
            member,
            rules,
            channel_prefix: format!("{prefix}specific.").into(),
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
}

impl LayerMember {
    fn push(&self, target: Target, event: Arc<Event>, recorded: Option<Position>) {
        let size = event.memory();
        let incoming = Incoming {
            target,
            payload: Payload::Decoded(event),
            recorded,
            unrecorded: false,
            read_at: Instant::now(),
        };
        self.inbox.push(incoming, size);
    }
}

#[async_trait]
impl ChannelLayer for MemoryLayer {
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError> {
        self.member.groups.lock().insert(group.clone());
        Ok(())
    }

    fn unsubscribe(&self, group: &GroupName) {
        self.member.groups.lock().remove(group);
    }

    /// Remembers no calls: no link lies between, on which an answer could be lost.
    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        _: Option<&CallId>,
    ) -> Result<Option<Position>, LayerError> {
        let (event, kept) = (self.carried(event)?, self.rules.history(group));
        let mut state = self.shared.0.lock();
        let histories = &mut state.histories;
        let recorded =
            kept.map(|kept| histories.record(group, event.clone(), kept, Instant::now()));
        state.for_each(|member| {
            if let Some(group) = member.groups.lock().get(group) {
                let target = Target::Group(group.clone());
                member.push(target, event.clone(), recorded.clone());
            }
        });
        Ok(recorded)
    }

    async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        let read = |kept| {
            let histories = &mut self.shared.0.lock().histories;
            histories.read(group, &from, kept, Instant::now())
        };
        Ok(self.rules.history(group).map(read))
    }

    async fn renew_history(
        &self,
        group: &GroupName,
        lost: &Position,
    ) -> Result<Option<Position>, LayerError> {
        let renew = |kept| {
            let histories = &mut self.shared.0.lock().histories;
            histories.renew(group, lost, kept, Instant::now())
        };
        Ok(self.rules.history(group).map(renew))
    }

    fn channel_prefix(&self) -> &str {
        &self.channel_prefix
    }

    async fn open_channel(&self, socket: SocketChannel) -> Result<(), LayerError> {
        self.member.channels.lock().insert(socket);
        Ok(())
    }

    fn close_channel(&self, socket: SocketChannel) {
        self.member.channels.lock().remove(&socket);
    }

    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        let digits = channel.as_str().strip_prefix(&*self.channel_prefix);
        let socket = digits.and_then(SocketChannel::of_digits);
        let socket = socket.ok_or(LayerError::NoReceiver)?;
        let (event, mut heard) = (self.carried(event)?, false);
        self.shared.0.lock().for_each(|member| {
            if member.channels.lock().contains(&socket) {
                member.push(Target::Socket(socket), event.clone(), None);
                heard = true;
            }
        });
        if heard {
            Ok(())
        } else {
            Err(LayerError::NoReceiver)
        }
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
        let inbox = Inbox::new(0, Arc::new(TenantMetrics::new(&tenant)));
        let layer = MemoryLayer::new(Arc::default(), "asgi", Arc::default(), inbox.clone());
        let event = |n: i64| Event {
            fields: vec![("n".into(), n.into())],
        };
        let group = GroupName::from("a");
        layer.publish(&group, &event(0), None).await.unwrap();
        layer.subscribe(&group).await.unwrap();
        for n in 1..=3 {
            layer.publish(&group, &event(n), None).await.unwrap();
            layer.publish(&"b".into(), &event(n), None).await.unwrap();
        }
        layer.unsubscribe(&group);
        layer.publish(&group, &event(4), None).await.unwrap();
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
