//! The life of one connection after its 101: one task, one loop.
//!
//! Its inputs are the socket (readable, writable) and the outbound queue (frames, events, a close). It owns no
//! buffer while it is idle: bytes are read into a scratch buffer of the thread, and only what makes no whole
//! message yet is kept. It leaves by exactly one of: the client's close, our close, the end of the stream.

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
use crate::close_code::{CloseFrame, CloseReason};
use crate::consumer::{self, Consumer, Context, Scope};
use crate::event::Event;
use crate::frame::{Decoder, Frame, Message};
use crate::hub::{BATCH, CloseOrder, Member, Next};
use crate::metrics::FrameKind;
use crate::rate::Bucket;

/// How long the goodbye may take: what still waits, the close frame, and the client's own (RFC 6455 §7.1.1).
const GOODBYE: Duration = Duration::from_secs(5);
/// Bytes that one read takes. One scratch buffer for each thread of the runtime.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
    static WRITE: RefCell<Vec<Frame>> = RefCell::new(Vec::with_capacity(BATCH));
}

/// A socket whose handshake is over.
pub struct Connection {
    stream: TcpStream,
    ready: Box<ReadySocket>,
}

/// Bytes from the client, and how many of them are decoded.
pub struct Backlog {
    bytes: Box<[u8]>,
    decoded: usize,
}

impl Backlog {
    fn of(bytes: &[u8]) -> Option<Box<Self>> {
        let backlog = || {
            Box::new(Self {
                bytes: bytes.into(),
                decoded: 0,
            })
        };
        (!bytes.is_empty()).then(backlog)
    }
}

/// A frame and how many of its bytes have left.
pub struct PartlySent {
    frame: Frame,
    sent: usize,
}

/// What the handshake made for the raw stream, and what the connection keeps beside it.
pub struct ReadySocket {
    /// Read, but not decoded to its end.
    pub backlog: Option<Box<Backlog>>,
    /// A frame that has left in part.
    pub partial: Option<Box<PartlySent>>,
    /// The socket's place in the hub; dropped, it takes the socket out again.
    pub registration: Registration,
    /// What the route does with the socket.
    pub consumer: Box<dyn Consumer>,
    /// What consumers know of it.
    pub scope: Scope,
    /// Bytes to messages of at most `limits.message_size`, as it is when they come.
    pub decoder: Decoder,
    /// `limits.messages_per_second`.
    pub messages: Bucket,
    /// Pings and pongs.
    pub heartbeat: Arc<HeartbeatWheel>,
}

impl ReadySocket {
    /// Counts the handshake that made it.
    pub(super) fn count_accepted(&self, took: Duration) {
        let metrics = self.registration.metrics();
        metrics.handshake_accepted();
        metrics.handshake_took(took);
    }
}

/// What the loop does next.
enum ConnectionStep {
    /// A batch of pongs waits: it leaves before more is decoded.
    Flush,
    Message(consumer::Message),
    Event(Arc<Event>),
    /// We close: queued frames are out, or were dropped.
    Close(CloseFrame),
    /// We close, and something may still wait in the queue, with the close frame as its end.
    CloseBlocked(CloseFrame),
    /// The client closed.
    Closed(Option<CloseFrame>),
    /// The stream ended without a close frame.
    Gone,
}

impl Connection {
    /// A connection over `stream`; `early` is what came in the same segment as the handshake.
    pub fn new(stream: TcpStream, early: &[u8], mut ready: Box<ReadySocket>) -> Self {
        ready.backlog = Backlog::of(early);
        Self { stream, ready }
    }

    /// Serves the socket until its end.
    ///
    /// Every open socket holds this future. What happens now and then is boxed, so that it costs memory only then.
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
                match poll_fn(|cx| self.poll_step(cx)).await {
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

    /// Takes the socket out of the hub, and tells everybody who wants to know.
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

    fn poll_step(&mut self, cx: &mut TaskContext<'_>) -> Poll<ConnectionStep> {
        if let Poll::Ready(step) = self.poll_write(cx) {
            return Poll::Ready(step);
        }
        self.poll_read(cx)
    }

    /// Sends what waits. Pending when there is nothing, or the socket takes no more.
    fn poll_write(&mut self, cx: &mut TaskContext<'_>) -> Poll<ConnectionStep> {
        loop {
            match self.poll_partial(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(ConnectionStep::Gone),
                Poll::Pending => {
                    let closing = self.ready.registration.member().outbound().poll_closing(cx);
                    return closing.map(ConnectionStep::CloseBlocked);
                }
            }
            let result = WRITE.with_borrow_mut(|batch| {
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

    /// Sends the rest of a frame that did not fit; ready when there is none (any more).
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

    /// Writes the batch at once; what does not fit goes back, with the frame that was cut kept as `partial`.
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
            // Also when nothing of it has left: the next write begins with it and waits for the socket.
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

    /// Reads and decodes until there is a message, or nothing to read.
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
            // Pongs leave before more is read: pings of a client that reads fill no queue.
            if let Poll::Ready(step) = self.poll_write(cx) {
                return Poll::Ready(step);
            }
        }
    }

    /// Reads what there is, as much as fits the scratch buffer, and decodes it.
    fn read(&mut self) -> Option<ConnectionStep> {
        READ.with_borrow_mut(|scratch| match self.stream.try_read(scratch) {
            Ok(0) => Some(ConnectionStep::Gone),
            Ok(count) => {
                let metrics = self.ready.registration.metrics();
                metrics.received_bytes.increment(count as u64);
                let mut input = &scratch[..count];
                let step = self.decode(&mut input);
                self.ready.backlog = Backlog::of(input);
                step
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(ConnectionStep::Gone),
        })
    }

    /// Decodes what was kept, where it lies: a burst of small messages is copied once, not once per message.
    fn decode_backlog(&mut self, mut backlog: Box<Backlog>) -> Option<ConnectionStep> {
        let mut input = &backlog.bytes[backlog.decoded..];
        let step = self.decode(&mut input);
        let left = input.len();
        backlog.decoded = backlog.bytes.len() - left;
        self.ready.backlog = (left > 0).then_some(backlog);
        step
    }

    /// Decodes up to the first thing that the loop must act on; `input` is then what follows it.
    fn decode(&mut self, input: &mut &[u8]) -> Option<ConnectionStep> {
        let mut pongs = 0;
        let limits = self.ready.registration.relay().limits();
        self.ready.decoder.set_max_message(limits.message_size);
        loop {
            let message = match self.ready.decoder.push(input) {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(error) => {
                    // After what is queued: a pong, or the echo of a message that was still good.
                    let frame = error.0.frame();
                    let outbound = self.ready.registration.member().outbound();
                    outbound.close(frame.clone(), CloseOrder::AfterQueued);
                    return Some(ConnectionStep::CloseBlocked(frame));
                }
            };
            let metrics = self.ready.registration.metrics();
            match message {
                Message::Ping(payload) => {
                    metrics.frame_received(FrameKind::Ping);
                    // A client that pings without reading fills its own queue and is closed as too slow.
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
                Message::Pong(payload) => {
                    metrics.frame_received(FrameKind::Pong);
                    self.ready
                        .heartbeat
                        .ponged(self.ready.registration.member(), &payload);
                }
                Message::Close(frame) => {
                    metrics.frame_received(FrameKind::Close);
                    return Some(ConnectionStep::Closed(frame));
                }
                Message::Text(text) => {
                    metrics.frame_received(FrameKind::Text);
                    return Some(ConnectionStep::Message(consumer::Message::Text(text)));
                }
                Message::Binary(bytes) => {
                    metrics.frame_received(FrameKind::Binary);
                    return Some(ConnectionStep::Message(consumer::Message::Binary(bytes)));
                }
            }
        }
    }

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

    /// Sends our close frame and waits until the client has it, all within [`GOODBYE`]. `queued`: frames that go
    /// out before it may still wait.
    async fn say_goodbye(&mut self, frame: CloseFrame, queued: bool) -> CloseFrame {
        let goodbye = async {
            while queued && poll_fn(|cx| self.poll_queue_end(cx)).await {}
            if poll_fn(|cx| self.poll_partial(cx)).await.is_ok() {
                send_last(&mut self.stream, &Frame::close(&frame)).await;
            }
        };
        // Past the deadline the client has had its time: the socket is cut.
        tokio::time::timeout(GOODBYE, goodbye).await.ok();
        frame
    }

    /// Sends what waits before the close frame; false once there is nothing more to send, or the socket fails.
    fn poll_queue_end(&mut self, cx: &mut TaskContext<'_>) -> Poll<bool> {
        if ready!(self.poll_partial(cx)).is_err() {
            return Poll::Ready(false);
        }
        match ready!(self.poll_write(cx)) {
            // Events for the consumer of a socket that ends are dropped with it.
            ConnectionStep::Event(_) => Poll::Ready(true),
            // The wait for the socket is registered.
            ConnectionStep::CloseBlocked(_) => Poll::Pending,
            _ => Poll::Ready(false),
        }
    }

    /// Answers the client's close frame with its own code (RFC 6455 §5.5.1) and lets the client end the stream.
    async fn answer_close(&mut self, received: Option<CloseFrame>) -> CloseFrame {
        let answer = received.clone().unwrap_or(CloseFrame {
            code: 1005,
            reason: "".into(),
            cause: None,
        });
        self.say_goodbye(answer, false).await
    }
}

/// Ends a socket whose client went away before it was open: the consumer has seen it connect.
pub async fn abandon(mut socket: ReadySocket) {
    let member = socket.registration.member().clone();
    let close = CloseFrame::absent();
    let metrics = socket.registration.metrics();
    metrics.disconnected(&close, Duration::ZERO);
    socket.registration.end();
    guarded(&member, socket.consumer.disconnect(&socket.scope, &close)).await;
}

/// Ends a socket that was accepted only to tell its client why it is refused.
pub async fn close_at_once(mut stream: TcpStream, frame: CloseFrame) {
    // Past the deadline the client has had its time: the socket is cut.
    tokio::time::timeout(GOODBYE, send_last(&mut stream, &Frame::close(&frame)))
        .await
        .ok();
}

/// Sends the last frame, ends our half of the stream and waits for the client to end its own. True if it left.
async fn send_last(stream: &mut TcpStream, frame: &Frame) -> bool {
    if stream.write_all(frame.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
        return false;
    }
    // What still comes is thrown away: closing over unread bytes sends RST, and the close frame could be lost to it.
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

/// Runs a consumer's method; a panic in it costs this one socket, which closes with 1011.
pub(super) async fn guarded<T>(member: &Member, method: impl Future<Output = T>) -> Option<T> {
    let outcome = AssertUnwindSafe(method).catch_unwind().await;
    if outcome.is_err() {
        // What a panic says may hold what a client sent: the panic hook has logged where it was.
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
