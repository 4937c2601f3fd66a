//! Events to all replicas: those of sockets, of back ends and of consumers.

use std::time::Instant;

use super::Relay;
use crate::channel_layer::{CallId, LayerError};
use crate::event::Event;
use crate::hub::Member;
use crate::ids::{ChannelName, GroupName};
use crate::metrics::EventSource;
use crate::position::Position;

/// The sender of an event to a group.
#[derive(Clone, Copy)]
pub enum Publisher<'a> {
    /// A back end, by the management API; with the id of its call if that may come again.
    BackEnd(Option<&'a CallId>),
    /// A socket.
    Socket(&'a Member),
}

/// An event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// `limits.publishes_per_second`, or for a socket without a user `limits.anonymous_publishes_per_second`
    #[error("limits.{0} is reached")]
    RateLimited(&'static str),
    /// The layer did not confirm the event, or cannot express it.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl Relay {
    /// Publishes an event to a group on every replica. Returns its position if the group has a history.
    ///
    /// # Errors
    /// Fails over the limit of the publisher ([`PublishError::RateLimited`]), and if the layer does not confirm. After a
    /// lost link or a timeout the event may be published even so.
    pub async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        publisher: Publisher<'_>,
    ) -> Result<Option<Position>, PublishError> {
        let (source, is_stranger, call) = match publisher {
            Publisher::BackEnd(call) => (EventSource::Api, false, call),
            Publisher::Socket(member) => (EventSource::Socket, member.user().is_none(), None),
        };
        if let Err(limit) = self.publishes.take(&self.limits(), is_stranger) {
            self.parts.metrics.rate_limited(limit);
            return Err(PublishError::RateLimited(limit));
        }
        let position = self.parts.layer.publish(group, event, call).await?;
        self.published(&position, source);
        Ok(position)
    }

    /// Publishes events of a back end to groups on every replica, each as [`Relay::publish`] does, in their order. Returns
    /// the outcome of each.
    pub async fn publish_each(
        &self,
        events: Vec<(GroupName, Event)>,
    ) -> Vec<Result<Option<Position>, PublishError>> {
        let allowed = self.publishes.take_up_to(&self.limits(), events.len());
        let published = self.parts.layer.publish_each(&events[..allowed]).await;
        let mut outcomes: Vec<_> = { published.into_iter() }
            .map(|outcome| outcome.map_err(PublishError::from))
            .collect();
        for position in outcomes.iter().flatten() {
            self.published(position, EventSource::Api);
        }
        outcomes.resize_with(events.len(), || {
            let limit = "publishes_per_second";
            self.parts.metrics.rate_limited(limit);
            Err(PublishError::RateLimited(limit))
        });
        outcomes
    }

    fn published(&self, position: &Option<Position>, source: EventSource) {
        self.parts.metrics.event(source);
        if position.is_some() {
            self.parts.metrics.recorded.increment(1);
        }
    }

    /// Publishes an event of a socket, which does not get it itself.
    ///
    /// # Errors
    /// As [`Relay::publish`].
    pub async fn publish_to_others(
        &self,
        sender: &Member,
        group: &GroupName,
        event: &Event,
    ) -> Result<Option<Position>, PublishError> {
        // Before the publish: the event may come back before the layer has confirmed it.
        let noted = self.skips.note(group, event, sender.id(), Instant::now());
        let publisher = Publisher::Socket(sender);
        let published = self.publish(group, event, publisher).await;
        if let (Some(note), Err(_)) = (&noted, &published) {
            self.skips.forget(group, note);
        }
        published
    }

    /// Sends an event of a socket to one channel, which a worker reads.
    ///
    /// # Errors
    /// [`LayerError`]. After a lost link or a timeout the event may be sent even so.
    pub async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        self.parts.layer.send(channel, event).await?;
        self.parts.metrics.event(EventSource::Socket);
        Ok(())
    }
}
