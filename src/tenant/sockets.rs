//! The open sockets of a tenant, page by page.

use std::ops::Bound;
use std::sync::Arc;

use super::Tenant;
use crate::channel_layer::SocketChannel;
use crate::fleet::answer::SocketEntry;
use crate::fleet::message::{ListScope, Sockets};
use crate::hub::Member;
use crate::ids::{ChannelName, GroupName, UserId};

/// One page of sockets.
pub(super) struct Page {
    /// The number of sockets on all pages.
    pub(super) connections: u64,
    /// Sorted by channel name.
    pub(super) sockets: Vec<SocketEntry>,
    /// True if other sockets come after these.
    pub(super) more: bool,
}

/// Returns the first `limit` of the listed sockets whose channel names sort after `cursor`.
pub(super) fn page(
    tenants: &[Arc<Tenant>],
    of: &ListScope,
    cursor: Option<&str>,
    limit: usize,
) -> Page {
    match of {
        ListScope::All => page_of_group(tenants, None, cursor, limit),
        ListScope::Group(group) => page_of_group(tenants, Some(group), cursor, limit),
        ListScope::User(user) => page_of_user(tenants, user, cursor, limit),
    }
}

/// Returns a page of the sockets of these tenants, or of one group.
fn page_of_group(
    tenants: &[Arc<Tenant>],
    group: Option<&GroupName>,
    cursor: Option<&str>,
    limit: usize,
) -> Page {
    let (mut connections, mut page) = (0, Vec::new());
    for tenant in tenants {
        let hub = tenant.relay.hub();
        connections += hub.count(group) as u64;
        let Some(from) = first_after(&tenant.scope.channel_prefix, cursor) else {
            continue;
        };
        // One more than asked for shows that there is a next page.
        let members = hub.page(group, from, limit + 1);
        let named = |member: Arc<Member>| (tenant.scope.channel_name(&member), member);
        page.extend(members.into_iter().map(named));
    }
    finished(connections, page, limit)
}

/// Returns a page of the sockets of a user.
fn page_of_user(
    tenants: &[Arc<Tenant>],
    user: &UserId,
    cursor: Option<&str>,
    limit: usize,
) -> Page {
    let mut page = Vec::new();
    for tenant in tenants {
        let members = tenant.relay.hub().of_user(user);
        let named = |member: Arc<Member>| (tenant.scope.channel_name(&member), member);
        page.extend(members.into_iter().map(named));
    }
    let connections = page.len() as u64;
    page.retain(|(channel, _)| cursor.is_none_or(|cursor| channel.as_str() > cursor));
    finished(connections, page, limit)
}

fn finished(connections: u64, mut page: Vec<(ChannelName, Arc<Member>)>, limit: usize) -> Page {
    // The pages of two tenants, while a reload moves one: each is sorted.
    page.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    let more = page.len() > limit;
    page.truncate(limit);
    let entry = |(channel, member): (ChannelName, Arc<Member>)| SocketEntry {
        user_id: member.user().map(|user| user.as_str().to_owned()),
        channel: channel.as_str().to_owned(),
        path: member.path().to_owned(),
        age: member.age(),
    };
    Page {
        connections,
        sockets: page.into_iter().map(entry).collect(),
        more,
    }
}

/// Returns the open sockets that a command names.
pub(super) fn of(tenant: &Tenant, named: &Sockets) -> Vec<Arc<Member>> {
    let hub = tenant.relay.hub();
    match named {
        Sockets::OfUser(user) => hub.of_user(user),
        Sockets::OfChannel(channel) => {
            let digits = channel.strip_prefix(&*tenant.scope.channel_prefix);
            let channel = digits.and_then(SocketChannel::of_digits);
            let member = channel.and_then(|SocketChannel(bits)| hub.by_channel(bits));
            member.into_iter().collect()
        }
    }
}

/// Returns the first channel whose name, `prefix` and 32 hexadecimal digits, sorts after `cursor`. `None`: there is none.
/// A cursor may be any text.
fn first_after(prefix: &str, cursor: Option<&str>) -> Option<Bound<[u8; 16]>> {
    let Some(cursor) = cursor else {
        return Some(Bound::Unbounded);
    };
    let Some(digits) = cursor.strip_prefix(prefix) else {
        return (cursor < prefix).then_some(Bound::Unbounded);
    };
    let mut from = 0u128;
    for (place, char) in digits.bytes().take(32).enumerate() {
        let rest = 4 * (31 - place);
        match char {
            b'0'..=b'9' => from |= u128::from(char - b'0') << rest,
            b'a'..=b'f' => from |= u128::from(char - b'a' + 10) << rest,
            // Sorts before all digits, so every name that begins like this comes after.
            ..b'0' => return Some(Bound::Included(from.to_be_bytes())),
            // Sorts between 9 and a.
            b':'..b'a' => {
                from |= 10 << rest;
                return Some(Bound::Included(from.to_be_bytes()));
            }
            // Sorts after all digits: the next name differs in an earlier digit.
            b'g'.. => {
                let last = from | (u128::MAX >> (4 * place));
                return Some(Bound::Excluded(last.to_be_bytes()));
            }
        }
    }
    match digits.len() < 32 {
        true => Some(Bound::Included(from.to_be_bytes())),
        false => Some(Bound::Excluded(from.to_be_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_layer::SocketChannel;

    #[test]
    fn a_cursor_of_any_text_means_the_names_after_it() {
        let channels: Vec<[u8; 16]> = [0u128, 1, 9 << 124, 10 << 124, (10 << 124) + 5, u128::MAX]
            .map(u128::to_be_bytes)
            .into();
        let name = |channel: [u8; 16]| SocketChannel(channel).name("p.");
        let mut cursors = vec![
            "", "p", "p.", "p.9", "p.9f", "p.A", "p.a", "p.!", "p.g", "p.f~", "q",
        ]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        for channel in &channels {
            let exact = name(*channel);
            cursors.push(format!("{exact}0"));
            cursors.push(exact[..20].to_owned());
            cursors.push(format!("{}G", &exact[..33]));
            cursors.push(exact);
        }
        for cursor in cursors {
            let from = first_after("p.", Some(&cursor));
            for channel in &channels {
                let comes_after = match from {
                    None => false,
                    Some(Bound::Unbounded) => true,
                    Some(Bound::Included(from)) => *channel >= from,
                    Some(Bound::Excluded(from)) => *channel > from,
                };
                let expected = name(*channel).as_str() > cursor.as_str();
                assert_eq!(comes_after, expected, "{cursor} {}", name(*channel));
            }
        }
    }
}
