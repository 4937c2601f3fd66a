//! Tasks that end with their owner.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// A task that ends when this is dropped. One that ends by itself has failed, and with it the process.
pub(super) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts tasks, and tells of those that failed.
pub(super) struct Spawner {
    failed: mpsc::UnboundedSender<anyhow::Error>,
}

impl Spawner {
    /// What fails is told to `failed`.
    pub(super) fn new(failed: mpsc::UnboundedSender<anyhow::Error>) -> Self {
        Self { failed }
    }

    /// Starts a task; `what` names it where it fails.
    pub(super) fn start(
        &self,
        what: &'static str,
        task: impl Future<Output = Infallible> + Send + 'static,
    ) -> Task {
        let failed = self.failed.clone();
        let guarded = AssertUnwindSafe(task).catch_unwind();
        let handle = tokio::spawn(async move {
            if guarded.await.is_err() {
                // If it is not heard, the process is about to end.
                drop(failed.send(anyhow::anyhow!("{what} failed")));
            }
        });
        Task(handle.abort_handle())
    }
}
