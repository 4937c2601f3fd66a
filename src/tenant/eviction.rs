//! Closes the sockets of revoked tokens, on every tenant of a name.

use std::sync::Arc;

use super::{Tenant, Tenants};
use crate::close_code::CloseReason;
use crate::ids::{RevocationTarget, TenantId};

impl Tenants {
    /// Closes the sockets of this replica that a revocation concerns. Returns their number.
    pub fn evict(&self, id: &TenantId, target: &RevocationTarget) -> u64 {
        let concerned = self.all_of(id.as_str());
        count_revocation(&concerned, target);
        evict(&concerned, target)
    }
}

/// Counts a revocation that this replica received.
pub(super) fn count_revocation(concerned: &[Arc<Tenant>], target: &RevocationTarget) {
    if let Some(newest) = concerned.first() {
        newest.metrics.revocation(target);
    }
}

/// Closes the sockets of these tenants that a revocation concerns. Returns their number.
pub(super) fn evict(concerned: &[Arc<Tenant>], target: &RevocationTarget) -> u64 {
    let Some(newest) = concerned.first() else {
        return 0;
    };
    let frame = CloseReason::TokenRevoked.frame();
    let evict = |tenant: &Arc<Tenant>| tenant.relay.hub().evict(target, &frame);
    let closed: usize = concerned.iter().map(evict).sum();
    tracing::debug!(tenant.id = %newest.id, count = closed, "Closed the connections of revoked tokens");
    closed as u64
}
