//! The places of one listener's connections, and who gives up a place when all are taken.

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
    /// The connections that wait for their clients: for a request, a body, or the reading of an answer.
    waiting: AgeList<AbortHandle>,
}

/// The place of one connection; its drop frees it.
pub(super) struct Seat {
    seats: Arc<Seats>,
    /// Ends the connection.
    handle: AbortHandle,
    /// Its entry among those that wait; `None` while it works on a request.
    ticket: Mutex<Option<AgeTicket>>,
}

/// Work on one request, up to the last byte of its answer. Afterwards the connection waits for its client again.
pub(super) struct Working(Arc<Seat>);

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: Mutex::new(TakenSeats {
                count: 0,
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

    /// Ends the connection that has waited longest for its client. Returns false if none waits.
    pub(super) fn end_longest_wait(&self) -> bool {
        let longest = self.taken.lock().waiting.pop_oldest();
        longest.inspect(AbortHandle::abort).is_some()
    }

    /// Takes a place for a new connection, which waits for its client.
    pub(super) fn take(self: &Arc<Self>) -> (Arc<Seat>, AbortRegistration) {
        let (handle, registration) = AbortHandle::new_pair();
        self.taken.lock().count += 1;
        let seat = Arc::new(Seat {
            seats: self.clone(),
            handle,
            ticket: Mutex::new(None),
        });
        seat.waits();
        (seat, registration)
    }
}

impl Seat {
    /// Notes that the connection works on a request.
    pub(super) fn works(self: &Arc<Self>) -> Working {
        self.stops_waiting();
        Working(self.clone())
    }

    fn waits(&self) {
        let mut ticket = self.ticket.lock();
        if ticket.is_none() {
            let waiting = &mut self.seats.taken.lock().waiting;
            *ticket = Some(waiting.push(self.handle.clone()));
            self.seats.changed.notify_one();
        }
    }

    fn stops_waiting(&self) {
        if let Some(ticket) = self.ticket.lock().take() {
            let handle = self.seats.taken.lock().waiting.take(ticket);
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
