//! Reads a client's frames while its consumer is at work, so that its pings are answered and its close is seen meanwhile.
//!
//! Its messages wait for their turn. They take few bytes: behind [`MOST`] of them nothing is read.

use std::task::{Context as TaskContext, Poll, ready};

use super::step::{ConnectionStep, Ending};
use super::wire::WireState;
use crate::consumer::Message;
use crate::hub::Takes;

/// Bytes of a client's messages behind which nothing is read while its consumer is at work. The read that passes it may
/// bring one buffer more. So few that the sockets of a slow consumer are not what `server.max_queue_bytes` has to shed.
pub(super) const MOST: usize = 16 * 1024;

impl WireState {
    /// Writes while the consumer is at work, and reads what has room. Ready if the connection ends.
    ///
    /// An end of the input waits for the messages before it, but not for the one at work. An error of the client waits for that
    /// too, since its answer goes before the close.
    pub(super) fn poll_beside(&mut self, cx: &mut TaskContext<'_>) -> Poll<Ending> {
        loop {
            // Events stay in the queue.
            if let Poll::Ready(ConnectionStep::End(ending)) = self.poll_write(cx, Takes::Frames) {
                return Poll::Ready(ending);
            }
            if let Some(end) = self.take_end_of_input() {
                return Poll::Ready(end);
            }
            if self.is_behind() || !self.has_room_ahead() {
                self.stop_reading();
                return Poll::Pending;
            }
            self.resume_reading();
            match ready!(self.poll_read(cx, Takes::Frames)) {
                ConnectionStep::Message(message) => self.answer_or_keep(message),
                ConnectionStep::End(ending) if ending.is_of_client() => {
                    self.ahead().end(ending);
                }
                ConnectionStep::End(ending) => return Poll::Ready(ending),
                // Only what was read ahead has waited.
                ConnectionStep::Flush | ConnectionStep::Event(_) | ConnectionStep::Waited(_) => {}
            }
        }
    }

    /// Returns true if more may be read while the consumer is at work. Nothing is if the memory for clients is used up.
    fn has_room_ahead(&self) -> bool {
        let (bytes, has_ended) = match self.read_ahead() {
            Some(ahead) => (ahead.bytes(), ahead.has_ended()),
            None => (0, false),
        };
        let exhausted = self.budget().is_exhausted();
        !has_ended && !exhausted && bytes + self.decoder.memory() < MOST
    }

    /// Answers a ping of the page. Any other message waits for its turn. Over the rate the input ends: the close goes behind the
    /// answers to the messages that wait.
    fn answer_or_keep(&mut self, message: Message) {
        if let Err(close) = self.take_rate() {
            return self.ahead().end(Ending::Broken(close));
        }
        if !self.answer_page_ping(&message) {
            self.ahead().push(message);
        }
    }
}
