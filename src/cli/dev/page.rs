//! The page of the demo, its scripts, and the way from its buttons to the gateway.
//!
//! The page holds the key of the API and can have tokens, so `dev` listens on loopback unless `--allow-remote` is given, and
//! its server answers only requests for a loopback host then.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};

use super::backstage::Backstage;
use super::manual;

/// Nothing is loaded from elsewhere. `ws:` is for the further replicas, which are on other ports.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

/// The scripts and the style of the page, by their names below `/dev/`.
const FILES: [(&str, &str, &str); 6] = [
    ("page.css", "text/css", include_str!("assets/page.css")),
    ("page.js", "text/javascript", include_str!("assets/page.js")),
    ("pane.js", "text/javascript", include_str!("assets/pane.js")),
    (
        "tries.js",
        "text/javascript",
        include_str!("assets/tries.js"),
    ),
    (
        "charts.js",
        "text/javascript",
        include_str!("assets/charts.js"),
    ),
    (
        "lockgate.js",
        "text/javascript",
        include_str!("../../../clients/js/index.js"),
    ),
];

/// Returns the pages of the demo.
pub(super) fn pages(backstage: Arc<Backstage>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/dev/{file}", get(file))
        .route("/dev/docs/{page}", get(manual::show))
        .route("/dev/metrics", get(metrics))
        .route("/dev/tokens/{user}", get(token))
        .route("/v1/{*call}", any(call))
        .with_state(backstage)
        .layer(middleware::map_response(guarded))
}

async fn page(State(backstage): State<Arc<Backstage>>) -> Response {
    let Some(facts) = backstage.page_facts() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let page = include_str!("assets/page.html").replace("/*FACTS*/", &facts);
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => ([(CONTENT_TYPE, *kind)], *text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(backstage): State<Arc<Backstage>>) -> Response {
    backstage.metrics().await
}

async fn call(State(backstage): State<Arc<Backstage>>, request: Request) -> Response {
    backstage.call(request).await
}

/// Gives a demo user a new token, as the login of an application would.
async fn token(State(backstage): State<Arc<Backstage>>, Path(user): Path<String>) -> Response {
    match backstage.login.token(&user) {
        Ok(Some(token)) => axum::Json(serde_json::json!({ "token": token })).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Adds the headers that keep other sites out of the page and its answers.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, axum::http::HeaderValue::from_static(value));
    }
    response
}
