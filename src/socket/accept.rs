//! From the listener to hyper and on to the raw stream: one task per TCP connection until its 101 is out.
//!
//! A connection carries one request. Its head is read and bounded by [`super::head`], hyper and axum answer it, and
//! after a 101 the bare stream comes back to a task of its own, so that nothing of HTTP outlives the handshake.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::Door;
use super::connection::{self, Connection, close_at_once};
use super::head::{self, Arrival, HeadReader, NoRequest};
use super::upgrade::{After101, Outcome, Peer};
use crate::metrics;

/// How long accepting pauses when the system has no descriptor left: sockets have to go before a new one can come.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are not sockets yet, or no more, beside `server.max_connections`; half of the reserved
/// descriptors.
const HANDSHAKES: usize = 128;
/// A request and its answer may take this long after the head has come; every step has a shorter deadline of its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts connections for ever.
pub async fn run(listener: TcpListener, door: Arc<Door>, router: Router) -> Infallible {
    let heads = Arc::new(HeadReader::new(&door.config));
    loop {
        match listener.accept().await {
            // Half-open and refused connections hold descriptors too: with them, some of the reserve stays.
            Ok((stream, _)) if door.tasks.len() >= door.occupancy.most() + HANDSHAKES => {
                drop(stream)
            }
            Ok((stream, peer)) => {
                let (door, heads, router) = (door.clone(), heads.clone(), router.clone());
                door.clone().tasks.spawn(async move {
                    if let Some(next) = handshake(stream, peer, &door, &heads, router).await {
                        next.run(&door);
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

/// A stream whose 101 is out.
struct Opened {
    stream: TcpStream,
    /// What came after the request in the same segments.
    early: Vec<u8>,
    after: After101,
}

impl Opened {
    fn run(self, door: &Door) {
        match self.after {
            After101::Serve(socket) => door
                .tasks
                .spawn(Connection::new(self.stream, &self.early, socket).run()),
            After101::Close(frame) => door.tasks.spawn(close_at_once(self.stream, frame)),
        };
    }
}

async fn handshake(
    stream: TcpStream,
    peer: SocketAddr,
    door: &Arc<Door>,
    heads: &HeadReader,
    router: Router,
) -> Option<Opened> {
    let peer = peer.ip().to_canonical();
    let _handshake = match door.begin_handshake(peer) {
        Ok(place) => place,
        Err(refusal) => {
            metrics::handshake_without_tenant(refusal.code());
            head::answer(stream, refusal).await;
            return None;
        }
    };
    match heads.read(stream, peer).await {
        Ok(arrival) => answer(arrival, peer, router).await,
        Err(NoRequest::Refused(refusal)) => {
            metrics::handshake_without_tenant(refusal.code());
            None
        }
        Err(NoRequest::Cut) => None,
    }
}

/// One request per connection. Told here and not to hyper, which would say `upgrade, close` on a 101: some clients
/// compare the whole value.
fn ends_unless_upgraded(mut response: Response) -> Response {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        // A 426 names `upgrade` there already.
        response.headers_mut().append(CONNECTION, close);
    }
    response
}

/// Lets axum answer the one request.
async fn answer(arrival: Arrival, peer: IpAddr, router: Router) -> Option<Opened> {
    let outcome = Outcome::default();
    let extensions = (
        Peer {
            address: peer,
            proxied: arrival.proxied,
        },
        outcome.clone(),
    );
    let service = router
        .map_request(move |mut request: Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(extensions.0);
            request.extensions_mut().insert(extensions.1.clone());
            request.map(Body::new)
        })
        .map_response(ends_unless_upgraded);
    let mut connection = http1::Builder::new().serve_connection(
        TokioIo::new(arrival.stream),
        TowerToHyperService::new(service),
    );
    let served = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx));
    let served = tokio::time::timeout(ANSWER_TIMEOUT, served).await;
    let parts = connection.into_parts();
    let (unread, mut stream) = parts.io.into_inner().into_parts();
    match (served, outcome.take()) {
        (Ok(Ok(())), Some(after)) => {
            let early = [&parts.read_buf[..], &unread[..]].concat();
            Some(Opened {
                stream,
                early,
                after,
            })
        }
        (served, after) => {
            if let Some(After101::Serve(socket)) = after {
                // The client went away before it had its 101.
                connection::abandon(*socket).await;
            } else if served.is_ok() {
                head::end(&mut stream).await;
            }
            None
        }
    }
}
