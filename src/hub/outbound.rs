//! What waits for one socket, and the rule for a socket that lets it pile up.
//!
//! Fan-out puts frames in and never waits; the connection's task takes them out in batches. The bound is counted
//! in bytes (`limits.send_queue`); a socket that passes it is closed with 4008 and what waited is dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::close_code::{CloseFrame, CloseReason};
use crate::event::Event;
use crate::frame::Frame;

/// Frames that leave in one `writev`. Linux takes 1,024; past 64 the gain per frame is lost in the noise.
pub const BATCH: usize = 64;

/// What an item costs beside its bytes: its place in the queue and the frame's own memory. Without it, half a
/// million empty pongs would fit into a megabyte.
const ITEM: usize = 96;

/// What a client that was too slow waits before it comes back.
pub const TOO_SLOW_WAIT: Duration = Duration::from_secs(1);

/// One thing that waits for a socket.
#[derive(Debug)]
pub enum Item {
    /// Bytes for the wire, shared by every socket that gets the same event.
    Frame(Frame),
    /// An event that the connection's own consumer turns into frames.
    Event(Arc<Event>),
}

/// What became of something that was put into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It waits for the socket.
    Queued,
    /// The queue was full: the socket is being closed as too slow.
    Overflowed,
    /// The socket is closing and takes nothing more.
    Closed,
}

/// When a close frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOrder {
    /// After everything that waits.
    AfterQueued,
    /// Next; what waits is dropped.
    Now,
}

/// What the connection's task does next.
#[derive(Debug)]
pub enum Next {
    /// Frames were moved into the caller's batch.
    Frames,
    /// The consumer gets this event.
    Event(Arc<Event>),
    /// Everything is out that should be: send the close frame.
    Close(Box<CloseFrame>),
}

/// The queue of one socket.
#[derive(Debug)]
pub struct Outbound {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Item>,
    bytes: usize,
    limit: usize,
    closing: Option<Box<CloseFrame>>,
    /// A close that does not wait has thrown away what was queued.
    dropped: bool,
    /// Bytes of a frame that the task holds because the socket took only a part of it.
    in_hand: usize,
    /// The task took the close frame, or is gone.
    finished: bool,
    waker: Option<Waker>,
    /// The socket takes no bytes: only a close is worth a wake-up.
    blocked: bool,
}

impl Outbound {
    /// Returns an empty queue for at most `limit` bytes; 0 is no limit.
    pub fn new(limit: u64) -> Self {
        let state = State {
            queue: VecDeque::new(),
            bytes: 0,
            limit: in_bytes(limit),
            closing: None,
            dropped: false,
            in_hand: 0,
            finished: false,
            waker: None,
            blocked: false,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Changes the bound; what waits already may stay. 0 is no limit.
    pub fn set_limit(&self, limit: u64) {
        self.state.lock().limit = in_bytes(limit);
    }

    /// Queues a frame. Never waits.
    pub fn push_frame(&self, frame: &Frame) -> Enqueued {
        self.push(ITEM + frame.len(), || Item::Frame(frame.clone()))
    }

    /// Queues an event for the connection's consumer. Never waits.
    pub fn push_event(&self, event: &Arc<Event>) -> Enqueued {
        self.push(ITEM + event.memory(), || Item::Event(event.clone()))
    }

    fn push(&self, size: usize, item: impl FnOnce() -> Item) -> Enqueued {
        let mut state = self.state.lock();
        if state.closing.is_some() || state.finished {
            return Enqueued::Closed;
        }
        // One message may always wait, however large: the bound is for piles.
        let overflows = !state.queue.is_empty() && state.bytes + size > state.limit;
        let result = if overflows {
            state.drop_all();
            state.closing = Some(Box::new(
                CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT),
            ));
            Enqueued::Overflowed
        } else {
            state.queue.push_back(item());
            state.bytes += size;
            Enqueued::Queued
        };
        let wakes = !state.blocked || result == Enqueued::Overflowed;
        let waker = if wakes { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Asks the connection's task to close the socket; the first one to ask decides the code, but a close that
    /// drops what waits overtakes one that would wait for it.
    pub fn close(&self, frame: CloseFrame, order: CloseOrder) -> bool {
        let mut state = self.state.lock();
        if state.finished
            || (state.closing.is_some()
                && (order == CloseOrder::AfterQueued || state.queue.is_empty()))
        {
            return false;
        }
        if order == CloseOrder::Now {
            state.drop_all();
        }
        state.closing = Some(Box::new(frame));
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Takes what leaves next: up to [`BATCH`] frames into `batch`, or one event, or the close frame.
    ///
    /// Pending registers the task; it is woken once when something comes.
    pub fn poll_next(&self, cx: &mut Context<'_>, batch: &mut Vec<Frame>) -> Poll<Next> {
        let mut state = self.state.lock();
        while batch.len() < BATCH {
            match state.queue.front() {
                Some(Item::Frame(_)) => {}
                Some(Item::Event(_)) if batch.is_empty() => {}
                _ => break,
            }
            match state.queue.pop_front() {
                Some(Item::Frame(frame)) => {
                    state.bytes -= ITEM + frame.len();
                    batch.push(frame);
                }
                Some(Item::Event(event)) => {
                    state.bytes -= ITEM + event.memory();
                    return Poll::Ready(Next::Event(event));
                }
                None => break,
            }
        }
        if !batch.is_empty() {
            return Poll::Ready(Next::Frames);
        }
        if let Some(close) = state.closing.take() {
            state.finished = true;
            return Poll::Ready(Next::Close(close));
        }
        if state.queue.capacity() > 0 {
            // A burst leaves nothing behind: an idle socket owns no queue.
            state.queue = VecDeque::new();
        }
        state.blocked = false;
        state.register(cx);
        Poll::Pending
    }

    /// Puts back what did not fit into the socket, in order, so that it leaves first.
    pub fn give_back(&self, unsent: impl DoubleEndedIterator<Item = Frame>) {
        let mut state = self.state.lock();
        if state.dropped {
            return;
        }
        for frame in unsent.rev() {
            state.bytes += ITEM + frame.len();
            state.queue.push_front(Item::Frame(frame));
        }
    }

    /// The close frame once somebody asked for a close, which stays in the queue; for a task whose socket takes no
    /// bytes.
    pub fn poll_closing(&self, cx: &mut Context<'_>) -> Poll<CloseFrame> {
        let mut state = self.state.lock();
        if let Some(closing) = &state.closing {
            return Poll::Ready(CloseFrame::clone(closing));
        }
        state.blocked = true;
        state.register(cx);
        Poll::Pending
    }

    /// The task is gone: nothing more is taken.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        state.drop_all();
        state.finished = true;
        state.waker = None;
    }

    /// Bytes that wait, the frame that is half out included.
    pub fn queued_bytes(&self) -> usize {
        let state = self.state.lock();
        state.bytes + state.in_hand
    }

    /// Returns true if a close was asked for, or is over.
    pub fn is_closing(&self) -> bool {
        let state = self.state.lock();
        state.closing.is_some() || state.finished
    }

    /// Why the gateway itself asked for a close that has not left yet.
    pub fn closing_cause(&self) -> Option<CloseReason> {
        self.state.lock().closing.as_ref()?.cause
    }

    /// The task holds a frame of so many bytes that the socket took only a part of; 0: not any more.
    pub fn set_in_hand(&self, bytes: usize) {
        self.state.lock().in_hand = bytes;
    }
}

fn in_bytes(limit: u64) -> usize {
    match limit {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    }
}

impl State {
    fn register(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn drop_all(&mut self) {
        self.dropped = true;
        self.queue = VecDeque::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often the task would have run.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Task {
        wakes: Arc<Wakes>,
        waker: Waker,
        batch: Vec<Frame>,
    }

    impl Task {
        fn new() -> Self {
            let wakes = Arc::new(Wakes::default());
            Self {
                waker: wakes.clone().into(),
                wakes,
                batch: Vec::new(),
            }
        }

        fn next(&mut self, queue: &Outbound) -> Poll<Next> {
            self.batch.clear();
            queue.poll_next(&mut Context::from_waker(&self.waker), &mut self.batch)
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
        let (queue, mut task) = (Outbound::new(1000), Task::new());
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

    #[test]
    fn a_queue_that_passes_its_bound_closes_its_socket_and_drops_what_waited() {
        let (queue, mut task) = (Outbound::new(200), Task::new());
        assert_eq!(push(&queue, "12345"), Enqueued::Queued);
        assert_eq!(push(&queue, "12345"), Enqueued::Overflowed);
        assert_eq!(push(&queue, "1"), Enqueued::Closed);
        let Poll::Ready(Next::Close(frame)) = task.next(&queue) else {
            panic!("the queue closes");
        };
        assert_eq!(
            (frame.code, &*frame.reason),
            (4008, "too_slow retry_after_ms=1000")
        );
    }

    #[test]
    fn one_message_may_wait_however_large_it_is() {
        let queue = Outbound::new(200);
        assert_eq!(push(&queue, &"x".repeat(300)), Enqueued::Queued);
        assert_eq!(push(&queue, "y"), Enqueued::Overflowed);
    }

    #[test]
    fn a_close_waits_for_what_is_queued_and_one_that_does_not_overtakes_it() {
        let (queue, mut task) = (Outbound::new(1000), Task::new());
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
        let (queue, task) = (Outbound::new(1000), Task::new());
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
        let (queue, mut task) = (Outbound::new(1000), Task::new());
        push(&queue, "later");
        queue.give_back(["first", "second"].map(Frame::text).into_iter());
        assert!(matches!(task.next(&queue), Poll::Ready(Next::Frames)));
        assert_eq!(task.texts(), ["first", "second", "later"]);
    }

    #[test]
    fn events_for_a_consumer_keep_their_place_among_frames() {
        let (queue, mut task) = (Outbound::new(1000), Task::new());
        push(&queue, "before");
        queue.push_event(&Arc::new(Event::default()));
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
}
