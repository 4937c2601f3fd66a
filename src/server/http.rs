//! Plain HTTP for the admin and API listeners, with limits on connections and time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::tasks;

/// Concurrent connections of scrapers and operators. Further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Time for the head of a request, so that a client that sends one byte at a time cannot hold a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole connection, so that a slow body ends as well.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves `router` until the task is dropped.
pub(super) async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "Cannot accept connections; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tasks::brief(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // An error concerns this client alone: it broke off or broke the protocol.
            tokio::time::timeout(CONNECTION_TIMEOUT, connection)
                .await
                .ok();
            drop(permit);
        });
    }
}
