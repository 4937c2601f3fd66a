//! The wake-ups of a fan-out. Sockets of a large group write one after another, and what comes meanwhile waits for all that
//! were woken before it: 100 sockets take a thread a millisecond or more. So those of an event are woken in turns, as long as the
//! thread has time for other work.
//!
//! On a busy thread each turn would wait for everything that others have to do, and the event of a quiet tenant for a flood
//! as often as it has turns. There all sockets are woken at once, and so are those that are left when other work has taken more
//! than an eighth of the time that the sockets need: a flood of others may also fill less than half of a thread.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::tasks;

/// The time of the turns of an event, for each of its sockets: twice what a write takes.
const TURNS: Duration = Duration::from_micros(10);
/// The same for closes.
const CLOSING_TURNS: Duration = Duration::from_micros(50);
/// Sockets that close at once, before other work has its turn: about 400 µs.
const CLOSED_AT_ONCE: usize = 16;
/// The part of its sockets' own time that an event leaves to other work: so many times less.
const OTHERS: u32 = 8;
/// The share of their time that busy threads work.
const BUSY: f64 = 0.7;
/// The shortest time over which it is measured: one flood lasts, and a burst of a few events does not.
const MEASURED: Duration = Duration::from_millis(100);

thread_local! {
    /// The tasks to be woken while this thread fans out an event; `None` at other times.
    static GATHERED: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Wakes the task of a socket, at once or with the others of its fan-out.
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

/// Calls `fan_out`, which wakes no task, and returns those that it would have woken.
pub(super) fn gather(fan_out: impl FnOnce()) -> Vec<Waker> {
    /// Ends the gathering, also after a panic: its tasks are woken then.
    struct Gathering;

    impl Drop for Gathering {
        fn drop(&mut self) {
            GATHERED.take().into_iter().flatten().for_each(Waker::wake);
        }
    }

    debug_assert!(
        GATHERED.with_borrow(Option::is_none),
        "one fan-out at a time"
    );
    GATHERED.set(Some(Vec::new()));
    let _gathering = Gathering;
    fan_out();
    GATHERED.take().unwrap_or_default()
}

/// Wakes so many tasks at a time: the first ones now, and the others in turns with all other work, until the time for that is
/// over. Does not wait for them.
pub(super) fn wake_in_turns(wakers: Vec<Waker>, at_a_time: usize) {
    in_turns(wakers, at_a_time, TURNS, Some(OTHERS));
}

/// Calls `close`, which closes any number of sockets. All of them take and send nothing more when it returns; their tasks, which say
/// goodbye, are woken in turns with all other work.
pub fn close_in_turns<R>(close: impl FnOnce() -> R) -> R {
    let mut closed = None;
    let wakers = gather(|| closed = Some(close()));
    in_turns(wakers, CLOSED_AT_ONCE, CLOSING_TURNS, None);
    closed.expect("it was called")
}

/// Wakes tasks in turns, which have `each` for each of them. The turns also end once other work has taken a part of the tasks' own
/// time, if such a part is given.
fn in_turns(wakers: Vec<Waker>, at_a_time: usize, each: Duration, others: Option<u32>) {
    let turns = u32::try_from(wakers.len().div_ceil(at_a_time)).unwrap_or(u32::MAX);
    let most = each * u32::try_from(wakers.len()).unwrap_or(u32::MAX);
    let mut wakers = wakers.into_iter();
    wakers.by_ref().take(at_a_time).for_each(Waker::wake);
    if wakers.len() == 0 {
        return;
    }
    if Handle::try_current().is_err() {
        // Outside a runtime no other work waits.
        return wakers.for_each(Waker::wake);
    }
    tasks::brief(async move {
        let mut taken = TurnTimes::new(turns);
        while wakers.len() > 0 {
            let turn = tokio::time::Instant::now();
            tokio::task::yield_now().await;
            taken.add(turn.elapsed());
            let is_over = taken.sum >= most || others.is_some_and(|part| taken.is_over(part));
            let count = if is_over { wakers.len() } else { at_a_time };
            wakers.by_ref().take(count).for_each(Waker::wake);
        }
    });
}

/// The times of an event's turns until now. The shortest one tells what its sockets take.
struct TurnTimes {
    all: u32,
    begun: u32,
    shortest: Duration,
    sum: Duration,
}

impl TurnTimes {
    fn new(all: u32) -> Self {
        Self {
            all,
            begun: 0,
            shortest: Duration::MAX,
            sum: Duration::ZERO,
        }
    }

    fn add(&mut self, turn: Duration) {
        self.begun += 1;
        self.shortest = self.shortest.min(turn);
        self.sum += turn;
    }

    /// Returns true if other work has taken more than this part of the time that all sockets need.
    fn is_over(&self, part: u32) -> bool {
        let others = self.sum.saturating_sub(self.shortest * self.begun);
        others > self.shortest * self.all / part
    }
}

/// Returns true if the threads of the runtime have hardly any time left.
pub(super) fn is_busy() -> bool {
    static LOAD: LazyLock<Mutex<Load>> = LazyLock::new(|| Mutex::new(Load::new(Instant::now())));
    let Ok(runtime) = Handle::try_current() else {
        return false;
    };
    LOAD.lock()
        .is_busy(Instant::now(), || worked(&runtime.metrics()))
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
struct Load {
    at: Instant,
    worked: Duration,
    is_busy: bool,
}

impl Load {
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
    fn tasks_are_woken_at_once_but_for_those_of_a_fan_out() {
        let count = Arc::new(Count::default());
        count.wakers(1).for_each(wake);
        assert_eq!(count.woken(), 1);
        let gathered = gather(|| count.wakers(20).for_each(wake));
        assert_eq!((gathered.len(), count.woken()), (20, 1));
        count.wakers(1).for_each(wake);
        assert_eq!(count.woken(), 2);
    }

    #[test]
    fn a_fan_out_that_panics_leaves_no_task_asleep() {
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

    #[tokio::test(start_paused = true)]
    async fn other_work_has_its_turn_between_the_sockets_of_an_event() {
        let count = Arc::new(Count::default());
        wake_in_turns(count.wakers(23).collect(), 8);
        let mut steps = vec![count.woken()];
        while count.woken() < 23 {
            tokio::task::yield_now().await;
            steps.push(count.woken());
        }
        steps.dedup();
        assert_eq!(steps, [8, 16, 23]);
        wake_in_turns(count.wakers(1).collect(), 8);
        assert_eq!(count.woken(), 24);
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
        assert_eq!(steps, [CLOSED_AT_ONCE, 2 * CLOSED_AT_ONCE, 40]);
    }

    #[test]
    fn without_a_runtime_all_are_woken_at_once() {
        let count = Arc::new(Count::default());
        close_in_turns(|| count.wakers(40).for_each(wake));
        assert_eq!(count.woken(), 40);
    }

    /// Before, each of the turns waited for all work of others, however long that took.
    #[tokio::test(start_paused = true)]
    async fn the_turns_of_an_event_end_when_others_take_long() {
        let count = Arc::new(Count::default());
        wake_in_turns(count.wakers(100).collect(), 8);
        let mut steps = vec![count.woken()];
        while count.woken() < 100 {
            tokio::time::advance(Duration::from_micros(400)).await;
            steps.push(count.woken());
        }
        steps.dedup();
        assert_eq!(steps, [8, 16, 24, 100]);
    }

    /// Before, a flood that filled half of a thread took as much time between the turns as the sockets themselves.
    #[test]
    fn the_turns_of_an_event_end_when_others_have_had_their_part() {
        let after = |micros: &[u64]| {
            let mut taken = TurnTimes::new(13);
            for micros in micros {
                taken.add(Duration::from_micros(*micros));
            }
            taken.is_over(8)
        };
        // The sockets take 13 times 50 µs, and 81 µs are an eighth of that.
        assert!(!after(&[50, 50, 100, 80]));
        assert!(after(&[50, 50, 100, 82]));
        assert!(
            after(&[100, 100, 50]),
            "the shortest turn tells what the sockets take"
        );
        assert!(!after(&[200, 200]), "nothing tells yet that others work");
    }

    #[test]
    fn threads_are_busy_by_their_work_since_the_last_look() {
        let began = Instant::now();
        let mut load = Load::new(began);
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
