//! A layer inside one process, with nothing outside: for `lockgate dev`, for tests, and where no Redis is configured.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use hashbrown::HashSet;
use parking_lot::Mutex;

use crate::config::SerializerFormat;
use crate::ids::GroupName;

use super::inbox::{Inbox, Incoming, Payload};
use super::{ChannelLayer, Codec, LayerError};
use crate::event::Event;

/// The memory layer of one tenant.
pub struct MemoryLayer {
    /// Held while an event is queued: that is the order of the layer.
    groups: Mutex<HashSet<GroupName>>,
    inbox: Arc<Inbox>,
    codec: Codec,
}

impl MemoryLayer {
    /// A layer that delivers into `inbox`.
    pub fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            groups: Mutex::default(),
            inbox,
            codec: Codec::new(SerializerFormat::MsgPack, &[]),
        }
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

    async fn publish(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        let groups = self.groups.lock();
        if let Some(group) = groups.get(group) {
            let incoming = Incoming {
                group: group.clone(),
                payload: Payload::Decoded(Arc::new(event.clone())),
                read_at: Instant::now(),
            };
            self.inbox.push(incoming, event.memory());
        }
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
        let layer = MemoryLayer::new(inbox.clone());
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
