//! Reports of events that the relay drops: each is counted, and each cause is logged once.

use std::time::{Duration, Instant};

use super::Relay;
use super::acceptance::AcceptanceError;
use crate::channel_layer::{LayerError, Target};
use crate::event::Event;
use crate::ids::GroupName;
use crate::metrics::DropCause;

/// Bytes of an event type kept for logging; senders choose it.
const TYPE_SHOWN: usize = 100;

/// The time for which a report about a group stands for those about the tenant's other groups. Clients choose how many there are,
/// and the lines of all would drive those of other tenants out of the queue of the log.
const REPORT_STANDS: Duration = Duration::from_secs(10);

/// The reports about groups with history, of each one at a time.
#[derive(Clone, Copy)]
pub(super) enum GroupReport {
    /// Missing events cannot be read.
    Unread,
    /// Nor can those of sockets that came back.
    UnreadByReturning,
    /// Events are missing for good.
    Lost,
}

/// The times of the last reports, by [`GroupReport`].
#[derive(Default)]
pub(super) struct GroupReports([Option<Instant>; 3]);

impl GroupReports {
    /// Returns true if a report is logged now.
    fn take(&mut self, report: GroupReport, now: Instant) -> bool {
        let last = &mut self.0[report as usize];
        let is_due = last.is_none_or(|last| now.duration_since(last) >= REPORT_STANDS);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

impl Relay {
    /// Returns true if a report about a group is logged, and not told by one shortly before.
    pub(super) fn is_reported_now(&self, report: GroupReport) -> bool {
        self.group_reports.lock().take(report, Instant::now())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Before: each group told of an outage of its tenant's Redis, and clients chose the number of the lines.
    #[test]
    fn a_report_stands_for_those_about_other_groups() {
        let (mut reports, now) = (GroupReports::default(), Instant::now());
        let mut take = |report, after| reports.take(report, now + after);
        assert!(take(GroupReport::Unread, Duration::ZERO));
        assert!(!take(GroupReport::Unread, REPORT_STANDS / 2));
        assert!(take(GroupReport::Lost, REPORT_STANDS / 2));
        assert!(take(GroupReport::Unread, REPORT_STANDS));
    }
}
