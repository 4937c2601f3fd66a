//! The one place where tasks are started: those that must last, and those that may end.
//!
//! A task that lasts (a link to Redis, a relay, the upkeep of a tenant) has no successor. Its panic is an end that nothing
//! else would notice, so it is reported by [`failed`], and the server stops. A brief task has a small job of its own. Its
//! panic ends that job alone; the panic hook of [`crate::telemetry`] counts and logs it. Connections are brief tasks.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The name of the last task that failed. There is one for the process, since a panic concerns the whole of it.
static FAILED: LazyLock<watch::Sender<Option<&'static str>>> =
    LazyLock::new(watch::Sender::default);

/// A task that lasts. It ends when this is dropped.
#[derive(Debug)]
pub struct Task(Option<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Task {
    /// Lets the task run to its own end, without an owner.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

/// Reports the panic of a thread that lasts.
#[derive(Debug)]
pub struct Alarm(&'static str);

impl Alarm {
    /// Creates the guard of the thread `what`; keep it until the end.
    pub fn of(what: &'static str) -> Self {
        Self(what)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            FAILED.send_replace(Some(self.0));
        }
    }
}

/// Starts a task that lasts. `what` names it in the report of a failure, such as "a relay".
///
/// It needs a runtime.
pub fn lasting<T>(what: &'static str, task: impl Future<Output = T> + Send + 'static) -> Task {
    let task = AssertUnwindSafe(task).catch_unwind();
    let guarded = async move {
        if task.await.is_err() {
            FAILED.send_replace(Some(what));
        }
    };
    Task(Some(tokio::spawn(guarded).abort_handle()))
}

/// Starts a task with a small job of its own, which ends by itself. Without a runtime, as while the process ends, it does
/// nothing.
pub fn brief(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(task);
    }
}

/// Waits until a task that should last has panicked, and returns its name.
pub async fn failed() -> &'static str {
    let mut failed = FAILED.subscribe();
    let what = failed.wait_for(Option::is_some).await;
    let what = what.ok().and_then(|what| *what);
    match what {
        Some(what) => what,
        // The sender is static, so the wait ends only with a name.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// One test, because the process has one list of failures.
    #[tokio::test]
    async fn only_a_panic_of_a_task_that_should_last_is_a_failure() {
        let (told, ended) = tokio::sync::oneshot::channel::<()>();
        brief(async move {
            let _told = told;
            panic!("as a bug would");
        });
        ended.await.unwrap_err();
        drop(lasting("an aborted task", std::future::pending::<()>()));
        lasting("a task that cleans up and ends", async {}).detach();
        let quiet = tokio::time::timeout(Duration::from_millis(50), failed()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        let _task = lasting("a link", async { panic!("as a bug would") });
        assert_eq!(failed().await, "a link");
        // A late caller is told too.
        assert_eq!(failed().await, "a link");
    }
}
