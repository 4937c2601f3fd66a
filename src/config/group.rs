//! `[[tenants.NAME.groups]]`: the rules for groups by their names.

use std::time::Duration;

use super::collection::{List, Optional, nested};
use super::document::{Node, TomlValue};
use super::form::{ANY_SPAN, Flag, SECONDS, Text, quote, within};
use super::read::{Form, Reader};
use super::table::table;

/// The most events that a history keeps. A stream of Redis of this length is read in pages.
const MOST_EVENTS: i64 = 1_000_000;

table! {
    /// The rules for the groups of some names. The first entry whose `name` matches a group counts; a group that no entry
    /// matches has neither history nor presence.
    #[derive(Clone, Debug, PartialEq)]
    pub struct GroupConfig {
        /// The whole name of a group, with the converters of routes: `chat_<slug:room>`.
        pub name: String as Text => String::new(),
        /// The events that are kept for sockets that come back. Unset: none.
        pub history: Option<HistoryConfig> as Optional(nested()) => None,
        /// The users who are in the group, over all replicas. Unset: not kept.
        pub presence: Option<PresenceConfig> as Optional(nested()) => None,
        /// The clients that may subscribe to a group by a command: none, because clients have no commands yet. The groups of a
        /// route do not need it.
        pub subscribe: Subscribe as OnlyNever => Subscribe::Never,
        /// The statement that decides which users may subscribe by a command, with `:user_id` and the parameters of `name`. It is
        /// checked, and not asked yet.
        pub authorize: Option<String> as Optional(Text) => None,
        /// Clients may publish by a command: no, because clients have no commands yet.
        pub publish: bool as OnlyFalse => false,
    }
}

/// The clients that may subscribe to a group by a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribe {
    /// None.
    Never,
}

/// The form of `subscribe`.
struct OnlyNever;

impl Form for OnlyNever {
    type Value = Subscribe;

    fn expected(&self) -> String {
        quote("never")
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Subscribe> {
        match &node.value {
            TomlValue::Text(text) if text == "never" => Some(Subscribe::Never),
            _ => {
                let advice = "clients cannot subscribe by a command yet: the groups of a route and group_add join sockets";
                reader.wrong(node, self, advice)
            }
        }
    }

    fn print(&self, value: &Subscribe) -> Option<String> {
        match value {
            Subscribe::Never => Some(quote("never")),
        }
    }
}

/// The form of `publish`.
struct OnlyFalse;

impl Form for OnlyFalse {
    type Value = bool;

    fn expected(&self) -> String {
        "false".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<bool> {
        match &node.value {
            TomlValue::Flag(false) => Some(false),
            _ => {
                let advice = "clients cannot publish by a command yet: a broadcast route publishes what they send";
                reader.wrong(node, self, advice)
            }
        }
    }

    fn print(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

table! {
    /// The history of a group.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HistoryConfig {
        /// The most events that are kept for a group.
        pub size: u32 as within(1, MOST_EVENTS) => 100,
        /// The longest time for which an event is kept.
        pub ttl: Duration as SECONDS => Duration::from_secs(600),
    }
}

table! {
    /// The presence of a group.
    #[derive(Clone, Debug, PartialEq)]
    pub struct PresenceConfig {
        /// Fields of the user record that are shown beside the user's id.
        pub fields: Vec<String> as List(Text) => Vec::new(),
        /// Members are told of users that join and leave, by `lockgate.join` and `lockgate.leave`.
        pub notify: bool as Flag => false,
        /// The time after a user's last socket has left until the user has left. A page that reloads within it leaves and joins nothing.
        pub linger: Duration as ANY_SPAN => Duration::from_secs(5),
    }
}
