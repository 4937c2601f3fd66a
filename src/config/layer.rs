//! `[tenants.NAME.layer]`: the names of Django's `CHANNEL_LAYERS`.

use std::time::Duration;

use super::collection::{List, Map, Optional};
use super::document::{Node, TomlValue};
use super::form::{SECONDS, choice, count, quote, within};
use super::read::{Form, Reader};
use super::secret::{Secret, SecretText};
use super::table::{table, words};

table! {
    /// The carrier of events between processes: the settings of `CHANNEL_LAYERS`, by the same names.
    #[derive(Clone, Debug, PartialEq)]
    pub struct LayerConfig {
        /// The kind of layer. Unset: `sharded` if the Redis is a cluster, `pubsub` if it is not, and `memory` without one.
        pub kind: Option<LayerKind> as Optional(choice()) => None,
        /// Redis URLs, in order. Empty: the tenant's Redis.
        pub hosts: Vec<Secret> as List(SecretText) => Vec::new(),
        /// The beginning of its keys and channels.
        pub prefix: String as Prefix => "asgi".to_owned(),
        /// The beginning of every group's name on the wire. It is no part of the names in routes, API and frames. Tenants may
        /// share a Redis and a prefix if each has one, and none begins another: Django then sends to `acme.chat_lobby`.
        pub namespace: String as Namespace => String::new(),
        /// The encoding of events.
        pub serializer_format: SerializerFormat as choice() => SerializerFormat::MsgPack,
        /// Fernet keys, or any text that Channels makes one of; the first encrypts, all decrypt.
        pub symmetric_encryption_keys: Vec<Secret> as List(SecretText) => Vec::new(),
        /// The allowed names of groups: those that Channels allows, or any (`pubsub` only).
        pub group_names: GroupNames as choice() => GroupNames::Channels,
        /// `core`: the longest time that an event may wait.
        pub expiry: Duration as SECONDS => Duration::from_secs(60),
        /// `core`: the lifetime of a group membership.
        pub group_expiry: Duration as SECONDS => Duration::from_secs(86_400),
        /// `core`: the most events that a channel holds.
        pub capacity: u32 as count(1) => 100,
        /// `core`: capacities by channel name, as shell globs. The first match counts.
        pub channel_capacity: Vec<(String, u32)> as Map(count(1)) => Vec::new(),
        /// `core`: the number of random bytes before a stored event. With 0, equal events of the same moment are one.
        pub random_prefix_length: u8 as within(0, 64) => 12,
    }
}

/// Reads a key of `channel_capacity`, a glob as in Python's `fnmatch`, where several `*` in a row mean the same as one.
///
/// # Errors
/// If the text is not a valid glob.
pub fn channel_pattern(glob: &str) -> Result<glob::Pattern, glob::PatternError> {
    let mut text = String::with_capacity(glob.len());
    for letter in glob.chars() {
        if !(letter == '*' && text.ends_with('*')) {
            text.push(letter);
        }
    }
    glob::Pattern::new(&text)
}

/// Any text. It may be empty: on a Redis of its own a tenant needs no prefix.
struct Prefix;

impl Form for Prefix {
    type Value = String;

    fn expected(&self) -> String {
        "text of ASCII without spaces".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<String> {
        match &node.value {
            TomlValue::Text(text) if text.bytes().all(|b| b.is_ascii_graphic()) => {
                Some(text.clone())
            }
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &String) -> Option<String> {
        Some(quote(value))
    }
}

/// The most bytes of a namespace, a schema of PostgreSQL and a period. The rest of the 99 that Channels allows is for names.
const LONGEST_NAMESPACE: usize = 64;

/// The beginning of a name of Channels; empty for none.
struct Namespace;

impl Form for Namespace {
    type Value = String;

    fn expected(&self) -> String {
        format!(
            "at most {LONGEST_NAMESPACE} ASCII letters, digits, hyphens, underscores and periods, without __group__"
        )
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<String> {
        match &node.value {
            TomlValue::Text(text) if is_namespace(text) => Some(text.clone()),
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &String) -> Option<String> {
        Some(quote(value))
    }
}

fn is_namespace(text: &str) -> bool {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= LONGEST_NAMESPACE && text.bytes().all(in_name) && !text.contains("__group__")
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
        /// The names and payloads of `pubsub` on the sharded channels of a Redis Cluster (Redis 7.0 or newer).
        Sharded = "sharded",
    }
}

impl LayerKind {
    /// Returns true if events travel as messages of channels: `pubsub` and `sharded`.
    pub fn has_channels(self) -> bool {
        matches!(self, Self::PubSub | Self::Sharded)
    }

    /// Returns the part of a layer's prefix in the channels of workers: a pub/sub layer publishes to a channel as it is.
    pub fn worker_prefix(self, prefix: &str) -> Option<&str> {
        (self == Self::Core).then_some(prefix)
    }
}

words! {
    /// The encoding of events.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SerializerFormat {
        /// MessagePack.
        MsgPack = "msgpack",
        /// JSON.
        Json = "json",
    }
}

words! {
    /// The allowed names of groups.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GroupNames {
        /// Those that Channels allows.
        Channels = "channels",
        /// Any.
        Any = "any",
    }
}
