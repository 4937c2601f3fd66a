//! Answers a refused handshake in one write and closes without losing the answer.

use std::io;
use std::time::Duration;

use axum::http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::Refusal;
use crate::problem::Problem;

/// The time for which a refused client's bytes are read and discarded. A close over unread bytes sends RST, and the
/// client's system would then discard the answer before the client reads it.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of the buffer for discarded input.
const DISCARD: usize = 2048;

/// Sends the problem document of a refusal before any tenant is known, and closes.
pub(super) async fn refuse(stream: TcpStream, refusal: Refusal) {
    let problem = Problem {
        refusal,
        tenant: None,
    };
    refuse_with(stream, &problem, &Method::GET).await;
}

/// Sends the problem document and closes the connection. A failure is ignored, because it means that the client is gone.
pub(super) async fn refuse_with(mut stream: TcpStream, problem: &Problem<'_>, method: &Method) {
    let answer = problem.to_http1(method);
    let farewell = async {
        if stream.write_all(&answer).await.is_ok() {
            end(&mut stream).await;
        }
    };
    timeout(LINGER, farewell).await.ok();
}

/// Ends our half of the stream and discards the client's input for at most [`LINGER`].
pub(super) async fn end(stream: &mut TcpStream) {
    let discard = async {
        stream.shutdown().await?;
        let mut buffer = Vec::with_capacity(DISCARD);
        while stream.read_buf(&mut buffer).await? != 0 {
            buffer.clear();
            // A client may go on to send without pause.
            tokio::task::yield_now().await;
        }
        io::Result::Ok(())
    };
    timeout(LINGER, discard).await.ok();
}

/// Returns when the client has closed. It never returns if the client has sent bytes ahead of the answer: they stay
/// unread, and an end behind them cannot be seen.
pub(super) async fn hung_up(stream: &TcpStream) {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}
