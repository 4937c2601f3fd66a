//! Where this replica is in its life: starting, ready, draining, refusing.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::metrics;

/// Where this replica is in its life.
#[derive(Debug, Default)]
pub struct ReplicaLife {
    ready: AtomicBool,
    draining: AtomicBool,
    refusing: AtomicBool,
    became_ready: Notify,
}

impl ReplicaLife {
    /// Whether `/readyz` answers 200.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_draining()
    }

    /// Whether it was ready once.
    pub fn has_started(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Every tenant's dependencies were reached once, or waited for long enough.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
        self.became_ready.notify_waiters();
        metrics::ready(self.is_ready());
    }

    /// Waits for [`ReplicaLife::set_ready`].
    pub async fn wait_ready(&self) {
        let ready = self.became_ready.notified();
        if !self.ready.load(Ordering::Acquire) {
            ready.await;
        }
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// A drain begins: readiness falls at once, new sockets are still served.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
        metrics::draining(true);
        metrics::ready(false);
    }

    /// Whether new sockets are refused.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    /// `drain.delay` is over: new sockets are refused from now on.
    pub fn set_refusing(&self) {
        self.refusing.store(true, Ordering::Release);
    }
}
