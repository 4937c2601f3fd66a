//! Carries out the messages of a tenant's control channel on all its sockets, including those that leave.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;

use super::{Tenant, Tenants, sockets, suspension};
use crate::channel_layer::{Control, Heard};
use crate::close_code::CloseReason;
use crate::event::Event;
use crate::fleet::message::{Command, NotUnderstood, Op};
use crate::fleet::{Fleet, Reply};
use crate::ids::{RevocationTarget, TenantId, UserId};
use crate::metrics::{DropCause, EventSource};
use crate::tasks;

/// Carries out the messages of a tenant's control channel until the task is dropped.
pub(super) async fn run(
    id: TenantId,
    control: Arc<Control>,
    tenants: Arc<Tenants>,
    fleet: Arc<Fleet>,
) -> Infallible {
    let told = AtomicBool::new(false);
    loop {
        let heard = control.next().await;
        let concerned = concerned(&tenants, &id, &control);
        // Looked up for each message: a reload may have replaced the tenant.
        let Some(tenant) = concerned.first() else {
            continue;
        };
        match heard {
            // Revocations that were announced during the gap are found in the denylist.
            Heard::Gap => concerned
                .iter()
                .for_each(|tenant| tenant.revocations.want_recheck()),
            Heard::Message(bytes) => match Command::read(&bytes) {
                Ok(Command {
                    op,
                    id: asked,
                    reply,
                }) => {
                    let answer = Reply::new(&fleet, &control, asked, reply);
                    obey(op, &tenants, concerned, answer);
                }
                Err(why) => not_understood(tenant, why, &told),
            },
        }
    }
}

/// Returns the tenants that a message of this channel concerns, newest first. The channel of the served tenant concerns
/// all of this name. The channel on a Redis that a reload has left concerns only the tenants that still hear it.
fn concerned(tenants: &Tenants, id: &TenantId, control: &Arc<Control>) -> Vec<Arc<Tenant>> {
    let mut all = tenants.all_of(id.as_str());
    let hears = |tenant: &Arc<Tenant>| Arc::ptr_eq(&tenant.control, control);
    if !all.first().is_some_and(hears) {
        all.retain(hears);
    }
    all
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

/// Carries out one message. Quick operations run at once, so that they act in order of arrival; slow ones get a task.
fn obey(op: Op, tenants: &Tenants, concerned: Vec<Arc<Tenant>>, answer: Reply) {
    let Some(newest) = concerned.first() else {
        return;
    };
    match op {
        Op::Revoke(target) => {
            let closed = evict(&concerned, &target);
            answer.send(|answer| answer.closed = Some(closed));
        }
        Op::Invalidate(user) => {
            // Short-lived: ends with its database statements.
            tasks::brief(async move {
                let looks = concerned
                    .iter()
                    .map(|tenant| tenant.coherence.invalidate(&user));
                let closed: usize = join_all(looks).await.into_iter().sum();
                answer.send(|answer| answer.closed = Some(closed as u64));
            });
        }
        Op::Disconnect { user, close } => {
            let frame = close.frame();
            let close = |tenant: &Arc<Tenant>| tenant.relay.hub().close_user(&user, &frame);
            let closed: usize = concerned.iter().map(close).sum();
            answer.send(|answer| answer.closed = Some(closed as u64));
        }
        Op::Send { user, event } => {
            newest.metrics.event(EventSource::Api);
            let send = |tenant: &Arc<Tenant>| send_to_user(tenant, &user, &event);
            let delivered: usize = concerned.iter().map(send).sum();
            answer.send(|answer| answer.delivered = Some(delivered as u64));
        }
        Op::Count => {
            let count = |tenant: &Arc<Tenant>| tenant.relay.hub().len();
            let connections: usize = concerned.iter().map(count).sum();
            answer.send(|answer| answer.connections = Some(connections as u64));
        }
        Op::List {
            group,
            cursor,
            limit,
        } => {
            let page = sockets::page(&concerned, group.as_ref(), cursor.as_deref(), limit);
            answer.send(|answer| {
                answer.connections = Some(page.connections);
                answer.sockets = page.sockets;
            });
        }
        Op::Suspend => {
            let closed = suspension::suspend(tenants, newest.id.as_str());
            answer.send(|answer| answer.closed = Some(closed));
        }
        Op::Resume => {
            suspension::resume(tenants, newest.id.as_str());
            answer.send(|_| {});
        }
        // Valid on the deployment's own channel only.
        Op::Reload => newest.metrics.dropped(DropCause::NotDecoded),
    }
}

impl Tenants {
    /// Closes the sockets of this replica that a revocation concerns. Returns their number.
    pub fn evict(&self, id: &TenantId, target: &RevocationTarget) -> u64 {
        evict(&self.all_of(id.as_str()), target)
    }
}

fn evict(concerned: &[Arc<Tenant>], target: &RevocationTarget) -> u64 {
    let Some(newest) = concerned.first() else {
        return 0;
    };
    newest.metrics.revocation(target);
    let frame = CloseReason::TokenRevoked.frame();
    let evict = |tenant: &Arc<Tenant>| tenant.relay.hub().evict(target, &frame);
    let closed: usize = concerned.iter().map(evict).sum();
    tracing::debug!(tenant.id = %newest.id, count = closed, "Closed the connections of revoked tokens");
    closed as u64
}

fn send_to_user(tenant: &Tenant, user: &UserId, event: &Arc<Event>) -> usize {
    let members = tenant.relay.hub().of_user(user);
    for member in &members {
        tenant.relay.send_to(member, event);
    }
    members.len()
}
