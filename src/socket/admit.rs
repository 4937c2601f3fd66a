//! Checks a request before its token: this replica, the client's address, tenant, route, upgrade and origin.
//!
//! No check asks a store. Only the making of a tenant that is not in use yet is waited for.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::request::Parts;

use super::per_address::AddressPlace;
use super::registration::Entrant;
use super::rejection::{Reason, Rejection};
use super::upgrade::{self, Upgrade};
use super::{Door, Peer};
use crate::config::ClientAddress;
use crate::error::Refusal;
use crate::routes::PathParams;
use crate::tenant::Tenant;

/// A request whose token may be checked.
pub(super) struct AdmittedRequest {
    pub(super) tenant: Arc<Tenant>,
    /// The index of the route in the tenant.
    pub(super) route: usize,
    pub(super) params: PathParams,
    pub(super) client: IpAddr,
    pub(super) upgrade: Upgrade,
    /// True once `limits.connects_per_second` has counted the handshake.
    pub(super) is_counted: bool,
    /// Counts the handshake of a client behind a proxy until it is over.
    _handshake: Option<AddressPlace>,
}

impl AdmittedRequest {
    /// Returns the rejection of this request by a later step.
    pub(super) fn rejects(&self, reason: impl Into<Reason>) -> Rejection {
        Rejection::by(&self.tenant, Some(&self.upgrade), reason)
    }
}

/// Checks a request. The socket that may come of it has no place yet.
///
/// # Errors
/// The first refusal.
pub(super) async fn admit(
    head: &Parts,
    peer: Peer,
    door: &Door,
) -> Result<(AdmittedRequest, Entrant), Rejection> {
    let host = upgrade::request_host(head)?;
    if door.life.is_refusing() {
        return Err(Refusal::Draining.into());
    }
    let entrant = door.occupancy.enter().ok_or(Refusal::Overloaded)?;
    let client = door.client_of(peer, head);
    let handshake = match door.config.client_address {
        ClientAddress::Peer => None,
        _ => door.addresses.begin_handshake(client)?,
    };
    let entrant = entrant.with_address(door.addresses.admit(client)?);
    let tenant = door.common.tenants.by_host(host.as_str()).await?;
    let by_tenant = |refusal| Rejection::by(&tenant, None, refusal);
    if tenant.life().is_suspended() {
        return Err(by_tenant(Refusal::TenantSuspended));
    }
    let found = tenant.scope.routes.find(head.uri.path());
    let (route, params) = found.ok_or_else(|| by_tenant(Refusal::RouteNotFound))?;
    let key = upgrade::check_upgrade(head).map_err(by_tenant)?;
    let known = &tenant.parts[route].subprotocols;
    let admitted = AdmittedRequest {
        upgrade: Upgrade {
            key,
            subprotocol: upgrade::answer_subprotocol(&head.headers, known),
            acceptance: None,
        },
        tenant,
        route,
        params,
        client,
        is_counted: false,
        _handshake: handshake,
    };
    let origins = &admitted.tenant.origins;
    if let Err(refusal) = origins.check(&head.headers, &host) {
        return Err(admitted.rejects(refusal));
    }
    Ok((admitted, entrant))
}
