//! Plain HTTP for the admin and API listeners: bounded in connections and in time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Scrapers and operators; the next one waits in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;
/// For the head of a request. A client that sends a byte now and then holds one of the connections no longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a connection as a whole, so that a body that trickles in ends as well.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves `router` for ever.
pub(super) async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "Cannot accept connections; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // A client that breaks off or breaks the protocol harms nobody.
            tokio::time::timeout(CONNECTION_TIMEOUT, connection)
                .await
                .ok();
            drop(place);
        });
    }
}
