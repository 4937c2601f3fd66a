//! The end of a connection: the leave from the hub, the close frames of both sides, and the end of the stream.

use std::future::poll_fn;
use std::io;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::read::discard;
use super::step::{ConnectionStep, Ending};
use super::wire::WireState;
use crate::close_code::CloseFrame;
use crate::consumer::{Scope, shown_user};
use crate::frame::Frame;
use crate::hub::{CloseOrder, Takes};

/// The longest time for the queued frames, our close frame and the client's close frame (RFC 6455 §7.1.1). As long as a
/// drain gives to its last sockets.
const GOODBYE: Duration = Duration::from_secs(4);

impl WireState {
    /// Takes the socket out of the hub and says goodbye. Returns the close frame that counts.
    ///
    /// The goodbye may take as long as its client likes, up to [`GOODBYE`]. Meanwhile no count, list or group has the socket,
    /// its user may open another one, and the tasks of its consumer have ended. Its place in the occupancy stays taken.
    pub(super) async fn end(
        &mut self,
        ending: Ending,
        scope: &Scope,
        opened: Instant,
    ) -> CloseFrame {
        let is_gone = matches!(ending, Ending::Gone);
        let queued = matches!(ending, Ending::CloseBlocked(_) | Ending::Broken(_));
        let close = match ending {
            Ending::Close(frame) | Ending::CloseBlocked(frame) => frame,
            Ending::Broken(frame) => {
                let outbound = self.outbound();
                outbound.close(frame.clone(), CloseOrder::AfterQueued);
                frame
            }
            Ending::Closed(received) => answer_to(received),
            Ending::Gone => CloseFrame::absent(),
        };
        self.leave(&close, scope, opened.elapsed());
        if !is_gone {
            self.say_goodbye(&close, queued).await;
        }
        self.registration.end();
        close
    }

    /// Takes the socket out of the hub, and tells metrics and log.
    fn leave(&mut self, close: &CloseFrame, scope: &Scope, lived: Duration) {
        let registration = &mut self.registration;
        registration.metrics().disconnected(close, lived);
        registration.leave();
        // The word of the metric: the text of an application or a client may tell what no log may.
        let (_, reason) = close.labels();
        tracing::debug!(
            tenant.id = %scope.tenant(), user.id = shown_user(scope), conn.id = %registration.member().id(),
            close.code = close.code, close.reason = reason, duration_ms = lived.as_millis() as u64, "Closed a connection"
        );
    }

    /// Sends our close frame and waits for the end of the client's stream, all within [`GOODBYE`]. With `queued`, the
    /// frames in the queue are sent first.
    async fn say_goodbye(&mut self, frame: &CloseFrame, queued: bool) {
        self.drop_input();
        if let Some(begun) = self.outbound().end_direct() {
            self.go_on_with(begun);
        }
        let wheel = self.common.heartbeat.clone();
        let goodbye = async {
            // The rest of a frame always goes first: a close frame within it would be read as its payload.
            while queued && poll_fn(|cx| self.poll_queue_end(cx)).await {}
            if poll_fn(|cx| self.poll_partial(cx)).await.is_ok()
                && let Some(mut stream) = self.outbound().take_stream()
            {
                send_last(&mut stream, &Frame::close(frame)).await;
            }
        };
        // After the deadline the connection is closed without the client's part.
        tokio::select! {
            _ = tokio::time::timeout(GOODBYE, goodbye) => {}
            () = wheel.stopped() => {}
        }
    }

    /// Sends the queued frames; true while more may follow, false once none is left or the stream fails.
    fn poll_queue_end(&mut self, cx: &mut TaskContext<'_>) -> Poll<bool> {
        if ready!(self.poll_partial(cx)).is_err() {
            return Poll::Ready(false);
        }
        match ready!(self.poll_write(cx, Takes::All)) {
            // The consumer of a closing socket sees no more events.
            ConnectionStep::Event(_) => Poll::Ready(true),
            // `poll_partial` has registered the wait for the stream.
            ConnectionStep::End(Ending::CloseBlocked(_)) => Poll::Pending,
            _ => Poll::Ready(false),
        }
    }
}

/// Returns the answer to the client's close frame, which has the same code (RFC 6455 §5.5.1).
fn answer_to(received: Option<CloseFrame>) -> CloseFrame {
    received.unwrap_or(CloseFrame {
        code: 1005,
        reason: "".into(),
        cause: None,
    })
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
        match discard(stream) {
            Ok(0) => return true,
            // A client may go on to send without pause.
            Ok(_) => tokio::task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    /// Before, it read 128 times 64 KiB before other work had its turn: 2 ms.
    #[tokio::test]
    async fn the_input_of_a_closed_socket_is_discarded_in_turns() {
        const SENT: usize = 192 * 1024;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        SockRef::from(&listener)
            .set_recv_buffer_size(4 * SENT)
            .unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let mut client = client.await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; SENT];
        client.write_all(&buffer).await.unwrap();
        while stream.peek(&mut buffer).await.unwrap() < SENT {
            tokio::task::yield_now().await;
        }
        {
            let last = Frame::text("bye");
            let goodbye = send_last(&mut stream, &last);
            assert!(futures_util::poll!(std::pin::pin!(goodbye)).is_pending());
        }
        let left = stream.peek(&mut buffer).await.unwrap();
        assert!((SENT / 2..SENT).contains(&left), "{left}");
    }
}
