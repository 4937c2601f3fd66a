//! Serves one connection after its 101 in one task and one loop.
//!
//! The inputs are the stream (readable, writable) and the outbound queue (frames, events, a close). An idle connection
//! owns no buffer: bytes are read into a scratch buffer of the thread, and only those of an incomplete message are kept.
//! The loop ends with the client's close, with our close, or with the end of the stream.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use std::future::poll_fn;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::heartbeat::HeartbeatWheel;
use super::registration::Registration;
use super::unfinished::UnfinishedMessage;
use crate::budget::{HeldBytes, HeldKind, MemoryBudget};
use crate::close_code::{CloseFrame, CloseReason};
use crate::consumer::{self, Consumer, Context, Scope};
use crate::event::Event;
use crate::frame::{ClientMessage, Decoder, Frame};
use crate::hub::{BATCH, CloseOrder, Member, Next, TOO_SLOW_WAIT};
use crate::metrics::FrameKind;
use crate::rate::Bucket;

/// The longest time for the queued frames, our close frame and the client's close frame (RFC 6455 §7.1.1).
const GOODBYE: Duration = Duration::from_secs(5);
/// The most bytes of one read. Each thread of the runtime has one such buffer.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
    static WRITE: RefCell<Vec<Frame>> = RefCell::new(Vec::with_capacity(BATCH));
}

/// An open socket: its handshake is over.
pub struct Connection {
    stream: TcpStream,
    ready: Box<ReadySocket>,
}

/// Bytes from the client that are not all decoded yet.
pub struct Backlog {
    bytes: Box<[u8]>,
    /// The number of bytes that are decoded.
    decoded: usize,
    _held: HeldBytes,
}

impl Backlog {
    fn of(bytes: &[u8], budget: &Arc<MemoryBudget>) -> Option<Box<Self>> {
        let backlog = || {
            Box::new(Self {
                bytes: bytes.into(),
                decoded: 0,
                _held: HeldBytes::of(budget, HeldKind::Input, bytes.len()),
            })
        };
        (!bytes.is_empty()).then(backlog)
    }
}

/// A frame of which only a part fitted into the stream.
pub struct PartlySent {
    frame: Frame,
    /// The number of bytes that are sent.
    sent: usize,
}

/// The parts of an open socket beside its stream.
pub struct ReadySocket {
    /// Bytes that were read and not all decoded.
    pub backlog: Option<Box<Backlog>>,
    /// The client's message that is not complete.
    pub unfinished: Option<Box<UnfinishedMessage>>,
    /// The frame that the stream took in part; it is finished first.
    pub partial: Option<Box<PartlySent>>,
    /// The socket's place in the hub. Its drop takes the socket out of the hub.
    pub registration: Registration,
    /// The consumer of the route.
    pub consumer: Box<dyn Consumer>,
    /// The properties of the socket that consumers can read.
    pub scope: Scope,
    /// Decodes bytes to messages of at most the current `limits.message_size`.
    pub decoder: Decoder,
    /// The budget of `limits.messages_per_second`.
    pub messages: Bucket,
    /// The timers of pings, pongs and expiry.
    pub heartbeat: Arc<HeartbeatWheel>,
}

impl ReadySocket {
    /// Counts the accepted handshake and its duration.
    pub(super) fn count_accepted(&self, took: Duration) {
        let metrics = self.registration.metrics();
        metrics.handshake_accepted();
        metrics.handshake_took(took);
    }
}

/// The next step of the loop.
enum ConnectionStep {
    /// Send the queued pongs before more is decoded.
    Flush,
    /// Give a message of the client to the consumer.
    Message(consumer::Message),
    /// Give an event to the consumer.
    Event(Arc<Event>),
    /// Close: the queued frames are sent or dropped.
    Close(CloseFrame),
    /// Close, but queued frames may have to be sent first.
    CloseBlocked(CloseFrame),
    /// Answer the close of the client.
    Closed(Option<CloseFrame>),
    /// End: the stream ended without a close frame.
    Gone,
}

impl Connection {
    /// Creates a connection over `stream`; `early` holds the bytes that came behind the request's head.
    pub fn new(stream: TcpStream, early: &[u8], mut ready: Box<ReadySocket>) -> Self {
        ready.backlog = Backlog::of(early, ready.heartbeat.unfinished().budget());
        Self { stream, ready }
    }

    /// Serves the socket until its end.
    ///
    /// Each open socket holds this future. The futures of its steps are boxed, so that they take memory only while they
    /// run.
    #[allow(
        clippy::manual_async_fn,
        reason = "an `async fn` would hold the connection twice"
    )]
    pub fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            let opened = Instant::now();
            let (heartbeat, registration) = (&self.ready.heartbeat, &self.ready.registration);
            heartbeat.watch(registration.member());
            let close = loop {
                match poll_fn(|cx| caught(|| self.poll_step(cx))).await {
                    ConnectionStep::Message(message) => Box::pin(self.receive(message)).await,
                    ConnectionStep::Event(event) => Box::pin(self.event(event)).await,
                    ConnectionStep::Close(frame) => {
                        break Box::pin(self.say_goodbye(frame, false)).await;
                    }
                    ConnectionStep::CloseBlocked(frame) => {
                        break Box::pin(self.say_goodbye(frame, true)).await;
                    }
                    ConnectionStep::Closed(frame) => {
                        break Box::pin(self.answer_close(frame)).await;
                    }
                    ConnectionStep::Gone => break CloseFrame::absent(),
                    ConnectionStep::Flush => {}
                }
            };
            Box::pin(self.end(close, opened.elapsed())).await;
        }
    }

    /// Takes the socket out of the hub, and tells metrics, log and consumer.
    async fn end(&mut self, close: CloseFrame, lived: Duration) {
        let ReadySocket {
            registration,
            consumer,
            scope,
            ..
        } = &mut *self.ready;
        let member = registration.member().clone();
        registration.metrics().disconnected(&close, lived);
        registration.end();
        tracing::debug!(
            tenant.id = %scope.tenant(), user.id = %scope.user_id(), conn.id = %member.id(),
            close.code = close.code, duration_ms = lived.as_millis() as u64, "Closed a connection"
        );
        guarded(&member, consumer.disconnect(scope, &close)).await;
    }

    /// Polls both directions. Writing goes first, so that a client that only sends does not starve its own frames.
    fn poll_step(&mut self, cx: &mut TaskContext<'_>) -> Poll<ConnectionStep> {
        if let Poll::Ready(step) = self.poll_write(cx) {
            return Poll::Ready(step);
        }
        self.poll_read(cx)
    }

    /// Sends the queued frames. It is pending when the queue is empty or the stream takes no more bytes.
    fn poll_write(&mut self, cx: &mut TaskContext<'_>) -> Poll<ConnectionStep> {
        loop {
            match self.poll_partial(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(ConnectionStep::Gone),
                // The stream is full: until it takes bytes, only a close wakes this task.
                Poll::Pending => {
                    let closing = self.ready.registration.member().outbound().poll_closing(cx);
                    return closing.map(ConnectionStep::CloseBlocked);
                }
            }
            let result = WRITE.with_borrow_mut(|batch| {
                // A panic may have left frames of another socket of this thread.
                batch.clear();
                let next = ready!(
                    self.ready
                        .registration
                        .member()
                        .outbound()
                        .poll_next(cx, batch)
                );
                let written = if batch.is_empty() {
                    Ok(())
                } else {
                    self.write_batch(batch)
                };
                batch.clear();
                Poll::Ready((next, written))
            });
            match ready!(result) {
                (Next::Frames, Ok(())) => {}
                (Next::Frames, Err(_)) => return Poll::Ready(ConnectionStep::Gone),
                (Next::Event(event), _) => return Poll::Ready(ConnectionStep::Event(event)),
                (Next::Close(frame), _) => return Poll::Ready(ConnectionStep::Close(*frame)),
            }
        }
    }

    /// Sends the rest of a frame that did not fit; ready when no rest is left.
    fn poll_partial(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        while let Some(partial) = &mut self.ready.partial {
            let PartlySent { frame, sent } = &mut **partial;
            match self.stream.try_write(&frame.as_bytes()[*sent..]) {
                Ok(count) => {
                    *sent += count;
                    if *sent == frame.len() {
                        let frame = frame.clone();
                        self.ready.partial = None;
                        self.ready.registration.member().outbound().set_in_hand(0);
                        self.sent(&frame);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(cx))?
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the batch in one call. The first frame that does not fit is kept as `partial`, and the frames behind it go
    /// back to the queue.
    fn write_batch(&mut self, batch: &mut Vec<Frame>) -> io::Result<()> {
        let result = match batch.as_slice() {
            [only] => self.stream.try_write(only.as_bytes()),
            frames => {
                let mut slices = [IoSlice::new(&[]); BATCH];
                for (slice, frame) in slices.iter_mut().zip(frames) {
                    *slice = IoSlice::new(frame.as_bytes());
                }
                self.stream.try_write_vectored(&slices[..frames.len()])
            }
        };
        let mut count = match result {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        let whole = batch.iter().take_while(|frame| {
            let fits = frame.len() <= count;
            count -= if fits { frame.len() } else { 0 };
            fits
        });
        let whole = whole.count();
        for frame in &batch[..whole] {
            self.sent(frame);
        }
        if whole < batch.len() {
            // Also if none of its bytes were sent: `poll_partial` is what waits until the stream is writable.
            self.ready.partial = Some(Box::new(PartlySent {
                frame: batch[whole].clone(),
                sent: count,
            }));
            let outbound = self.ready.registration.member().outbound();
            outbound.set_in_hand(batch[whole].len());
            outbound.give_back(batch.drain(whole + 1..));
        }
        Ok(())
    }

    /// Counts a frame that was sent, and for a frame of an event the time since the event was read.
    fn sent(&self, frame: &Frame) {
        let metrics = self.ready.registration.metrics();
        metrics.frames_sent.increment(1);
        metrics.sent_bytes.increment(frame.len() as u64);
        if let Some(read_at) = frame.read_at() {
            self.ready
                .registration
                .relay()
                .fan_out_metrics()
                .lag
                .record(read_at.elapsed().as_secs_f64());
        }
    }

    /// Reads and decodes until the loop has a step, or the stream has no more bytes.
    fn poll_read(&mut self, cx: &mut TaskContext<'_>) -> Poll<ConnectionStep> {
        loop {
            let step = match self.ready.backlog.take() {
                Some(backlog) => self.decode_backlog(backlog),
                None if ready!(self.stream.poll_read_ready(cx)).is_err() => {
                    Some(ConnectionStep::Gone)
                }
                None => self.read(),
            };
            match step {
                None | Some(ConnectionStep::Flush) => {}
                Some(step) => return Poll::Ready(step),
            }
            // Pongs are sent before more is read, so that pings fill no queue of a client that reads.
            if let Poll::Ready(step) = self.poll_write(cx) {
                return Poll::Ready(step);
            }
        }
    }

    /// Reads up to [`SCRATCH`] bytes and decodes them.
    fn read(&mut self) -> Option<ConnectionStep> {
        READ.with_borrow_mut(|scratch| match self.stream.try_read(scratch) {
            Ok(0) => Some(ConnectionStep::Gone),
            Ok(count) => {
                let metrics = self.ready.registration.metrics();
                metrics.received_bytes.increment(count as u64);
                let mut input = &scratch[..count];
                let step = self.decode(&mut input);
                let budget = self.ready.heartbeat.unfinished().budget();
                self.ready.backlog = Backlog::of(input, budget);
                step
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(ConnectionStep::Gone),
        })
    }

    /// Decodes the backlog in place, so that a burst of small messages is copied once and not once per message.
    fn decode_backlog(&mut self, mut backlog: Box<Backlog>) -> Option<ConnectionStep> {
        let mut input = &backlog.bytes[backlog.decoded..];
        let step = self.decode(&mut input);
        let left = input.len();
        backlog.decoded = backlog.bytes.len() - left;
        self.ready.backlog = (left > 0).then_some(backlog);
        step
    }

    /// Decodes up to the first step of the loop, and leaves the bytes after it in `input`.
    fn decode(&mut self, input: &mut &[u8]) -> Option<ConnectionStep> {
        let mut pongs = 0;
        let limits = self.ready.registration.relay().limits();
        self.ready.decoder.set_max_message(limits.message_size);
        loop {
            let message = match self.ready.decoder.push(input) {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.keep_unfinished();
                    return None;
                }
                Err(error) => {
                    // The close goes behind the queued frames, such as the answers to earlier, valid messages.
                    let frame = error.0.frame();
                    let outbound = self.ready.registration.member().outbound();
                    outbound.close(frame.clone(), CloseOrder::AfterQueued);
                    return Some(ConnectionStep::CloseBlocked(frame));
                }
            };
            let metrics = self.ready.registration.metrics();
            match message {
                ClientMessage::Ping(payload) => {
                    metrics.frame_received(FrameKind::Ping);
                    // A full queue closes the socket by itself: the client pings without reading.
                    let _ = self
                        .ready
                        .registration
                        .member()
                        .outbound()
                        .push_frame(&self.ready.registration.relay().pong(&payload));
                    pongs += 1;
                    if pongs == BATCH {
                        return Some(ConnectionStep::Flush);
                    }
                }
                ClientMessage::Pong(payload) => {
                    metrics.frame_received(FrameKind::Pong);
                    self.ready
                        .heartbeat
                        .ponged(self.ready.registration.member(), &payload);
                }
                ClientMessage::Close(frame) => {
                    metrics.frame_received(FrameKind::Close);
                    return Some(ConnectionStep::Closed(frame));
                }
                ClientMessage::Text(text) => {
                    self.ready.unfinished = None;
                    metrics.frame_received(FrameKind::Text);
                    return Some(ConnectionStep::Message(consumer::Message::Text(text)));
                }
                ClientMessage::Binary(bytes) => {
                    self.ready.unfinished = None;
                    metrics.frame_received(FrameKind::Binary);
                    return Some(ConnectionStep::Message(consumer::Message::Binary(bytes)));
                }
            }
        }
    }

    /// Counts the message that is not complete after all input is decoded. Closes the socket if there is no memory for it.
    fn keep_unfinished(&mut self) {
        let ReadySocket {
            decoder,
            unfinished,
            registration,
            heartbeat,
            ..
        } = &mut *self.ready;
        let (bytes, member) = (decoder.memory(), registration.member());
        match unfinished {
            _ if bytes == 0 => *unfinished = None,
            Some(unfinished) => unfinished.set(bytes),
            none => {
                let began = heartbeat.unfinished().begin(member, bytes);
                *none = Some(Box::new(began));
            }
        }
        if !heartbeat.unfinished().budget().has_room_for(bytes) {
            let frame = CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT);
            member.outbound().close(frame, CloseOrder::Now);
        }
    }

    /// Frees the client's bytes, which nothing decodes once the socket closes.
    fn drop_input(&mut self) {
        self.ready.backlog = None;
        self.ready.unfinished = None;
        self.ready.decoder = Decoder::new(0);
    }

    /// Gives a message to the consumer, within `limits.messages_per_second`.
    async fn receive(&mut self, message: consumer::Message) {
        let per_second = self.ready.registration.relay().limits().messages_per_second;
        if !self.ready.messages.take(Instant::now(), per_second) {
            let registration = &self.ready.registration;
            registration.metrics().rate_limited("messages_per_second");
            let frame = CloseReason::RateLimited.frame_with_retry(Duration::from_secs(1));
            registration
                .member()
                .outbound()
                .close(frame, CloseOrder::AfterQueued);
            return;
        }
        let ReadySocket {
            registration,
            consumer,
            scope,
            ..
        } = &mut *self.ready;
        let mut context = Context {
            scope,
            member: registration.member(),
            relay: registration.relay(),
        };
        guarded(
            registration.member(),
            consumer.receive(&mut context, message),
        )
        .await;
    }

    /// Gives an event to the consumer.
    async fn event(&mut self, event: Arc<Event>) {
        let ReadySocket {
            registration,
            consumer,
            scope,
            ..
        } = &mut *self.ready;
        let mut context = Context {
            scope,
            member: registration.member(),
            relay: registration.relay(),
        };
        guarded(registration.member(), consumer.event(&mut context, event)).await;
    }

    /// Sends our close frame and waits for the end of the client's stream, all within [`GOODBYE`]. With `queued`, the
    /// frames in the queue are sent first.
    async fn say_goodbye(&mut self, frame: CloseFrame, queued: bool) -> CloseFrame {
        self.drop_input();
        let goodbye = async {
            // The rest of a frame always goes first: a close frame within it would be read as its payload.
            while queued && poll_fn(|cx| self.poll_queue_end(cx)).await {}
            if poll_fn(|cx| self.poll_partial(cx)).await.is_ok() {
                send_last(&mut self.stream, &Frame::close(&frame)).await;
            }
        };
        // After the deadline the connection is closed without the client's part.
        tokio::time::timeout(GOODBYE, goodbye).await.ok();
        frame
    }

    /// Sends the queued frames; true while more may follow, false once none is left or the stream fails.
    fn poll_queue_end(&mut self, cx: &mut TaskContext<'_>) -> Poll<bool> {
        if ready!(self.poll_partial(cx)).is_err() {
            return Poll::Ready(false);
        }
        match ready!(self.poll_write(cx)) {
            // The consumer of a closing socket sees no more events.
            ConnectionStep::Event(_) => Poll::Ready(true),
            // `poll_partial` has registered the wait for the stream.
            ConnectionStep::CloseBlocked(_) => Poll::Pending,
            _ => Poll::Ready(false),
        }
    }

    /// Answers the client's close frame with the same code (RFC 6455 §5.5.1) and waits for the end of the stream.
    async fn answer_close(&mut self, received: Option<CloseFrame>) -> CloseFrame {
        let answer = received.clone().unwrap_or(CloseFrame {
            code: 1005,
            reason: "".into(),
            cause: None,
        });
        self.say_goodbye(answer, false).await
    }
}

/// Ends a socket whose client left before the 101 was sent. Its consumer has seen the connect, so it is told of the end.
pub async fn abandon(mut socket: ReadySocket) {
    let member = socket.registration.member().clone();
    let close = CloseFrame::absent();
    let metrics = socket.registration.metrics();
    metrics.disconnected(&close, Duration::ZERO);
    socket.registration.end();
    guarded(&member, socket.consumer.disconnect(&socket.scope, &close)).await;
}

/// Ends a socket that was accepted only to send its client the reason of the refusal.
pub async fn close_at_once(mut stream: TcpStream, frame: CloseFrame) {
    // After the deadline the connection is closed without the client's part.
    tokio::time::timeout(GOODBYE, send_last(&mut stream, &Frame::close(&frame)))
        .await
        .ok();
}

/// Sends the last frame, ends our half of the stream and waits for the client to end its half. Returns true if the frame
/// was sent.
async fn send_last(stream: &mut TcpStream, frame: &Frame) -> bool {
    if stream.write_all(frame.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
        return false;
    }
    // Further input is discarded. A close over unread bytes sends RST, which could destroy the close frame.
    loop {
        if stream.readable().await.is_err() {
            return true;
        }
        match READ.with_borrow_mut(|scratch| stream.try_read(scratch)) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
}

/// Runs a step of the loop. A panic in it is a bug of ours, and closes this socket alone, with 1011.
fn caught(step: impl FnOnce() -> Poll<ConnectionStep>) -> Poll<ConnectionStep> {
    std::panic::catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| {
        tracing::error!("A connection's task panicked; its connection closes");
        let frame = CloseReason::InternalError.frame();
        Poll::Ready(ConnectionStep::Close(frame))
    })
}

/// Runs a method of a consumer. If it panics, only this socket closes, with 1011, and the result is `None`.
pub(super) async fn guarded<T>(member: &Member, method: impl Future<Output = T>) -> Option<T> {
    let outcome = AssertUnwindSafe(method).catch_unwind().await;
    if outcome.is_err() {
        // The panic's text is not logged, because it may quote a client's data. The panic hook has logged the place.
        tracing::error!(conn.id = %member.id(), "A consumer panicked; its connection closes");
        member
            .outbound()
            .close(CloseReason::InternalError.frame(), CloseOrder::Now);
    }
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<F: Future>(_: fn(Connection) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_panic_of_a_step_closes_the_socket_and_not_the_process() {
        assert!(caught(|| Poll::Pending).is_pending());
        let step = caught(|| panic!("as a bug would"));
        let internal = CloseReason::InternalError.frame();
        assert!(matches!(step, Poll::Ready(ConnectionStep::Close(frame)) if frame == internal));
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(
            future_size(Connection::run) <= 120,
            "{}",
            future_size(Connection::run)
        );
        assert!(
            size_of::<ReadySocket>() <= 224,
            "{}",
            size_of::<ReadySocket>()
        );
    }
}
