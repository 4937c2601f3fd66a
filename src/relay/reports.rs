//! Reports of events that the relay drops: each is counted, and each cause is logged once.

use super::Relay;
use super::acceptance::AcceptanceError;
use crate::channel_layer::{LayerError, Target};
use crate::event::Event;
use crate::ids::GroupName;
use crate::metrics::DropCause;

/// Bytes of an event type kept for logging; senders choose it.
const TYPE_SHOWN: usize = 100;

impl Relay {
    /// Counts an event that no worker took, and logs it once per channel and cause.
    pub fn not_sent(&self, channel: &str, cause: DropCause, error: &LayerError) {
        self.parts.metrics.dropped(cause);
        if self.first_report(&format!("{channel} {cause:?}")) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, channel.name = channel, error = %error,
                "A worker did not get an event of a socket; further ones are only counted"
            );
        }
    }

    pub(super) fn not_decoded(&self, target: &Target, error: &dyn std::error::Error) {
        self.parts.metrics.dropped(DropCause::NotDecoded);
        let group = match target {
            Target::Group(group) => Some(group.as_str()),
            _ => None,
        };
        if self.first_report("") {
            tracing::warn!(
                tenant.id = %self.parts.tenant, group.name = group, error = %error,
                "Dropped a message that is no event; further ones are only counted"
            );
        }
    }

    /// Counts values of a group's history that cannot be read.
    pub(super) fn not_readable(&self, group: &GroupName, count: u64) {
        self.parts.metrics.unreadable_values.increment(count);
        if self.first_report("lockgate.unreadable") {
            tracing::warn!(
                tenant.id = %self.parts.tenant, group.name = %group, count,
                "A history in Redis has values that are none; further ones are only counted"
            );
        }
    }

    pub(super) fn not_carried(
        &self,
        event: &Event,
        cause: DropCause,
        error: &dyn std::error::Error,
    ) {
        self.parts.metrics.dropped(cause);
        let event_type = event.event_type().unwrap_or("(none)");
        let event_type = &event_type[..event_type.floor_char_boundary(TYPE_SHOWN)];
        if self.first_report(event_type) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, event.r#type = event_type, error = %error,
                "Dropped an event that cannot be rendered; further ones of its type are only counted"
            );
        }
    }

    /// Counts an answer of a worker that cannot be carried out, and logs its error once.
    pub fn not_accepted(&self, error: &AcceptanceError) {
        self.parts.metrics.dropped(DropCause::NotValid);
        if self.first_report(&error.to_string()) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, error = %error,
                "A worker's websocket.accept is not valid, and its handshake gets 503; further ones are only counted"
            );
        }
    }

    /// True once per word, for at most 1,000 words: senders choose event types.
    fn first_report(&self, word: &str) -> bool {
        let mut reported = self.reported.lock();
        reported.len() < 1000 && reported.insert(word.into())
    }
}
