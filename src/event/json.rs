//! Events as JSON: in the form of Python's `json` on a layer, and in that of RFC 8259 for clients.
//!
//! Grammar, escapes and numbers belong to [`crate::python::json`]; this module decides which values an event can hold. It
//! refuses lone surrogates, which Python's text can hold.

use std::fmt::{Display, Write as _};

use crate::heavy::give_way;
use crate::python::Dict;
use crate::python::json::{self, Bounds, Build, Decoded, JsonError, JsonText, Rules};

use super::{DecodeError, EncodeError, Key, MAX_DEPTH, MAX_VALUES, NotRenderable, Value};

const BOUNDS: Bounds = Bounds {
    depth: MAX_DEPTH,
    values: MAX_VALUES,
};

/// Reads one value as `json.loads(bytes)` does, except that lone surrogates and deep nesting are refused.
pub(crate) fn read_python(bytes: &[u8]) -> Result<Value, DecodeError> {
    let text = json::decode(bytes)?;
    Ok(json::read(&text, Rules::Python, BOUNDS, &mut Values)?)
}

/// Reads one value as RFC 8259 defines it.
pub(crate) fn read_strict(bytes: &[u8]) -> Result<Value, DecodeError> {
    let text = simdutf8::basic::from_utf8(bytes).map_err(|_| DecodeError::NotUnicode)?;
    let text = Decoded::from(text);
    Ok(json::read(&text, Rules::Rfc8259, BOUNDS, &mut Values)?)
}

/// Builds the values of an event.
struct Values;

impl Build for Values {
    type Value = Value;
    type Key = Key;

    fn null(&mut self) -> Value {
        Value::Nil
    }

    fn bool(&mut self, truth: bool) -> Value {
        Value::Bool(truth)
    }

    fn int(&mut self, digits: &str) -> Value {
        match (digits.parse(), digits.parse()) {
            (Ok(number), _) => Value::Int(number),
            (Err(_), Ok(number)) => Value::UInt(number),
            (Err(_), Err(_)) => Value::BigInt(digits.into()),
        }
    }

    fn float(&mut self, number: f64) -> Value {
        Value::Float(number)
    }

    fn text(&mut self, text: JsonText) -> Result<Value, JsonError> {
        whole(text).map(Value::Str)
    }

    fn key(&mut self, text: JsonText) -> Result<Key, JsonError> {
        whole(text).map(Key::Text)
    }

    fn array(&mut self, items: Vec<Value>) -> Value {
        Value::Array(items)
    }

    fn object(&mut self, members: Dict<Key, Value>) -> Value {
        Value::Map(members.into_pairs())
    }
}

fn whole(text: JsonText) -> Result<Box<str>, JsonError> {
    match text.broken {
        true => Err(JsonError::NotUnicode),
        false => Ok(text.text),
    }
}

impl From<JsonError> for DecodeError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::TooDeep => DecodeError::TooDeep,
            JsonError::TooManyValues => DecodeError::TooManyValues,
            JsonError::Truncated => DecodeError::Truncated,
            JsonError::TrailingBytes => DecodeError::TrailingBytes,
            JsonError::NotUnicode => DecodeError::NotUnicode,
            JsonError::NumberRange => DecodeError::NumberRange,
            JsonError::Syntax => DecodeError::Syntax,
        }
    }
}

/// The difference between the two writers.
trait Style {
    type Error;
    const SEPARATORS: [&'static str; 2];
    /// True if characters outside ASCII are escaped.
    const ASCII: bool;
    fn float(number: f64, out: &mut String) -> Result<(), Self::Error>;
    fn bytes() -> Self::Error;
    fn extension() -> Self::Error;
    fn too_deep() -> Self::Error;
}

/// The form of `json.dumps` with its defaults.
struct Python;

impl Style for Python {
    type Error = EncodeError;
    const SEPARATORS: [&'static str; 2] = [", ", ": "];

    const ASCII: bool = true;

    fn float(number: f64, out: &mut String) -> Result<(), EncodeError> {
        json::write_number(number, out);
        Ok(())
    }

    fn bytes() -> EncodeError {
        EncodeError::BytesInJson
    }

    fn extension() -> EncodeError {
        EncodeError::BytesInJson
    }

    fn too_deep() -> EncodeError {
        EncodeError::TooDeep
    }
}

/// The form for clients: compact and UTF-8.
struct Client;

impl Style for Client {
    type Error = NotRenderable;
    const SEPARATORS: [&'static str; 2] = [",", ":"];

    const ASCII: bool = false;

    fn float(number: f64, out: &mut String) -> Result<(), NotRenderable> {
        match json::write_finite(number, out) {
            true => Ok(()),
            false => Err(NotRenderable::NotFinite),
        }
    }

    fn bytes() -> NotRenderable {
        NotRenderable::Bytes
    }

    fn extension() -> NotRenderable {
        NotRenderable::Extension
    }

    fn too_deep() -> NotRenderable {
        NotRenderable::TooDeep
    }
}

/// Writes a map as `json.dumps(dict)` does.
pub(crate) fn write_event(fields: &[(Key, Value)], out: &mut String) -> Result<(), EncodeError> {
    write_fields::<Python>(fields.iter(), out, 0)
}

/// Writes one value for a client.
pub(crate) fn write_for_client(value: &Value, out: &mut String) -> Result<(), NotRenderable> {
    write::<Client>(value, out, 0)
}

/// Writes an object for a client.
pub(crate) fn write_fields_for_client<'a>(
    fields: impl Iterator<Item = &'a (Key, Value)>,
    out: &mut String,
) -> Result<(), NotRenderable> {
    write_fields::<Client>(fields, out, 0)
}

fn write<S: Style>(value: &Value, out: &mut String, depth: usize) -> Result<(), S::Error> {
    give_way();
    match value {
        Value::Nil => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Int(number) => append(out, number),
        Value::UInt(number) => append(out, number),
        Value::BigInt(text) => out.push_str(text),
        Value::Float(number) => S::float(*number, out)?,
        Value::Str(text) => json::write_text(text, out, S::ASCII),
        Value::Bin(_) => return Err(S::bytes()),
        Value::Ext(..) => return Err(S::extension()),
        Value::Array(items) => {
            if depth >= MAX_DEPTH {
                return Err(S::too_deep());
            }
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push_str(S::SEPARATORS[0]);
                }
                write::<S>(item, out, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(fields) => write_fields::<S>(fields.iter(), out, depth)?,
    }
    Ok(())
}

fn write_fields<'a, S: Style>(
    fields: impl Iterator<Item = &'a (Key, Value)>,
    out: &mut String,
    depth: usize,
) -> Result<(), S::Error> {
    if depth >= MAX_DEPTH {
        return Err(S::too_deep());
    }
    out.push('{');
    for (position, (key, value)) in fields.enumerate() {
        if position > 0 {
            out.push_str(S::SEPARATORS[0]);
        }
        json::write_text(key.as_str().ok_or_else(S::bytes)?, out, S::ASCII);
        out.push_str(S::SEPARATORS[1]);
        write::<S>(value, out, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

fn append(out: &mut String, number: impl Display) {
    write!(out, "{number}").expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(text: &str) -> Result<Value, DecodeError> {
        read_python(text.as_bytes())
    }

    #[test]
    fn the_strict_reader_holds_to_the_rfc() {
        for text in [
            "NaN",
            "-Infinity",
            "1e400",
            "\u{feff}{}",
            "{,}",
            "[1,]",
            "01",
            "1.",
            ".5",
            "+1",
            "\"\u{1}\"",
            "\"\\x\"",
            "'a'",
            "",
            "{\"a\":1}x",
            "\"\\ud800\"",
            "\"\\udc00\\ud800\"",
            "tru",
            "-",
            "\"abc",
        ] {
            assert!(read_strict(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(
            read_strict(b"\"\\ud83d\\ude00\""),
            Ok(Value::Str("😀".into()))
        );
        assert_eq!(read_strict(b" -0 "), Ok(Value::Int(0)));
    }

    #[test]
    fn the_python_reader_takes_what_python_takes() {
        assert_eq!(
            python("\u{feff}[1e400]"),
            Ok(Value::Array(vec![Value::Float(f64::INFINITY)]))
        );
        for unit in [u16::to_be_bytes as fn(u16) -> [u8; 2], u16::to_le_bytes] {
            let bytes: Vec<u8> = "{\"ä\": 1}".encode_utf16().flat_map(unit).collect();
            assert!(read_python(&bytes).is_ok());
        }
        for unit in [u32::to_be_bytes as fn(u32) -> [u8; 4], u32::to_le_bytes] {
            let bytes: Vec<u8> = "[1]".chars().flat_map(|c| unit(c as u32)).collect();
            assert!(read_python(&bytes).is_ok());
        }
        assert!(python(&"9".repeat(4300)).is_ok());
        assert_eq!(python(&"9".repeat(4301)), Err(DecodeError::NumberRange));
    }

    #[test]
    fn nesting_ends_at_the_bound() {
        assert!(python(&("[".repeat(64) + &"]".repeat(64))).is_ok());
        assert_eq!(python(&"[".repeat(100_000)), Err(DecodeError::TooDeep));
        assert_eq!(python(&"{\"a\":".repeat(65)), Err(DecodeError::TooDeep));
    }
}
