//! The open sockets of a tenant, page by page.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Tenant;
use crate::fleet::message::SocketEntry;
use crate::hub::Member;
use crate::ids::GroupName;

/// One page of sockets.
pub(super) struct Page {
    /// The number of sockets on all pages.
    pub(super) connections: u64,
    /// Sorted by channel name.
    pub(super) sockets: Vec<SocketEntry>,
}

/// Returns the first `limit` sockets of these tenants, or of one group, whose channel names sort after `cursor`.
pub(super) fn page(
    tenants: &[Arc<Tenant>],
    group: Option<&GroupName>,
    cursor: Option<&str>,
    limit: usize,
) -> Page {
    let mut connections = 0;
    let mut page: BTreeMap<String, Arc<Member>> = BTreeMap::new();
    for tenant in tenants {
        let members = members(tenant, group);
        connections += members.len() as u64;
        // Keeps the `limit` smallest names: memory is bounded by the page, not by the number of sockets.
        for member in members {
            let channel = tenant.scope.channel_name(&member).as_str().to_owned();
            let comes_after = cursor.is_none_or(|cursor| channel.as_str() > cursor);
            let last = page.last_key_value();
            if comes_after && (page.len() < limit || last.is_some_and(|(last, _)| channel < *last))
            {
                page.insert(channel, member);
            }
            if page.len() > limit {
                page.pop_last();
            }
        }
    }
    let entry = |(channel, member): (String, Arc<Member>)| SocketEntry {
        user_id: member.user().as_str().to_owned(),
        channel,
        path: member.path().to_owned(),
        age: member.age(),
    };
    let sockets = page.into_iter().map(entry).collect();
    Page {
        connections,
        sockets,
    }
}

fn members(tenant: &Tenant, group: Option<&GroupName>) -> Vec<Arc<Member>> {
    match group {
        None => tenant.relay.hub().members(),
        Some(name) => {
            let group = tenant.relay.hub().groups().get(name);
            group.map_or_else(Vec::new, |group| group.members())
        }
    }
}
