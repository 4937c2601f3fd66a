//! A socket that code of a consumer can hold: what it can do for the socket, within a call and after it.

use std::sync::Arc;

use super::guard::guarded;
use crate::channel_layer::LayerError;
use crate::close_code::{CloseFrame, CloseReason};
use crate::event::Event;
use crate::frame::{Frame, Opcode};
use crate::hub::{CloseOrder, Member};
use crate::ids::GroupName;
use crate::relay::{PublishError, Publisher, Relay};
use crate::tasks;

/// One socket, for as long as its holder wants. Clones are the same socket.
///
/// Once the socket is closed, frames, closes and joins have no effect. Events can still be published.
///
/// ```
/// use std::time::Duration;
///
/// use lockgate::consumer::{Consumer, Context, Refused};
///
/// struct Clock;
///
/// #[async_trait::async_trait]
/// impl Consumer for Clock {
///     async fn connect(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
///         let socket = context.handle();
///         context.spawn(async move {
///             let mut minutes = tokio::time::interval(Duration::from_secs(60));
///             loop {
///                 minutes.tick().await;
///                 socket.send_text("another minute");
///             }
///         });
///         Ok(())
///     }
/// }
/// # let _: Box<dyn Consumer> = Box::new(Clock);
/// ```
#[derive(Clone)]
pub struct SocketHandle {
    pub(crate) member: Arc<Member>,
    pub(crate) relay: Arc<Relay>,
}

/// A group could not be joined, or an event could not be published to it.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The name is not valid in Channels, or the socket has reached `limits.groups_per_socket`.
    #[error("the group cannot be joined or sent to: {0}")]
    NotAllowed(&'static str),
    /// The tenant has reached `limits.publishes_per_second`, or its sockets without a user have reached
    /// `limits.anonymous_publishes_per_second`.
    #[error("limits.{0} is reached")]
    RateLimited(&'static str),
    /// The channel layer does not answer, or cannot express the event.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl From<PublishError> for GroupError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::RateLimited(limit) => Self::RateLimited(limit),
            PublishError::Layer(error) => Self::Layer(error),
        }
    }
}

impl GroupError {
    /// Returns true if the layer is at fault, false if the name, the event or the rate is.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Layer(error) if error.kind().is_some())
    }
}

impl SocketHandle {
    /// Runs a task beside the consumer, which may outlive the call. When the socket is closed, for whatever reason, the task
    /// is dropped at its next await; it does not hold up [`super::Consumer::disconnect`]. A panic closes the socket with
    /// 1011.
    ///
    /// The gateway does not count these tasks: start a bounded number for each socket. On a socket that is closed already
    /// the task does not run.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.relay.end_of(&self.member);
        let member = self.member.clone();
        tasks::brief(async move {
            end.run_until_cancelled(guarded(&member, task)).await;
        });
    }

    /// Waits until the socket is closed. Returns at once if it is.
    pub async fn closed(&self) {
        self.relay.end_of(&self.member).cancelled().await;
    }

    /// Queues a text frame for the client.
    pub fn send_text(&self, text: &str) {
        self.send(Opcode::Text, text.as_bytes());
    }

    /// Queues a binary frame for the client.
    pub fn send_binary(&self, bytes: &[u8]) {
        self.send(Opcode::Binary, bytes);
    }

    fn send(&self, opcode: Opcode, payload: &[u8]) {
        let frame = Frame::encode(opcode, payload, self.relay.accounting());
        self.member.outbound().push_frame(&frame);
    }

    /// Closes the socket after its queued frames. The codes 1000 and 3000-4999 pass unchanged, any other becomes 1011.
    pub fn close(&self, code: u16, reason: &str) {
        let frame = CloseFrame::from_application(Some(i64::from(code)), reason);
        self.member.outbound().close(frame, CloseOrder::AfterQueued);
    }

    /// Closes the socket for a reason of the gateway, with a wait where waiting helps the client.
    pub fn close_for(&self, reason: CloseReason) {
        let frame = reason.frame_with_wait();
        self.member.outbound().close(frame, CloseOrder::AfterQueued);
    }

    /// Queues an event as the route's `deliver` and `events` say. An event that cannot be rendered is dropped and
    /// counted.
    pub fn deliver(&self, event: &Event) {
        self.relay.deliver_to(&self.member, event);
    }

    /// Publishes an event to a group of the tenant, on every replica. Events that one socket publishes to one
    /// group arrive in the order of these calls.
    ///
    /// # Errors
    /// Fails if the name is not valid, over the limit ([`GroupError::RateLimited`]), and if the layer does not confirm. In
    /// the last case the event may be published even so.
    pub async fn group_send(&self, group: &str, event: &Event) -> Result<(), GroupError> {
        let group = self.group_name(group)?;
        let publisher = Publisher::Socket(&self.member);
        let published = self.relay.publish(&group, event, publisher).await;
        Ok(published.map(drop)?)
    }

    /// Publishes an event as [`SocketHandle::group_send`] does, to every socket of the group but this one. A later socket of the
    /// same client that resumes gets it.
    ///
    /// # Errors
    /// As [`SocketHandle::group_send`].
    pub async fn group_send_to_others(&self, group: &str, event: &Event) -> Result<(), GroupError> {
        let group = self.group_name(group)?;
        let published = self
            .relay
            .publish_to_others(&self.member, &group, event)
            .await;
        Ok(published.map(drop)?)
    }

    /// Puts the socket into another group. Events published after this returns reach the socket.
    ///
    /// # Errors
    /// Fails if the name is not valid, if the socket is in `limits.groups_per_socket` groups, and if the layer does not
    /// acknowledge.
    pub async fn group_add(&self, group: &str) -> Result<(), GroupError> {
        let group = self.group_name(group)?;
        if self.member.groups().contains(&group) {
            return Ok(());
        }
        if !self.relay.has_room_for_group(&self.member) {
            return Err(GroupError::NotAllowed(
                "limits.groups_per_socket is reached",
            ));
        }
        let joined = self.relay.join(&self.member, &group).await;
        if joined.is_err() {
            self.relay.leave(&self.member, &group);
        }
        Ok(joined?)
    }

    /// Takes the socket out of a group; has no effect if it is not in the group.
    pub fn group_discard(&self, group: &str) {
        self.relay.leave(&self.member, &GroupName::from(group));
    }

    fn group_name(&self, group: &str) -> Result<GroupName, GroupError> {
        self.relay
            .group_name(group)
            .ok_or(GroupError::NotAllowed("not a valid group name"))
    }
}
