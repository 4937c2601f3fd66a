//! Pages of connections, in the order of their channel names.
//!
//! A page costs about its own length, however many connections there are: a tenant may ask for pages as fast as it can.

use std::ops::Bound;
use std::sync::Arc;

use super::{Group, Hub, Member};
use crate::ids::GroupName;

/// Connections taken from the list under one lock.
const SLICE: usize = 256;

impl Hub {
    /// Returns the number of connections, or of those in one group.
    pub fn count(&self, group: Option<&GroupName>) -> usize {
        match group {
            None => self.len(),
            Some(name) => self.groups().get(name).map_or(0, |group| group.len()),
        }
    }

    /// Returns the first `most` connections, or those in one group, whose channels come after `from`.
    pub fn page(
        &self,
        group: Option<&GroupName>,
        from: Bound<[u8; 16]>,
        most: usize,
    ) -> Vec<Arc<Member>> {
        let Some(name) = group else {
            return self.roster.lock().after(from, most);
        };
        let Some(group) = self.groups().get(name) else {
            return Vec::new();
        };
        // Channels are random. So the list holds a member of the group at every `all / members`-th place, and a page takes
        // `most * all / members` steps there. Either way takes at most the square root of `most * all` steps.
        let (all, members) = (self.len(), group.len());
        match members.saturating_mul(members) <= most.saturating_mul(all) {
            true => of_small_group(&group, from, most),
            false => self.of_large_group(&group, from, most),
        }
    }

    /// Walks over the list of all connections until the page is full.
    fn of_large_group(
        &self,
        group: &Group,
        mut from: Bound<[u8; 16]>,
        most: usize,
    ) -> Vec<Arc<Member>> {
        let mut page = Vec::new();
        while page.len() < most {
            let slice = self.roster.lock().after(from, SLICE);
            let Some(last) = slice.last() else {
                break;
            };
            from = Bound::Excluded(last.channel());
            page.extend(slice.into_iter().filter(|member| group.holds(member.id())));
        }
        page.truncate(most);
        page
    }
}

/// Walks over the group.
fn of_small_group(group: &Group, from: Bound<[u8; 16]>, most: usize) -> Vec<Arc<Member>> {
    let mut rest = group.members();
    rest.retain(|member| match from {
        Bound::Included(from) => member.channel() >= from,
        Bound::Excluded(from) => member.channel() > from,
        Bound::Unbounded => true,
    });
    if rest.len() > most {
        rest.select_nth_unstable_by_key(most, |member| member.channel());
        rest.truncate(most);
    }
    rest.sort_unstable_by_key(|member| member.channel());
    rest
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, Profile};
    use super::*;

    fn fill(hub: &Hub, groups: &[&str], count: usize) {
        for _ in 0..count {
            let profile = Profile {
                channel: rand::random(),
                ..Profile::default()
            };
            let member = Member::new(profile);
            hub.admit(&member, None, &Budget::default()).unwrap();
            for group in groups {
                hub.join(&member, &(*group).into());
            }
        }
    }

    /// Follows the pages to the end.
    fn all(hub: &Hub, group: Option<&GroupName>, most: usize) -> Vec<[u8; 16]> {
        let (mut found, mut from) = (Vec::new(), Bound::Unbounded);
        loop {
            let page = hub.page(group, from, most);
            let Some(last) = page.last() else {
                return found;
            };
            assert!(page.len() <= most);
            from = Bound::Excluded(last.channel());
            found.extend(page.iter().map(|member| member.channel()));
        }
    }

    #[test]
    fn pages_hold_every_connection_once_and_in_order() {
        let hub = Hub::default();
        fill(&hub, &["large"], 700);
        fill(&hub, &["large", "small"], 9);
        fill(&hub, &[], 300);
        let sorted = |mut channels: Vec<[u8; 16]>| {
            channels.sort_unstable();
            channels
        };
        let of = |group: &GroupName| {
            let members = hub.groups().get(group).unwrap().members();
            sorted(members.iter().map(|member| member.channel()).collect())
        };
        let everyone: Vec<[u8; 16]> = hub
            .members()
            .iter()
            .map(|member| member.channel())
            .collect();
        for most in [1, 7, 100, 5000] {
            assert_eq!(all(&hub, None, most), sorted(everyone.clone()));
            for group in ["large", "small"].map(GroupName::from) {
                assert_eq!(all(&hub, Some(&group), most), of(&group), "{group} {most}");
            }
        }
        assert_eq!(hub.count(None), 1009);
        assert_eq!(hub.count(Some(&"small".into())), 9);
        assert!(
            hub.page(Some(&"none".into()), Bound::Unbounded, 5)
                .is_empty()
        );
    }

    #[test]
    fn a_connection_that_left_is_in_no_page() {
        let hub = Hub::default();
        fill(&hub, &[], 10);
        let gone = hub.page(None, Bound::Unbounded, 1).remove(0);
        drop(hub.unregister(&gone));
        assert_eq!(hub.page(None, Bound::Unbounded, 100).len(), 9);
        assert_ne!(hub.page(None, Bound::Unbounded, 1)[0].id(), gone.id());
    }
}
