//! Accepts connections of the socket listener and runs one task for each, from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::Door;
use super::handshake::shake_hands;

/// The pause of the accept loop when the process has no file descriptor left. Only a socket that closes frees one.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// The most connections beyond `server.max_connections`: those in their handshake or being refused. They may take half
/// of the reserved descriptors.
const HANDSHAKES: usize = 128;
/// Connections accepted in a row before other tasks run. Their handshakes run together, so that their questions to
/// Redis share one round.
const AT_ONCE: usize = 16;

/// Accepts connections until the process ends.
pub async fn run(listener: TcpListener, door: Arc<Door>) -> Infallible {
    let mut accepted: usize = 0;
    loop {
        match listener.accept().await {
            // Handshakes and refused connections hold descriptors too. The bound leaves a part of the reserve free.
            Ok((stream, _)) if door.tasks.len() >= door.occupancy.most() + HANDSHAKES => {
                drop(stream)
            }
            Ok((stream, peer)) => {
                door.tasks.spawn(serve(stream, peer.ip(), &door));
                accepted = accepted.wrapping_add(1);
                if accepted.is_multiple_of(AT_ONCE) {
                    // A burst of connects waits in the listener's queue and does not delay open sockets.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Serves one connection for its whole life.
///
/// Each open socket holds this future. The handshake is boxed, so its memory is freed when the socket opens.
fn serve(
    stream: TcpStream,
    peer: IpAddr,
    door: &Arc<Door>,
) -> impl Future<Output = ()> + Send + use<> {
    let door = door.clone();
    let handshake = Box::pin(async move { shake_hands(stream, peer, &door).await });
    async move {
        // A `match` on the awaited value would keep the box of the handshake alive as long as the socket.
        let Some(connection) = handshake.await else {
            return;
        };
        connection.run().await;
    }
}

/// Logs an error of the listener and pauses. A connection that was reset before it was accepted needs no pause.
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
        let size = future_size(serve);
        // Tokio's header of the task makes it 256 bytes.
        assert!(size <= 144, "{size}");
    }
}
