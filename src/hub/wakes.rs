//! The wake-ups of sockets that are closed together. What comes meanwhile would wait for the goodbyes of all of them, so they are
//! woken in turns with all other work.

use std::cell::RefCell;
use std::task::Waker;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::tasks;

/// The time of the turns, for each of the sockets.
const TURNS: Duration = Duration::from_micros(50);
/// Sockets that close at once, before other work has its turn: about 400 µs.
const AT_ONCE: usize = 16;

thread_local! {
    /// The tasks to be woken while this thread closes sockets; `None` at other times.
    static GATHERED: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Wakes the task of a socket, at once or with the others that are closed.
pub(super) fn wake(waker: Waker) {
    let now = GATHERED.with_borrow_mut(|gathered| match gathered {
        Some(wakers) => {
            wakers.push(waker);
            None
        }
        None => Some(waker),
    });
    if let Some(waker) = now {
        waker.wake();
    }
}

/// Calls `close`, which wakes no task, and returns those that it would have woken.
fn gather(close: impl FnOnce()) -> Vec<Waker> {
    /// Ends the gathering, also after a panic: its tasks are woken then.
    struct Gathering;

    impl Drop for Gathering {
        fn drop(&mut self) {
            GATHERED.take().into_iter().flatten().for_each(Waker::wake);
        }
    }

    debug_assert!(GATHERED.with_borrow(Option::is_none), "one close at a time");
    GATHERED.set(Some(Vec::new()));
    let _gathering = Gathering;
    close();
    GATHERED.take().unwrap_or_default()
}

/// Calls `close`, which closes any number of sockets. All of them take and send nothing more when it returns; their tasks, which say
/// goodbye, are woken in turns with all other work.
pub fn close_in_turns<R>(close: impl FnOnce() -> R) -> R {
    let mut closed = None;
    wake_in_turns(gather(|| closed = Some(close())));
    closed.expect("it was called")
}

/// Wakes the first tasks now, and the others in turns with all other work, until the time for that is over. Does not wait for them.
fn wake_in_turns(wakers: Vec<Waker>) {
    let most = TURNS * u32::try_from(wakers.len()).unwrap_or(u32::MAX);
    let mut wakers = wakers.into_iter();
    wakers.by_ref().take(AT_ONCE).for_each(Waker::wake);
    if wakers.len() == 0 {
        return;
    }
    if Handle::try_current().is_err() {
        // Outside a runtime no other work waits.
        return wakers.for_each(Waker::wake);
    }
    tasks::brief(async move {
        let began = tokio::time::Instant::now();
        while wakers.len() > 0 {
            tokio::task::yield_now().await;
            let is_over = began.elapsed() >= most;
            let count = if is_over { wakers.len() } else { AT_ONCE };
            wakers.by_ref().take(count).for_each(Waker::wake);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn wakers(self: &Arc<Self>, count: usize) -> impl Iterator<Item = Waker> {
            std::iter::repeat_n(Waker::from(self.clone()), count)
        }

        fn woken(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn tasks_are_woken_at_once_but_for_those_that_are_closed_together() {
        let count = Arc::new(Count::default());
        count.wakers(1).for_each(wake);
        assert_eq!(count.woken(), 1);
        let gathered = gather(|| count.wakers(20).for_each(wake));
        assert_eq!((gathered.len(), count.woken()), (20, 1));
        count.wakers(1).for_each(wake);
        assert_eq!(count.woken(), 2);
    }

    #[test]
    fn a_close_that_panics_leaves_no_task_asleep() {
        let count = Arc::new(Count::default());
        let fails = || {
            gather(|| {
                count.wakers(3).for_each(wake);
                panic!("as a bug would");
            })
        };
        catch_unwind(AssertUnwindSafe(fails)).unwrap_err();
        assert_eq!(count.woken(), 3);
        count.wakers(1).for_each(wake);
        assert_eq!(count.woken(), 4);
    }

    /// Before, the goodbyes of a tenant's sockets stood before all other work.
    #[tokio::test(start_paused = true)]
    async fn sockets_that_are_closed_together_say_goodbye_in_turns() {
        let count = Arc::new(Count::default());
        let closed = close_in_turns(|| {
            count.wakers(40).for_each(wake);
            7
        });
        assert_eq!(closed, 7);
        let mut steps = vec![count.woken()];
        while count.woken() < 40 {
            tokio::task::yield_now().await;
            steps.push(count.woken());
        }
        steps.dedup();
        assert_eq!(steps, [AT_ONCE, 2 * AT_ONCE, 40]);
    }

    #[test]
    fn without_a_runtime_all_are_woken_at_once() {
        let count = Arc::new(Count::default());
        close_in_turns(|| count.wakers(40).for_each(wake));
        assert_eq!(count.woken(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn the_turns_end_when_others_take_long() {
        let count = Arc::new(Count::default());
        close_in_turns(|| count.wakers(100).for_each(wake));
        let mut steps = vec![count.woken()];
        while count.woken() < 100 {
            tokio::time::advance(Duration::from_millis(2)).await;
            steps.push(count.woken());
        }
        steps.dedup();
        assert_eq!(steps, [16, 32, 48, 100]);
    }
}
