//! The bounds on what one client or one fault can use: half-open connections, memory, listeners, caches.

mod caches;
mod handshakes;
mod listeners;
mod memory;

use std::net::SocketAddr;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Connections opened at the same time. More would only wait in the listener's queue.
const AT_ONCE: usize = 64;

/// Opens `count` connections that send `bytes` and nothing more.
async fn half_open(server: SocketAddr, count: usize, bytes: &'static [u8]) -> Vec<TcpStream> {
    let connect = |_| async move {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    };
    let streams = futures_util::stream::iter(0..count).map(connect);
    streams.buffer_unordered(AT_ONCE).collect().await
}
