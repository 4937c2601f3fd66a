//! `[tenants.NAME.layer]`: the names of Django's `CHANNEL_LAYERS`.

use std::time::Duration;

use indexmap::IndexMap;

use super::collection::{List, Map, Optional};
use super::document::{Node, Value};
use super::form::{SECONDS, choice, count, quote, within};
use super::read::{Form, Reader};
use super::secret::{Secret, SecretText};
use super::table::{table, words};

table! {
    /// The carrier of events between processes: the settings of `CHANNEL_LAYERS`, by the same names.
    #[derive(Clone, Debug, PartialEq)]
    pub struct LayerConfig {
        /// The layer; if unset, `pubsub` where a Redis is configured, else `memory`.
        pub kind: Option<LayerKind> as Optional(choice()) => None,
        /// Redis URLs, in order; empty: the tenant's Redis.
        pub hosts: Vec<Secret> as List(SecretText) => Vec::new(),
        /// The beginning of its keys and channels.
        pub prefix: String as Prefix => "asgi".to_owned(),
        /// How events are written.
        pub serializer_format: SerializerFormat as choice() => SerializerFormat::MsgPack,
        /// Fernet keys, or any text that Channels makes one of; the first encrypts, all decrypt.
        pub symmetric_encryption_keys: Vec<Secret> as List(SecretText) => Vec::new(),
        /// Which names groups may have: those that Channels allows, or any (`pubsub` only).
        pub group_names: GroupNames as choice() => GroupNames::Channels,
        /// `core`: how long an event may wait.
        pub expiry: Duration as SECONDS => Duration::from_secs(60),
        /// `core`: how long a membership lasts.
        pub group_expiry: Duration as SECONDS => Duration::from_secs(86_400),
        /// `core`: how many events a channel holds.
        pub capacity: u32 as count(1) => 100,
        /// `core`: capacities by channel name, with shell globs; the first that matches counts.
        pub channel_capacity: IndexMap<String, u32> as Map(count(1)) => IndexMap::new(),
        /// `core`: how many random bytes stand before a stored event; with 0, equal events at one time are one.
        pub random_prefix_length: u8 as within(0, 64) => 12,
    }
}

/// A key of `channel_capacity`: a glob as Python's `fnmatch` reads it, where several `*` are as good as one.
///
/// # Errors
/// If it is none.
pub fn channel_pattern(glob: &str) -> Result<glob::Pattern, glob::PatternError> {
    let mut text = String::with_capacity(glob.len());
    for letter in glob.chars() {
        if !(letter == '*' && text.ends_with('*')) {
            text.push(letter);
        }
    }
    glob::Pattern::new(&text)
}

/// Any text, also an empty one: on a Redis of its own a tenant may have no prefix.
struct Prefix;

impl Form for Prefix {
    type Value = String;

    fn expected(&self) -> String {
        "text of ASCII without spaces".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<String> {
        match &node.value {
            Value::Text(text) if text.bytes().all(|b| b.is_ascii_graphic()) => Some(text.clone()),
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &String) -> Option<String> {
        Some(quote(value))
    }
}

words! {
    /// The kinds of channel layer.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum LayerKind {
        /// This process alone.
        Memory = "memory",
        /// `channels_redis.pubsub.RedisPubSubChannelLayer` on the wire.
        PubSub = "pubsub",
        /// `channels_redis.core.RedisChannelLayer` on the wire.
        Core = "core",
    }
}

words! {
    /// How events are written.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SerializerFormat {
        /// MessagePack.
        MsgPack = "msgpack",
        /// JSON.
        Json = "json",
    }
}

words! {
    /// Which names groups may have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GroupNames {
        /// Those that Channels allows.
        Channels = "channels",
        /// Any.
        Any = "any",
    }
}
