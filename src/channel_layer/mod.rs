//! What carries events between processes: the [`ChannelLayer`] trait, its guarantees, and its kinds.
//!
//! A layer speaks names and events and knows nothing of sockets. One layer serves one tenant; several share a Redis link.
//!
//! # Guarantees
//! * Once `subscribe` returned, every event published to the group from then on reaches the [`Inbox`].
//! * Events that one publisher sends one after another to one group arrive in that order, each at most once.
//! * Whatever may have been missed shows as [`Signal::Gap`]: a lost link, a full queue, canaries that did not come back.
//! * Nothing here waits for a slow tenant: a full inbox drops and says so.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{ErrorKind, StoreError};
use crate::ids::{ChannelName, GroupName};

use crate::event::{DecodeError, EncodeError, Event};

pub use codec::Codec;
pub use control::{Control, Heard};
pub use inbox::{Inbox, Incoming, Payload, Signal};
pub use target::{Members, SocketChannel, Target};

pub mod codec;
mod control;
pub mod core;
pub mod inbox;
mod link;
pub mod memory;
mod msgpack;
pub mod pubsub;
pub mod shards;
pub mod target;

/// The layer of one tenant.
#[async_trait]
pub trait ChannelLayer: Send + Sync {
    /// Asks for the events of `group`; returns once the layer has confirmed. Idempotent.
    ///
    /// While the link is lost it waits for the resubscription, at most five seconds. The wish is told when the future is
    /// first polled; it outlives a failure and a dropped future: call [`ChannelLayer::unsubscribe`] for it to end.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`].
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError>;

    /// Ends the wish for the events of `group`. Call it once a group has been empty for a second.
    fn unsubscribe(&self, group: &GroupName);

    /// Sends `event` to every subscriber of `group`, whichever process it is in.
    ///
    /// Calls made one after another arrive in that order. Never repeated by itself: after an error the event may or may
    /// not have been sent.
    ///
    /// # Errors
    /// [`LayerError`].
    async fn publish(&self, group: &GroupName, event: &Event) -> Result<(), LayerError>;

    /// What the names of this replica's socket channels begin with; 32 hexadecimal digits follow.
    fn channel_prefix(&self) -> &str;

    /// Whether [`ChannelLayer::open_channel`] costs nothing outside this process, so that every socket may have one.
    fn hears_every_socket(&self) -> bool {
        true
    }

    /// Asks for what is sent to a socket's own channel, as [`ChannelLayer::subscribe`] does for a group.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`].
    async fn open_channel(&self, socket: SocketChannel) -> Result<(), LayerError>;

    /// Ends the wish for what is sent to the socket's channel.
    fn close_channel(&self, socket: SocketChannel);

    /// Sends `event` to one channel, of a socket or of a worker, whichever process it is in. Never repeated by itself.
    ///
    /// # Errors
    /// [`LayerError`]; [`LayerError::ChannelFull`] only where channels have a capacity, [`LayerError::NoReceiver`] only
    /// where they have none.
    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError>;

    /// The goodbye of a replica: takes out of Redis what would outlive it there. No call may follow.
    async fn close(&self) {}

    /// Whether events can pass both ways right now.
    async fn ready(&self) -> bool;

    /// What came in, and whom it is for; `None` if nobody who is here.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no event of this layer.
    fn open(&self, incoming: Incoming) -> Result<Option<(Target, Arc<Event>)>, DecodeError> {
        let event = incoming.payload.decode(self.codec())?;
        Ok(Some((incoming.target, event)))
    }

    /// How payloads of this layer are written.
    fn codec(&self) -> &Codec;
}

/// A layer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The subscription was not confirmed in time, or was refused.
    #[error("the channel layer did not confirm a subscription ({})", .0.label())]
    Unavailable(ErrorKind),
    /// Redis did not take the event.
    #[error("the channel layer did not take an event: {0}")]
    Publish(#[from] StoreError),
    /// The channel holds as many events as it may.
    #[error("the channel is over capacity")]
    ChannelFull,
    /// Nobody listens to the channel, so that the event reached nobody.
    #[error("nobody listens to the channel")]
    NoReceiver,
    /// The event has no form on this layer.
    #[error("the event cannot be written: {0}")]
    Encode(#[from] EncodeError),
}

impl LayerError {
    /// How the dependency failed; `None` where the event itself is at fault.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            LayerError::Unavailable(kind) => Some(*kind),
            LayerError::Publish(error) => Some(error.kind),
            LayerError::ChannelFull | LayerError::NoReceiver | LayerError::Encode(_) => None,
        }
    }
}
