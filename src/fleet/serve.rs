//! What this replica does on a control message, and the answers that come back to it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::channel_layer::Control;
use crate::channel_layer::control::{
    Answer, Command, Heard, NotUnderstood, Op, REPLY_PREFIX, SocketEntry,
};
use crate::close_code::{CloseFrame, CloseReason};
use crate::hub::{CloseOrder, Member, spread};
use crate::ids::{GroupName, TenantId};
use crate::metrics::{DropCause, EventSource};
use crate::state::{Tenant, Tenants};
use crate::stores::redis_keys;

use super::{Fleet, blank};

/// Acts on the messages of a tenant's control channel for ever.
pub async fn serve_tenant(
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
            let (connections, sockets) = page(tenant, group.as_ref(), cursor.as_deref(), limit);
            answer.send(|answer| {
                answer.connections = Some(connections);
                answer.sockets = sockets;
            });
        }
        Op::Suspend => {
            let closed = suspend(tenant);
            answer.send(|answer| answer.closed = Some(closed));
        }
        Op::Resume => {
            resume(tenant);
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

/// How many sockets there are, and those of a page, in the order of their channel names.
fn page(
    tenant: &Tenant,
    group: Option<&GroupName>,
    cursor: Option<&str>,
    limit: usize,
) -> (u64, Vec<SocketEntry>) {
    let members = match group {
        None => tenant.relay.hub().members(),
        Some(name) => {
            let group = tenant.relay.hub().groups().get(name);
            group.map_or_else(Vec::new, |group| group.members())
        }
    };
    let connections = members.len() as u64;
    let mut page: BTreeMap<String, Arc<Member>> = BTreeMap::new();
    for member in members {
        let channel = tenant.place.channel_name(&member).as_str().to_owned();
        let full = page.len() >= limit;
        if cursor.is_some_and(|cursor| channel.as_str() <= cursor)
            || full
                && page
                    .last_key_value()
                    .is_none_or(|(last, _)| channel > *last)
        {
            continue;
        }
        page.insert(channel, member);
        if page.len() > limit {
            page.pop_last();
        }
    }
    let entry = |(channel, member): (String, Arc<Member>)| SocketEntry {
        user_id: member.user().as_str().to_owned(),
        channel,
        path: member.path().to_owned(),
        age: member.age(),
    };
    (connections, page.into_iter().map(entry).collect())
}

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

fn resume(tenant: &Tenant) {
    if tenant.suspended.swap(false, Ordering::AcqRel) {
        tracing::info!(tenant.id = %tenant.id, "The tenant is served again: it is not suspended any more");
    }
}

impl Fleet {
    /// Reads whether the tenant is suspended. A store that does not answer changes nothing.
    pub async fn read_state(&self, tenant: &Tenant) {
        let key = redis_keys::state(&tenant.id);
        let Ok(answers) = tenant.keys.get_each(&[key]).await else {
            return;
        };
        match answers.first() {
            Some(Ok(Some(state))) if state == SUSPENDED => {
                if !tenant.is_suspended() {
                    suspend(tenant);
                }
            }
            Some(Ok(_)) => resume(tenant),
            // Something else than a string says nothing.
            Some(Err(_)) | None => {}
        }
    }
}

/// What `lockgate:TENANT:state` holds while the tenant is suspended.
pub const SUSPENDED: &[u8] = b"suspended";

/// Where an answer goes.
struct Reply {
    fleet: Arc<Fleet>,
    control: Arc<Control>,
    /// Id and channel, where an answer is wanted.
    to: Option<(String, String)>,
}

impl Reply {
    fn new(
        fleet: &Arc<Fleet>,
        control: &Arc<Control>,
        id: Option<String>,
        reply: Option<String>,
    ) -> Self {
        // Nowhere else: whoever may write a control channel cannot make a replica publish to a group.
        let reply = reply.filter(|channel| channel.starts_with(REPLY_PREFIX));
        Self {
            fleet: fleet.clone(),
            control: control.clone(),
            to: id.zip(reply),
        }
    }

    /// Whether this replica has asked.
    fn is_own(&self) -> bool {
        let to = self.to.as_ref();
        to.is_some_and(|(_, channel)| self.is_own_channel(channel))
    }

    fn is_own_channel(&self, channel: &str) -> bool {
        channel.strip_prefix(REPLY_PREFIX) == Some(self.fleet.replica.as_str())
    }

    fn send(self, fill: impl FnOnce(&mut Answer)) {
        let Some((id, channel)) = self.to.clone() else {
            return;
        };
        let mut answer = blank(&self.fleet, &id);
        fill(&mut answer);
        if self.is_own_channel(&channel) {
            return self.fleet.answered(answer);
        }
        let Ok(payload) = serde_json::to_vec(&answer) else {
            return;
        };
        let control = self.control;
        // Ends within Redis' time limit; an answer that is lost makes this replica one of the missing.
        tokio::spawn(async move { drop(control.answer(&channel, &payload).await) });
    }
}

/// Takes answers to questions of this replica for ever.
pub async fn serve_replies(control: Arc<Control>, fleet: Arc<Fleet>) -> Infallible {
    loop {
        if let Heard::Message(bytes) = control.next().await
            && let Ok(answer) = serde_json::from_slice::<Answer>(&bytes)
        {
            fleet.answered(answer);
        }
    }
}

/// Acts on the messages of the deployment's control channel for ever; `reload` reads the configuration again and says
/// what is wrong with it.
pub async fn serve_deployment<F, R>(
    control: Arc<Control>,
    fleet: Arc<Fleet>,
    reload: F,
) -> Infallible
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    let told = AtomicBool::new(false);
    loop {
        let Heard::Message(bytes) = control.next().await else {
            continue;
        };
        match Command::read(&bytes) {
            Ok(Command {
                op: Op::Reload,
                id,
                reply,
            }) => {
                let reply = Reply::new(&fleet, &control, id, reply);
                if reply.is_own() {
                    // Whoever asks has applied its files before it asked.
                    reply.send(|_| {});
                    continue;
                }
                let applied = reload();
                // In a task of its own: it takes as long as reading all files.
                tokio::spawn(async move {
                    let outcome = applied.await;
                    reply.send(|answer| answer.error = outcome.err());
                });
            }
            _ if !told.swap(true, Ordering::Relaxed) => {
                tracing::warn!("Ignored a message on the deployment's control channel");
            }
            _ => {}
        }
    }
}
