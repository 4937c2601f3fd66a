//! Carries out the messages of a tenant's control channel on all its sockets, including those that leave.
//!
//! Anyone with the right to the channel may flood it, and neither other tenants nor the tenant's own revocations may wait for
//! that. So messages are taken in turns with all other work. Those that only ask or send are bounded per second, and wait for each
//! other in a line of their own ([`LaterOrders`]). Revocations, invalidations and suspensions are neither bounded nor in that line;
//! [`Errands`] merges those that cost more than a look into an index.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use super::errands::Errands;
use super::eviction::{count_revocation, evict};
use super::later::{LaterOrder, LaterOrders};
use super::{Tenant, Tenants, groups, sockets};
use crate::channel_layer::{Control, Heard};
use crate::event::Event;
use crate::fleet::answer::Answer;
use crate::fleet::message::{Command, NotUnderstood, Op};
use crate::fleet::{Fleet, MessageTurn, Reply};
use crate::hub::{CloseOrder, close_all};
use crate::ids::{RevocationTarget, TenantId, UserId};
use crate::metrics::{ControlDrop, DropCause, EventSource, GapCause};
use crate::rate::Bucket;

/// Bytes of the longest message that may be urgent: an id is shorter. A longer one can only be an event. It is not even read
/// over the rate.
const LONG: usize = 64 * 1024;
/// Bytes of an event, and sockets of a page, that count as one message.
const UNIT: usize = 4 * 1024;
const SOCKETS: usize = 50;

/// Carries out the messages of a tenant's control channel until the task is dropped.
pub(super) async fn run(
    id: TenantId,
    control: Arc<Control>,
    tenants: Arc<Tenants>,
    fleet: Arc<Fleet>,
) -> Infallible {
    let errands = Errands::default();
    let (later, line) = LaterOrders::new();
    let mut orders = Orders {
        id: &id,
        control: &control,
        tenants: &tenants,
        fleet: &fleet,
        errands: &errands,
        later,
        rate: Bucket::default(),
        told: AtomicBool::new(false),
    };
    tokio::select! {
        never = orders.hear() => never,
        never = errands.run(&tenants, || concerned(&tenants, &id, &control)) => never,
        never = serve_later(line, || concerned(&tenants, &id, &control)) => never,
    }
}

/// The messages of one channel on their way.
struct Orders<'a> {
    id: &'a TenantId,
    control: &'a Arc<Control>,
    tenants: &'a Tenants,
    fleet: &'a Arc<Fleet>,
    errands: &'a Errands,
    later: LaterOrders,
    rate: Bucket,
    /// A message was not understood, and the log says so.
    told: AtomicBool,
}

impl Orders<'_> {
    async fn hear(&mut self) -> Infallible {
        let mut turn = MessageTurn::default();
        loop {
            let heard = self.control.next().await;
            // Looked up for each message: a reload may have replaced the tenant.
            let concerned = concerned(self.tenants, self.id, self.control);
            let Some(newest) = concerned.first() else {
                continue;
            };
            let cost = match heard {
                Heard::Gap(cause) => self.missed(cause, &concerned),
                Heard::Message(bytes) => self.take(bytes, newest, &concerned),
            };
            turn.spend(cost).await;
        }
    }

    /// Revocations that were announced during a gap are found in the denylist. A queue that ran over may have held any
    /// number of invalidations as well.
    fn missed(&self, cause: GapCause, concerned: &[Arc<Tenant>]) -> usize {
        if cause == GapCause::LayerQueue {
            self.errands.look_at_everyone();
            if let Some(newest) = concerned.first() {
                newest.metrics.control_dropped(ControlDrop::Queue);
            }
        } else {
            let recheck = |tenant: &Arc<Tenant>| tenant.revocations.want_recheck();
            concerned.iter().for_each(recheck);
        }
        MessageTurn::WHOLE
    }

    /// Takes one message; returns its cost, in parts of a [`MessageTurn`]. One that is served ends the turn, and an urgent one takes
    /// a quarter of it.
    fn take(&mut self, bytes: Bytes, newest: &Arc<Tenant>, concerned: &[Arc<Tenant>]) -> usize {
        let per_second = newest.relay.limits().control_per_second;
        let is_long = bytes.len() > LONG;
        if is_long && !self.may(per_second, bytes.len() / UNIT) {
            newest.metrics.control_dropped(ControlDrop::Rate);
            return 1;
        }
        let command = match Command::read(&bytes) {
            Ok(command) => command,
            Err(why) => {
                self.not_understood(newest, why);
                return MessageTurn::cost_of(bytes.len());
            }
        };
        let weight = match &command.op {
            Op::List { limit, .. } => 1 + limit / SOCKETS,
            _ => 1,
        };
        if !command.op.is_urgent() && !is_long && !self.may(per_second, weight) {
            newest.metrics.control_dropped(ControlDrop::Rate);
            return 1;
        }
        let address = (command.id, command.reply);
        let answer = Reply::new(self.fleet, self.control, address, per_second);
        if !self.is_at_once(&command.op) {
            if !self.later.add(command.op, answer, is_long) {
                newest.metrics.control_dropped(ControlDrop::Rate);
            }
            return MessageTurn::WHOLE;
        }
        if !self.obey(command.op, concerned, answer) {
            newest.metrics.control_dropped(ControlDrop::Answers);
        }
        MessageTurn::WHOLE / 4
    }

    /// Returns true if the message does not wait for those that ask or send. One that ends a membership does, since the membership may
    /// begin with one of them.
    fn is_at_once(&self, op: &Op) -> bool {
        op.is_urgent() && (!matches!(op, Op::GroupDiscard { .. }) || self.later.is_empty())
    }

    fn may(&mut self, per_second: u32, weight: usize) -> bool {
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        self.rate.take_many(Instant::now(), per_second, weight)
    }

    fn not_understood(&self, tenant: &Tenant, why: NotUnderstood) {
        tenant.metrics.dropped(DropCause::NotDecoded);
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                tenant.id = %tenant.id, error = %why,
                "Ignored a message on the tenant's control channel; further ones are only counted"
            );
        }
    }

    /// Carries out an urgent message: at once where an index finds its sockets, else as an errand. Returns false if its
    /// answer was dropped.
    fn obey(&self, op: Op, concerned: &[Arc<Tenant>], answer: Reply) -> bool {
        if let Op::Revoke(target) = &op {
            count_revocation(concerned, target);
        }
        match op {
            Op::Revoke(RevocationTarget::All(before)) => self.errands.cut_off(before, answer),
            Op::Revoke(target) => {
                let closed = evict(concerned, &target);
                answer.send(|answer| answer.closed = Some(closed))
            }
            Op::Invalidate(user) => {
                let forget = |tenant: &Arc<Tenant>| tenant.coherence.forget(&user);
                concerned.iter().for_each(forget);
                self.errands.invalidate(user, answer)
            }
            Op::GroupDiscard { sockets, group } => {
                groups::discard(concerned, &sockets, &group, answer)
            }
            Op::Suspend => self.errands.suspend(true, answer),
            Op::Resume => self.errands.suspend(false, answer),
            // Not urgent.
            _ => true,
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

/// Carries out the messages that ask or send, one after another.
async fn serve_later(
    mut line: UnboundedReceiver<LaterOrder>,
    concerned: impl Fn() -> Vec<Arc<Tenant>>,
) -> Infallible {
    while let Some(order) = line.recv().await {
        let concerned = concerned();
        let answered = serve(order.op, &concerned, order.answer).await;
        if !answered && let Some(newest) = concerned.first() {
            newest.metrics.control_dropped(ControlDrop::Answers);
        }
        tokio::task::yield_now().await;
    }
    // The line lives as long as the channel is heard.
    std::future::pending().await
}

/// Carries out a message that asks or sends. Returns false if its answer was dropped.
async fn serve(op: Op, concerned: &[Arc<Tenant>], answer: Reply) -> bool {
    let Some(newest) = concerned.first() else {
        return true;
    };
    match op {
        Op::Disconnect {
            sockets: named,
            close,
        } => {
            let of = |tenant: &Arc<Tenant>| sockets::of(tenant, &named);
            let found: Vec<_> = concerned.iter().flat_map(of).collect();
            let closed = close_all(&found, &close.frame(), CloseOrder::AfterQueued);
            answer.send(|answer| {
                answer.closed = Some(closed as u64);
                answer.found = Some(found.len() as u64);
            })
        }
        Op::Send { user, event } => {
            newest.metrics.event(EventSource::Api);
            let mut delivered = 0;
            for tenant in concerned {
                delivered += send_to_user(tenant, &user, &event).await;
            }
            answer.send(|answer| answer.delivered = Some(delivered))
        }
        Op::Count => {
            let count = |tenant: &Arc<Tenant>| tenant.relay.hub().len();
            let connections = concerned.iter().map(count).sum::<usize>() as u64;
            answer.send(|answer| answer.connections = Some(connections))
        }
        Op::List { of, cursor, limit } => answer.send(|answer: &mut Answer| {
            let page = sockets::page(concerned, &of, cursor.as_deref(), limit);
            answer.connections = Some(page.connections);
            answer.put_page(page.sockets, page.more);
        }),
        Op::GroupAdd { sockets, group } => {
            groups::add(concerned, &sockets, &group, answer);
            true
        }
        // Behind those that ask or send, if there were some.
        Op::GroupDiscard { sockets, group } => groups::discard(concerned, &sockets, &group, answer),
        // Valid on the deployment's own channel only.
        _ => {
            newest.metrics.dropped(DropCause::NotDecoded);
            true
        }
    }
}

async fn send_to_user(tenant: &Tenant, user: &UserId, event: &Arc<Event>) -> u64 {
    let members = tenant.relay.hub().of_user(user);
    tenant.relay.send_to_each(&members, event).await;
    members.len() as u64
}
