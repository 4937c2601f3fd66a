//! Accepts connections of the socket listener and runs one task for each, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{AbortRegistration, Abortable};
use tokio::net::{TcpListener, TcpStream};

use super::Door;
use super::half_open::HandshakePlace;
use super::handshake::shake_hands;

/// The pause of the accept loop when the process has no file descriptor left. Only a socket that closes frees one.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// The pause in which a connection that was dropped for its descriptor gives it back.
const ROOM_PAUSE: Duration = Duration::from_millis(2);
/// Connections accepted in a row before other tasks run. Their handshakes run together, so that their questions to
/// Redis share one round.
const AT_ONCE: usize = 16;

/// Accepts connections until the process ends.
pub async fn run(listener: TcpListener, door: Arc<Door>) -> Infallible {
    let mut accepted: usize = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Without a place the stream is dropped here.
                if let Some((place, ends)) = door.half_open.begin(door.tasks.len()) {
                    let task = serve(stream, peer.ip(), place, ends, &door);
                    door.tasks.spawn(task);
                }
                accepted += 1;
                // A burst of connects waits in the listener's queue and does not delay open sockets. One that brings no requests has
                // no questions to share.
                if accepted >= AT_ONCE || door.half_open.is_flooded() {
                    accepted = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => pause(&error, &door).await,
        }
    }
}

/// Serves one connection for its whole life.
///
/// Each open socket holds this future. The handshake is boxed, so its memory is freed when the socket opens. The whole is
/// boxed too: Tokio aligns the memory of a task to 128 bytes, and the allocator pads what is longer than that by half.
fn serve(
    stream: TcpStream,
    peer: IpAddr,
    place: HandshakePlace,
    ends: AbortRegistration,
    door: &Arc<Door>,
) -> Pin<Box<impl Future<Output = ()> + Send + use<>>> {
    let handshake = shake_hands(stream, peer, place, door.clone());
    let handshake = Box::pin(Abortable::new(handshake, ends));
    Box::pin(async move {
        // A `match` on the awaited value would keep the box of the handshake alive as long as the socket.
        let Ok(Some(connection)) = handshake.await else {
            return;
        };
        connection.run().await;
    })
}

/// Logs an error of the listener and pauses. A connection that was reset before it was accepted needs no pause.
async fn pause(error: &io::Error, door: &Door) {
    let gone = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    );
    if gone {
        return;
    }
    // The next connection gets the descriptor of one that can be spared. Its drop is counted.
    if door.half_open.shed() {
        tokio::time::sleep(ROOM_PAUSE).await;
        return;
    }
    tracing::warn!(error = %error, "Cannot accept connections; trying again");
    tokio::time::sleep(NO_DESCRIPTOR_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    type Serve<F> =
        fn(TcpStream, IpAddr, HandshakePlace, AbortRegistration, &Arc<Door>) -> Pin<Box<F>>;

    fn future_size<F: Future>(_: Serve<F>) -> usize {
        size_of::<F>()
    }

    type ShakeHands<F> = fn(TcpStream, IpAddr, HandshakePlace, Arc<Door>) -> F;

    fn silent_size<F: Future>(_: ShakeHands<F>) -> usize {
        size_of::<F>()
    }

    /// Before: over 10 KiB, for the whole handshake.
    #[test]
    fn the_task_of_a_silent_connection_is_small() {
        let size = silent_size(shake_hands);
        assert!(size <= 768, "{size}");
    }

    /// It fits into 112 bytes of the allocator. Before, it had room for a close frame.
    #[test]
    fn the_task_of_an_open_socket_is_small() {
        let size = future_size(serve);
        assert!(size <= 112, "{size}");
    }
}
