//! The metrics of the gateway's dependencies: Redis, databases, key servers.

use std::time::Duration;

use metrics::Histogram;
use parking_lot::Mutex;

use crate::error::{Dependency, ErrorKind, StoreError};

use super::families::*;

/// Records that the dependency at `endpoint` (host:port) answers, or does not.
pub fn dependency_up(dependency: Dependency, endpoint: &str, up: bool) {
    let labels = [dependency.label().into(), endpoint.to_owned().into()];
    DEPENDENCY_UP.with(labels).set(one_if(up));
}

/// Records that the dependency at `endpoint` is no longer one: the node has left its cluster. The series cannot be taken
/// back, and either number would be wrong.
pub fn dependency_gone(dependency: Dependency, endpoint: &str) {
    let labels = [dependency.label().into(), endpoint.to_owned().into()];
    DEPENDENCY_UP.with(labels).set(f64::NAN);
}

/// Records the time that a dependency took to answer `operation` (a fixed word such as `mget` or `users`).
pub fn dependency_took(dependency: Dependency, operation: &'static str, took: Duration) {
    duration_of(dependency, operation).record(took.as_secs_f64());
}

fn duration_of(dependency: Dependency, operation: &'static str) -> Histogram {
    DEPENDENCY_DURATION.with([dependency.label().into(), operation.into()])
}

/// The times of one dependency's operations, for one that is asked by each handshake: every operation is looked up at its
/// first answer.
pub struct OperationTimes {
    dependency: Dependency,
    known: Mutex<Vec<(&'static str, Histogram)>>,
}

impl OperationTimes {
    /// Makes the times of a dependency.
    pub fn new(dependency: Dependency) -> Self {
        Self {
            dependency,
            known: Mutex::default(),
        }
    }

    /// Records the time as [`dependency_took`] does.
    pub fn took(&self, operation: &'static str, took: Duration) {
        let mut known = self.known.lock();
        let at = known.iter().position(|(name, _)| *name == operation);
        let at = at.unwrap_or_else(|| {
            known.push((operation, duration_of(self.dependency, operation)));
            known.len() - 1
        });
        known[at].1.record(took.as_secs_f64());
    }
}

/// Counts a failure of a dependency.
pub fn dependency_failed(error: &StoreError) {
    dependency_error(error.dependency, error.kind);
}

/// Counts a failure of a dependency that has no [`StoreError`].
pub fn dependency_error(dependency: Dependency, kind: ErrorKind) {
    let labels = [dependency.label().into(), kind.label().into()];
    DEPENDENCY_ERRORS.with(labels).increment(1);
}

/// Counts a reconnected link to a dependency.
pub fn reconnected(dependency: Dependency) {
    RECONNECTS.with([dependency.label().into()]).increment(1);
}

/// Records that a Redis with a denylist could forget revocations, or has forgotten them. At 1 an operator must read the log
/// and act.
pub fn denylist_at_risk(at_risk: bool) {
    DENYLIST_AT_RISK.get().set(one_if(at_risk));
}

/// Records the part of its memory that a Redis with histories uses. Near 1 it refuses events of groups with a memory, or evicts
/// histories.
pub fn history_memory(endpoint: &str, ratio: f64) {
    HISTORY_MEMORY.with([endpoint.to_owned().into()]).set(ratio);
}

/// Counts a statement that asked a database for users.
pub fn user_query() {
    USER_QUERIES.get().increment(1);
}

/// Records that a canary came back after `took`.
pub fn canary_returned(endpoint: &str, took: Duration) {
    CANARY_RTT
        .with([endpoint.to_owned().into()])
        .record(took.as_secs_f64());
}

/// Counts a canary that did not come back in time. A value above zero means that Redis takes publishes which its
/// subscribers do not get.
pub fn canary_missed(endpoint: &str) {
    CANARY_MISSED
        .with([endpoint.to_owned().into()])
        .increment(1);
}

/// Returns the value of a gauge that says yes or no.
pub(super) fn one_if(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
