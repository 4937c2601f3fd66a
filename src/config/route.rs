//! `[[tenants.NAME.routes]]`: the paths of a tenant.

use std::time::Duration;

use super::collection::{List, Optional};
use super::document::{Node, TomlValue};
use super::form::{Flag, SOME_SPAN, Text, choice, quote, within};
use super::key::Inner;
use super::read::{Form, Reader, nearest};
use super::table::{Keyed, table, words};

table! {
    /// One path: its groups, its events, its consumer.
    #[derive(Clone, Debug, PartialEq)]
    pub struct RouteConfig {
        /// The path as Django's `path()` has it, without the slash at its start: `ws/chat/<slug:room>/`.
        pub path: String as Path => String::new(),
        /// Templates of the groups that a socket joins: `chat_{room}`, `user_{user.id}`, `{claims.org}`, `{tenant}`.
        pub groups: Vec<String> as List(Text) => Vec::new(),
        /// Subprotocols to choose from. The first one that the client offers is chosen.
        pub subprotocols: Vec<String> as List(Text) => Vec::new(),
        /// The effect of a client's frame.
        pub consumer: ConsumerConfig as ConsumerTable => ConsumerConfig::default(),
        /// The part of an event that a client sees: `"body"` (JSON without its `type`), `"event"` (with it), or `{ field = "message" }`.
        pub deliver: Deliver as DeliverForm => Deliver::Body,
        /// Shell globs over event types that are delivered; empty: all.
        pub events: Vec<String> as List(Text) => Vec::new(),
        /// Events of groups with history carry their position, and a client that comes back with `since=POSITION` gets what it missed.
        pub resume: bool as Flag => false,
        /// A token is optional. A socket without one has no user; a token that is not valid is refused all the same. Nothing of the
        /// route may then depend on the user: no `{user.…}`, no `{claims.…}`, no `stamp`, no `:user_id`.
        pub anonymous: bool as Flag => false,
        /// The answer to a client's own ping. `"reply"`: the text frames `ping` and `{"type":"ping"}` are answered `pong` and
        /// `{"type":"pong"}`, other keys come back, and the consumer sees neither. `"consumer"`: they are frames like any other.
        pub on_ping: OnPing as choice() => OnPing::Consumer,
        /// A statement on the tenant's database with `:user_id` and the path parameters; no row: 403.
        pub authorize: Option<String> as Optional(Text) => None,
    }
}

words! {
    /// The answer to a client's own ping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnPing {
        /// A pong.
        Reply = "reply",
        /// None: the consumer gets the frame.
        Consumer = "consumer",
    }
}

/// A route's path: any text. An empty one is the root.
struct Path;

impl Form for Path {
    type Value = String;

    fn expected(&self) -> String {
        "a path such as \"ws/chat/<slug:room>/\"".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<String> {
        match &node.value {
            TomlValue::Text(text) => Some(text.clone()),
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &String) -> Option<String> {
        Some(quote(value))
    }
}

/// The part of an event that a client sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Deliver {
    /// The event as JSON without its `type`.
    #[default]
    Body,
    /// The event as JSON.
    Event,
    /// One field: a text as it is, anything else as JSON.
    Field(String),
}

/// The written form of a [`Deliver`].
struct DeliverForm;

impl Form for DeliverForm {
    type Value = Deliver;

    fn expected(&self) -> String {
        "\"body\", \"event\" or { field = \"…\" }".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Deliver> {
        match &node.value {
            TomlValue::Text(text) if text == "body" => Some(Deliver::Body),
            TomlValue::Text(text) if text == "event" => Some(Deliver::Event),
            TomlValue::Table(table) if table.contains_key("field") => {
                reader.refuse_unknown(table, &["field"]);
                reader.key(table, "field", &Text).map(Deliver::Field)
            }
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &Deliver) -> Option<String> {
        Some(match value {
            Deliver::Body => quote("body"),
            Deliver::Event => quote("event"),
            Deliver::Field(name) => format!("{{ field = {} }}", quote(name)),
        })
    }
}

table! {
    /// The effect of a client's frame.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ConsumerConfig {
        /// `listen`, `echo`, `broadcast`, `worker`, or the name of a registered Rust type.
        pub kind: String as Text => "listen".to_owned(),
        /// `listen`: the effect of a client's frame.
        pub on_frame: OnFrame as choice() => OnFrame::Drop,
        /// `broadcast`: the group template that frames go to. Required if a route has several groups.
        pub to: Option<String> as Optional(Text) => None,
        /// `broadcast`: the type of the event.
        pub event_type = "type": Option<String> as Optional(Text) => None,
        /// `broadcast`: the only keys that a client may set. Unset: any.
        pub fields: Option<Vec<String>> as Optional(List(Text)) => None,
        /// `broadcast`: `user_id` and fields of the user, added by the gateway so that a client cannot forge them.
        pub stamp: Vec<String> as List(Text) => Vec::new(),
        /// `broadcast`: the sender's own socket does not get its event.
        pub skip_sender: bool as Flag => false,
        /// `broadcast`: the effect of a frame that is no JSON object.
        pub on_invalid: OnInvalid as choice() => OnInvalid::Drop,
        /// `worker`: the channel that `manage.py runworker` listens to.
        pub channel: Option<String> as Optional(Text) => None,
        /// `worker`: with N, each socket uses one of `channel.0` to `channel.N-1`, always the same. 0: `channel` itself.
        pub partitions: u32 as within(0, 1024) => 0,
        /// `worker`: the side that decides the handshake.
        pub accept: Accept as choice() => Accept::Gateway,
        /// `worker`: the longest wait of the handshake for the worker with `accept = "worker"`.
        pub worker_timeout: Duration as SOME_SPAN => Duration::from_secs(5),
        /// `worker`: the effect of a frame that no worker takes, because the channel is full (`core`) or has no listener (`pubsub`,
        /// `sharded`).
        pub on_worker_full: OnWorkerFull as choice() => OnWorkerFull::Close,
    }
    unkeyed {
        /// The keys beside `kind`, for a registered Rust type.
        pub options: toml::Table => toml::Table::new(),
    }
}

impl ConsumerConfig {
    /// Returns the channels of a worker: one, or one for each partition. Other kinds have none.
    pub fn worker_channels(&self) -> Vec<String> {
        match (self.kind.as_str(), self.channel.as_deref()) {
            ("worker", Some(base)) if self.partitions == 0 => vec![base.to_owned()],
            ("worker", Some(base)) => (0..self.partitions)
                .map(|k| format!("{base}.{k}"))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// The written form of a [`ConsumerConfig`]. Its `kind` decides which keys are allowed.
struct ConsumerTable;

/// The built-in kinds with the keys of each.
const KINDS: [(&str, &[&str]); 4] = [
    ("listen", &["kind", "on_frame"]),
    ("echo", &["kind"]),
    (
        "broadcast",
        &[
            "kind",
            "to",
            "type",
            "fields",
            "stamp",
            "skip_sender",
            "on_invalid",
        ],
    ),
    (
        "worker",
        &[
            "kind",
            "channel",
            "partitions",
            "accept",
            "worker_timeout",
            "on_worker_full",
        ],
    ),
];

impl Form for ConsumerTable {
    type Value = ConsumerConfig;

    fn expected(&self) -> String {
        "a table such as { kind = \"listen\" }".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<ConsumerConfig> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        let kind = match table.get("kind") {
            None => ConsumerConfig::default().kind,
            Some(_) => reader.key(table, "kind", &Text)?,
        };
        if let Some((_, keys)) = KINDS.iter().find(|(name, _)| *name == kind) {
            reader.refuse_unknown(table, keys);
            return Some(ConsumerConfig::read_keys(table, reader));
        }
        if !reader.registered_consumers.contains(&kind.as_str()) {
            return reader.below("kind", |reader| unknown_kind(&table["kind"], &kind, reader));
        }
        let options = table
            .iter()
            .filter(|(name, _)| *name != "kind")
            .map(|(name, node)| (name.clone(), plain(node)))
            .collect();
        Some(ConsumerConfig {
            kind,
            options,
            ..ConsumerConfig::default()
        })
    }

    fn print(&self, _: &ConsumerConfig) -> Option<String> {
        None
    }

    fn inner(&self) -> Inner {
        Inner::Table(ConsumerConfig::ABOUT, ConsumerConfig::keys())
    }
}

fn unknown_kind<T>(node: &Node, kind: &str, reader: &mut Reader<'_>) -> Option<T> {
    let known: Vec<&str> = KINDS
        .iter()
        .map(|(name, _)| *name)
        .chain(reader.registered_consumers.iter().copied())
        .collect();
    let advice = match nearest(kind, &known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "a Rust consumer must be registered under that name".to_owned(),
    };
    let expected = format!("one of {}", known.join(", "));
    reader.mistake(node, node.shown(), expected, advice)
}

/// Removes the places from a value, for a registered consumer that reads it itself.
fn plain(node: &Node) -> toml::Value {
    match &node.value {
        TomlValue::Text(text) => toml::Value::String(text.clone()),
        TomlValue::Integer(number) => toml::Value::Integer(*number),
        TomlValue::Float(number) => toml::Value::Float(*number),
        TomlValue::Flag(flag) => toml::Value::Boolean(*flag),
        TomlValue::Date(date) => date
            .parse()
            .map_or_else(|_| toml::Value::String(date.clone()), toml::Value::Datetime),
        TomlValue::Null => toml::Value::String("null".to_owned()),
        TomlValue::List(items) => toml::Value::Array(items.iter().map(plain).collect()),
        TomlValue::Table(table) => toml::Value::Table(
            table
                .iter()
                .map(|(name, node)| (name.clone(), plain(node)))
                .collect(),
        ),
    }
}

words! {
    /// The effect of a client's frame on a `listen` route.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum OnFrame {
        /// Drop it and count it.
        #[default]
        Drop = "drop",
        /// The socket is closed with 1003.
        Close = "close",
    }
}

words! {
    /// The effect of a frame that is no JSON object on a `broadcast` route.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum OnInvalid {
        /// Drop it and count it.
        #[default]
        Drop = "drop",
        /// The client gets `{"type":"lockgate.error","code":"message_not_valid"}`.
        Reply = "reply",
        /// The socket is closed with 4505.
        Close = "close",
    }
}

words! {
    /// The side that decides the handshake of a socket on a `worker` route.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Accept {
        /// Lockgate: the worker is told of an open socket.
        #[default]
        Gateway = "gateway",
        /// The worker: the 101 waits for its `websocket.accept`.
        Worker = "worker",
    }
}

words! {
    /// The effect of a frame that no worker takes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum OnWorkerFull {
        /// The socket is closed with 4014.
        #[default]
        Close = "close",
        /// Drop it and count it.
        Drop = "drop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_of_a_worker_is_a_channel() {
        let worker = |kind: &str, partitions| ConsumerConfig {
            kind: kind.to_owned(),
            channel: Some("chat".into()),
            partitions,
            ..ConsumerConfig::default()
        };
        assert_eq!(worker("worker", 0).worker_channels(), ["chat"]);
        assert_eq!(worker("worker", 2).worker_channels(), ["chat.0", "chat.1"]);
        assert!(worker("listen", 0).worker_channels().is_empty());
    }
}
