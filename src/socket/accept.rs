//! The accept loop of the socket listener: one task for each TCP connection, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::Door;
use super::handshake::shake_hands;

/// How long accepting pauses when the system has no descriptor left: sockets have to go before a new one can come.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are not sockets yet, or no more, beside `server.max_connections`; half of the reserved
/// descriptors.
const HANDSHAKES: usize = 128;
/// Connections that are accepted before others have their turn: their handshakes go on together, and what they ask of
/// Redis is one round.
const AT_ONCE: usize = 16;

/// Accepts connections until the process ends.
pub async fn run(listener: TcpListener, door: Arc<Door>) -> Infallible {
    let mut accepted: usize = 0;
    loop {
        match listener.accept().await {
            // Half-open and refused connections hold descriptors too: with them, some of the reserve stays.
            Ok((stream, _)) if door.tasks.len() >= door.occupancy.most() + HANDSHAKES => {
                drop(stream)
            }
            Ok((stream, peer)) => {
                door.tasks.spawn(serve(stream, peer.ip(), &door));
                accepted = accepted.wrapping_add(1);
                if accepted.is_multiple_of(AT_ONCE) {
                    // A burst of connects waits in the listener's queue, and not in front of the sockets that are open.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// The whole life of a connection. Every open socket holds this future: the handshake is boxed, and gone when the socket
/// opens.
fn serve(
    stream: TcpStream,
    peer: IpAddr,
    door: &Arc<Door>,
) -> impl Future<Output = ()> + Send + use<> {
    let door = door.clone();
    let handshake = Box::pin(async move { shake_hands(stream, peer, &door).await });
    async move {
        // A statement of its own: what a `match` looks at would stay in the future for as long as the socket lives.
        let Some(connection) = handshake.await else {
            return;
        };
        connection.run().await;
    }
}

/// A connection that was reset before it was accepted is nothing; a lack of descriptors is.
async fn pause(error: &io::Error) {
    let gone = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    );
    if !gone {
        tracing::warn!(error = %error, "Cannot accept connections; trying again");
        tokio::time::sleep(NO_DESCRIPTOR_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<F: Future>(_: impl Fn(TcpStream, IpAddr, &Arc<Door>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_an_open_socket_is_small() {
        let size = future_size(|stream, peer, door| serve(stream, peer, door));
        // With what tokio keeps beside it, 256 bytes.
        assert!(size <= 144, "{size}");
    }
}
