//! The positions from which a client that comes back wants the events of its groups: `since=POSITION` in the query, once for
//! each group. None of them refuses a client.

use indexmap::IndexMap;
use percent_encoding::percent_decode_str;

use crate::auth::query_token::values_in_query;
use crate::ids::GroupName;
use crate::position::Position;
use crate::relay::ResumeFrom;

/// The name of the parameter.
const PARAMETER: &str = "since";
/// The most positions of a request, and the most bytes of one. A request line holds fewer.
const MOST: usize = 1000;
const LONGEST: usize = 1024;

/// The positions of a request.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// In the order of the query.
    of_group: IndexMap<GroupName, Position>,
    /// True if the request has a text that is no position. Its group is not known, so that it stands for each group
    /// without a position.
    unreadable: bool,
}

impl Positions {
    /// Reads the positions in a query. Of several for one group the last one counts.
    pub(super) fn in_query(query: &str) -> Self {
        let mut positions = Self::default();
        for (index, text) in values_in_query(query, PARAMETER).enumerate() {
            let read = || {
                let text = percent_decode_str(text).decode_utf8().ok()?;
                Position::parse(&text)
            };
            match read().filter(|_| index < MOST && text.len() <= LONGEST) {
                Some((group, position)) => drop(positions.of_group.insert(group, position)),
                None => positions.unreadable = true,
            }
            if index >= MOST {
                break;
            }
        }
        positions
    }

    /// Returns the place from which the client wants the events of a group; `None` if it has named none.
    pub(super) fn of(&self, group: &GroupName) -> Option<ResumeFrom> {
        match self.of_group.get(group) {
            Some(position) => Some(ResumeFrom::Position(position.clone())),
            None => self.unreadable.then_some(ResumeFrom::Unreadable),
        }
    }

    /// Returns the groups of positions for which `is_joined` is false, in the order of the query.
    pub(super) fn strangers(
        &self,
        is_joined: impl Fn(&GroupName) -> bool,
    ) -> impl Iterator<Item = &GroupName> {
        let groups = self.of_group.keys();
        groups.filter(move |group| !is_joined(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(positions: &Positions, group: &str) -> Option<u64> {
        match positions.of(&group.into())? {
            ResumeFrom::Position(position) => Some(position.offset),
            ResumeFrom::Unreadable => None,
        }
    }

    #[test]
    fn the_last_position_of_each_group_counts() {
        let query = "token=x&since=a~e~1&s%69nce=b%7Ee%7e2&since=a~e~3&sinc=c~e~1&since";
        let positions = Positions::in_query(query);
        assert_eq!(offset(&positions, "a"), Some(3));
        assert_eq!(offset(&positions, "b"), Some(2));
        assert_eq!(positions.of(&"c".into()), None);
        let strangers: Vec<_> = positions.strangers(|group| group.as_str() == "a").collect();
        assert_eq!(strangers, [&GroupName::from("b")]);
    }

    #[test]
    fn what_is_no_position_stands_for_the_groups_without_one() {
        let long = format!("since=a~e~1&since=b~{}~1", "e".repeat(LONGEST));
        for query in [
            "since=a~e~1&since=",
            "since=a~e~1&since=b",
            "since=a~e~1&since=%ff",
            "since=a~e~1&since=b~e~-1",
            &long,
        ] {
            let positions = Positions::in_query(query);
            assert_eq!(offset(&positions, "a"), Some(1), "{query}");
            assert_eq!(
                positions.of(&"b".into()),
                Some(ResumeFrom::Unreadable),
                "{query}"
            );
        }
    }

    #[test]
    fn a_thousand_positions_are_read_and_each_strange_one_is_answered_in_order() {
        let query: Vec<_> = (0..=MOST).map(|n| format!("since=g{n}~e~{n}")).collect();
        let positions = Positions::in_query(&query[..MOST].join("&"));
        assert_eq!(offset(&positions, "g999"), Some(999));
        assert_eq!(positions.of(&"h".into()), None);
        // Of groups that are not joined a hundred were answered, in any order.
        let strangers: Vec<_> = positions.strangers(|_| false).cloned().collect();
        let expected: Vec<_> = (0..MOST)
            .map(|n| GroupName::from(format!("g{n}")))
            .collect();
        assert_eq!(strangers, expected);
        let positions = Positions::in_query(&query.join("&"));
        assert_eq!(positions.of(&"g1000".into()), Some(ResumeFrom::Unreadable));
    }
}
