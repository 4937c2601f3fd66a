//! Every route and middleware of the listeners, on one page.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;

use crate::api::health::{self, AdminState};
use crate::api::{self, ApiState};
use crate::socket::{Door, upgrade};
use crate::token_auth::TokenAuth;

/// `server.listen`: every path is a socket's; tenants and their routes are looked up, not registered.
/// `pages` come before them.
pub(super) fn sockets(door: Arc<Door>, pages: Option<Router>) -> Router {
    let sockets = Router::new()
        .fallback(upgrade::join)
        .layer(TokenAuth::for_routed_tenant())
        .layer(from_fn_with_state(door.clone(), upgrade::check))
        .with_state(door);
    match pages {
        Some(pages) => pages.fallback_service(sockets),
        None => sockets,
    }
}

/// `admin.listen`: `/livez`, `/readyz`, `/metrics`.
pub(super) fn admin(state: AdminState) -> Router {
    health::router(state)
}

/// `api.listen`: `/v1`.
pub(super) fn management(state: ApiState) -> Router {
    api::router(state)
}
