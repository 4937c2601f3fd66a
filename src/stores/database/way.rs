//! The knowledge about the way to a server of PostgreSQL, which the pool and each statement on it share.

use std::sync::atomic::{AtomicBool, Ordering};

/// The knowledge about the way to a server.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// The pool has changed, or the URL says that there is a pooler.
    pub(super) pooled: AtomicBool,
    /// Set by a new connection whose server does not have our time limit: a pooler was told to ignore it.
    pub(super) limit_ignored: AtomicBool,
}

impl Way {
    /// Returns true if there is a pooler, also where the pool has still to change.
    pub(super) fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed) || self.limit_ignored.load(Ordering::Relaxed)
    }
}
