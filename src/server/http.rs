//! Plain HTTP for the admin and API listeners, with limits on connections and time.
//!
//! Connections that wait for their clients hold up no other: at the bound the one that has waited longest gives its place
//! to the next. So probes are answered whatever else is connected. A silent connection owns no buffer.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use futures_util::future::Abortable;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::ServiceExt;

use seats::{AnswerBody, Seat, Seats, WatchedBody};

use crate::tasks;

mod seats;

/// Connections accepted in a row before their requests are read.
const AT_ONCE: usize = 16;
/// Time for the head of a request, so that a client that sends one byte at a time cannot hold a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a connection takes requests. Afterwards it has as long again for the one under way, so that a slow body ends
/// as well, and a client that always asks is not cut off within a call.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after an error of the listener.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` to at most `most` connections at once, until the task is dropped.
pub(super) async fn serve(listener: TcpListener, router: Router, most: usize) -> Infallible {
    let seats = Seats::new(most);
    let mut accepted: usize = 0;
    loop {
        seats.free().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let (seat, ends) = seats.take();
                let served = serve_one(stream, router.clone(), seat, CONNECTION_TIMEOUT);
                tasks::brief(async move {
                    // It ends early if its seat goes to another.
                    Abortable::new(served, ends).await.ok();
                });
            }
            Err(error) => pause(&error, &seats).await,
        }
        accepted = accepted.wrapping_add(1);
        if accepted.is_multiple_of(AT_ONCE) {
            // A connection whose request is there is not taken for one that waits.
            tokio::task::yield_now().await;
        }
    }
}

/// Serves the requests of one connection for `lifetime`; the last one may take as long again.
async fn serve_one(stream: TcpStream, router: Router, seat: Arc<Seat>, lifetime: Duration) {
    // A connection without a request owns no buffer. One that is new may count as readable before it is.
    let first = timeout(HEAD_TIMEOUT, stream.peek(&mut [0])).await;
    if !matches!(first, Ok(Ok(1))) {
        return;
    }
    seat.has_begun();
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, seat) = (router.clone(), seat.clone());
        let working = seat.works();
        let body_of = |body| Body::new(WatchedBody::new(body, seat));
        async move {
            let answer = router.oneshot(request.map(body_of)).await;
            answer.map(|answer| answer.map(|body| Body::new(AnswerBody::new(body, working))))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // An error concerns this client alone: it broke off or broke the protocol.
    if timeout(lifetime, connection.as_mut()).await.is_err() {
        // Its answer says `Connection: close`.
        connection.as_mut().graceful_shutdown();
        timeout(lifetime, connection).await.ok();
    }
}

/// Logs an error of the listener and pauses. Where no descriptor is left, the next connection gets one of a client that
/// is waited for.
async fn pause(error: &io::Error, seats: &Seats) {
    let made_room = seats.end_longest_wait();
    tracing::warn!(error = %error, made_room, "Cannot accept connections; trying again");
    tokio::time::sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::body::Bytes;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIFETIME: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Sends `request` on a connection with that lifetime. Returns what comes until the connection ends.
    async fn ask(router: Router, request: &[u8]) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        let mut client = client.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (seat, _ends) = Seats::new(1).take();
        tasks::brief(serve_one(stream, router, seat, LIFETIME));
        client.write_all(request).await.unwrap();
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        timeout(PATIENCE, read).await.expect("it ends").unwrap();
        answer
    }

    /// Before, the client of a connection that was a minute old lost the answer of a call.
    #[tokio::test]
    async fn the_call_under_way_at_the_end_is_answered() {
        let slow = get(|| async {
            tokio::time::sleep(LIFETIME * 3 / 2).await;
            "done"
        });
        let answer = ask(
            Router::new().route("/", slow),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        let answer = answer.await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200") && answer.ends_with("done"));
        assert!(answer.contains("connection: close"), "{answer}");
    }

    #[tokio::test]
    async fn neither_silence_nor_an_endless_body_keeps_a_connection() {
        let echoes = Router::new().route("/", post(|body: Bytes| async { body }));
        let open = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf";
        assert_eq!(ask(echoes.clone(), open).await, "");
        let whole = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nhalf";
        let answer = ask(echoes, whole).await;
        assert!(answer.ends_with("half"), "{answer}");
    }
}
