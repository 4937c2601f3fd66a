//! The load of the runtime's threads.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeMetrics};

/// The share of their time that busy threads work.
const BUSY: f64 = 0.5;
/// The shortest time over which it is measured: one flood lasts, and a burst of a few events does not.
const MEASURED: Duration = Duration::from_millis(100);

/// Returns true if the threads of the runtime work for most of their time.
pub(super) fn is_busy() -> bool {
    static LOAD: LazyLock<Mutex<ThreadLoad>> =
        LazyLock::new(|| Mutex::new(ThreadLoad::new(Instant::now())));
    let Ok(runtime) = Handle::try_current() else {
        return false;
    };
    LOAD.lock()
        .is_busy(Instant::now(), || worked(&runtime.metrics()))
}

/// Returns true if the runtime has one thread: then no other one would write to a socket meanwhile.
pub(super) fn is_alone() -> bool {
    Handle::try_current().is_ok_and(|runtime| runtime.metrics().num_workers() == 1)
}

/// Returns the time that the threads have worked, in the mean of all.
fn worked(metrics: &RuntimeMetrics) -> Duration {
    let threads = metrics.num_workers();
    let worked: Duration = (0..threads)
        .map(|thread| metrics.worker_total_busy_duration(thread))
        .sum();
    worked / u32::try_from(threads.max(1)).unwrap_or(u32::MAX)
}

/// The load of the threads when it was measured last.
struct ThreadLoad {
    at: Instant,
    worked: Duration,
    is_busy: bool,
}

impl ThreadLoad {
    fn new(at: Instant) -> Self {
        Self {
            at,
            worked: Duration::ZERO,
            is_busy: false,
        }
    }

    /// Measures the load, unless that was done a moment ago. `worked` is the time that the threads have worked until now.
    fn is_busy(&mut self, now: Instant, worked: impl FnOnce() -> Duration) -> bool {
        let elapsed = now.saturating_duration_since(self.at);
        if elapsed >= MEASURED {
            let worked = worked();
            let since = worked.saturating_sub(self.worked);
            self.is_busy = since.as_secs_f64() > BUSY * elapsed.as_secs_f64();
            (self.at, self.worked) = (now, worked);
        }
        self.is_busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_busy_by_their_work_since_the_last_look() {
        let began = Instant::now();
        let mut load = ThreadLoad::new(began);
        let mut is_busy = |at: u64, worked: u64| {
            load.is_busy(began + Duration::from_millis(at), || {
                Duration::from_millis(worked)
            })
        };
        assert!(!is_busy(200, 100));
        assert!(!is_busy(250, 150), "too soon for another look");
        assert!(is_busy(400, 290));
        assert!(is_busy(450, 290), "too soon");
        assert!(!is_busy(600, 290));
    }
}
