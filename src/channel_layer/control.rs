//! A channel that all replicas hear, beside the groups of a layer. It carries bytes and survives lost links.
//!
//! The meaning of the bytes belongs to [`crate::fleet`].

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::error::StoreError;
use crate::ids::GroupName;
use crate::stores::redis::RedisStore;

use super::LayerError;
use super::inbox::{Inbox, Incoming, Payload, Signal};
use super::pubsub::{LinkShare, PubSubEndpoints};
use super::target::Target;

/// Bytes of control messages that may wait. Beyond this a gap is marked, after which the replica checks all its sockets
/// again.
const WAITING: u64 = 8 * 1024 * 1024;

/// An item that came in on a control channel.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Bytes),
    /// Messages may have been missed.
    Gap,
}

/// A channel of control messages. [`Control::open`] subscribes it; the subscription survives lost links.
pub struct Control {
    channel: Box<str>,
    inbox: Arc<Inbox>,
    line: Option<LinkShare>,
}

impl Control {
    /// Returns the channel `name` on the server of `store`; it shares the link of the layers there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on(endpoints: &PubSubEndpoints, store: &Arc<RedisStore>, name: &str) -> Self {
        let inbox = Inbox::uncounted(WAITING);
        Self {
            channel: name.into(),
            line: Some(endpoints.own_line(store, inbox.clone())),
            inbox,
        }
    }

    /// Returns a channel of this process alone.
    pub fn in_memory(name: &str) -> Self {
        Self {
            channel: name.into(),
            inbox: Inbox::uncounted(WAITING),
            line: None,
        }
    }

    /// Asks for the channel's messages; returns once Redis has confirmed. Idempotent.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`]; the link goes on trying to subscribe.
    pub async fn open(&self) -> Result<(), LayerError> {
        match &self.line {
            Some(line) => {
                let name = GroupName::from(&*self.channel);
                line.subscribe(self.name_on_redis(), Target::Group(name))
                    .await
            }
            None => Ok(()),
        }
    }

    /// Sends a message to every subscriber; returns their number on this server.
    ///
    /// # Errors
    /// [`StoreError`]; the message may have been sent nevertheless.
    pub async fn publish(&self, payload: Vec<u8>) -> Result<u64, StoreError> {
        match &self.line {
            Some(line) => line.publish(self.channel.as_bytes(), &payload).await,
            None => {
                let size = payload.len();
                let incoming = Incoming {
                    target: Target::Group(GroupName::from(&*self.channel)),
                    payload: Payload::Encoded(payload.into()),
                    read_at: Instant::now(),
                };
                self.inbox.push(incoming, size);
                Ok(1)
            }
        }
    }

    /// Sends an answer to the channel that a command named, on the same Redis. In memory there is no other replica, and
    /// the call does nothing.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn answer(&self, channel: &str, payload: &[u8]) -> Result<(), StoreError> {
        if let Some(line) = &self.line {
            line.publish(channel.as_bytes(), payload).await?;
        }
        Ok(())
    }

    /// Returns true if both are channels of one Redis, reached with one login, or both are in memory.
    pub fn shares_line_with(&self, other: &Control) -> bool {
        match (&self.line, &other.line) {
            (Some(line), Some(other)) => line.is_same_link(other),
            (None, None) => true,
            _ => false,
        }
    }

    /// Waits for the next message. For a single caller at a time.
    pub async fn next(&self) -> Heard {
        match self.inbox.next().await {
            Signal::Event(Incoming {
                payload: Payload::Encoded(bytes),
                ..
            }) => Heard::Message(bytes),
            Signal::Event(_) | Signal::Gap(_) => Heard::Gap,
        }
    }

    fn name_on_redis(&self) -> Bytes {
        Bytes::copy_from_slice(self.channel.as_bytes())
    }
}
