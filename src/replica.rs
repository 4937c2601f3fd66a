//! The life of this replica: starting, ready, draining, refusing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::metrics;

/// The stage of this replica's life, which `/readyz`, the accept loop and the drain share.
#[derive(Debug, Default)]
pub struct ReplicaLife {
    ready: AtomicBool,
    draining: AtomicBool,
    refusing: AtomicBool,
    became_ready: Notify,
    remarks: Arc<Remarks>,
}

/// Remarks that an operator should know although the replica serves: shown by `/readyz` to an operator's key. Each remark is in the
/// log too.
#[derive(Debug, Default)]
pub struct Remarks(Mutex<BTreeMap<String, Vec<String>>>);

impl Remarks {
    /// Replaces the remarks on `subject`.
    pub fn set(&self, subject: &str, remarks: Vec<String>) {
        let mut all = self.0.lock();
        match remarks.is_empty() {
            true => drop(all.remove(subject)),
            false => drop(all.insert(subject.to_owned(), remarks)),
        }
    }

    /// Returns all remarks by subject.
    pub fn all(&self) -> BTreeMap<String, Vec<String>> {
        self.0.lock().clone()
    }
}

impl ReplicaLife {
    /// Returns true while `/readyz` answers 200.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_draining()
    }

    /// The remarks on its dependencies.
    pub fn remarks(&self) -> &Arc<Remarks> {
        &self.remarks
    }

    /// Returns true once the replica has been ready; a drain does not take it back.
    pub fn has_started(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Turns readiness on: every tenant's dependencies were reached once, or `server.ready_wait` is over.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
        self.became_ready.notify_waiters();
        metrics::ready(self.is_ready());
    }

    /// Waits for [`ReplicaLife::set_ready`].
    pub async fn wait_ready(&self) {
        // Registered before the flag is read, so that a change between the two is not missed.
        let ready = self.became_ready.notified();
        if !self.ready.load(Ordering::Acquire) {
            ready.await;
        }
    }

    /// Returns true once a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Begins a drain: readiness falls at once, new sockets are still served.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
        metrics::draining(true);
        metrics::ready(false);
    }

    /// Returns true once new sockets are refused.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    /// Refuses new sockets from now on; called when `drain.delay` is over.
    pub fn set_refusing(&self) {
        self.refusing.store(true, Ordering::Release);
    }
}
