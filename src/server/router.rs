//! The routes of the admin and API listeners. `server.listen` has none: [`crate::socket::handshake`] answers every
//! request there, and looks tenants and their routes up.

use axum::Router;

use crate::api::health::{self, AdminState};
use crate::api::{self, ApiState};

/// `admin.listen`: `/livez`, `/readyz`, `/metrics`.
pub(super) fn admin(state: AdminState) -> Router {
    health::router(state)
}

/// `api.listen`: `/v1`.
pub(super) fn management(state: ApiState) -> Router {
    api::router(state)
}
