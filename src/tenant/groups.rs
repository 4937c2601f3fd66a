//! Groups that a back end puts open sockets into and takes them out of, on this replica.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{Tenant, sockets};
use crate::fleet::Reply;
use crate::fleet::message::Sockets;
use crate::ids::GroupName;
use crate::metrics::{ControlDrop, DropCause};
use crate::relay::begin;

/// Puts the sockets into the group. Answers once events of the group reach them; a layer that does not confirm makes the
/// replica one that does not answer.
pub(super) fn add(concerned: &[Arc<Tenant>], named: &Sockets, group: &GroupName, answer: Reply) {
    let Some(newest) = concerned.first().cloned() else {
        return;
    };
    let (mut found, mut changed, mut over_limit) = (0, 0, 0);
    let mut waits = Vec::new();
    for tenant in concerned {
        let Some(group) = name(tenant, group) else {
            return;
        };
        let members = sockets::of(tenant, named);
        let added = tenant.relay.put_into(&members, &group);
        found += members.len() as u64;
        changed += added.changed;
        over_limit += added.over_limit;
        waits.extend(added.confirmed);
    }
    begin(Box::pin(async move {
        let confirmed = join_all(waits).await;
        if let Some(error) = confirmed.into_iter().find_map(Result::err) {
            tracing::debug!(
                tenant.id = %newest.id, error = %error,
                "A back end put sockets into a group, and the layer has not confirmed the subscription"
            );
            return;
        }
        let answered = answer.send(|answer| {
            answer.changed = Some(changed);
            answer.over_limit = Some(over_limit).filter(|over| *over > 0);
            answer.found = Some(found);
        });
        if !answered {
            newest.metrics.control_dropped(ControlDrop::Answers);
        }
    }));
}

/// Takes the sockets out of the group. Returns false if the answer was dropped.
pub(super) fn discard(
    concerned: &[Arc<Tenant>],
    named: &Sockets,
    group: &GroupName,
    answer: Reply,
) -> bool {
    let (mut found, mut changed) = (0, 0);
    for tenant in concerned {
        let Some(group) = name(tenant, group) else {
            return true;
        };
        let members = sockets::of(tenant, named);
        changed += tenant.relay.take_out(&members, &group);
        found += members.len() as u64;
    }
    answer.send(|answer| {
        answer.changed = Some(changed);
        answer.found = Some(found);
    })
}

/// Returns the name if the tenant's rule allows it. Others than the API may have sent the message.
fn name(tenant: &Tenant, group: &GroupName) -> Option<GroupName> {
    let name = tenant.relay.group_name(group.as_str());
    if name.is_none() {
        tenant.metrics.dropped(DropCause::NotValid);
    }
    name
}
