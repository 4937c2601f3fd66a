//! Whether an operator has suspended the tenant: told on its control channel, and kept under `lockgate:TENANT:state`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Tenant;
use crate::close_code::CloseReason;
use crate::hub::{CloseOrder, Member, spread};
use crate::stores::redis_keys;

/// What `lockgate:TENANT:state` holds while the tenant is suspended.
pub const SUSPENDED: &[u8] = b"suspended";

/// No socket opens any more, and those that are open close.
pub(super) fn suspend(tenant: &Tenant) -> u64 {
    if !tenant.suspended.swap(true, Ordering::AcqRel) {
        tracing::warn!(tenant.id = %tenant.id, "The tenant is suspended");
    }
    let members = tenant.relay.hub().members();
    let close = |member: &&Arc<Member>| {
        let frame = spread(CloseReason::TenantSuspended);
        member.outbound().close(frame, CloseOrder::AfterQueued)
    };
    members.iter().filter(close).count() as u64
}

pub(super) fn resume(tenant: &Tenant) {
    if tenant.suspended.swap(false, Ordering::AcqRel) {
        tracing::info!(tenant.id = %tenant.id, "The tenant is served again: it is not suspended any more");
    }
}

impl Tenant {
    /// Reads whether the tenant is suspended. A store that does not answer changes nothing.
    pub async fn read_state(&self) {
        let key = redis_keys::state(&self.id);
        let Ok(answers) = self.keys.get_each(&[key]).await else {
            return;
        };
        match answers.first() {
            Some(Ok(Some(state))) if state == SUSPENDED => {
                if !self.is_suspended() {
                    suspend(self);
                }
            }
            Some(Ok(_)) => resume(self),
            // Something else than a string says nothing.
            Some(Err(_)) | None => {}
        }
    }
}
