//! Events to all replicas: those of sockets, of back ends and of consumers.

use std::time::Instant;

use super::Relay;
use crate::channel_layer::LayerError;
use crate::event::Event;
use crate::hub::Member;
use crate::ids::{ChannelName, GroupName};
use crate::metrics::EventSource;
use crate::position::Position;

/// An event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// `limits.publishes_per_second`
    #[error("limits.publishes_per_second is reached")]
    RateLimited,
    /// The layer did not confirm the event, or cannot express it.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl Relay {
    /// Publishes an event to a group on every replica. Returns its position if the group has a history.
    ///
    /// # Errors
    /// Fails over `limits.publishes_per_second`, and if the layer does not confirm. After a lost link or a timeout the
    /// event may be published even so.
    pub async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        source: EventSource,
    ) -> Result<Option<Position>, PublishError> {
        let per_second = self.limits().publishes_per_second;
        if per_second != 0 && !self.publishes.lock().take(Instant::now(), per_second) {
            self.parts.metrics.rate_limited("publishes_per_second");
            return Err(PublishError::RateLimited);
        }
        let position = self.parts.layer.publish(group, event).await?;
        self.published(&position, source);
        Ok(position)
    }

    /// Publishes events to groups on every replica, each as [`Relay::publish`] does, in their order. Returns the outcome of
    /// each.
    pub async fn publish_each(
        &self,
        events: Vec<(GroupName, Event)>,
        source: EventSource,
    ) -> Vec<Result<Option<Position>, PublishError>> {
        let per_second = self.limits().publishes_per_second;
        let mut allowed = events.len();
        if per_second != 0 {
            let (now, mut bucket) = (Instant::now(), self.publishes.lock());
            allowed = (0..events.len())
                .take_while(|_| bucket.take(now, per_second))
                .count();
        }
        let published = self.parts.layer.publish_each(&events[..allowed]).await;
        let mut outcomes: Vec<_> = { published.into_iter() }
            .map(|outcome| outcome.map_err(PublishError::from))
            .collect();
        for position in outcomes.iter().flatten() {
            self.published(position, source);
        }
        outcomes.resize_with(events.len(), || {
            self.parts.metrics.rate_limited("publishes_per_second");
            Err(PublishError::RateLimited)
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
        let published = self.publish(group, event, EventSource::Socket).await;
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
