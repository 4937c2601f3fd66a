//! The queue of one socket, with a task that the test polls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use super::*;
use crate::budget::{HeldKind, MemoryBudget};
use crate::event::{Event, Value};

/// Counts the wake-ups of the task.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct FakeTask {
    wakes: Arc<Wakes>,
    waker: Waker,
    batch: Vec<Frame>,
}

impl FakeTask {
    fn new() -> Self {
        let wakes = Arc::new(Wakes::default());
        Self {
            waker: wakes.clone().into(),
            wakes,
            batch: Vec::new(),
        }
    }

    fn next(&mut self, queue: &Outbound) -> Poll<Next> {
        self.take(queue, Takes::All)
    }

    fn take(&mut self, queue: &Outbound, takes: Takes) -> Poll<Next> {
        self.batch.clear();
        let mut context = Context::from_waker(&self.waker);
        queue.poll_next(&mut context, takes, &Frame::ping(b""), &mut self.batch)
    }

    fn blocked(&self, queue: &Outbound) -> Blocked {
        queue.blocked(&mut Context::from_waker(&self.waker), Takes::All)
    }

    fn texts(&self) -> Vec<String> {
        let text = |frame: &Frame| String::from_utf8_lossy(&frame.as_bytes()[2..]).into_owned();
        self.batch.iter().map(text).collect()
    }

    fn woken(&self) -> usize {
        self.wakes.0.load(Ordering::Relaxed)
    }
}

fn push(queue: &Outbound, text: &str) -> Enqueued {
    queue.push_frame(&Frame::text(text))
}

#[test]
fn frames_leave_together_and_in_order_after_one_wake_up() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    assert!(task.next(&queue).is_pending());
    for text in ["a", "b", "c"] {
        assert_eq!(push(&queue, text), Enqueued::Queued);
    }
    assert_eq!(task.woken(), 1);
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert_eq!(task.texts(), ["a", "b", "c"]);
    assert_eq!(queue.queued_bytes(), 0);
    assert!(task.next(&queue).is_pending());
}

/// Before: the second frame closed the socket with 4008, although none of its bytes had been offered.
#[test]
fn a_queue_over_its_bound_closes_nothing_and_is_behind_only_while_the_socket_takes_no_bytes() {
    let (queue, mut task) = (Outbound::new(200), FakeTask::new());
    for _ in 0..3 {
        assert_eq!(push(&queue, "12345"), Enqueued::Queued);
    }
    assert!(!queue.reads_nothing());
    assert!(matches!(task.blocked(&queue), Blocked::Behind));
    assert!(queue.reads_nothing());
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert_eq!(task.texts().len(), 3);
    assert!(task.next(&queue).is_pending());
    assert!(!queue.reads_nothing());
}

#[test]
fn a_blocked_socket_is_woken_once_when_its_queue_passes_the_bound() {
    let (queue, task) = (Outbound::new(250), FakeTask::new());
    assert!(matches!(task.blocked(&queue), Blocked::Waits));
    for _ in 0..2 {
        push(&queue, "12345");
    }
    assert_eq!(task.woken(), 0);
    push(&queue, "12345");
    assert_eq!(task.woken(), 1);
    assert!(matches!(task.blocked(&queue), Blocked::Behind));
    push(&queue, "12345");
    assert_eq!(task.woken(), 1);
}

#[test]
fn one_message_may_wait_however_large_it_is() {
    let (queue, task) = (Outbound::new(200), FakeTask::new());
    assert_eq!(push(&queue, &"x".repeat(300)), Enqueued::Queued);
    assert!(matches!(task.blocked(&queue), Blocked::Waits));
    push(&queue, "y");
    assert!(matches!(task.blocked(&queue), Blocked::Behind));
}

#[test]
fn fan_out_gives_way_to_a_socket_that_takes_bytes_and_not_to_one_that_does_not() {
    let (queue, mut task) = (Outbound::new(0), FakeTask::new());
    let large = "x".repeat(CROWD);
    assert_eq!(push(&queue, &large), Enqueued::Crowded);
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert!(matches!(task.blocked(&queue), Blocked::Waits));
    assert_eq!(push(&queue, &large), Enqueued::Queued);
}

/// Before: a ping waited behind all that was queued, while its deadline ran.
#[test]
fn a_ping_leaves_before_what_is_queued_and_tells_of_progress() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    push(&queue, "first");
    queue.ask_ping();
    assert!(!queue.take_moved());
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert_eq!(task.batch[0].as_bytes(), Frame::ping(b"").as_bytes());
    assert_eq!(task.texts()[1], "first");
    assert!(queue.take_moved() && !queue.take_moved());
    assert!(task.next(&queue).is_pending());
}

#[test]
fn a_task_that_was_asked_has_looked_only_after_it_ran() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    assert!(task.next(&queue).is_pending());
    queue.ask_ping();
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert!(task.next(&queue).is_pending());
    let woken = task.woken();
    assert!(!queue.has_looked() && !queue.has_looked());
    assert_eq!(task.woken(), woken + 1);
    assert!(task.next(&queue).is_pending());
    assert!(queue.has_looked());
    queue.ask_ping();
    assert!(!queue.has_looked());
}

#[test]
fn a_consumer_at_work_holds_back_its_next_event_but_no_frame_before_it_and_no_close() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    push(&queue, "before");
    queue.push_event(&WaitingEvent::new(Arc::default(), &Arc::default()));
    push(&queue, "after");
    let mut take = |queue: &Outbound| (task.take(queue, Takes::Frames), task.texts());
    let (next, texts) = take(&queue);
    assert!(matches!(next, Poll::Ready(Next::Frames)));
    assert_eq!(texts, ["before"]);
    assert!(take(&queue).0.is_pending());
    queue.close(CloseReason::Draining.frame(), CloseOrder::AfterQueued);
    let (next, texts) = take(&queue);
    assert!(matches!(next, Poll::Ready(Next::Frames)));
    assert_eq!(texts, ["after"]);
    assert!(matches!(take(&queue).0, Poll::Ready(Next::Close(_))));
    assert_eq!(queue.queued_bytes(), 0);
}

#[test]
fn a_close_waits_for_what_is_queued_and_one_that_does_not_overtakes_it() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    push(&queue, "last words");
    assert!(queue.close(CloseReason::Draining.frame(), CloseOrder::AfterQueued));
    assert!(!queue.close(CloseReason::MaxAge.frame(), CloseOrder::AfterQueued));
    assert!(queue.close(CloseReason::TokenRevoked.frame(), CloseOrder::Now));
    let Poll::Ready(Next::Close(frame)) = task.next(&queue) else {
        panic!("nothing goes before it");
    };
    assert_eq!(frame.code, 4501);
    assert!(!queue.close(CloseReason::Normal.frame(), CloseOrder::Now));
}

#[test]
fn a_blocked_socket_is_woken_by_a_close_only() {
    let (queue, task) = (Outbound::new(1000), FakeTask::new());
    let mut context = Context::from_waker(&task.waker);
    assert!(queue.poll_closing(&mut context).is_pending());
    push(&queue, "waits");
    assert_eq!(task.woken(), 0);
    queue.close(CloseReason::Draining.frame(), CloseOrder::AfterQueued);
    assert_eq!(task.woken(), 1);
    assert!(queue.poll_closing(&mut context).is_ready());
}

#[test]
fn what_did_not_fit_leaves_first() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    push(&queue, "later");
    queue.give_back(["first", "second"].map(Frame::text).into_iter());
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert_eq!(task.texts(), ["first", "second", "later"]);
}

#[test]
fn events_for_a_consumer_keep_their_place_among_frames() {
    let (queue, mut task) = (Outbound::new(1000), FakeTask::new());
    push(&queue, "before");
    queue.push_event(&WaitingEvent::new(Arc::default(), &Arc::default()));
    push(&queue, "after");
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert_eq!(task.texts(), ["before"]);
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Event(_))));
    assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
    assert_eq!(task.texts(), ["after"]);
}

#[test]
fn a_finished_queue_takes_nothing() {
    let queue = Outbound::new(1000);
    push(&queue, "a");
    queue.finish();
    assert_eq!(queue.queued_bytes(), 0);
    assert_eq!(push(&queue, "b"), Enqueued::Closed);
}

/// Returns an event with a text of 400 letters that has waited for so long.
fn waiting(age: Duration, budget: &Arc<MemoryBudget>) -> Arc<WaitingEvent> {
    let fields = [("text", Value::from("x".repeat(400)))];
    let event = Arc::new(Event::new("chat.message", fields));
    WaitingEvent::since(std::time::Instant::now() - age, event, budget)
}

/// Before: events for consumers stood in no account.
#[test]
fn an_event_that_waits_for_consumers_counts_once_until_the_last_has_it() {
    let budget = Arc::new(MemoryBudget::default());
    let queues = [Outbound::new(0), Outbound::new(0)];
    let event = waiting(Duration::ZERO, &budget);
    for queue in &queues {
        assert!(queue.push_event(&event).is_queued());
    }
    drop(event);
    let held = budget.of(HeldKind::Waiting);
    assert!((400..800).contains(&held), "{held}");
    assert_eq!(budget.bytes_of_clients(), held, "the fullest sockets go");
    let mut task = FakeTask::new();
    assert!(matches!(task.next(&queues[0]), Poll::Ready(Next::Event(_))));
    assert_eq!(budget.of(HeldKind::Waiting), held);
    queues[1].finish();
    assert_eq!(budget.bytes(), 0);
}

/// Before: a slow consumer's events had no bound.
#[test]
fn a_consumer_that_is_behind_for_a_minute_loses_its_socket() {
    let budget = Arc::new(MemoryBudget::default());
    let queue = Outbound::new(1000);
    let (old, new) = (waiting(OLDEST, &budget), waiting(Duration::ZERO, &budget));
    assert!(queue.push_event(&old).is_queued());
    assert!(queue.push_event(&new).is_queued(), "it is not behind");
    let hasty = Outbound::new(1000);
    for _ in 0..10 {
        assert!(hasty.push_event(&new).is_queued(), "none is old");
    }
    assert_eq!(queue.push_event(&new), Enqueued::Late);
    assert_eq!(queue.push_event(&new), Enqueued::Closed, "told once");
    assert_eq!(queue.closing_cause(), Some(CloseReason::TooSlow));
    drop((old, new, hasty));
    assert_eq!(budget.bytes(), 0, "its events are dropped");
}
