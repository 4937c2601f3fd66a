//! An event as it passes through the gateway: a map with the sender's key order, and the values it may hold.
//!
//! Channels sends Python objects; [`Value`] is what of them survives the wire. Bytes on Redis to event and back
//! is [`crate::channel_layer::Codec`], text for clients is [`Event::write_json`].

use std::fmt;

pub(crate) mod json;

/// How many arrays and maps may stand inside each other, the event's own map included.
///
/// Channels' readers take 1,024. A legitimate event nests a handful; a bound this low lets the readers and writers be
/// plain recursion on any stack.
pub const MAX_DEPTH: usize = 64;
/// The longest payload that is read or written, in bytes. Channels has no bound.
pub const MAX_PAYLOAD: usize = 8 * 1024 * 1024;
/// How many values one event may hold: a payload of 8 MiB cannot become gigabytes of values.
pub const MAX_VALUES: usize = 1 << 20;

/// One value of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`, `null`.
    Nil,
    /// `True`, `False`.
    Bool(bool),
    /// Every integer that fits.
    Int(i64),
    /// Integers above `i64::MAX`.
    UInt(u64),
    /// Integers beyond 64 bits, which only JSON carries: decimal text with an optional `-`.
    BigInt(Box<str>),
    /// Floats, also NaN and the infinities.
    Float(f64),
    /// Text.
    Str(Box<str>),
    /// Bytes.
    Bin(Box<[u8]>),
    /// A list or tuple.
    Array(Vec<Value>),
    /// A dict; keys are unique.
    Map(Vec<(Key, Value)>),
    /// MessagePack's extension types; −1 is a timestamp.
    Ext(i8, Box<[u8]>),
}

impl Value {
    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if it is bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bin(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The integer, if it is one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Appends the value as compact JSON, UTF-8 as it is.
    ///
    /// # Errors
    /// [`NotRenderable`] for what JSON has no form for; `out` then holds a part of it.
    pub fn write_json(&self, out: &mut String) -> Result<(), NotRenderable> {
        json::write_for_client(self, out)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Str(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Value::UInt(number), Value::Int)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Bool(truth)
    }
}

impl From<&serde_json::Value> for Value {
    /// Numbers keep 64 bits; what lies beyond is a float, as serde_json reads it.
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match value {
            Json::Null => Value::Nil,
            Json::Bool(truth) => Value::Bool(*truth),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Value::Int(int),
                (None, Some(int)) => Value::UInt(int),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Str(text.as_str().into()),
            Json::Array(items) => Value::Array(items.iter().map(Value::from).collect()),
            Json::Object(fields) => {
                let field = |(key, value): (&String, _)| (key.as_str().into(), Value::from(value));
                Value::Map(fields.iter().map(field).collect())
            }
        }
    }
}

/// The key of a map: text, or the bytes that Python's msgpack lets through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Text.
    Text(Box<str>),
    /// Bytes; JSON has no form for them.
    Bytes(Box<[u8]>),
}

impl Key {
    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Key::Text(text) => Some(text),
            Key::Bytes(_) => None,
        }
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key::Text(text.into())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Key::Text(text.into())
    }
}

impl From<Box<str>> for Key {
    fn from(text: Box<str>) -> Self {
        Key::Text(text)
    }
}

impl PartialEq<str> for Key {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == Some(other)
    }
}

/// A message on a channel layer: a map, by Channels' rules with a `type`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// In the sender's order. Where a sender repeats a key, the last value stands in the place of the first.
    pub fields: Vec<(Key, Value)>,
}

impl Event {
    /// An event of a type with further fields.
    pub fn new<K: Into<Key>>(
        event_type: &str,
        fields: impl IntoIterator<Item = (K, Value)>,
    ) -> Self {
        let mut event = Self {
            fields: vec![("type".into(), Value::from(event_type))],
        };
        event
            .fields
            .extend(fields.into_iter().map(|(key, value)| (key.into(), value)));
        event
    }

    /// Reads a JSON object as RFC 8259 defines it, from a client or the API.
    ///
    /// Stricter than what Channels' JSON reader takes: no byte order mark, no `NaN`, no number beyond a double.
    /// Integers stay exact at any size. Repeated keys: the last wins.
    ///
    /// # Errors
    /// [`DecodeError`], which never quotes the input.
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self, DecodeError> {
        json::read_strict(text.as_ref())?.try_into()
    }

    /// The value under a text key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found = self.fields.iter().find(|(name, _)| *name == *key);
        found.map(|(_, value)| value)
    }

    /// Puts `value` under `key`, in the place of an earlier one or at the end.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.fields.iter_mut().find(|(name, _)| *name == *key) {
            Some((_, old)) => *old = value,
            None => self.fields.push((key.into(), value)),
        }
    }

    /// Takes a field out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let position = self.fields.iter().position(|(name, _)| *name == *key)?;
        Some(self.fields.remove(position).1)
    }

    /// The `type`, if it is there and text.
    pub fn event_type(&self) -> Option<&str> {
        self.get("type").and_then(Value::as_str)
    }

    /// Whether a Channels consumer would look for a handler of it: it has a `type`, a text that is not empty and begins
    /// with neither `_` nor `.` (which stands for `_`).
    pub fn is_dispatchable(&self) -> bool {
        let event_type = self.event_type().unwrap_or_default();
        !event_type.is_empty() && !event_type.starts_with(['_', '.'])
    }

    /// About how many bytes of memory the event takes.
    pub fn memory(&self) -> usize {
        memory_of_fields(&self.fields)
    }

    /// Appends the event as compact JSON: no spaces, UTF-8 as it is, keys in the sender's order, integers exact, floats as
    /// the shortest text that reads back equal (`1.0` stays `1.0`). `skip_type` leaves the top-level `type` out.
    ///
    /// # Errors
    /// [`NotRenderable`] for what JSON has no form for; `out` is then as before the call.
    pub fn write_json(&self, out: &mut String, skip_type: bool) -> Result<(), NotRenderable> {
        let start = out.len();
        let fields = self.fields.iter();
        let fields = fields.filter(|(key, _)| !(skip_type && *key == *"type"));
        let written = json::write_fields_for_client(fields, out);
        if written.is_err() {
            out.truncate(start);
        }
        written
    }
}

/// No deeper than the value itself is; what is read is bounded by [`MAX_DEPTH`].
fn memory_of_fields(fields: &[(Key, Value)]) -> usize {
    let key = |key: &Key| match key {
        Key::Text(text) => text.len(),
        Key::Bytes(bytes) => bytes.len(),
    };
    let field = |(name, value): &(Key, Value)| size_of::<Key>() + key(name) + memory(value);
    fields.iter().map(field).sum()
}

fn memory(value: &Value) -> usize {
    let inside = match value {
        Value::Str(text) | Value::BigInt(text) => text.len(),
        Value::Bin(bytes) | Value::Ext(_, bytes) => bytes.len(),
        Value::Array(items) => items.iter().map(memory).sum(),
        Value::Map(fields) => memory_of_fields(fields),
        _ => 0,
    };
    size_of::<Value>() + inside
}

impl TryFrom<Value> for Event {
    type Error = DecodeError;

    fn try_from(value: Value) -> Result<Self, DecodeError> {
        match value {
            Value::Map(fields) => Ok(Event { fields }),
            _ => Err(DecodeError::NotAMap),
        }
    }
}

/// The payload is no event. None of these quotes the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MAX_PAYLOAD`].
    #[error("the payload is longer than 8 MiB")]
    TooLong,
    /// Deeper than [`MAX_DEPTH`].
    #[error("more than 64 arrays and maps stand inside each other")]
    TooDeep,
    /// More than [`MAX_VALUES`].
    #[error("the payload holds more than a million values")]
    TooManyValues,
    /// It ends too early, or a length claims more than there is.
    #[error("the payload is cut off")]
    Truncated,
    /// Something follows the value.
    #[error("bytes follow the value")]
    TrailingBytes,
    /// Text that is not UTF-8, or a lone surrogate.
    #[error("text is not valid Unicode")]
    NotUnicode,
    /// A map key that is neither text nor bytes.
    #[error("a map key is neither text nor bytes")]
    KeyType,
    /// The top level is no map.
    #[error("the message is not a map")]
    NotAMap,
    /// [`Event::is_dispatchable`] says no.
    #[error("the message has no `type`, or one that begins with an underscore or a dot")]
    NoType,
    /// A number that cannot be held.
    #[error("a number is out of range")]
    NumberRange,
    /// Not MessagePack, or not JSON.
    #[error("the payload is not in the configured serializer_format")]
    Syntax,
    /// No key of the layer opens it.
    #[error("the payload is not encrypted with a key of this layer")]
    NotEncrypted,
}

/// The event cannot be written in the layer's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// An integer beyond 64 bits in MessagePack.
    #[error("an integer does not fit into 64 bits")]
    IntegerRange,
    /// Bytes or an extension type in JSON.
    #[error("JSON cannot carry bytes or extension types")]
    BytesInJson,
    /// Deeper than [`MAX_DEPTH`].
    #[error("more than 64 arrays and maps stand inside each other")]
    TooDeep,
    /// Longer than [`MAX_PAYLOAD`].
    #[error("the event is longer than 8 MiB")]
    TooLong,
    /// A key that only the layer may write.
    #[error("the key __asgi_channel__ belongs to the channel layer")]
    Reserved,
}

/// The value has no JSON form for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRenderable {
    /// Bytes, as value or key.
    Bytes,
    /// NaN or an infinity.
    NotFinite,
    /// An extension type.
    Extension,
    /// Deeper than [`MAX_DEPTH`]; such an event was not read but made.
    TooDeep,
}

impl fmt::Display for NotRenderable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotRenderable::Bytes => "JSON cannot carry bytes",
            NotRenderable::NotFinite => "JSON cannot carry NaN or infinity",
            NotRenderable::Extension => "JSON cannot carry extension types",
            NotRenderable::TooDeep => "more than 64 arrays and maps stand inside each other",
        })
    }
}

impl std::error::Error for NotRenderable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_key_keeps_its_place_and_takes_the_last_value() {
        let event = Event::from_json(r#"{"a":1,"type":"t","a":2}"#).unwrap();
        assert_eq!(event.fields.len(), 2);
        assert_eq!(event.fields[0], ("a".into(), Value::Int(2)));
        assert_eq!(event.event_type(), Some("t"));
    }

    #[test]
    fn many_keys_are_still_unique() {
        let text: Vec<String> = (0..2000)
            .map(|i| format!("\"k{}\":{i}", i % 1000))
            .collect();
        let event = Event::from_json(format!("{{{}}}", text.join(","))).unwrap();
        assert_eq!(event.fields.len(), 1000);
        assert_eq!(event.get("k7"), Some(&Value::Int(1007)));
    }

    #[test]
    fn json_for_clients_is_compact_and_keeps_order() {
        let event = Event::from_json(
            r#"{ "z": [1, 2.0, 1e16], "type": "t", "é": "é\u0001\"", "n": 18446744073709551616 }"#,
        );
        let mut out = String::from("x");
        event.unwrap().write_json(&mut out, true).unwrap();
        assert_eq!(
            out,
            "x{\"z\":[1,2.0,1e+16],\"é\":\"é\\u0001\\\"\",\"n\":18446744073709551616}"
        );
    }

    #[test]
    fn what_has_no_json_form_leaves_the_output_alone() {
        for (value, error) in [
            (Value::Bin(Box::new([1])), NotRenderable::Bytes),
            (Value::Float(f64::NAN), NotRenderable::NotFinite),
            (Value::Float(f64::INFINITY), NotRenderable::NotFinite),
            (Value::Ext(-1, Box::new([])), NotRenderable::Extension),
            (
                Value::Map(vec![(Key::Bytes(Box::new([1])), Value::Nil)]),
                NotRenderable::Bytes,
            ),
        ] {
            let event = Event {
                fields: vec![("a".into(), Value::Nil), ("b".into(), value)],
            };
            let mut out = String::from("x");
            assert_eq!(event.write_json(&mut out, false), Err(error));
            assert_eq!(out, "x");
        }
    }
}
