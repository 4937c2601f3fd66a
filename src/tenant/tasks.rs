//! Tasks that end with their owner.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// A task that ends when this is dropped. A task that ends by itself has failed, and the process stops.
pub(super) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts tasks and reports those that failed.
pub(super) struct Spawner {
    failed: mpsc::UnboundedSender<anyhow::Error>,
}

impl Spawner {
    /// Reports failures to `failed`.
    pub(super) fn new(failed: mpsc::UnboundedSender<anyhow::Error>) -> Self {
        Self { failed }
    }

    /// Starts a task. `what` names it in the report of a failure.
    pub(super) fn start(
        &self,
        what: &'static str,
        task: impl Future<Output = Infallible> + Send + 'static,
    ) -> Task {
        let failed = self.failed.clone();
        let guarded = AssertUnwindSafe(task).catch_unwind();
        let handle = tokio::spawn(async move {
            if guarded.await.is_err() {
                // Fails only if the process is about to end.
                drop(failed.send(anyhow::anyhow!("{what} failed")));
            }
        });
        Task(handle.abort_handle())
    }
}
