//! The steps of a connection's loop, and the ways in which it ends.

use std::sync::Arc;

use crate::close_code::CloseFrame;
use crate::consumer;
use crate::hub::WaitingEvent;

/// The next step of the loop.
pub(super) enum ConnectionStep {
    /// Send the queued pongs, and let other sockets have their turn, before more is decoded.
    Flush,
    /// Give a message of the client to the consumer.
    Message(consumer::Message),
    /// Give a message to the consumer that came while it was at work. It is within the rate and no ping.
    Waited(consumer::Message),
    /// Give an event to the consumer.
    Event(Arc<WaitingEvent>),
    /// End the connection.
    End(Ending),
}

/// The way in which a connection ends.
pub(super) enum Ending {
    /// Close: the queued frames are sent or dropped.
    Close(CloseFrame),
    /// Close, but queued frames may have to be sent first.
    CloseBlocked(CloseFrame),
    /// Close, because the client has broken the protocol: the close goes behind the queued frames, such as the answers to
    /// its earlier messages. Also because it has passed the rate of messages while its consumer was at work.
    Broken(CloseFrame),
    /// Answer the close of the client.
    Closed(Option<CloseFrame>),
    /// The stream ended without a close frame.
    Gone,
}

impl Ending {
    /// Returns true if the client has ended its input, by a close, an error or the end of the stream.
    pub(super) fn is_of_client(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Closed(_) | Self::Gone)
    }
}
