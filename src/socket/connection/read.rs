//! Reads a connection's stream and decodes it to the messages of its client.

use std::cell::RefCell;
use std::io;
use std::task::{Context as TaskContext, Poll, ready};

use tokio::net::TcpStream;

use super::step::{ConnectionStep, Ending};
use super::wire::{Backlog, WireState};
use crate::close_code::CloseReason;
use crate::consumer;
use crate::frame::ClientMessage;
use crate::hub::Takes;
use crate::metrics::FrameKind;

/// The most bytes of one read. Each thread of the runtime has one such buffer.
const SCRATCH: usize = 64 * 1024;

/// Pongs after which a client that sends pings without pause gives way to all other sockets: about 15 µs. Sixteen such clients
/// took a millisecond between two steps of an event when it was 64.
const PONGS: usize = 16;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Reads bytes and drops them.
pub(super) fn discard(stream: &TcpStream) -> io::Result<usize> {
    READ.with_borrow_mut(|scratch| stream.try_read(scratch))
}

impl WireState {
    /// Reads and decodes until the loop has a step, or the stream has no more bytes. Writes between, as `takes` says. A client that sends
    /// without pause gives way to all other sockets after each read and each batch of pongs.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut TaskContext<'_>,
        takes: Takes,
    ) -> Poll<ConnectionStep> {
        loop {
            let step = match self.take_backlog() {
                Some(backlog) => self.decode_backlog(backlog),
                None if ready!(self.outbound().poll_readable(cx)).is_err() => {
                    Some(ConnectionStep::End(Ending::Gone))
                }
                None => self.read(),
            };
            let gives_way = match step {
                None => false,
                Some(ConnectionStep::Flush) => true,
                Some(step) => return Poll::Ready(step),
            };
            // Pongs are sent before more is read, so that pings fill no queue of a client that reads.
            if let Poll::Ready(step) = self.poll_write(cx, takes) {
                return Poll::Ready(step);
            }
            if self.is_behind() {
                self.stop_reading();
                return Poll::Pending;
            }
            if gives_way {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Reads up to [`SCRATCH`] bytes and decodes them.
    fn read(&mut self) -> Option<ConnectionStep> {
        READ.with_borrow_mut(|scratch| match self.try_read(scratch) {
            Ok(0) => Some(ConnectionStep::End(Ending::Gone)),
            Ok(count) => {
                let metrics = self.registration.metrics();
                metrics.received_bytes.increment(count as u64);
                let mut input = &scratch[..count];
                let step = self.decode(&mut input);
                self.keep_input(input);
                let is_full = count == SCRATCH;
                step.or_else(|| is_full.then_some(ConnectionStep::Flush))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(ConnectionStep::End(Ending::Gone)),
        })
    }

    fn try_read(&self, scratch: &mut [u8]) -> io::Result<usize> {
        let outbound = self.outbound();
        outbound.on_stream(|stream| stream.try_read(scratch))
    }

    /// Decodes the backlog in place, so that a burst of small messages is copied once and not once per message.
    fn decode_backlog(&mut self, mut backlog: Backlog) -> Option<ConnectionStep> {
        let mut input = &backlog.bytes[backlog.decoded..];
        let step = self.decode(&mut input);
        let left = input.len();
        backlog.decoded = backlog.bytes.len() - left;
        self.set_backlog((left > 0).then_some(backlog));
        step
    }

    /// Decodes up to the first step of the loop, and leaves the bytes after it in `input`.
    fn decode(&mut self, input: &mut &[u8]) -> Option<ConnectionStep> {
        let mut pongs = 0;
        let limits = self.registration.relay().limits();
        self.decoder.set_max_message(limits.message_size);
        loop {
            let message = match self.decoder.push(input) {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.keep_unfinished();
                    return None;
                }
                Err(error) => {
                    if error.0 == CloseReason::MessageTooBig {
                        let metrics = self.registration.metrics();
                        metrics.rate_limited("message_size");
                    }
                    return Some(ConnectionStep::End(Ending::Broken(error.0.frame())));
                }
            };
            let is_control = matches!(message, ClientMessage::Ping(_) | ClientMessage::Pong(_));
            if is_control && let Err(close) = self.take_rate_of_control() {
                return Some(ConnectionStep::End(Ending::Broken(close)));
            }
            let registration = &self.registration;
            let metrics = registration.metrics();
            match message {
                ClientMessage::Ping(payload) => {
                    metrics.frame_received(FrameKind::Ping);
                    let pong = registration.relay().pong(&payload);
                    self.outbound().push_frame(&pong);
                    pongs += 1;
                    if pongs == PONGS {
                        return Some(ConnectionStep::Flush);
                    }
                }
                ClientMessage::Pong(payload) => {
                    metrics.frame_received(FrameKind::Pong);
                    let member = registration.member();
                    self.common.heartbeat.ponged(member, &payload);
                }
                ClientMessage::Close(frame) => {
                    metrics.frame_received(FrameKind::Close);
                    return Some(ConnectionStep::End(Ending::Closed(frame)));
                }
                ClientMessage::Text(text) => {
                    self.unfinished = None;
                    let metrics = self.registration.metrics();
                    metrics.frame_received(FrameKind::Text);
                    return Some(ConnectionStep::Message(consumer::Message::Text(text)));
                }
                ClientMessage::Binary(bytes) => {
                    self.unfinished = None;
                    let metrics = self.registration.metrics();
                    metrics.frame_received(FrameKind::Binary);
                    return Some(ConnectionStep::Message(consumer::Message::Binary(bytes)));
                }
            }
        }
    }
}
