//! The input of a client that came while its consumer was at work. It waits for its turn, in order.

use std::collections::VecDeque;

use super::input::HeldInput;
use super::step::{ConnectionStep, Ending};
use crate::consumer::Message;

/// Memory of a message beside its bytes, in bytes: its place in the queue and in the allocator.
const PLACE: usize = 64;

/// The input of a client that came while its consumer was at work.
pub(super) struct ReadAhead {
    messages: VecDeque<Message>,
    /// The end of the input, behind the messages.
    ending: Option<Ending>,
    held: HeldInput,
}

impl ReadAhead {
    /// Makes one without input, whose bytes count in `held`.
    pub(super) fn new(held: HeldInput) -> Self {
        Self {
            messages: VecDeque::new(),
            ending: None,
            held,
        }
    }

    /// Adds a message, which is within the rate and no ping.
    pub(super) fn push(&mut self, message: Message) {
        self.held.set(self.bytes() + bytes_of(&message));
        self.messages.push_back(message);
    }

    /// Returns true if nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.ending.is_none()
    }

    /// Takes the end, if nothing is before it and it does not wait for an answer.
    pub(super) fn take_end(&mut self) -> Option<Ending> {
        let is_next = self.messages.is_empty();
        self.ending
            .take_if(|ending| is_next && !matches!(ending, Ending::Broken(_)))
    }

    /// Takes the next message, or the end behind the last one.
    pub(super) fn take(&mut self) -> Option<ConnectionStep> {
        match self.messages.pop_front() {
            Some(message) => {
                self.held.set(self.bytes() - bytes_of(&message));
                Some(ConnectionStep::Waited(message))
            }
            None => self.ending.take().map(ConnectionStep::End),
        }
    }

    /// Sets the end of the input.
    pub(super) fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// Returns true if nothing follows.
    pub(super) fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    /// Returns the memory of the messages, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.held.bytes()
    }
}

fn bytes_of(message: &Message) -> usize {
    let bytes = match message {
        Message::Text(text) => text.capacity(),
        Message::Binary(bytes) => bytes.capacity(),
    };
    PLACE + bytes
}
