//! The rules for groups by their names (`[[tenants.NAME.groups]]`): which have a history, which have presence.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Fault, Faults, GroupConfig, HistoryConfig, PresenceConfig};
use crate::ids::GroupName;
use crate::routes::{Route, RouteProblem};

/// The most entries of a tenant: a group's name is compared with each until one matches.
pub const MOST_RULES: usize = 1000;

/// The rules for one group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupRule {
    /// The events that are kept. `None`: none are.
    pub history: Option<HistoryConfig>,
    /// The presence that is kept. `None`: none is.
    pub presence: Option<PresenceConfig>,
}

impl GroupRule {
    fn has_notices(&self) -> bool {
        let notifies = self
            .presence
            .as_ref()
            .is_some_and(|presence| presence.notify);
        notifies || self.history.is_some()
    }
}

/// The rules of one tenant, in the order of the configuration.
#[derive(Debug, Default)]
pub struct GroupRules(Vec<NamedRule>);

/// One entry.
#[derive(Debug)]
struct NamedRule {
    name: Route,
    rule: Arc<GroupRule>,
}

impl GroupRules {
    /// Reads the entries. The keys of faults are relative to the tenant.
    ///
    /// # Errors
    /// Every name that cannot be read, that stands there twice, or that is one too many.
    pub fn new(configs: &[GroupConfig]) -> Result<Self, Faults> {
        let entries = configs.iter().enumerate().map(|(index, config)| {
            let again = configs[..index]
                .iter()
                .any(|other| other.name == config.name);
            let name = match index {
                MOST_RULES.. => Err(too_many(index)),
                _ if again => Err(named_again(index, &config.name)),
                _ => Route::of_name(&config.name)
                    .map_err(|problem| unreadable(index, config, problem)),
            };
            Ok(NamedRule {
                name: name?,
                rule: Arc::new(GroupRule {
                    history: config.history,
                    presence: config.presence.clone(),
                }),
            })
        });
        // One too many is said once, and an entry beyond costs no comparison.
        Faults::collect(entries.take(MOST_RULES + 1)).map(Self)
    }

    /// Returns the rule of a group: the first one whose name matches.
    pub fn of(&self, group: &GroupName) -> Option<&Arc<GroupRule>> {
        let matching = self.0.iter().find(|entry| entry.name.takes(group.as_str()));
        matching.map(|entry| &entry.rule)
    }

    /// Returns the history that a group has.
    pub fn history(&self, group: &GroupName) -> Option<HistoryConfig> {
        self.of(group)?.history
    }

    /// Returns true if any group keeps presence.
    pub fn keep_presence(&self) -> bool {
        self.0.iter().any(|entry| entry.rule.presence.is_some())
    }

    /// Returns true if gateways tell each other of the group, beside its events: positions, or who joins and leaves.
    pub fn has_notices(&self, group: &GroupName) -> bool {
        self.of(group).is_some_and(|rule| rule.has_notices())
    }

    /// Returns true if gateways tell each other of any group.
    pub fn have_notices(&self) -> bool {
        self.0.iter().any(|entry| entry.rule.has_notices())
    }

    /// Returns the names as regular expressions of Python, each with the history that it stands for, in their order.
    pub fn patterns(&self) -> impl Iterator<Item = (String, Option<HistoryConfig>)> {
        let entries = self.0.iter();
        entries.map(|entry| (entry.name.python_regex(), entry.rule.history))
    }

    /// Returns the longest time for which any group keeps events; `None` if none has a history.
    pub fn longest_history(&self) -> Option<Duration> {
        let histories = self.0.iter().filter_map(|entry| entry.rule.history);
        histories.map(|history| history.ttl).max()
    }
}

fn unreadable(index: usize, config: &GroupConfig, problem: RouteProblem) -> Fault {
    let expected = "the name of groups, such as \"chat_<slug:room>\"";
    let fault = Fault::new(key(index), format!("{:?}", config.name), expected);
    fault.advice(problem.to_string())
}

fn named_again(index: usize, name: &str) -> Fault {
    let fault = Fault::new(
        key(index),
        format!("{name:?} a second time"),
        "every name once",
    );
    fault.advice("the first entry that matches a group counts")
}

fn too_many(index: usize) -> Fault {
    let found = format!("an entry after the first {MOST_RULES}");
    let fault = Fault::new(key(index), found, format!("at most {MOST_RULES} entries"));
    fault.advice("let one name with parameters stand for many")
}

fn key(index: usize) -> String {
    format!("groups[{index}].name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, size: u32) -> GroupConfig {
        GroupConfig {
            name: name.to_owned(),
            history: (size > 0).then(|| HistoryConfig {
                size,
                ..HistoryConfig::default()
            }),
            ..GroupConfig::default()
        }
    }

    #[test]
    fn the_first_entry_that_matches_the_whole_name_counts() {
        let rules = [
            rule("chat_<int:room>", 1),
            rule("chat_quiet", 0),
            rule("chat_<slug:room>", 2),
            rule("/<path:rest>", 3),
        ];
        let rules = GroupRules::new(&rules).unwrap();
        let size = |group: &str| Some(rules.history(&group.into())?.size);
        for (group, expected) in [
            ("chat_7", Some(1)),
            ("chat_quiet", None),
            ("chat_a-b", Some(2)),
            ("chat_", None),
            ("chat_a.b", None),
            ("xchat_7", None),
            ("chat_7\n", None),
            ("/a/b", Some(3)),
        ] {
            assert_eq!(size(group), expected, "{group:?}");
        }
        assert!(rules.of(&"chat_quiet".into()).is_some());
    }

    #[test]
    fn wrong_names_are_faults_at_their_entries() {
        let rules = [
            rule("", 1),
            rule("a<", 1),
            rule("b", 1),
            rule("b", 2),
            rule("<x:y>", 1),
            rule("chat_{room}", 1),
            rule("news_{user.team}", 1),
            rule("a{b", 1),
        ];
        let Err(Faults(faults)) = GroupRules::new(&rules) else {
            panic!("they are wrong");
        };
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        let at = |index: usize| format!("groups[{index}].name");
        assert_eq!(keys, [at(0), at(1), at(3), at(4), at(5), at(6)]);
        let advice = format!("{:?}", faults[4]);
        assert!(advice.contains("{room} is a placeholder"), "{advice}");
    }

    #[test]
    fn one_entry_too_many_is_said_once() {
        let rules: Vec<_> = (0..MOST_RULES + 5)
            .map(|n| rule(&format!("g{n}"), 1))
            .collect();
        let Err(Faults(faults)) = GroupRules::new(&rules) else {
            panic!("they are too many");
        };
        assert_eq!(
            (faults.len(), faults[0].key.as_str()),
            (1, "groups[1000].name")
        );
    }
}
