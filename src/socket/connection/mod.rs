//! Serves one connection after its 101 in one task and one loop.
//!
//! The inputs are the stream (readable, writable), the outbound queue (frames, events, a close) and the consumer at work.
//! An idle connection owns no buffer: bytes are read into a scratch buffer of the thread, and only those of an incomplete
//! message are kept. The loop ends with the client's close, with our close, or with the end of the stream.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use std::future::poll_fn;
use tokio::net::TcpStream;

use crate::close_code::{CloseFrame, CloseReason};
use crate::consumer::{self, Consumer, Context, Scope, guarded, shown_user};
use crate::hub::{CloseOrder, Member, WaitingEvent};
use crate::socket::refresh::{RefreshRequest, may_be_refresh};

mod ahead;
mod beside;
mod goodbye;
mod input;
mod ping;
mod read;
mod slow;
mod step;
mod wire;
mod write;

pub use goodbye::close_at_once;
use step::{ConnectionStep, Ending};
pub use wire::WireState;

/// The longest call of a consumer. Until it ends, the client's further messages wait.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// An open socket: its handshake is over.
pub struct Connection {
    ready: Box<ReadySocket>,
}

/// The parts of an open socket beside its stream.
pub struct ReadySocket {
    /// The state of reading and writing, and the socket's place in the hub.
    pub wire: WireState,
    /// The consumer of the route.
    pub consumer: Box<dyn Consumer>,
    /// The properties of the socket that consumers can read.
    pub scope: Scope,
}

impl ReadySocket {
    /// Counts the accepted handshake and its duration.
    pub(super) fn count_accepted(&self, took: Duration) {
        let metrics = self.wire.registration.metrics();
        metrics.handshake_accepted();
        metrics.handshake_took(took);
    }

    /// Logs the accepted handshake, at `debug`.
    pub(super) fn tell_opened(&self) {
        let (scope, member) = (&self.scope, self.wire.registration.member());
        tracing::debug!(
            tenant.id = %scope.tenant(), user.id = shown_user(scope), conn.id = %member.id(), client = %scope.client(),
            "Opened a connection"
        );
    }
}

/// The reason for which a consumer is called.
enum Call {
    /// A message of the client.
    Message(consumer::Message),
    /// An event of a group or of the socket's own channel.
    Event(Arc<WaitingEvent>),
}

/// The work of one step. It is boxed, so that it takes memory only while it runs.
type StepWork<'a> = Pin<Box<dyn Future<Output = Option<CloseFrame>> + Send + 'a>>;

impl Connection {
    /// Creates a connection over `stream`; `early` holds the bytes that came behind the request's head.
    pub fn new(stream: TcpStream, early: &[u8], mut ready: Box<ReadySocket>) -> Self {
        ready.wire.set_early(early);
        ready.wire.outbound().open(stream);
        Self { ready }
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
            let WireState {
                common,
                registration,
                ..
            } = &self.ready.wire;
            common.heartbeat.watch(registration.member());
            let close = loop {
                let step = poll_fn(|cx| {
                    caught(|| self.ready.wire.poll_step(cx)).unwrap_or_else(|frame| {
                        Poll::Ready(ConnectionStep::End(Ending::Close(frame)))
                    })
                });
                let step = step.await;
                let Some(work) = self.follow(step, opened) else {
                    continue;
                };
                if let Some(close) = work.await {
                    break close;
                }
            };
            let ready = &mut self.ready;
            // The box takes the close, which each open socket would have room for.
            Box::pin(async move { ready.disconnect(&close).await }).await;
        }
    }

    /// Returns the work of a step, if it has any; the result of the work is the close that has ended the connection.
    fn follow(&mut self, step: ConnectionStep, opened: Instant) -> Option<StepWork<'_>> {
        match step {
            ConnectionStep::Flush => None,
            ConnectionStep::Message(message) => {
                let wire = &mut self.ready.wire;
                if !wire.may_receive() || wire.answer_page_ping(&message) {
                    return None;
                }
                Some(self.pass(message, opened))
            }
            ConnectionStep::Waited(message) => Some(self.pass(message, opened)),
            ConnectionStep::Event(event) => Some(Box::pin(self.call(Call::Event(event), opened))),
            ConnectionStep::End(ending) => {
                let ReadySocket { wire, scope, .. } = &mut *self.ready;
                Some(Box::pin(async move {
                    Some(wire.end(ending, scope, opened).await)
                }))
            }
        }
    }

    /// Returns the work of a message that is no ping.
    fn pass(&mut self, message: consumer::Message, opened: Instant) -> StepWork<'_> {
        match self.refresh_in(message) {
            Ok(request) => Box::pin(self.refresh(request, opened)),
            Err(message) => Box::pin(self.call(Call::Message(message), opened)),
        }
    }

    /// Takes a message that is the gateway's own: a request to refresh the socket's token. Returns any other message.
    fn refresh_in(&self, message: consumer::Message) -> Result<RefreshRequest, consumer::Message> {
        let wire = &self.ready.wire;
        let (member, relay) = (wire.registration.member(), wire.registration.relay());
        let text = match message {
            // Most tenants refresh nothing, and their texts are not searched.
            consumer::Message::Text(text) if relay.refreshes_tokens() && may_be_refresh(&text) => {
                text
            }
            other => return Err(other),
        };
        RefreshRequest::take(text, member, relay, &wire.common).map_err(consumer::Message::Text)
    }

    /// Refreshes the socket's token. As in a consumer's call, the socket is written and read meanwhile.
    /// Returns the close if the socket has closed meanwhile; it had its own token then.
    async fn refresh(&mut self, request: RefreshRequest, opened: Instant) -> Option<CloseFrame> {
        let ReadySocket { wire, scope, .. } = &mut *self.ready;
        let judged = beside(wire, pin!(request.judge(scope))).await;
        match judged {
            Ok(outcome) => {
                let registration = &wire.registration;
                outcome.tell(scope, registration.member(), registration.relay());
                None
            }
            Err(ending) => Some(wire.end(ending, scope, opened).await),
        }
    }

    /// Calls the consumer. Meanwhile frames, pings and closes leave, the client's pings are answered, and its next messages
    /// wait. Returns the close if the socket has closed meanwhile.
    ///
    /// A close does not wait for the consumer. The call goes on to its end, so that the consumer can keep its own state in
    /// order, and only then it is told of the end. A replica that ends drops the call.
    async fn call(&mut self, call: Call, opened: Instant) -> Option<CloseFrame> {
        let ReadySocket {
            wire,
            consumer,
            scope,
        } = &mut *self.ready;
        let (scope, socket) = (&*scope, wire.registration.socket().clone());
        let mut context = Context {
            scope,
            socket: &socket,
            handshake: None,
        };
        // An event counts in the account until the consumer has handled it.
        let mut held = None;
        let method = match call {
            Call::Message(message) => consumer.receive(&mut context, message),
            Call::Event(event) => {
                let handled = event.event().clone();
                held = Some(event);
                consumer.event(&mut context, handled)
            }
        };
        let mut at_work = pin!(bounded(&socket.member, CALL_DEADLINE, method));
        let ending = beside(wire, at_work.as_mut()).await.err();
        drop(held);
        let ending = ending?;
        let wheel = wire.common.heartbeat.clone();
        let at_work = async {
            tokio::select! {
                () = at_work => {}
                () = wheel.stopped() => {}
            }
        };
        let closes = wire.end(ending, scope, opened);
        let (close, ()) = futures_util::future::join(closes, at_work).await;
        Some(close)
    }
}

impl ReadySocket {
    /// Tells the consumer of the end, after the socket has left the hub.
    async fn disconnect(&mut self, close: &CloseFrame) {
        let socket = self.wire.registration.socket().clone();
        let mut context = Context {
            scope: &self.scope,
            socket: &socket,
            handshake: None,
        };
        let told = self.consumer.disconnect(&mut context, close);
        bounded(&socket.member, CALL_DEADLINE, told).await;
    }
}

/// Works while the socket is written and read.
///
/// # Errors
/// The ending, if the connection ends before the work does.
async fn beside<T>(
    wire: &mut WireState,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Ending> {
    let close = |frame| Poll::Ready(Err(Ending::Close(frame)));
    poll_fn(|cx| {
        match caught(|| work.as_mut().poll(cx)) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(done)) => return Poll::Ready(Ok(done)),
            Err(frame) => return close(frame),
        }
        caught(|| wire.poll_beside(cx)).map_or_else(close, |ending| ending.map(Err))
    })
    .await
}

/// Ends a socket whose client left before the 101 was sent. Its consumer has seen the connect, so it is told of the end.
pub async fn abandon(mut socket: ReadySocket) {
    let close = CloseFrame::absent();
    let registration = &mut socket.wire.registration;
    registration.metrics().disconnected(&close, Duration::ZERO);
    registration.end();
    socket.disconnect(&close).await;
}

/// Runs a method of a consumer for at most `deadline`. If it takes longer, it is dropped and its socket closes with 1011.
async fn bounded(member: &Member, deadline: Duration, method: impl Future<Output = ()>) {
    let mut method = pin!(guarded(member, method));
    // Most calls end at once and need no timer.
    if futures_util::future::poll_immediate(method.as_mut())
        .await
        .is_some()
    {
        return;
    }
    if tokio::time::timeout(deadline, method).await.is_err() {
        tracing::error!(
            conn.id = %member.id(), duration_ms = deadline.as_millis() as u64,
            "A consumer did not end its call in time; its connection closes"
        );
        let frame = CloseReason::InternalError.frame();
        member.outbound().close(frame, CloseOrder::Now);
    }
}

/// Runs a step of the loop. A panic in it is a bug of ours, and closes this socket alone, with the frame of the error.
fn caught<T>(step: impl FnOnce() -> T) -> Result<T, CloseFrame> {
    std::panic::catch_unwind(AssertUnwindSafe(step)).map_err(|_| {
        tracing::error!("A connection's task panicked; its connection closes");
        CloseReason::InternalError.frame()
    })
}

#[cfg(test)]
mod tests;
