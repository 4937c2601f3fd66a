//! Serves pages on the socket listener: a program may have them for requests that ask for no upgrade.
//!
//! Only these requests go through hyper and axum. A request for no page is refused as it is without pages.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;
use tower::ServiceExt;

use super::admit::admit;
use super::answer::end;
use super::head::Arrival;
use super::prefixed::Prefixed;
use super::{Door, HANDSHAKE_DEADLINE, Peer};
use crate::error::Refusal;
use crate::problem::Problem;

/// Serves the one request of a connection, and closes it.
pub(super) async fn serve(pages: &Router, arrival: Arrival, peer: Peer, door: &Arc<Door>) {
    let Arrival {
        stream,
        bytes,
        early,
        ..
    } = arrival;
    let stream = Prefixed::new([bytes, early], stream);
    let door_of_pages = door.clone();
    let no_page = move |request: Request<Body>| {
        let door = door_of_pages.clone();
        async move { refuse(request, peer, &door).await }
    };
    let service = pages
        .clone()
        .fallback(no_page)
        .map_request(|request: Request<Incoming>| request.map(Body::new))
        .map_response(ends);
    let mut connection = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let served = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx));
    if timeout(HANDSHAKE_DEADLINE, served).await.is_ok() {
        let mut stream = connection.into_parts().io.into_inner().into_tcp();
        end(&mut stream).await;
    }
}

/// Adds `Connection: close`, since a connection carries one request.
fn ends(mut response: Response<Body>) -> Response<Body> {
    let close = HeaderValue::from_static("close");
    // Appended, because a 426 has `Connection: upgrade` already.
    response.headers_mut().append(CONNECTION, close);
    response
}

/// Answers a request for no page: the first refusal of its checks, or that it must ask for an upgrade.
async fn refuse(request: Request<Body>, peer: Peer, door: &Door) -> Response<Body> {
    let (began, (head, _)) = (Instant::now(), request.into_parts());
    match admit(&head, peer, door).await {
        Err(rejection) => {
            rejection.count(began.elapsed());
            rejection.problem().response()
        }
        // Not reached: the checks refuse a request that asks for no upgrade.
        Ok(_) => Problem {
            refusal: Refusal::UpgradeRequired,
            tenant: None,
        }
        .response(),
    }
}
