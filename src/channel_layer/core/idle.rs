//! The groups with history that no socket here is in any more, and that stay joined: what Channels sends to them is moved to
//! their histories before their mailboxes expire. It does no input or output.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use tokio::time::Instant;

use crate::ids::GroupName;

/// The most groups that stay, of one tenant on one host. Beyond this those go that would go next.
const MOST: usize = 20_000;

/// A group that was left: its name, its number, and the time until which it stays.
pub(super) type IdleGroup = (GroupName, u64, Instant);

/// The groups that stay, each once, by the end of their time. A group that was joined again meanwhile may be among them.
#[derive(Default)]
pub(super) struct IdleGroups {
    by_end: BTreeMap<(Instant, u64), GroupName>,
    /// The ends by the numbers of the groups.
    ends: HashMap<u64, Instant>,
}

impl IdleGroups {
    pub(super) fn add(&mut self, (group, number, until): IdleGroup) {
        if let Some(before) = self.ends.insert(number, until) {
            self.by_end.remove(&(before, number));
        }
        self.by_end.insert((until, number), group);
    }

    /// Returns a group that has to go.
    pub(super) fn ended(&mut self, now: Instant) -> Option<IdleGroup> {
        let next = self.next_end()?;
        if next > now && self.by_end.len() <= MOST {
            return None;
        }
        let ((until, number), group) = self.by_end.pop_first()?;
        self.ends.remove(&number);
        Some((group, number, until))
    }

    /// Returns the time at which the next group goes.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.by_end.first_key_value().map(|((until, _), _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn groups_go_in_the_order_of_their_ends_and_earlier_where_they_are_too_many() {
        let (start, mut idle) = (Instant::now(), IdleGroups::default());
        let at = |number: u64| start + Duration::from_secs(number);
        for number in [3, 1, 2] {
            idle.add((format!("g{number}").into(), number, at(number)));
        }
        assert_eq!(idle.ended(start), None);
        assert_eq!(idle.next_end(), Some(at(1)));
        for number in [1, 2] {
            let group = (format!("g{number}").into(), number, at(number));
            assert_eq!(idle.ended(at(2)), Some(group));
        }
        assert_eq!(idle.ended(at(2)), None);
        let most = MOST as u64;
        for number in 4..=most + 4 {
            idle.add(("g".into(), number, at(number)));
        }
        let gone: Vec<u64> = std::iter::from_fn(|| idle.ended(start))
            .map(|(_, number, _)| number)
            .collect();
        assert_eq!(gone, [3, 4]);
        for _ in 0..2 {
            idle.add(("g".into(), 5, at(most + 5)));
            idle.add(("g".into(), 5, at(most + 6)));
        }
        assert_eq!(idle.ended(start), None, "a group counts once");
        assert_eq!(idle.next_end(), Some(at(6)));
    }
}
