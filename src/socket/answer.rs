//! What a handshake's client reads: the 101, or why there is none. Each leaves in one write.

use std::io;
use std::time::Duration;

use axum::http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::Refusal;
use crate::problem::Problem;

/// A refused client's bytes are read and thrown away for so long: closing over unread bytes sends RST, and the client's
/// system would then discard the answer before the client has seen it.
const LINGER: Duration = Duration::from_secs(1);
/// Room for what is thrown away.
const DISCARD: usize = 2048;

/// Sends the problem document of a refusal before any tenant is known, and closes.
pub(super) async fn refuse(stream: TcpStream, refusal: Refusal) {
    let problem = Problem {
        refusal,
        tenant: None,
    };
    refuse_with(stream, &problem, &Method::GET).await;
}

/// Sends the problem document and closes without losing it. A failure concerns no one: the client is gone.
pub(super) async fn refuse_with(mut stream: TcpStream, problem: &Problem<'_>, method: &Method) {
    let answer = problem.to_http1(method);
    let farewell = async {
        if stream.write_all(&answer).await.is_ok() {
            end(&mut stream).await;
        }
    };
    timeout(LINGER, farewell).await.ok();
}

/// Ends our half of a stream whose answer is out, and throws away what its client still sends, for a moment.
pub(super) async fn end(stream: &mut TcpStream) {
    let discard = async {
        stream.shutdown().await?;
        let mut buffer = Vec::with_capacity(DISCARD);
        while stream.read_buf(&mut buffer).await? != 0 {
            buffer.clear();
        }
        io::Result::Ok(())
    };
    timeout(LINGER, discard).await.ok();
}

/// Returns once the client has gone. What it sends before it may is left unread, and ends the watch.
pub(super) async fn hung_up(stream: &TcpStream) {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}
