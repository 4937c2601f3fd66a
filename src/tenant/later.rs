//! The messages of a tenant's control channel that ask or send. They are carried out in their order, beside the urgent ones: a send to
//! a user with thousands of sockets takes a while, and a revocation does not wait for it.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fleet::Reply;
use crate::fleet::message::Op;

/// The most messages that wait or are carried out.
const MOST: usize = 256;
/// The part of that which one with a long event takes, so that they hold a few MiB.
const LONG: u32 = 64;

/// A message that waits for its turn.
pub(super) struct LaterOrder {
    /// Its operation.
    pub(super) op: Op,
    /// The way of its answer.
    pub(super) answer: Reply,
    /// Its part of the room, up to its end.
    _room: OwnedSemaphorePermit,
}

/// The line of those messages.
pub(super) struct LaterOrders {
    line: UnboundedSender<LaterOrder>,
    room: Arc<Semaphore>,
}

impl LaterOrders {
    /// Makes an empty line, and its end where the messages are taken out.
    pub(super) fn new() -> (Self, UnboundedReceiver<LaterOrder>) {
        let (line, end) = unbounded_channel();
        let room = Arc::new(Semaphore::new(MOST));
        (Self { line, room }, end)
    }

    /// Returns true if no message waits or is carried out.
    pub(super) fn is_empty(&self) -> bool {
        self.room.available_permits() == MOST
    }

    /// Adds a message. Returns false if there is no room for it.
    pub(super) fn add(&self, op: Op, answer: Reply, is_long: bool) -> bool {
        let parts = if is_long { LONG } else { 1 };
        let Ok(room) = self.room.clone().try_acquire_many_owned(parts) else {
            return false;
        };
        let order = LaterOrder {
            op,
            answer,
            _room: room,
        };
        self.line.send(order).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::errands::tests::answer;
    use super::*;

    #[test]
    fn messages_beyond_the_room_are_refused_until_one_has_ended() {
        let (orders, mut line) = LaterOrders::new();
        let added = (0..2 * MOST).filter(|_| orders.add(Op::Count, answer(), false));
        assert_eq!(added.count(), MOST);
        // One that is carried out takes its room still.
        let order = line.try_recv().unwrap();
        assert!(!orders.add(Op::Count, answer(), false));
        drop(order);
        assert!(orders.add(Op::Count, answer(), false));
        assert!(!orders.is_empty());
    }

    #[test]
    fn long_messages_take_more_of_the_room() {
        let (orders, line) = LaterOrders::new();
        assert!(orders.is_empty());
        let added = (0..MOST).filter(|_| orders.add(Op::Count, answer(), true));
        assert_eq!(added.count(), 4);
        drop(line);
        assert!(orders.is_empty());
    }
}
