//! The groups that are empty here and still subscribed: most of them are joined again by a page that reloads.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use crate::ids::GroupName;

/// Time for which an empty group stays subscribed.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// The empty groups, with the time at which each was last left.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    left_at: HashMap<GroupName, Instant>,
    /// Every leaving, oldest first. A leaving counts if none followed it.
    leavings: VecDeque<(Instant, GroupName)>,
}

impl Lingering {
    /// Notes that the last members of these groups have left.
    pub(super) fn add(&mut self, groups: impl IntoIterator<Item = GroupName>, now: Instant) {
        for group in groups {
            self.left_at.insert(group.clone(), now);
            self.leavings.push_back((now, group));
        }
    }

    /// Returns a group that was last left [`LINGER`] ago or longer. It may have members again.
    pub(super) fn expired(&mut self, now: Instant) -> Option<GroupName> {
        while let Some((at, _)) = self.leavings.front() {
            if now.duration_since(*at) < LINGER {
                return None;
            }
            let (at, group) = self.leavings.pop_front()?;
            if self.left_at.get(&group) == Some(&at) {
                self.left_at.remove(&group);
                return Some(group);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before: the first leaving counted, and the group was unsubscribed 250 ms after the second one.
    #[test]
    fn a_group_lingers_from_its_last_leaving_on() {
        let (start, group) = (Instant::now(), GroupName::from("g"));
        let at = |millis| start + Duration::from_millis(millis);
        let mut lingering = Lingering::default();
        lingering.add([group.clone()], at(0));
        lingering.add([group.clone()], at(750));
        assert_eq!(lingering.expired(at(1000)), None);
        assert_eq!(lingering.expired(at(1749)), None);
        assert_eq!(lingering.expired(at(1750)), Some(group.clone()));
        assert_eq!(lingering.expired(at(9000)), None);
        assert!(lingering.left_at.is_empty() && lingering.leavings.is_empty());
        lingering.add([group.clone(), "h".into()], at(9000));
        assert_eq!(lingering.expired(at(10_000)), Some(group));
        assert_eq!(lingering.expired(at(10_000)), Some("h".into()));
        assert_eq!(lingering.expired(at(10_000)), None);
    }
}
