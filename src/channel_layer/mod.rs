//! The transport of events between processes: the [`ChannelLayer`] trait, its guarantees, and its kinds.
//!
//! A layer deals in names and events and knows nothing of sockets. One layer serves one tenant; several layers share a
//! Redis link.
//!
//! # Guarantees
//! * After `subscribe` returned, every event published to the group reaches the [`Inbox`].
//! * Events that one publisher sends one after another to one group arrive in that order, each at most once.
//! * Every possible loss shows as [`Signal::Gap`]: a lost link, a full queue, canaries that did not come back.
//! * An event of a group with history is recorded and published in one step. Its position tells its place among them.
//! * A layer never waits for a slow tenant: a full inbox drops the event and marks the gap.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::channel_names::hex_digest;
use crate::error::{ErrorKind, StoreError};
use crate::ids::{ChannelName, GroupName};
use crate::stores::redis::RedisStore;

use crate::event::{DecodeError, EncodeError, Event};
use crate::position::Position;

pub use codec::Codec;
pub use control::{Control, Heard};
pub use history::{HistoryFrom, HistoryPage, RecordedEvent};
pub use inbox::{Inbox, Incoming, Payload, Signal};
pub use notices::NoticeLines;
pub use recorded::GroupHistories;
pub use target::{Members, SocketChannel, Target};

pub mod codec;
mod control;
pub mod core;
mod history;
pub mod inbox;
mod link;
pub mod memory;
mod msgpack;
mod notices;
pub mod pubsub;
mod recorded;
pub mod shards;
pub mod target;

/// The id of a call that may come again, because its caller did not get the answer. The same call has the same id.
#[derive(Clone, Debug)]
pub struct CallId(Box<str>);

impl CallId {
    /// Makes the id of the call that this text names, such as its key and the digest of its body.
    pub fn of(call: &str) -> Self {
        Self(hex_digest(call, 16).into())
    }

    /// The id as text: 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The layer of one tenant.
#[async_trait]
pub trait ChannelLayer: Send + Sync {
    /// Asks for the events of `group`; returns once the layer has confirmed. Idempotent.
    ///
    /// While the link is lost, the call waits for the resubscription, at most five seconds. The wish is recorded when the
    /// future is first polled. It outlives a failure and a dropped future; [`ChannelLayer::unsubscribe`] ends it.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`].
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError>;

    /// Ends the wish for the events of `group`. Call it when a group has been empty for a second.
    fn unsubscribe(&self, group: &GroupName);

    /// Sends `event` to every subscriber of `group`, in every process.
    ///
    /// Events of successive calls arrive in that order. The layer never repeats a send: after an error the event may or
    /// may not have been sent. Returns the position of the event if the group has a history. There a call with the id of an
    /// earlier one records nothing again, and gets the position of the first.
    ///
    /// # Errors
    /// [`LayerError`].
    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        call: Option<&CallId>,
    ) -> Result<Option<Position>, LayerError>;

    /// Sends events to groups, one after another, as [`ChannelLayer::publish`] does. A failure does not stop those behind it.
    async fn publish_each(
        &self,
        events: &[(GroupName, Event)],
    ) -> Vec<Result<Option<Position>, LayerError>> {
        let mut outcomes = Vec::with_capacity(events.len());
        for (group, event) in events {
            outcomes.push(self.publish(group, event, None).await);
        }
        outcomes
    }

    /// Reads the events of a group after a place in its history; `None` if the group has none. A history that nothing was
    /// recorded in yet gets its epoch by this.
    ///
    /// # Errors
    /// [`LayerError`].
    async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError>;

    /// Returns the server that holds what belongs to a group, and the layer's own name of the group's channel there; `None`
    /// without a Redis.
    fn home(&self, _group: &GroupName) -> Option<(Arc<RedisStore>, String)> {
        None
    }

    /// Notes that events of a group were delivered up to `lost`, and that its history lacks the newest of them. If their epoch is
    /// still the present one, a new history begins, so that their offsets are not given a second time. If it has ended, all that
    /// stand before the lost events are told of a gap. Returns the position that holds then; `None` if the group has no history.
    ///
    /// # Errors
    /// [`LayerError`].
    async fn renew_history(
        &self,
        group: &GroupName,
        lost: &Position,
    ) -> Result<Option<Position>, LayerError>;

    /// Returns the prefix of this replica's socket channel names; 32 hexadecimal digits follow it.
    fn channel_prefix(&self) -> &str;

    /// Returns the beginning of every group's name on the wire; empty for none.
    fn namespace(&self) -> &str {
        ""
    }

    /// Returns true if [`ChannelLayer::open_channel`] costs nothing outside this process, so that every socket may have
    /// its own channel.
    fn hears_every_socket(&self) -> bool {
        true
    }

    /// Asks for the events of a socket's own channel, as [`ChannelLayer::subscribe`] does for a group.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`].
    async fn open_channel(&self, socket: SocketChannel) -> Result<(), LayerError>;

    /// Ends the wish for the events of the socket's channel.
    fn close_channel(&self, socket: SocketChannel);

    /// Sends `event` to one channel, of a socket or of a worker, in any process. The layer never repeats a send.
    ///
    /// # Errors
    /// [`LayerError`]; [`LayerError::ChannelFull`] only on layers whose channels have a capacity,
    /// [`LayerError::NoReceiver`] only on layers whose channels have none.
    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError>;

    /// Returns what waits in these channels of workers, together; `None` on layers whose channels keep nothing.
    ///
    /// # Errors
    /// [`LayerError`].
    async fn unread(&self, _channels: &[ChannelName]) -> Result<Option<Unread>, LayerError> {
        Ok(None)
    }

    /// Removes from Redis the keys that would outlive this replica. No call may follow.
    async fn close(&self) {}

    /// Returns true if events can pass both ways right now.
    async fn ready(&self) -> bool;

    /// Decodes an event and finds its recipients; `None` if none of them is in this process.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not an event of this layer.
    fn open(&self, incoming: Incoming) -> Result<Option<(Target, Arc<Event>)>, DecodeError> {
        let event = incoming.payload.decode(self.codec())?;
        Ok(Some((incoming.target, event)))
    }

    /// The format of this layer's payloads.
    fn codec(&self) -> &Codec;
}

/// Events that wait in channels for a process that takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unread {
    /// Their number. Those that no process took before the layer's `expiry` count until the next send to their channel.
    pub events: u64,
    /// The age of the oldest one; zero without any.
    pub oldest: Duration,
}

/// A failed call of a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The subscription was not confirmed in time, or was refused.
    #[error("the channel layer did not confirm a subscription ({})", .0.label())]
    Unavailable(ErrorKind),
    /// Redis did not take the event.
    #[error("the channel layer did not take an event: {0}")]
    Publish(#[from] StoreError),
    /// Redis refused to record the event, which was not delivered either.
    #[error("the event was not recorded, and so not delivered: {0}")]
    NotRecorded(StoreError),
    /// The channel holds as many events as its capacity allows.
    #[error("the channel is over capacity")]
    ChannelFull,
    /// No process listens to the channel; the event was not delivered.
    #[error("no process listens to the channel")]
    NoReceiver,
    /// This layer's format cannot carry the event.
    #[error("the event cannot be written: {0}")]
    Encode(#[from] EncodeError),
}

impl LayerError {
    /// The kind of the dependency's failure; `None` where the event itself is at fault.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            LayerError::Unavailable(kind) => Some(*kind),
            LayerError::Publish(error) | LayerError::NotRecorded(error) => Some(error.kind),
            LayerError::ChannelFull | LayerError::NoReceiver | LayerError::Encode(_) => None,
        }
    }
}
