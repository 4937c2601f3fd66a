//! The places of one listener's connections, and which of them gives up its place when all are taken.
//!
//! Connections that wait stand in one of two lines: those that have never sent a byte, and those that have. The oldest of
//! the longer line goes, so that a flood of one kind keeps out no other client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::{AbortHandle, AbortRegistration};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ages::{AgeList, AgeTicket};

/// The places of a listener.
pub(super) struct Seats {
    most: usize,
    taken: Mutex<TakenSeats>,
    /// Told when a place may have become free.
    changed: Notify,
}

struct TakenSeats {
    count: usize,
    /// The connections whose clients have sent nothing.
    silent: AgeList<AbortHandle>,
    /// The other connections that wait for their clients: for a request, a body, or the reading of an answer.
    waiting: AgeList<AbortHandle>,
}

/// A line of [`TakenSeats`].
#[derive(Clone, Copy)]
enum SeatLine {
    Silent,
    Waiting,
}

impl TakenSeats {
    fn of_mut(&mut self, line: SeatLine) -> &mut AgeList<AbortHandle> {
        match line {
            SeatLine::Silent => &mut self.silent,
            SeatLine::Waiting => &mut self.waiting,
        }
    }

    /// Returns the longer line; silence is worth less than a request.
    fn longer(&self) -> SeatLine {
        if self.waiting.len() > self.silent.len() {
            SeatLine::Waiting
        } else {
            SeatLine::Silent
        }
    }
}

/// The place of one connection; its drop frees it.
pub(super) struct Seat {
    seats: Arc<Seats>,
    /// Ends the connection.
    handle: AbortHandle,
    /// Its entry among those that wait; `None` while it works on a request.
    ticket: Mutex<Option<(SeatLine, AgeTicket)>>,
}

/// Work on one request, up to the last byte of its answer. Afterwards the connection waits for its client again.
pub(super) struct Working(Arc<Seat>);

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: Mutex::new(TakenSeats {
                count: 0,
                silent: AgeList::default(),
                waiting: AgeList::default(),
            }),
            changed: Notify::new(),
        })
    }

    /// Returns once a place is free; ends the longest wait for that. It stays free for a single caller only.
    pub(super) async fn free(&self) {
        while self.taken.lock().count >= self.most {
            self.end_longest_wait();
            // The connection's task frees the place. Without one that waits, the next that ends its work is the one.
            self.changed.notified().await;
        }
    }

    /// Ends the connection that has waited longest for its client, in the longer line. Returns false if none waits.
    pub(super) fn end_longest_wait(&self) -> bool {
        let longest = {
            let mut taken = self.taken.lock();
            let line = taken.longer();
            taken.of_mut(line).pop_oldest()
        };
        longest.inspect(AbortHandle::abort).is_some()
    }

    /// Takes a place for a new connection, whose client has sent nothing.
    pub(super) fn take(self: &Arc<Self>) -> (Arc<Seat>, AbortRegistration) {
        let (handle, registration) = AbortHandle::new_pair();
        self.taken.lock().count += 1;
        let seat = Arc::new(Seat {
            seats: self.clone(),
            handle,
            ticket: Mutex::new(None),
        });
        seat.waits_in(SeatLine::Silent);
        (seat, registration)
    }
}

impl Seat {
    /// Notes that the connection works on a request.
    pub(super) fn works(self: &Arc<Self>) -> Working {
        self.stops_waiting();
        Working(self.clone())
    }

    /// Notes that the client has sent a byte. The connection waits for the rest of a request.
    pub(super) fn has_begun(&self) {
        self.stops_waiting();
        self.waits();
    }

    fn waits(&self) {
        self.waits_in(SeatLine::Waiting);
    }

    fn waits_in(&self, line: SeatLine) {
        let mut ticket = self.ticket.lock();
        if ticket.is_none() {
            let mut taken = self.seats.taken.lock();
            *ticket = Some((line, taken.of_mut(line).push(self.handle.clone())));
            self.seats.changed.notify_one();
        }
    }

    fn stops_waiting(&self) {
        if let Some((line, ticket)) = self.ticket.lock().take() {
            let handle = self.seats.taken.lock().of_mut(line).take(ticket);
            drop(handle);
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.waits();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stops_waiting();
        self.seats.taken.lock().count -= 1;
        self.seats.changed.notify_one();
    }
}

/// The body of a request. While it does not come, its connection counts as one that waits.
pub(super) struct WatchedBody {
    body: Incoming,
    seat: Arc<Seat>,
}

impl WatchedBody {
    pub(super) fn new(body: Incoming, seat: Arc<Seat>) -> Self {
        Self { body, seat }
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() {
            self.seat.waits();
        }
        let frame = ready!(frame);
        self.seat.stops_waiting();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. Once it is handed over, its connection waits for the client to take it.
pub(super) struct AnswerBody {
    body: axum::body::Body,
    _working: Working,
}

impl AnswerBody {
    pub(super) fn new(body: axum::body::Body, working: Working) -> Self {
        Self {
            body,
            _working: working,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ended(registration: &AbortRegistration) -> bool {
        registration.handle().is_aborted()
    }

    #[tokio::test]
    async fn the_longest_wait_gives_its_place_and_work_does_not() {
        let seats = Seats::new(3);
        let (works, works_ends) = seats.take();
        let working = works.works();
        let (older, older_ends) = seats.take();
        let (_newer, newer_ends) = seats.take();
        assert!(seats.end_longest_wait());
        assert!(is_ended(&older_ends) && !is_ended(&newer_ends));
        drop(older);
        seats.free().await;
        drop(working);
        assert!(seats.end_longest_wait() && is_ended(&newer_ends));
        assert!(seats.end_longest_wait() && is_ended(&works_ends));
        assert!(!seats.end_longest_wait());
    }

    /// Before, a silent connection of a flood outlived each client that had asked before it came.
    #[test]
    fn the_longer_line_gives_way() {
        let seats = Seats::new(8);
        let flood: Vec<_> = (0..3).map(|_| seats.take()).collect();
        let (asked, asked_ends) = seats.take();
        asked.has_begun();
        let silent = |at: usize| is_ended(&flood[at].1);
        assert!(seats.end_longest_wait() && silent(0));
        assert!(seats.end_longest_wait() && silent(1));
        // Of lines as long as each other, the silent one.
        assert!(seats.end_longest_wait() && silent(2));
        assert!(!is_ended(&asked_ends));
        let (_newer, newer_ends) = seats.take();
        let (second, second_ends) = seats.take();
        second.has_begun();
        assert!(seats.end_longest_wait() && is_ended(&asked_ends));
        assert!(!is_ended(&newer_ends) && !is_ended(&second_ends));
    }

    #[tokio::test]
    async fn where_each_works_the_next_waits_for_one_that_is_done() {
        let seats = Seats::new(1);
        let (seat, ends) = seats.take();
        let working = seat.works();
        let free = seats.free();
        tokio::pin!(free);
        assert!(futures_util::poll!(&mut free).is_pending());
        drop(working);
        assert!(futures_util::poll!(&mut free).is_pending());
        assert!(is_ended(&ends), "its answer is given, and it waits again");
        drop(seat);
        free.await;
        assert_eq!(seats.taken.lock().count, 0);
    }
}
