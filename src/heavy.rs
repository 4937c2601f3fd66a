//! Work that takes a processor for milliseconds: reading and writing events of many values.
//!
//! An event of 1 MB with 200,000 numbers takes 20 ms each time it is read or written, and a thread of the runtime that does it
//! serves no other tenant meanwhile. Here such work leaves the thread to the other tasks and goes on beside it, so that the system
//! shares the processor between both. One such work runs at a time, so that many of them take no more than that share.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::ReentrantMutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of a payload from which reading it is heavy. It takes 1 ms if it holds numbers alone.
pub const HEAVY_BYTES: usize = 32 * 1024;
/// Values of an event from which writing it is heavy.
pub const HEAVY_VALUES: usize = 4096;

/// Works that may wait for their turn at once, each in a thread of its own. What comes above runs where it is.
const MOST_WAITING: usize = 64;

/// Bodies of calls that are read at once. The others wait without a thread, since threads keep memory.
const READ_AT_ONCE: usize = 2;

static TURN: ReentrantMutex<()> = ReentrantMutex::new(());
static READING: Semaphore = Semaphore::const_new(READ_AT_ONCE);
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Waits until the body of a call, of so many bytes, may be read. Hold the result meanwhile; `None` if reading it is not heavy.
pub async fn reading_turn(bytes: usize) -> Option<SemaphorePermit<'static>> {
    if bytes < HEAVY_BYTES {
        return None;
    }
    // The semaphore is never closed.
    READING.acquire().await.ok()
}

/// Does `work` on this task, and beside the other tasks of the thread if it is heavy. Outside a runtime of several threads, as in the
/// command line, it only does it.
pub fn heavy<R>(is_heavy: bool, work: impl FnOnce() -> R) -> R {
    let is_shared = || {
        let runtime = Handle::try_current();
        runtime.is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
    };
    if !is_heavy || !is_shared() {
        return work();
    }
    let place = HeavyPlace::take();
    if place.number >= MOST_WAITING {
        return work();
    }
    tokio::task::block_in_place(|| {
        let _turn = TURN.lock();
        work()
    })
}

/// A place among those that wait or work.
struct HeavyPlace {
    number: usize,
}

impl HeavyPlace {
    fn take() -> Self {
        Self {
            number: WAITING.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for HeavyPlace {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Before, the second task got its turn after the work.
    #[test]
    fn other_tasks_run_while_heavy_work_is_done() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (tell, told) = mpsc::channel();
        let others = runtime.spawn(async move {
            tokio::spawn(async move { tell.send(()) });
            heavy(true, || told.recv_timeout(Duration::from_secs(20)))
        });
        let heard = runtime.block_on(others).unwrap();
        assert_eq!(heard, Ok(()));
    }

    #[test]
    fn one_heavy_work_is_done_at_a_time_and_may_hold_another() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        let at_work = Arc::new(AtomicBool::new(false));
        let work = |at_work: Arc<AtomicBool>| async move {
            heavy(true, || {
                assert!(!at_work.swap(true, Ordering::SeqCst));
                heavy(true, std::thread::yield_now);
                assert!(at_work.swap(false, Ordering::SeqCst));
            });
        };
        let tasks: Vec<_> = (0..MOST_WAITING / 2)
            .map(|_| runtime.spawn(work(at_work.clone())))
            .collect();
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_the_work_where_it_is() {
        assert_eq!(heavy(true, || 7), 7);
    }
}
