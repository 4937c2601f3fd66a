//! The number of messages that a channel may hold: `capacity` and `channel_capacity`.

use glob::Pattern;

use crate::channel_names::history_member_beginning;
use crate::config::{Fault, Faults, channel_pattern};

/// The capacities of one layer.
#[derive(Clone, Debug)]
pub struct Capacities {
    /// In the order of the configuration: the first match counts.
    by_name: Vec<(Pattern, u32)>,
    default: u32,
}

impl Capacities {
    /// `default`, but where the whole name of a channel matches one of the shell globs.
    ///
    /// # Errors
    /// Every one that is no shell glob, at `channel_capacity`.
    pub fn new(default: u32, by_name: &[(String, u32)]) -> Result<Self, Faults> {
        let by_name = by_name.iter().map(|(glob, capacity)| {
            let pattern = channel_pattern(glob).map_err(|error| {
                let expected = "a shell glob over channel names, such as \"worker-*\"";
                Fault::new("channel_capacity", format!("{glob:?}"), expected).advice(error.msg)
            });
            Ok((pattern?, *capacity))
        });
        Ok(Self {
            by_name: Faults::collect(by_name)?,
            default,
        })
    }

    /// The capacity of the mailboxes that stand for the histories of groups.
    pub fn of_histories(&self, namespace: &str) -> u32 {
        self.of(&format!("{}0.0!", history_member_beginning(namespace)))
    }

    /// The capacity of a channel.
    pub fn of(&self, channel: &str) -> u32 {
        let found = self.by_name.iter().find(|(glob, _)| glob.matches(channel));
        found.map_or(self.default, |(_, capacity)| *capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_match_counts_and_globs_are_anchored() {
        let by_name = [
            ("specific.*!g?", 7),
            ("work.[ab]", 2),
            ("work**", 3),
            ("*", 5),
        ];
        let by_name = by_name.map(|(glob, capacity)| (glob.to_owned(), capacity));
        let capacities = Capacities::new(100, &by_name).unwrap();
        for (channel, capacity) in [
            ("specific.0123!g1", 7),
            ("specific.0123!g12", 5),
            ("work.a", 2),
            ("work.c", 3),
            ("a.work", 5),
        ] {
            assert_eq!(capacities.of(channel), capacity, "{channel}");
        }
        let none = Capacities::new(100, &[]).unwrap();
        assert_eq!(none.of("work"), 100);
        assert!(channel_pattern("[").is_err());
    }
}
