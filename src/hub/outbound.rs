//! The outbound queue of one socket.
//!
//! Fan-out puts frames in and never waits; the connection's task takes them out in batches, or a quiet tenant's fan-out itself
//! ([`direct`]). A socket is behind while it takes no bytes and more than `limits.send_queue` waits for it. The queue itself
//! closes no socket: the task judges by the progress of a socket that is behind, and `server.max_queue_bytes` bounds the memory
//! of all queues.
//!
//! It replaces tokio's `mpsc`: an empty channel of `Bytes` takes 1,568 bytes, and its bound counts messages.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bitflags::bitflags;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpStream;

use super::{WaitingEvent, wakes};
use crate::close_code::{CloseFrame, CloseReason};
use crate::frame::Frame;

pub use direct::{BegunFrame, PassedFrames};
pub use held::{HoldId, Released, ReplayEnd, ReplayRoom};
use queue::ItemQueue;

mod direct;
mod held;
mod input;
mod queue;

/// The most frames in one `writev`. Linux takes 1,024, but above 64 the gain per frame is too small to measure.
pub const BATCH: usize = 64;

/// Bytes counted for an item beside its content: its entry in the queue and the frame's own memory. Without them,
/// half a million empty pongs would fit into a megabyte.
const ITEM: usize = 96;

/// Bytes in the queue of a socket that takes bytes, above which fan-out lets the task write before it adds more. About
/// as many fit into one `writev` of [`BATCH`] frames of 1 KiB.
const CROWD: usize = 64 * 1024;

/// The oldest event that may wait for a consumer while more than `limits.send_queue` waits: as for frames, a client would
/// see events that are a minute old.
const OLDEST: Duration = Duration::from_secs(60);

/// The time that a client should wait before it reconnects after 4008.
pub const TOO_SLOW_WAIT: Duration = Duration::from_secs(1);

/// An item of the queue.
#[derive(Debug)]
pub enum Item {
    /// Bytes for the wire, shared by all sockets that get the same event.
    Frame(Frame),
    /// An event that the connection's own consumer turns into frames.
    Event(Arc<WaitingEvent>),
}

/// The outcome of adding an item to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// The item is in the queue.
    Queued,
    /// The item is in the queue, and the task should write before more comes.
    Crowded,
    /// The socket is closing and takes no more items.
    Closed,
    /// The item has closed the socket, whose consumer is too far behind.
    Late,
}

impl Enqueued {
    /// Returns true if the item is in the queue.
    pub fn is_queued(self) -> bool {
        matches!(self, Self::Queued | Self::Crowded)
    }
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
    /// Write the rest of this frame, before anything else.
    Rest(BegunFrame),
    /// Pass this event to the consumer.
    Event(Arc<WaitingEvent>),
    /// Send the close frame; no other item is left.
    Close(Box<CloseFrame>),
}

/// The items that the connection's task can take now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Frames and events.
    All,
    /// Frames only, because the consumer is at work. An event holds back the frames behind it, but a closing socket
    /// drops its events.
    Frames,
}

/// The state of a socket that takes no bytes.
#[derive(Debug)]
pub enum Blocked {
    /// It is to be closed with this frame, which stays in the queue.
    Closing(CloseFrame),
    /// More than `limits.send_queue` waits for it.
    Behind,
    /// Its queue is within the bound.
    Waits,
}

/// The queue of one socket, and its stream.
#[derive(Debug)]
pub struct Outbound {
    state: Mutex<State>,
}

/// Each open socket has one, so it is small: what few sockets have at a time is boxed, and lengths take four bytes.
#[derive(Debug, Default)]
struct State {
    queue: ItemQueue,
    bytes: usize,
    /// Bytes; [`NO_LIMIT`] means no limit.
    limit: u32,
    waker: Option<Waker>,
    /// `None` in ordinary life.
    rare: Option<Box<Rare>>,
    /// The stream of an open socket, until its last frame. It is away while the task reads or writes.
    stream: Option<Box<TcpStream>>,
    marks: Marks,
    /// The look at the socket that precedes a close for a missing pong.
    look: Look,
}

bitflags! {
    /// Properties of a queue. A `bool` for each would take eight bytes.
    #[derive(Clone, Copy, Debug, Default)]
    struct Marks: u8 {
        /// The queued items were dropped, by a [`CloseOrder::Now`] or the end of the task.
        const DROPPED = 1;
        /// The task has taken the close frame or has ended.
        const FINISHED = 1 << 1;
        /// The socket takes no bytes, so that only a close or a queue over its bound needs to wake the task.
        const BLOCKED = 1 << 2;
        /// The consumer of the socket is at work.
        const CONSUMING = 1 << 3;
        /// A ping is to be sent before all queued items.
        const PING = 1 << 4;
        /// The socket took bytes since the last ping was asked for.
        const MOVED = 1 << 5;
        /// The task has written all that it took, and waits for more.
        const RESTS = 1 << 6;
    }
}

/// The parts of a queue whose socket closes, comes back to groups with a history, or has input that waits.
#[derive(Debug, Default)]
struct Rare {
    closing: Option<CloseFrame>,
    /// The frames that wait behind replays.
    held: Option<held::Held>,
    /// Bytes of the client's input that wait for the socket's task or its consumer.
    input: usize,
    /// Bytes of the frame that the stream took only a part of.
    in_hand: usize,
    /// The frame that a fan-out has written in part.
    begun: Option<BegunFrame>,
}

impl Rare {
    /// Returns true if frames have to wait for the socket's task.
    fn stops_direct(&self) -> bool {
        self.closing.is_some() || self.begun.is_some()
    }
}

/// No limit for this socket alone; `server.max_queue_bytes` still holds. A limit of 4 GiB or more counts as none.
const NO_LIMIT: u32 = u32::MAX;

/// A look of the task at its socket, on behalf of the timer wheel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    #[default]
    None,
    Asked,
    Done,
}

impl Outbound {
    /// Makes an empty queue for at most `limit` bytes; 0 means no limit.
    pub fn new(limit: u64) -> Self {
        let state = State {
            limit: in_bytes(limit),
            ..State::default()
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
    ///
    /// If the consumer is behind, with more than `limits.send_queue` waiting and the oldest event over a minute old, the
    /// socket is closed as too slow.
    pub fn push_event(&self, event: &Arc<WaitingEvent>) -> Enqueued {
        if self.is_consumer_late() {
            let frame = CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT);
            if self.close(frame, CloseOrder::Now) {
                return Enqueued::Late;
            }
        }
        self.push(ITEM + event.memory(), || Item::Event(event.clone()))
    }

    /// Returns true if the consumer is too slow for its events. Frames before them are judged by the connection's task.
    fn is_consumer_late(&self) -> bool {
        let state = self.state.lock();
        let oldest = match state.queue.front() {
            Some(Item::Event(oldest)) if state.is_behind() => oldest,
            _ => return false,
        };
        !state.is(Marks::BLOCKED) && oldest.age() >= OLDEST
    }

    fn push(&self, size: usize, item: impl FnOnce() -> Item) -> Enqueued {
        push_to(self.state.lock(), size, item)
    }

    /// Asks the task for a ping, which leaves before all queued items.
    pub fn ask_ping(&self) {
        let mut state = self.state.lock();
        state.marks.insert(Marks::PING);
        state.marks.remove(Marks::MOVED);
        state.look = Look::None;
        if !state.is(Marks::BLOCKED) {
            wake(state);
        }
    }

    /// Returns true if the socket took bytes since the last call, or since a ping was asked for.
    pub fn take_moved(&self) -> bool {
        self.state.lock().take(Marks::MOVED)
    }

    /// Asks the task to look at its socket, unless that was asked for since the last ping. Returns true once the task has
    /// run: what the client had sent by then is read.
    pub fn has_looked(&self) -> bool {
        let mut state = self.state.lock();
        if state.look != Look::None {
            return state.look == Look::Done;
        }
        state.look = Look::Asked;
        wake(state);
        false
    }

    /// Notes that the socket took a part of the frame that the task holds.
    pub fn set_moved(&self) {
        self.state.lock().marks.insert(Marks::MOVED);
    }

    /// Returns true while the task may read nothing from its client: the socket is behind, or its consumer is at work.
    pub fn reads_nothing(&self) -> bool {
        let state = self.state.lock();
        state.is(Marks::CONSUMING) || (state.is(Marks::BLOCKED) && state.is_behind())
    }

    /// Asks the connection's task to close the socket. Returns false if an earlier close stays in force.
    ///
    /// The first close decides the code, with one exception: a [`CloseOrder::Now`] replaces a close that still waits
    /// for queued items.
    pub fn close(&self, frame: CloseFrame, order: CloseOrder) -> bool {
        let mut state = self.state.lock();
        if state.is(Marks::FINISHED)
            || (state.closing().is_some()
                && (order == CloseOrder::AfterQueued || state.queue.is_empty()))
        {
            return false;
        }
        if order == CloseOrder::Now {
            state.drop_all();
        }
        state.rare.get_or_insert_default().closing = Some(frame);
        wake(state);
        true
    }

    /// Takes the next items: up to [`BATCH`] frames into `batch`, or one event, or the close frame. If a ping was asked
    /// for, `ping` goes first.
    ///
    /// `Pending` registers the task, which is woken once when an item comes.
    pub fn poll_next(
        &self,
        cx: &mut Context<'_>,
        takes: Takes,
        ping: &Frame,
        batch: &mut Vec<Frame>,
    ) -> Poll<Next> {
        let mut state = self.state.lock();
        state.runs(takes);
        if let Some(begun) = state.take_begun() {
            return Poll::Ready(Next::Rest(begun));
        }
        if state.take(Marks::PING) {
            batch.push(ping.clone());
        }
        while batch.len() < BATCH {
            if let Some(frame) = state.pop_frame() {
                batch.push(frame);
                continue;
            }
            match state.queue.front() {
                Some(Item::Event(_)) if takes == Takes::Frames && state.closing().is_some() => {}
                Some(Item::Event(_)) if takes == Takes::All && batch.is_empty() => {}
                _ => break,
            }
            if let Some(Item::Event(event)) = state.queue.pop_front() {
                state.bytes -= ITEM + event.memory();
                if takes == Takes::All {
                    return Poll::Ready(Next::Event(event));
                }
            }
        }
        if !batch.is_empty() {
            state.marks.insert(Marks::MOVED);
            return Poll::Ready(Next::Frames);
        }
        if let Some(close) = state.rare.as_mut().and_then(|rare| rare.closing.take()) {
            state.marks.insert(Marks::FINISHED);
            return Poll::Ready(Next::Close(Box::new(close)));
        }
        // Frees the memory of a burst: an idle socket owns no queue.
        state.queue.rest();
        state.marks.remove(Marks::BLOCKED);
        state.marks.insert(Marks::RESTS);
        state.register(cx);
        Poll::Pending
    }

    /// Puts frames that the socket did not take back to the front of the queue, in order.
    pub fn give_back(&self, unsent: impl DoubleEndedIterator<Item = Frame>) {
        let mut state = self.state.lock();
        if state.is(Marks::DROPPED) {
            return;
        }
        state.put_back(unsent);
    }

    /// Waits for a close and returns a copy of its frame; the close stays in the queue.
    ///
    /// For a handshake, whose socket takes no bytes yet.
    pub fn poll_closing(&self, cx: &mut Context<'_>) -> Poll<CloseFrame> {
        match self.blocked(cx, Takes::All) {
            Blocked::Closing(frame) => Poll::Ready(frame),
            Blocked::Behind | Blocked::Waits => Poll::Pending,
        }
    }

    /// Notes that the socket takes no bytes, and returns its state. Registers the task unless the socket closes: it is
    /// woken when a close is asked for or the queue passes its bound.
    pub fn blocked(&self, cx: &mut Context<'_>, takes: Takes) -> Blocked {
        let mut state = self.state.lock();
        if let Some(closing) = state.closing() {
            return Blocked::Closing(closing.clone());
        }
        state.runs(takes);
        state.marks.insert(Marks::BLOCKED);
        state.register(cx);
        if state.is_behind() {
            Blocked::Behind
        } else {
            Blocked::Waits
        }
    }

    /// Ends the queue with its task: drops the queued items and the stream, and takes no more.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        state.drop_all();
        state.marks.insert(Marks::FINISHED);
        state.waker = None;
        let ended = (state.take_begun(), state.stream.take());
        drop(state);
        drop(ended);
    }

    /// Returns true once the queue takes nothing more and no close is left to send.
    pub fn is_finished(&self) -> bool {
        self.state.lock().is(Marks::FINISHED)
    }

    /// Returns the queued bytes, including those of a frame that is partly sent.
    pub fn queued_bytes(&self) -> usize {
        let state = self.state.lock();
        state.bytes + state.in_hand()
    }

    /// Returns true if a close was asked for or is done.
    pub fn is_closing(&self) -> bool {
        let state = self.state.lock();
        state.takes_nothing()
    }

    /// Returns the gateway's reason for a close that is not sent yet.
    pub fn closing_cause(&self) -> Option<CloseReason> {
        self.state.lock().closing()?.cause
    }

    /// Sets the bytes of the frame that the task holds because the socket took only a part of it; 0 if the socket has
    /// taken all of it.
    pub fn set_in_hand(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.set_in_hand(bytes);
        if bytes == 0 {
            state.marks.insert(Marks::MOVED);
        }
    }
}

/// Adds an item, and wakes the task.
fn push_to(mut state: MutexGuard<'_, State>, size: usize, item: impl FnOnce() -> Item) -> Enqueued {
    if state.takes_nothing() {
        return Enqueued::Closed;
    }
    let was_behind = state.is_behind();
    state.queue.push_back(item());
    state.bytes += size;
    // A task whose socket takes no bytes could not send the item. It is woken once to watch the socket's progress.
    let wakes = !state.is(Marks::BLOCKED) || (state.is_behind() && !was_behind);
    let crowded = !state.is(Marks::BLOCKED) && state.bytes > CROWD;
    let is_passed = state.is(Marks::RESTS) && direct::passes();
    if wakes && !is_passed {
        wake(state);
    }
    if crowded {
        Enqueued::Crowded
    } else {
        Enqueued::Queued
    }
}

/// Wakes the task, outside of the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        wakes::wake(waker);
    }
}

fn in_bytes(limit: u64) -> u32 {
    match limit {
        0 => NO_LIMIT,
        limit => u32::try_from(limit).unwrap_or(NO_LIMIT),
    }
}

impl State {
    fn register(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Notes that the task runs.
    fn runs(&mut self, takes: Takes) {
        self.marks.set(Marks::CONSUMING, takes == Takes::Frames);
        self.marks.remove(Marks::RESTS);
        if self.look == Look::Asked {
            self.look = Look::Done;
        }
    }

    fn is(&self, mark: Marks) -> bool {
        self.marks.contains(mark)
    }

    /// Removes a mark. Returns true if it was there.
    fn take(&mut self, mark: Marks) -> bool {
        let was = self.is(mark);
        self.marks.remove(mark);
        was
    }

    /// Returns true if a close was asked for or is done.
    fn takes_nothing(&self) -> bool {
        self.closing().is_some() || self.is(Marks::FINISHED)
    }

    /// Puts frames back to the front of the queue, in order.
    fn put_back(&mut self, frames: impl DoubleEndedIterator<Item = Frame>) {
        for frame in frames.rev() {
            self.bytes += ITEM + frame.len();
            self.queue.push_front(Item::Frame(frame));
        }
    }

    fn in_hand(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.in_hand)
    }

    fn set_in_hand(&mut self, bytes: usize) {
        if bytes != self.in_hand() {
            self.rare.get_or_insert_default().in_hand = bytes;
            self.rest();
        }
    }

    fn closing(&self) -> Option<&CloseFrame> {
        self.rare.as_ref()?.closing.as_ref()
    }

    fn held(&self) -> Option<&held::Held> {
        self.rare.as_ref()?.held.as_ref()
    }

    /// Returns true if more waits than `limits.send_queue`. One item may be of any size: the bound is against a backlog,
    /// not against large messages.
    fn is_behind(&self) -> bool {
        let held = || self.held().map_or(0, |held| held.len());
        let is_over = self.limit != NO_LIMIT && self.bytes > self.limit as usize;
        is_over && self.queue.len() + held() > 1
    }

    fn drop_all(&mut self) {
        self.marks.insert(Marks::DROPPED);
        self.queue = ItemQueue::Empty;
        self.end_holds();
        self.bytes = 0;
    }

    /// Forgets the frames that wait behind replays.
    fn end_holds(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.held = None;
        }
        self.rest();
    }
}

#[cfg(test)]
mod tests;
