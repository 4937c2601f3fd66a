//! The accept loop of the socket listener: one task per TCP connection until its 101 is out, and one for its socket.
//!
//! The socket's task begins anew after the handshake, so that nothing of the handshake stays in memory beside it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::Door;
use super::connection::close_at_once;
use super::handshake::{Next, shake_hands};

/// How long accepting pauses when the system has no descriptor left: sockets have to go before a new one can come.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are not sockets yet, or no more, beside `server.max_connections`; half of the reserved
/// descriptors.
const HANDSHAKES: usize = 128;

/// Accepts connections until the process ends.
pub async fn run(listener: TcpListener, door: Arc<Door>) -> Infallible {
    loop {
        match listener.accept().await {
            // Half-open and refused connections hold descriptors too: with them, some of the reserve stays.
            Ok((stream, _)) if door.tasks.len() >= door.occupancy.most() + HANDSHAKES => {
                drop(stream)
            }
            Ok((stream, peer)) => {
                let door = door.clone();
                door.clone().tasks.spawn(async move {
                    match shake_hands(stream, peer.ip(), &door).await {
                        Some(Next::Serve(connection)) => drop(door.tasks.spawn(connection.run())),
                        Some(Next::Close(stream, frame)) => {
                            drop(door.tasks.spawn(close_at_once(stream, frame)))
                        }
                        None => {}
                    }
                });
                // A burst of connects waits in the listener's queue, and not in front of the sockets that are open.
                tokio::task::yield_now().await;
            }
            Err(error) => pause(&error).await,
        }
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
