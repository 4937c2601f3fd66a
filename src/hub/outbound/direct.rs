//! Frames that a fan-out writes itself, because the tasks of their sockets would wait behind other tenants' work.
//!
//! It queues what one socket gets, and writes that if the task of the socket had nothing left to write: under the lock of the queue,
//! so that frames stay in order. What the stream does not take is left to the task.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;

use super::{ITEM, Item, Marks, Outbound, State, wake};
use crate::frame::Frame;

/// The most frames that are written so: of a burst the tasks write more at a time.
const FRAMES: usize = 8;
/// The most bytes: about what the buffer of a stream takes at once.
const BYTES: usize = 64 * 1024;

thread_local! {
    /// True while this thread queues frames that it writes itself afterwards.
    static PASSES: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if the task of a socket need not be woken for what is queued now.
pub(super) fn passes() -> bool {
    PASSES.get()
}

/// The frames that a fan-out has written.
#[derive(Debug, Default)]
#[must_use = "nothing else counts them"]
pub struct PassedFrames {
    /// Their number.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The times since their events were read.
    pub lags: Vec<Duration>,
}

impl PassedFrames {
    fn add(&mut self, frame: &Frame) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.lags.extend(frame.read_at().map(|at| at.elapsed()));
    }
}

/// A frame that the stream took in part.
#[derive(Debug)]
pub struct BegunFrame {
    /// The frame.
    pub frame: Frame,
    /// The number of bytes that the stream took.
    pub sent: usize,
}

fn not_connected<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotConnected.into())
}

impl Outbound {
    /// Gives the queue the stream of its socket, after the 101.
    pub fn open(&self, stream: TcpStream) {
        self.state.lock().stream = Some(Box::new(stream));
    }

    /// Takes the stream: no frame can be written any more but by the caller.
    pub fn take_stream(&self) -> Option<Box<TcpStream>> {
        self.state.lock().stream.take()
    }

    /// Leaves the stream to the socket's task alone. Returns the frame that a fan-out has written in part.
    pub fn end_direct(&self) -> Option<BegunFrame> {
        let mut state = self.state.lock();
        state.marks.remove(Marks::RESTS);
        state.take_begun()
    }

    /// Returns true if the task has written all that it took, and waits for more.
    #[cfg(test)]
    pub fn rests(&self) -> bool {
        self.state.lock().is(Marks::RESTS)
    }

    /// Reads or writes on the stream. Only the socket's task may call it; the queue takes frames meanwhile.
    ///
    /// # Errors
    /// Those of `act`, and [`io::ErrorKind::NotConnected`] without a stream.
    pub fn on_stream<T>(&self, act: impl FnOnce(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        self.with_stream(act).unwrap_or_else(not_connected)
    }

    /// Waits until the stream has bytes.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.with_stream(|stream| stream.poll_read_ready(cx));
        ready.unwrap_or_else(|| Poll::Ready(not_connected()))
    }

    /// Waits until the stream takes bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.with_stream(|stream| stream.poll_write_ready(cx));
        ready.unwrap_or_else(|| Poll::Ready(not_connected()))
    }

    /// Calls `act` with the stream, without the lock of the queue.
    fn with_stream<T>(&self, act: impl FnOnce(&TcpStream) -> T) -> Option<T> {
        let stream = self.state.lock().stream.take()?;
        let result = act(&stream);
        self.state.lock().stream = Some(stream);
        Some(result)
    }

    /// Calls `push`, which queues frames for this socket. Writes them now if its task has nothing else to write, and adds them to
    /// `written`.
    pub fn pass(&self, written: &mut PassedFrames, push: impl FnOnce()) {
        /// Ends it also after a panic.
        struct End;

        impl Drop for End {
            fn drop(&mut self) {
                PASSES.set(false);
            }
        }

        PASSES.set(true);
        let end = End;
        push();
        drop(end);
        let mut state = self.state.lock();
        // Otherwise the task was woken where that was due.
        if state.is(Marks::RESTS) && !state.queue.is_empty() {
            state.write(written);
            if !state.queue.is_empty() || state.in_hand() > 0 {
                wake(state);
            }
        }
    }
}

impl State {
    /// Writes what is queued, unless that is the work of the task.
    fn write(&mut self, written: &mut PassedFrames) {
        let is_rare = self.rare.as_ref().is_some_and(|rare| rare.stops_direct());
        let is_large = self.queue.len() > FRAMES || self.bytes > BYTES;
        let is_event = matches!(self.queue.front(), Some(Item::Event(_)));
        if is_rare || is_large || is_event || self.is(Marks::PING) {
            return;
        }
        let Some(stream) = self.stream.take() else {
            return;
        };
        let mut frames = Vec::with_capacity(self.queue.len());
        while let Some(frame) = self.pop_frame() {
            frames.push(frame);
        }
        let mut slices = [IoSlice::new(&[]); FRAMES];
        for (slice, frame) in slices.iter_mut().zip(&frames) {
            *slice = IoSlice::new(frame.as_bytes());
        }
        // An error shows once more to the task, which ends the socket.
        let sent = stream.try_write_vectored(&slices[..frames.len()]);
        self.stream = Some(stream);
        self.sent(sent.unwrap_or(0), frames, written);
    }

    /// Takes the first item if it is a frame.
    pub(super) fn pop_frame(&mut self) -> Option<Frame> {
        let Some(Item::Frame(_)) = self.queue.front() else {
            return None;
        };
        let Some(Item::Frame(frame)) = self.queue.pop_front() else {
            return None;
        };
        self.bytes -= ITEM + frame.len();
        Some(frame)
    }

    /// Notes that the stream took so many bytes of the frames. The others go back to the queue.
    fn sent(&mut self, mut bytes: usize, frames: Vec<Frame>, written: &mut PassedFrames) {
        if bytes > 0 {
            self.marks.insert(Marks::MOVED);
        }
        let mut frames = frames.into_iter().peekable();
        while let Some(frame) = frames.next_if(|frame| frame.len() <= bytes) {
            bytes -= frame.len();
            written.add(&frame);
        }
        if bytes > 0
            && let Some(frame) = frames.next()
        {
            let rare = self.rare.get_or_insert_default();
            rare.in_hand = frame.len();
            rare.begun = Some(BegunFrame { frame, sent: bytes });
        }
        self.put_back(frames);
    }

    pub(super) fn take_begun(&mut self) -> Option<BegunFrame> {
        let begun = self.rare.as_mut()?.begun.take()?;
        self.rest();
        Some(begun)
    }
}
