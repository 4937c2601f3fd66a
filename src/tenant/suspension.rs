//! The suspension of a tenant by an operator: announced on its control channel and stored under `lockgate:TENANT:state`.

use std::sync::Arc;

use super::life::Happening;
use super::{Tenant, Tenants};
use crate::close_code::CloseReason;
use crate::error::StoreError;
use crate::hub::{CloseOrder, Member, spread};
use crate::stores::key_read::KeyRead;
use crate::stores::redis_keys;

/// The value of `lockgate:TENANT:state` while the tenant is suspended.
pub const SUSPENDED: &[u8] = b"suspended";

/// Applies an announced suspension: refuses new sockets and closes open ones. Returns the number closed.
pub(super) fn suspend(tenants: &Tenants, id: &str) -> u64 {
    let _turn = tenants.turn();
    let all = tenants.all_of(id);
    for tenant in &all {
        note(tenant, Happening::Suspended);
    }
    all.iter().map(|tenant| close_all(tenant)).sum()
}

/// Applies the announced end of a suspension: sockets may open again.
pub(super) fn resume(tenants: &Tenants, id: &str) {
    let _turn = tenants.turn();
    for tenant in tenants.all_of(id) {
        note(&tenant, Happening::Resumed);
    }
}

/// Reads the stored state and applies it.
///
/// # Errors
/// [`StoreError`] if the store does not answer. Nothing has changed then.
pub(super) async fn read_state(tenant: &Tenant, tenants: &Tenants) -> Result<(), StoreError> {
    let began_at = tenant.life().announcements();
    let answers = tenant
        .key_store
        .get_each([KeyRead::text(
            redis_keys::state(&tenant.id),
            redis_keys::STATE_BYTES,
        )])
        .await?;
    let _turn = tenants.turn();
    let suspended = match answers.first() {
        Some(Ok(state)) => state.as_deref() == Some(SUSPENDED),
        // A key of another type, or with a longer value, is no state: keep what is known.
        Some(Err(_)) => {
            tenant.metrics.unreadable_values.increment(1);
            tenant.life().is_suspended()
        }
        None => tenant.life().is_suspended(),
    };
    note(
        tenant,
        Happening::StateRead {
            suspended,
            began_at,
        },
    );
    if tenant.life().is_suspended() {
        for tenant in tenants.all_of(tenant.id.as_str()) {
            close_all(&tenant);
        }
    }
    Ok(())
}

/// Records what happened, and logs a suspension that begins or ends.
fn note(tenant: &Tenant, happening: Happening) {
    let before = tenant.life().is_suspended();
    tenant.take(happening);
    match (before, tenant.life().is_suspended()) {
        (false, true) => tracing::warn!(tenant.id = %tenant.id, "The tenant is suspended"),
        (true, false) => tracing::info!(
            tenant.id = %tenant.id, "The tenant is no longer suspended"
        ),
        _ => {}
    }
}

fn close_all(tenant: &Tenant) -> u64 {
    let close = |member: &&Arc<Member>| {
        let frame = spread(CloseReason::TenantSuspended);
        member.outbound().close(frame, CloseOrder::AfterQueued)
    };
    tenant.relay.hub().members().iter().filter(close).count() as u64
}
