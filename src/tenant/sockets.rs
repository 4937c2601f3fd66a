//! Which sockets of a tenant are open, page by page.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Tenant;
use crate::fleet::message::SocketEntry;
use crate::hub::Member;
use crate::ids::GroupName;

/// How many sockets there are, and those of a page, in the order of their channel names.
pub(super) fn page(
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
