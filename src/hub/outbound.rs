//! The outbound queue of one socket, and the rule for slow consumers.
//!
//! Fan-out puts frames in and never waits; the connection's task takes them out in batches. `limits.send_queue`
//! bounds the queue in bytes. A socket that exceeds it is closed with 4008, and the queued frames are dropped.
//!
//! It replaces tokio's `mpsc`: an empty channel of `Bytes` takes 1,568 bytes, and its bound counts messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::close_code::{CloseFrame, CloseReason};
use crate::event::Event;
use crate::frame::Frame;

/// The most frames in one `writev`. Linux takes 1,024, but above 64 the gain per frame is too small to measure.
pub const BATCH: usize = 64;

/// Bytes counted for an item beside its content: its entry in the queue and the frame's own memory. Without them,
/// half a million empty pongs would fit into a megabyte.
const ITEM: usize = 96;

/// The time that a client should wait before it reconnects after 4008.
pub const TOO_SLOW_WAIT: Duration = Duration::from_secs(1);

/// An item of the queue.
#[derive(Debug)]
pub enum Item {
    /// Bytes for the wire, shared by all sockets that get the same event.
    Frame(Frame),
    /// An event that the connection's own consumer turns into frames.
    Event(Arc<Event>),
}

/// The outcome of adding an item to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// The item is in the queue.
    Queued,
    /// The queue was full, and the socket is being closed as too slow.
    Overflowed,
    /// The socket is closing and takes no more items.
    Closed,
}

/// The position of a close frame in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOrder {
    /// After all queued items.
    AfterQueued,
    /// At once; queued items are dropped.
    Now,
}

/// The next step of the connection's task.
#[derive(Debug)]
pub enum Next {
    /// Write the frames in the caller's batch.
    Frames,
    /// Pass this event to the consumer.
    Event(Arc<Event>),
    /// Send the close frame; no other item is left.
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
    /// True if the queued items were dropped, by a [`CloseOrder::Now`], an overflow or the end of the task.
    dropped: bool,
    /// Bytes of a frame that the task holds, because the socket took only a part of it.
    in_hand: usize,
    /// True after the task has taken the close frame or has ended.
    finished: bool,
    waker: Option<Waker>,
    /// True if the socket takes no bytes, so that only a close needs to wake the task.
    blocked: bool,
}

impl Outbound {
    /// Makes an empty queue for at most `limit` bytes; 0 means no limit.
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

    /// Changes the bound; 0 means no limit. Items that are queued already stay.
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
        // An empty queue takes one item of any size: the bound is against a backlog, not against large messages.
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
        // A task whose socket takes no bytes could not send the item, so only the close wakes it.
        let wakes = !state.blocked || result == Enqueued::Overflowed;
        let waker = if wakes { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Asks the connection's task to close the socket. Returns false if an earlier close stays in force.
    ///
    /// The first close decides the code, with one exception: a [`CloseOrder::Now`] replaces a close that still waits
    /// for queued items.
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

    /// Takes the next items: up to [`BATCH`] frames into `batch`, or one event, or the close frame.
    ///
    /// `Pending` registers the task, which is woken once when an item comes.
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
            // Frees the memory of a burst: an idle socket owns no queue.
            state.queue = VecDeque::new();
        }
        state.blocked = false;
        state.register(cx);
        Poll::Pending
    }

    /// Puts frames that the socket did not take back to the front of the queue, in order.
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

    /// Waits for a close and returns a copy of its frame; the close stays in the queue.
    ///
    /// For a task whose socket takes no bytes.
    pub fn poll_closing(&self, cx: &mut Context<'_>) -> Poll<CloseFrame> {
        let mut state = self.state.lock();
        if let Some(closing) = &state.closing {
            return Poll::Ready(CloseFrame::clone(closing));
        }
        state.blocked = true;
        state.register(cx);
        Poll::Pending
    }

    /// Ends the queue with its task: drops the queued items and takes no more.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        state.drop_all();
        state.finished = true;
        state.waker = None;
    }

    /// Returns the queued bytes, including those of a frame that is partly sent.
    pub fn queued_bytes(&self) -> usize {
        let state = self.state.lock();
        state.bytes + state.in_hand
    }

    /// Returns true if a close was asked for or is done.
    pub fn is_closing(&self) -> bool {
        let state = self.state.lock();
        state.closing.is_some() || state.finished
    }

    /// Returns the gateway's reason for a close that is not sent yet.
    pub fn closing_cause(&self) -> Option<CloseReason> {
        self.state.lock().closing.as_ref()?.cause
    }

    /// Sets the bytes of the frame that the task holds because the socket took only a part of it; 0 if there is none.
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

    #[test]
    fn a_queue_that_passes_its_bound_closes_its_socket_and_drops_what_waited() {
        let (queue, mut task) = (Outbound::new(200), FakeTask::new());
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
