//! What this replica does on a message of a tenant's control channel.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Tenant, Tenants, sockets, suspension};
use crate::channel_layer::{Control, Heard};
use crate::close_code::{CloseFrame, CloseReason};
use crate::fleet::message::{Command, NotUnderstood, Op};
use crate::fleet::{Fleet, Reply};
use crate::ids::TenantId;
use crate::metrics::{DropCause, EventSource};

/// Acts on the messages of a tenant's control channel for ever.
pub(super) async fn run(
    id: TenantId,
    control: Arc<Control>,
    tenants: Arc<Tenants>,
    fleet: Arc<Fleet>,
) -> Infallible {
    let told = AtomicBool::new(false);
    loop {
        let heard = control.next().await;
        // A reload may have put another one in its place since the last message.
        let Some(tenant) = tenants.by_id(id.as_str()) else {
            continue;
        };
        match heard {
            Heard::Gap => {
                // Whatever was announced meanwhile is found where it was stored.
                tenant.revocations.want_recheck();
            }
            Heard::Message(bytes) => match Command::read(&bytes) {
                Ok(command) => obey(command, &tenant, &control, &fleet),
                Err(why) => not_understood(&tenant, why, &told),
            },
        }
    }
}

fn not_understood(tenant: &Tenant, why: NotUnderstood, told: &AtomicBool) {
    tenant.metrics.dropped(DropCause::NotDecoded);
    if !told.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            tenant.id = %tenant.id, error = %why,
            "Ignored a message on the tenant's control channel; further ones are only counted"
        );
    }
}

/// Does what takes no time at once, so that messages act in the order in which they came; the rest in a task.
fn obey(command: Command, tenant: &Arc<Tenant>, control: &Arc<Control>, fleet: &Arc<Fleet>) {
    let Command { op, id, reply } = command;
    let answer = Reply::new(fleet, control, id, reply);
    match op {
        Op::Revoke(whom) => {
            let closed = tenant.revocations.evict(&whom);
            answer.send(|answer| answer.closed = Some(closed as u64));
        }
        Op::Invalidate(user) => {
            let tenant = tenant.clone();
            // Not awaited by anyone: it ends with the statement that it asks.
            tokio::spawn(async move {
                let closed = tenant.coherence.invalidate(&user).await;
                answer.send(|answer| answer.closed = Some(closed as u64));
            });
        }
        Op::Disconnect { user, code, reason } => {
            let frame = disconnection(code, reason);
            let closed = tenant.relay.hub().close_user(&user, &frame);
            answer.send(|answer| answer.closed = Some(closed as u64));
        }
        Op::Send { user, event } => {
            tenant.metrics.event(EventSource::Api);
            let members = tenant.relay.hub().of_user(&user);
            for member in &members {
                tenant.relay.send_to(member, &event);
            }
            answer.send(|answer| answer.delivered = Some(members.len() as u64));
        }
        Op::Count => {
            let connections = tenant.relay.hub().len() as u64;
            answer.send(|answer| answer.connections = Some(connections));
        }
        Op::List {
            group,
            cursor,
            limit,
        } => {
            let (connections, sockets) =
                sockets::page(tenant, group.as_ref(), cursor.as_deref(), limit);
            answer.send(|answer| {
                answer.connections = Some(connections);
                answer.sockets = sockets;
            });
        }
        Op::Suspend => {
            let closed = suspension::suspend(tenant);
            answer.send(|answer| answer.closed = Some(closed));
        }
        Op::Resume => {
            suspension::resume(tenant);
            answer.send(|_| {});
        }
        // Of the deployment's own channel only.
        Op::Reload => tenant.metrics.dropped(DropCause::NotDecoded),
    }
}

fn disconnection(code: Option<u16>, reason: Option<String>) -> CloseFrame {
    match (code, reason) {
        (None, None) => CloseReason::Disconnected.frame(),
        (code, reason) => {
            let default = CloseReason::Disconnected;
            CloseFrame {
                code: code.unwrap_or(default.code()),
                reason: reason.map_or(default.label().into(), Into::into),
                cause: None,
            }
        }
    }
}
