//! The suspension of a tenant by an operator: announced on its control channel and stored under `lockgate:TENANT:state`.

use std::sync::Arc;

use super::life::Happening;
use super::{Tenant, Tenants};
use crate::close_code::CloseReason;
use crate::error::StoreError;
use crate::hub::{CloseOrder, Member, close_in_turns, spread};
use crate::ids::TenantId;
use crate::stores::key_read::KeyRead;
use crate::stores::key_store::KeyStore;
use crate::stores::redis_keys;

/// The value of `lockgate:TENANT:state` while the tenant is suspended.
pub const SUSPENDED: &[u8] = b"suspended";

/// Applies an announced suspension: refuses new sockets and closes open ones. Returns the number closed.
pub(super) fn suspend(tenants: &Tenants, id: &str) -> u64 {
    let concerned: Vec<_> = {
        let _turn = tenants.turn();
        let all = tenants.all_of(id);
        for tenant in &all {
            note(tenant, Happening::Suspended);
        }
        members_of(&all)
    };
    close_each(&concerned)
}

/// Applies the announced end of a suspension: sockets may open again.
pub(super) fn resume(tenants: &Tenants, id: &str) {
    let _turn = tenants.turn();
    for tenant in tenants.all_of(id) {
        note(&tenant, Happening::Resumed);
    }
}

/// Returns true if the tenant is stored as suspended; `None` if its key has another type or a longer value, which is no state.
///
/// # Errors
/// [`StoreError`] if the store does not answer.
pub async fn stored_suspension(
    id: &TenantId,
    store: &KeyStore,
) -> Result<Option<bool>, StoreError> {
    let read = KeyRead::text(redis_keys::state(id), redis_keys::STATE_BYTES);
    let answers = store.get_each([read]).await?;
    let state = answers.into_iter().next().and_then(Result::ok);
    Ok(state.map(|state| state.as_deref() == Some(SUSPENDED)))
}

/// Reads the stored state and applies it.
///
/// # Errors
/// [`StoreError`] if the store does not answer. Nothing has changed then.
pub(super) async fn read_state(tenant: &Tenant, tenants: &Tenants) -> Result<(), StoreError> {
    let began_at = tenant.life().announcements();
    let stored = stored_suspension(&tenant.id, &tenant.key_store).await?;
    let turn = tenants.turn();
    let suspended = stored.unwrap_or_else(|| {
        tenant.metrics.unreadable_values.increment(1);
        // What is known stays.
        tenant.life().is_suspended()
    });
    note(
        tenant,
        Happening::StateRead {
            suspended,
            began_at,
        },
    );
    if !tenant.life().is_suspended() {
        return Ok(());
    }
    let concerned = members_of(&tenants.all_of(tenant.id.as_str()));
    drop(turn);
    close_each(&concerned);
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

/// Returns the sockets that a suspension concerns. Taken in the turn in which it is noted: later ones are refused, or came after its
/// end.
fn members_of(tenants: &[Arc<Tenant>]) -> Vec<Arc<Member>> {
    let members = tenants.iter().map(|tenant| tenant.relay.hub().members());
    members.flatten().collect()
}

/// Closes sockets, outside of the turn, which is that of all tenants: there may be thousands.
fn close_each(members: &[Arc<Member>]) -> u64 {
    let close = |member: &&Arc<Member>| {
        let frame = spread(CloseReason::TenantSuspended);
        member.outbound().close(frame, CloseOrder::AfterQueued)
    };
    close_in_turns(|| members.iter().filter(close).count() as u64)
}
