//! Whether an operator has suspended the tenant: told on its control channel, and kept under `lockgate:TENANT:state`.

use std::sync::Arc;

use super::life::Happening;
use super::{Tenant, Tenants};
use crate::close_code::CloseReason;
use crate::error::StoreError;
use crate::hub::{CloseOrder, Member, spread};
use crate::stores::redis_keys;

/// What `lockgate:TENANT:state` holds while the tenant is suspended.
pub const SUSPENDED: &[u8] = b"suspended";

/// An announcement came: no socket of these opens any more, and those that are open close; answers how many.
pub(super) fn suspend(tenants: &Tenants, id: &str) -> u64 {
    let _turn = tenants.turn();
    let all = tenants.all_of(id);
    for tenant in &all {
        note(tenant, Happening::Suspended);
    }
    all.iter().map(|tenant| close_all(tenant)).sum()
}

/// An announcement came: sockets may open again.
pub(super) fn resume(tenants: &Tenants, id: &str) {
    let _turn = tenants.turn();
    for tenant in tenants.all_of(id) {
        note(&tenant, Happening::Resumed);
    }
}

/// Reads whether the tenant is suspended, and acts on it.
///
/// # Errors
/// [`StoreError`] if the store does not answer: nothing has changed then.
pub(super) async fn read_state(tenant: &Tenant, tenants: &Tenants) -> Result<(), StoreError> {
    let began_at = tenant.life().announcements();
    let answers = tenant
        .keys
        .get_each(&[redis_keys::state(&tenant.id)])
        .await?;
    let _turn = tenants.turn();
    let suspended = match answers.first() {
        Some(Ok(state)) => state.as_deref() == Some(SUSPENDED),
        // A key that holds no string says nothing.
        Some(Err(_)) | None => tenant.life().is_suspended(),
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

/// Notes what happened, and logs where the tenant is suspended now, or is not any more.
fn note(tenant: &Tenant, happening: Happening) {
    let before = tenant.life().is_suspended();
    tenant.take(happening);
    match (before, tenant.life().is_suspended()) {
        (false, true) => tracing::warn!(tenant.id = %tenant.id, "The tenant is suspended"),
        (true, false) => tracing::info!(
            tenant.id = %tenant.id, "The tenant is served again: it is not suspended any more"
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
