//! Work that takes a processor for milliseconds: events of many values, scrapes, rows of the registry, configurations.
//!
//! An event of 1 MB with 200,000 numbers takes 20 ms each time it is read or written, and a thread of the runtime that does it
//! serves no other tenant meanwhile. Here such work runs in a thread of its own, at a lower priority: the system gives a processor to
//! the runtime's threads as soon as one of them has something to do. One such work runs at a time, so that many of them take no more
//! than one share.
//!
//! On Linux "as soon as" is a slice of the scheduler: a thread that has begun keeps its processor for a millisecond or more, whatever
//! its priority. So such work calls [`give_way`] for each value that it reads or writes, which ends the slice every 100 µs.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, ScopedJoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{getpriority_process, setpriority_process};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes of a payload from which reading it is heavy. It takes 1 ms if it holds numbers alone.
pub const HEAVY_BYTES: usize = 32 * 1024;
/// Values of an event from which writing it is heavy.
pub const HEAVY_VALUES: usize = 4096;

/// Works that may wait for their turn at once, each in a thread of its own. What comes above runs where it is.
const MOST_WAITING: usize = 64;

/// The `nice` value of a thread with heavy work. It has a tenth of a processor that the runtime's threads use up, so that the work
/// still ends.
const NICE: i32 = 10;

/// The longest time for which heavy work keeps a processor that others wait for.
const STRETCH: Duration = Duration::from_micros(100);
/// Values between two looks at the clock: 5 µs or so.
const VALUES: u32 = 64;
/// The part of the time of a work in which it runs, beside threads that never rest: as its `nice` value gives it. Below it the
/// work gives way no more.
const LEAST_SHARE: u32 = 10;

thread_local! {
    /// The values until the next look at the clock; 0 in a thread without heavy work.
    static VALUES_LEFT: Cell<u32> = const { Cell::new(0) };
    /// The heavy work of this thread.
    static AT_WORK: Cell<Option<Stretch>> = const { Cell::new(None) };
}

static TURN: Mutex<()> = Mutex::new(());
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Does `work` here, or in a thread of its own, beside the other tasks, if it is heavy. Outside a runtime of several threads, as in the
/// command line, it only does it.
pub fn heavy<R: Send>(is_heavy: bool, work: impl FnOnce() -> R + Send) -> R {
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
        nicely(Builder::new(), work)
    })
}

/// Begins `work` in a thread of its own at the lower priority, for a caller that waits for it without a thread. A work that begins goes
/// on to its end. It must not hold a lock for long that a thread of the runtime takes.
///
/// # Panics
/// Panics outside a runtime, and where the system has no thread left for the runtime.
pub fn spawn_nicely<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    spawn_blocking(|| nicely(Builder::new(), work))
}

/// Does `work` in the `thread`, with the value [`NICE`], and waits for it. A thread cannot take its priority back, so that one of the
/// runtime would keep it. The work sees no runtime, so that heavy work within it does not wait for its own turn.
///
/// Does it here if the system has no thread left: an event must not end the process.
fn nicely<R: Send>(thread: Builder, work: impl FnOnce() -> R + Send) -> R {
    let mut work = Some(work);
    let done = std::thread::scope(|scope| {
        let work = &mut work;
        let thread = thread.spawn_scoped(scope, || {
            begin_stretch();
            // As root it would raise the priority of a process that has a lower one.
            if getpriority_process(None).is_ok_and(|nice| nice < NICE) {
                setpriority_process(None, NICE).ok();
            }
            work.take().map(|work| work())
        });
        thread.map(ScopedJoinHandle::join)
    });
    match (done, work) {
        (Ok(Ok(Some(result))), _) => result,
        (Ok(Err(panic)), _) => std::panic::resume_unwind(panic),
        (_, Some(work)) => work(),
        (_, None) => unreachable!("the thread has done the work"),
    }
}

/// Lets other threads have the processor, if this one has heavy work and has had it for a time. What reads or writes values calls it
/// for each. In other threads it does nothing.
#[inline]
pub fn give_way() {
    match VALUES_LEFT.get() {
        0 => {}
        1 => end_stretch(),
        left => VALUES_LEFT.set(left - 1),
    }
}

fn begin_stretch() {
    let now = Instant::now();
    AT_WORK.set(Some(Stretch {
        work_began: now,
        began: now,
    }));
    VALUES_LEFT.set(VALUES);
}

/// Ends the stretch if it was long enough. The system runs another thread then, if one waits.
#[cold]
fn end_stretch() {
    VALUES_LEFT.set(VALUES);
    let (Some(stretch), now) = (AT_WORK.get(), Instant::now()) else {
        return;
    };
    if now.saturating_duration_since(stretch.began) < STRETCH {
        return;
    }
    let used = clock_gettime(ClockId::ThreadCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    if stretch.may_give_way(now, used) {
        std::thread::yield_now();
    }
    AT_WORK.set(Some(Stretch {
        began: Instant::now(),
        ..stretch
    }));
}

/// The times of the heavy work of a thread.
#[derive(Clone, Copy)]
struct Stretch {
    work_began: Instant,
    /// The time at which the work gave way last.
    began: Instant,
}

impl Stretch {
    /// Returns true if the work, which has `used` this time of a processor, has had its least share until `now`.
    fn may_give_way(&self, now: Instant, used: Duration) -> bool {
        now.saturating_duration_since(self.work_began) <= used * LEAST_SHARE
    }
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
            heavy(true, move || told.recv_timeout(Duration::from_secs(20)))
        });
        let heard = runtime.block_on(others).unwrap();
        assert_eq!(heard, Ok(()));
    }

    /// Before, it kept the processor for a slice of the system's scheduler, which is a millisecond or more.
    #[test]
    fn heavy_work_gives_way_until_it_would_not_end() {
        let began = Instant::now();
        let stretch = Stretch {
            work_began: began,
            began,
        };
        let ms = Duration::from_millis;
        assert!(stretch.may_give_way(began + ms(1), ms(1)), "alone");
        assert!(stretch.may_give_way(began + ms(10), ms(1)), "a tenth");
        assert!(!stretch.may_give_way(began + ms(11), ms(1)), "less");
    }

    #[test]
    fn only_heavy_work_looks_at_the_clock() {
        give_way();
        assert_eq!(VALUES_LEFT.get(), 0);
        let (left, has_given_way) = nicely(Builder::new(), || {
            let began = AT_WORK.get().map(|stretch| stretch.began);
            let until = Instant::now() + Duration::from_secs(20);
            while AT_WORK.get().map(|stretch| stretch.began) == began && Instant::now() < until {
                give_way();
            }
            (
                VALUES_LEFT.get(),
                AT_WORK.get().map(|stretch| stretch.began) > began,
            )
        });
        assert!(has_given_way);
        assert!((1..=VALUES).contains(&left), "{left}");
        assert_eq!(VALUES_LEFT.get(), 0);
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

    #[test]
    fn heavy_work_has_a_lower_priority_and_leaves_that_of_the_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let task = runtime.spawn(async move { (heavy(true, nice), nice()) });
        let (within, after) = runtime.block_on(task).unwrap();
        assert_eq!((within, after), (before.max(NICE), before));
    }

    /// Before, a scrape and a registry's rows ran at the priority of the runtime's threads.
    #[tokio::test]
    async fn work_that_is_awaited_has_the_lower_priority_too() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let within = spawn_nicely(nice).await.unwrap();
        // A thread that tokio keeps for other work has its priority still.
        let kept = spawn_blocking(nice).await.unwrap();
        assert_eq!((within, kept), (before.max(NICE), before));
        let panic = spawn_nicely(|| panic!("of the work")).await.unwrap_err();
        assert_eq!(panic.into_panic().downcast_ref(), Some(&"of the work"));
    }

    #[test]
    fn a_panic_of_heavy_work_is_the_callers() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let task = runtime.spawn(async { heavy(true, || panic!("of the work")) });
        let panic = runtime.block_on(task).unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref(), Some(&"of the work"));
        let task = runtime.spawn(async { heavy(true, || 7) });
        assert_eq!(runtime.block_on(task).unwrap(), 7);
    }

    #[test]
    fn without_a_thread_the_work_is_done_here() {
        let too_large = Builder::new().stack_size(1 << 60);
        let here = std::thread::current().id();
        let done = nicely(too_large, || std::thread::current().id());
        assert_eq!(done, here);
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_the_work_where_it_is() {
        assert_eq!(heavy(true, || 7), 7);
    }
}
