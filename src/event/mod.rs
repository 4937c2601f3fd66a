//! An event as it passes through the gateway: a map with the sender's key order, and the values it may hold.
//!
//! Channels sends Python objects; [`Value`] holds those that the wire can carry. [`crate::channel_layer::Codec`] turns
//! bytes on Redis into events and back; [`Event::write_json`] writes the text for clients.

use std::fmt;

use crate::heavy::{HEAVY_BYTES, HEAVY_VALUES, heavy};

pub(crate) mod json;

/// The largest depth of nested arrays and maps, the event's own map included.
///
/// Channels' readers take 1,024. Real events nest a few levels; with a bound this low the readers and writers can be plain
/// recursion on any stack.
pub const MAX_DEPTH: usize = 64;
/// The longest payload that is read or written, in bytes. Channels has no bound.
pub const MAX_PAYLOAD: usize = 8 * 1024 * 1024;
/// The largest number of values in one event. Without it a payload of 8 MiB could become gigabytes of values.
pub const MAX_VALUES: usize = 1 << 20;

/// One value of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`, `null`.
    Nil,
    /// `True`, `False`.
    Bool(bool),
    /// Integers that fit into 64 bits with a sign.
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
    /// Returns the text, if the value is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the bytes, if the value is bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bin(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the integer, if the value is one that fits into an `i64`.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Appends the value as compact JSON in UTF-8; characters outside ASCII are not escaped.
    ///
    /// # Errors
    /// [`NotRenderable`] for a value that JSON has no form for; `out` then holds a part of the text.
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
    /// Integers keep 64 bits; larger ones are floats, as serde_json reads them.
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

/// The key of a map: text, or bytes, which Python's msgpack allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Text.
    Text(Box<str>),
    /// Bytes; JSON has no form for them.
    Bytes(Box<[u8]>),
}

impl Key {
    /// Returns the text, if the key is text.
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

/// A message on a channel layer: a map. Channels requires a `type` in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// The fields in the sender's order. If a sender repeats a key, the last value takes the place of the first.
    pub fields: Vec<(Key, Value)>,
}

impl Event {
    /// Builds an event of a type with further fields.
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
    /// It is stricter than Channels' JSON reader: no byte order mark, no `NaN`, no number beyond a double. Integers stay
    /// exact at any size. Of repeated keys the last value counts.
    ///
    /// # Errors
    /// [`DecodeError`], which never quotes the input.
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self, DecodeError> {
        let text = text.as_ref();
        heavy(text.len() >= HEAVY_BYTES, || json::read_strict(text))?.try_into()
    }

    /// Returns the value under a text key.
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

    /// Removes a field and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let position = self.fields.iter().position(|(name, _)| *name == *key)?;
        Some(self.fields.remove(position).1)
    }

    /// Returns the `type`, if there is one and it is text.
    pub fn event_type(&self) -> Option<&str> {
        self.get("type").and_then(Value::as_str)
    }

    /// Returns true if a Channels consumer would look for a handler of the event: its `type` is a text that is not empty
    /// and begins with neither `_` nor `.` (Channels replaces `.` by `_`).
    pub fn is_dispatchable(&self) -> bool {
        let event_type = self.event_type().unwrap_or_default();
        !event_type.is_empty() && !event_type.starts_with(['_', '.'])
    }

    /// Returns the approximate bytes of memory that the event takes.
    pub fn memory(&self) -> usize {
        memory_of_fields(&self.fields)
    }

    /// Returns true if it takes long to write the event. It looks at no more values than tell.
    pub(crate) fn is_heavy(&self) -> bool {
        let (mut values, mut bytes) = (HEAVY_VALUES, 8 * HEAVY_BYTES);
        !is_light(&self.fields, &mut values, &mut bytes)
    }

    /// Returns true if the event, written in `bytes` bytes, is one that every reader takes. What is refused here would be
    /// dropped there, and its sender would not know.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`], [`EncodeError::TooManyValues`].
    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), EncodeError> {
        if bytes > MAX_PAYLOAD {
            return Err(EncodeError::TooLong);
        }
        // Each value takes a byte at least, so that short events need no count.
        if bytes > MAX_VALUES && 1 + count_of_fields(&self.fields) > MAX_VALUES {
            return Err(EncodeError::TooManyValues);
        }
        Ok(())
    }

    /// Appends the event as compact JSON: no spaces, UTF-8 without escapes, keys in the sender's order, integers exact,
    /// floats as the shortest text that reads back equal (`1.0` stays `1.0`). `skip_type` leaves out the top-level `type`.
    ///
    /// # Errors
    /// [`NotRenderable`] for a value that JSON has no form for; `out` is then as before the call.
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

/// Takes the values and the bytes of texts from those that are left. Returns false once there are none left.
fn is_light(fields: &[(Key, Value)], values: &mut usize, bytes: &mut usize) -> bool {
    fields
        .iter()
        .all(|(_, value)| is_light_value(value, values, bytes))
}

fn is_light_value(value: &Value, values: &mut usize, bytes: &mut usize) -> bool {
    let Some(left) = values.checked_sub(1) else {
        return false;
    };
    *values = left;
    let text = match value {
        Value::Str(text) | Value::BigInt(text) => text.len(),
        Value::Bin(bytes) | Value::Ext(_, bytes) => bytes.len(),
        Value::Array(items) => {
            return items.iter().all(|item| is_light_value(item, values, bytes));
        }
        Value::Map(fields) => return is_light(fields, values, bytes),
        _ => 0,
    };
    *bytes = bytes.saturating_sub(text);
    *bytes > 0
}

/// Counts the values of fields as the readers do, and the keys too.
fn count_of_fields(fields: &[(Key, Value)]) -> usize {
    fields.iter().map(|(_, value)| 1 + count(value)).sum()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Map(fields) => count_of_fields(fields),
        _ => 0,
    }
}

/// Adds up the memory of fields. The recursion is as deep as the value, and values that are read nest at most
/// [`MAX_DEPTH`] deep.
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

/// The reason why a payload is not an event. No text quotes the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload is longer than [`MAX_PAYLOAD`].
    #[error("the payload is longer than 8 MiB")]
    TooLong,
    /// The payload nests deeper than [`MAX_DEPTH`].
    #[error("arrays and maps are nested more than 64 deep")]
    TooDeep,
    /// The payload has more than [`MAX_VALUES`] values.
    #[error("the payload holds more than a million values")]
    TooManyValues,
    /// The payload ends too early, or a length claims more bytes than there are.
    #[error("the payload is cut off")]
    Truncated,
    /// Bytes follow the value.
    #[error("bytes follow the value")]
    TrailingBytes,
    /// A text is not UTF-8 or has a lone surrogate.
    #[error("text is not valid Unicode")]
    NotUnicode,
    /// A map key is neither text nor bytes.
    #[error("a map key is neither text nor bytes")]
    KeyType,
    /// The top level is not a map.
    #[error("the message is not a map")]
    NotAMap,
    /// [`Event::is_dispatchable`] is false.
    #[error("the message has no `type`, or one that begins with an underscore or a dot")]
    NoType,
    /// A number is beyond the range of a value.
    #[error("a number is out of range")]
    NumberRange,
    /// The payload is not MessagePack, or not JSON.
    #[error("the payload is not in the configured serializer_format")]
    Syntax,
    /// No key of the layer decrypts the payload.
    #[error("the payload is not encrypted with a key of this layer")]
    NotEncrypted,
}

/// The reason why an event cannot be written in the layer's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// An integer beyond 64 bits in MessagePack.
    #[error("an integer does not fit into 64 bits")]
    IntegerRange,
    /// Bytes or an extension type in JSON.
    #[error("JSON cannot carry bytes or extension types")]
    BytesInJson,
    /// The event nests deeper than [`MAX_DEPTH`].
    #[error("arrays and maps are nested more than 64 deep")]
    TooDeep,
    /// The payload would be longer than [`MAX_PAYLOAD`].
    #[error("the event is longer than 8 MiB")]
    TooLong,
    /// The event has more than [`MAX_VALUES`] values.
    #[error("the event holds more than a million values")]
    TooManyValues,
    /// A key that only the layer may write.
    #[error("the key __asgi_channel__ belongs to the channel layer")]
    Reserved,
}

impl EncodeError {
    /// Returns true if only the size of the event is at fault.
    pub const fn is_size(self) -> bool {
        matches!(self, EncodeError::TooLong | EncodeError::TooManyValues)
    }
}

/// The reason why a value has no JSON form for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRenderable {
    /// Bytes, as value or key.
    Bytes,
    /// NaN or an infinity.
    NotFinite,
    /// An extension type.
    Extension,
    /// Nesting deeper than [`MAX_DEPTH`]. Only an event that was built here can have it; the readers refuse it.
    TooDeep,
}

impl fmt::Display for NotRenderable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotRenderable::Bytes => "JSON cannot carry bytes",
            NotRenderable::NotFinite => "JSON cannot carry NaN or infinity",
            NotRenderable::Extension => "JSON cannot carry extension types",
            NotRenderable::TooDeep => "arrays and maps are nested more than 64 deep",
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
