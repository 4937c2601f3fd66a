//! A channel that all replicas hear, beside the groups of a layer: bytes in, bytes out, through lost links.
//!
//! It knows nothing of what the bytes say ([`crate::fleet`]).

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

/// Bytes that may wait to be acted on; over it is a gap, after which everything is checked anew.
const WAITING: u64 = 8 * 1024 * 1024;

/// What came in on a control channel.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Bytes),
    /// Messages may have been missed.
    Gap,
}

/// A channel of control messages; it is subscribed from [`Control::open`] on, through lost links.
pub struct Control {
    channel: Box<str>,
    inbox: Arc<Inbox>,
    line: Option<LinkShare>,
}

impl Control {
    /// The channel `name` on the server of `store`, on the same link as the layers there.
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

    /// A channel of this process alone.
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
    /// [`LayerError::Unavailable`]; the wish stays.
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

    /// Sends a message to every subscriber; answers how many there were on this server.
    ///
    /// # Errors
    /// [`StoreError`]; the message may have been sent all the same.
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

    /// Sends an answer to the channel that a command named, on the same Redis. In memory there is nobody else.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn answer(&self, channel: &str, payload: &[u8]) -> Result<(), StoreError> {
        if let Some(line) = &self.line {
            line.publish(channel.as_bytes(), payload).await?;
        }
        Ok(())
    }

    /// Whether both are channels of one Redis, reached by one login; or both in memory.
    pub fn shares_line_with(&self, other: &Control) -> bool {
        match (&self.line, &other.line) {
            (Some(line), Some(other)) => line.is_same_link(other),
            (None, None) => true,
            _ => false,
        }
    }

    /// The next message. For a single caller at a time.
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
