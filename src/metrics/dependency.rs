//! The metrics of what the gateway asks: Redis, databases, key servers.

use std::time::Duration;

use crate::error::{Dependency, ErrorKind, StoreError};

use super::families::*;

/// The dependency at `endpoint` (host:port) answers, or does not.
pub fn dependency_up(dependency: Dependency, endpoint: &str, up: bool) {
    let labels = [dependency.label().into(), endpoint.to_owned().into()];
    DEPENDENCY_UP.with(labels).set(one_if(up));
}

/// A dependency answered `operation` (a fixed word such as `mget` or `users`).
pub fn dependency_took(dependency: Dependency, operation: &'static str, took: Duration) {
    let labels = [dependency.label().into(), operation.into()];
    DEPENDENCY_DURATION.with(labels).record(took.as_secs_f64());
}

/// A dependency failed.
pub fn dependency_failed(error: &StoreError) {
    dependency_error(error.dependency, error.kind);
}

/// A dependency failed in a way that has no [`StoreError`].
pub fn dependency_error(dependency: Dependency, kind: ErrorKind) {
    let labels = [dependency.label().into(), kind.label().into()];
    DEPENDENCY_ERRORS.with(labels).increment(1);
}

/// A link to a dependency was made again.
pub fn reconnected(dependency: Dependency) {
    RECONNECTS.with([dependency.label().into()]).increment(1);
}

/// Whether a Redis with a denylist could forget revocations, or did. 1: read the log, and act.
pub fn denylist_at_risk(at_risk: bool) {
    DENYLIST_AT_RISK.get().set(one_if(at_risk));
}

/// A statement asked a database for users.
pub fn user_query() {
    USER_QUERIES.get().increment(1);
}

/// A canary came back after `took`.
pub fn canary_returned(endpoint: &str, took: Duration) {
    CANARY_RTT
        .with([endpoint.to_owned().into()])
        .record(took.as_secs_f64());
}

/// A canary did not come back in time. Other than zero: Redis takes publishes that its subscribers do not get.
pub fn canary_missed(endpoint: &str) {
    CANARY_MISSED
        .with([endpoint.to_owned().into()])
        .increment(1);
}

/// The value of a gauge that says yes or no.
pub(super) fn one_if(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
