//! The routes of the admin and API listeners. `server.listen` has no router: [`crate::socket::handshake`] answers every
//! request there and looks up the tenant and its route.

use axum::Router;

use crate::api::health::{self, AdminState};
use crate::api::{self, ApiState};

/// Returns the routes of `admin.listen`: `/livez`, `/readyz`, `/metrics`, `/metrics/tenants`.
pub(super) fn admin(state: AdminState) -> Router {
    health::router(state)
}

/// Returns the routes of `api.listen`: `/v1`.
pub(super) fn management(state: ApiState) -> Router {
    api::router(state)
}
