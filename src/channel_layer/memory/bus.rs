//! The memory that stands in for a Redis between the replicas of one process: channels of bytes, and shared layers.
//!
//! A gateway without a Redis has one of its own. `lockgate dev --replicas 2` gives its replicas the same one.

use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::Histories;
use crate::channel_layer::inbox::{Inbox, Incoming, Payload};
use crate::channel_layer::target::{SocketChannel, Target};
use crate::ids::{GroupName, TenantId};

/// Channels by name, and the layers of tenants.
#[derive(Default)]
pub struct MemoryBus {
    /// The queues that hear each channel of bytes.
    channels: Mutex<HashMap<String, Vec<Arc<Inbox>>>>,
    layers: Mutex<HashMap<TenantId, Weak<SharedLayer>>>,
}

/// The place of one listener on a channel of bytes; dropping it gives the place up.
pub(in crate::channel_layer) struct BusLine {
    bus: Arc<MemoryBus>,
    channel: String,
    inbox: Arc<Inbox>,
}

impl BusLine {
    /// Queues the messages of `channel` in `inbox` from now on.
    pub(in crate::channel_layer) fn new(
        bus: &Arc<MemoryBus>,
        channel: &str,
        inbox: &Arc<Inbox>,
    ) -> Self {
        let mut channels = bus.channels.lock();
        let listeners = channels.entry_ref(channel).or_default();
        listeners.push(inbox.clone());
        drop(channels);
        Self {
            bus: bus.clone(),
            channel: channel.to_owned(),
            inbox: inbox.clone(),
        }
    }

    /// Sends a message to all who hear `channel`; returns their number.
    pub(in crate::channel_layer) fn publish(&self, channel: &str, payload: Vec<u8>) -> u64 {
        let payload = Bytes::from(payload);
        let channels = self.bus.channels.lock();
        let mut heard = 0;
        for listener in channels.get(channel).into_iter().flatten() {
            let incoming = Incoming {
                target: Target::Group(GroupName::from(channel)),
                payload: Payload::Encoded(payload.clone()),
                recorded: None,
                unrecorded: false,
                read_at: Instant::now(),
            };
            listener.push(incoming, payload.len());
            heard += 1;
        }
        heard
    }

    /// Returns true if both are on one bus.
    pub(in crate::channel_layer) fn shares_bus_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bus, &other.bus)
    }
}

impl Drop for BusLine {
    fn drop(&mut self) {
        let mut channels = self.bus.channels.lock();
        if let Some(listeners) = channels.get_mut(&self.channel) {
            listeners.retain(|listener| !Arc::ptr_eq(listener, &self.inbox));
            if listeners.is_empty() {
                channels.remove(&self.channel);
            }
        }
    }
}

impl MemoryBus {
    /// Returns what the layers of a tenant share. It ends with the last of them.
    pub fn layer(&self, tenant: &TenantId) -> Arc<SharedLayer> {
        let mut layers = self.layers.lock();
        let known = layers.get(tenant).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            layers.retain(|_, layer| layer.strong_count() > 0);
            let layer = Arc::new(SharedLayer::default());
            layers.insert(tenant.clone(), Arc::downgrade(&layer));
            layer
        })
    }
}

/// The part that the memory layers of one tenant share, one layer on each replica.
#[derive(Default)]
pub struct SharedLayer(pub(super) Mutex<LayerState>);

/// Locked while an event is queued; that gives the layer its order, and events of a history the order of their offsets.
#[derive(Default)]
pub(super) struct LayerState {
    pub(super) members: Vec<Weak<LayerMember>>,
    pub(super) histories: Histories,
}

/// The wishes of one replica.
pub(super) struct LayerMember {
    pub(super) groups: Mutex<HashSet<GroupName>>,
    pub(super) channels: Mutex<HashSet<SocketChannel>>,
    pub(super) inbox: Arc<Inbox>,
}

impl LayerState {
    /// Calls `deliver` for each layer that is still there.
    pub(super) fn for_each(&self, mut deliver: impl FnMut(&LayerMember)) {
        for member in self.members.iter().filter_map(Weak::upgrade) {
            deliver(&member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_layer::Signal;
    use crate::channel_layer::memory::MemoryLayer;
    use crate::channel_layer::{ChannelLayer, Control, Heard};
    use crate::event::Event;

    fn layer(bus: &MemoryBus, tenant: &str) -> (MemoryLayer, Arc<Inbox>) {
        let inbox = Inbox::uncounted(0);
        let shared = bus.layer(&tenant.parse().unwrap());
        let layer = MemoryLayer::new(shared, "asgi", Arc::default(), inbox.clone());
        (layer, inbox)
    }

    fn heard(inbox: &Inbox) -> Option<Target> {
        match inbox.try_next()? {
            Signal::Event(incoming) => Some(incoming.target),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn layers_of_one_tenant_hear_each_other_and_no_other_tenant() {
        let bus = MemoryBus::default();
        let ((one, at_one), (two, at_two)) = (layer(&bus, "acme"), layer(&bus, "acme"));
        let (other, at_other) = layer(&bus, "globex");
        let (group, event) = (GroupName::from("a"), Event::default());
        two.subscribe(&group).await.unwrap();
        other.subscribe(&group).await.unwrap();
        one.publish(&group, &event, None).await.unwrap();
        assert_eq!(heard(&at_two), Some(Target::Group(group)));
        let socket = SocketChannel([7; 16]);
        let name = socket.name(two.channel_prefix()).as_str().into();
        assert!(one.send(&name, &event).await.is_err());
        two.open_channel(socket).await.unwrap();
        one.send(&name, &event).await.unwrap();
        assert_eq!(heard(&at_two), Some(Target::Socket(socket)));
        for inbox in [at_one, at_two, at_other] {
            assert_eq!(heard(&inbox), None);
        }
        drop(two);
        assert!(one.send(&name, &event).await.is_err());
    }

    #[tokio::test]
    async fn a_message_counts_those_who_hear_it_and_none_that_has_gone() {
        let bus = Arc::default();
        let (one, two) = (
            Control::in_memory(&bus, "control"),
            Control::in_memory(&bus, "control"),
        );
        assert_eq!(one.publish(b"hello".to_vec()).await.unwrap(), 2);
        for control in [&one, &two] {
            let Heard::Message(bytes) = control.next().await else {
                panic!("a gap");
            };
            assert_eq!(bytes, "hello");
        }
        drop(two);
        assert_eq!(one.publish(Vec::new()).await.unwrap(), 1);
        drop(one);
        assert!(bus.channels.lock().is_empty());
    }
}
