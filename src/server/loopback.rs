//! The rule of `lockgate dev` for the Host of a request: only this machine is meant. It holds for each HTTP listener.
//!
//! A foreign page can have its own name resolved to 127.0.0.1 (DNS rebinding). To a browser this server is then its origin, and it
//! could read tokens, metrics and answers of the API. Sockets need no such rule, since a tenant has hosts.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

use crate::hosts;

/// Returns the routes for loopback hosts alone: any other Host is 421.
pub(super) fn only_loopback(routes: Router) -> Router {
    routes.layer(from_fn(refuse_others))
}

async fn refuse_others(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST);
    match host.and_then(|host| host.to_str().ok()) {
        Some(host) if hosts::is_loopback(host) => next.run(request).await,
        _ => {
            let why = "lockgate dev answers for localhost, 127.0.0.1 and [::1]; --allow-remote allows other hosts\n";
            (StatusCode::MISDIRECTED_REQUEST, why).into_response()
        }
    }
}
