//! Conversion of column values to JSON.
//!
//! Values without a JSON type become text: decimals as their digits, times as ISO 8601, bytes as `\x` and hexadecimal
//! digits, numbers that are not finite as their names. PostgreSQL's arrays and JSON columns stay lists and objects.

use std::sync::Arc;

use serde_json::value::RawValue;
use sqlx::Column;
use uuid::Uuid;

use crate::python::json::write_text;

/// A value of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SqlValue {
    Null,
    Bool(bool),
    /// The digits of a JSON number.
    Number(String),
    Text(String),
    Bytes(Vec<u8>),
    /// Valid JSON text.
    Json(String),
}

/// A row: names and values in the order of the statement. The rows of an answer share the names.
pub(super) type Row = Vec<(ColumnName, SqlValue)>;

/// The name of a column.
pub(super) type ColumnName = Arc<str>;

/// Returns the names of the columns of a row, for all rows of its answer.
pub(super) fn names_of<R: sqlx::Row>(row: &R) -> Vec<ColumnName> {
    let columns = row.columns().iter();
    columns.map(|column| column.name().into()).collect()
}

impl SqlValue {
    pub(super) fn from_float(number: f64) -> Self {
        match serde_json::Number::from_f64(number) {
            Some(number) => Self::Number(number.to_string()),
            None if number.is_nan() => Self::Text("NaN".into()),
            None if number > 0.0 => Self::Text("Infinity".into()),
            None => Self::Text("-Infinity".into()),
        }
    }

    /// Converts the value of a JSON column; text that is not valid JSON stays text.
    pub(super) fn from_json(text: &str) -> Self {
        let Ok(raw) = serde_json::from_str::<&RawValue>(text) else {
            return Self::Text(text.to_owned());
        };
        let raw = raw.get();
        match raw.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => match serde_json::from_str(raw) {
                Ok(text) => Self::Text(text),
                // The escape of a lone surrogate, which a Rust string cannot hold.
                Err(_) => Self::Json(raw.to_owned()),
            },
            Some(b'[' | b'{') => Self::Json(raw.to_owned()),
            _ => Self::Number(raw.to_owned()),
        }
    }

    /// Returns the bytes of a value whose length varies.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) => 0,
            Self::Number(text) | Self::Text(text) | Self::Json(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    pub(super) fn write_json(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(text) | Self::Json(text) => out.push_str(text),
            Self::Text(text) => write_text(text, out, false),
            Self::Bytes(bytes) => {
                out.push_str("\"\\\\x");
                out.push_str(&hex::encode(bytes));
                out.push('"');
            }
        }
    }

    /// Returns the value as a boolean, in any form in which a database or a view writes one; `None` for NULL and any
    /// other value.
    pub(super) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Number(text) => text.parse::<f64>().ok().map(|number| number != 0.0),
            Self::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "t" | "true" | "y" | "yes" | "on" | "1" => Some(true),
                "f" | "false" | "n" | "no" | "off" | "0" => Some(false),
                _ => None,
            },
            Self::Bytes(bytes) => Some(bytes.iter().any(|byte| *byte != 0)),
            Self::Null | Self::Json(_) => None,
        }
    }

    /// Returns the value as text to compare with a text id.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Number(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            Self::Null | Self::Bool(_) | Self::Json(_) => None,
        }
    }

    /// Returns the value as a UUID: text with or without hyphens, or 16 bytes.
    pub(super) fn as_uuid(&self) -> Option<Uuid> {
        match self {
            Self::Text(text) => Uuid::try_parse(text).ok(),
            Self::Bytes(bytes) if bytes.len() == 16 => Uuid::from_slice(bytes).ok(),
            Self::Bytes(bytes) => Uuid::try_parse_ascii(bytes).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &SqlValue) -> String {
        let mut out = String::new();
        value.write_json(&mut out);
        out
    }

    #[test]
    fn values_become_json() {
        for (value, expected) in [
            (SqlValue::Null, "null"),
            (SqlValue::Bool(true), "true"),
            (SqlValue::from_float(1.5), "1.5"),
            (SqlValue::from_float(f64::NEG_INFINITY), r#""-Infinity""#),
            (SqlValue::Bytes(vec![0, 255]), r#""\\x00ff""#),
            (
                SqlValue::Text("a\"\n\u{202e}\0".into()),
                "\"a\\\"\\n\u{202e}\\u0000\"",
            ),
            (SqlValue::from_json("{\"a\": [1]}"), r#"{"a": [1]}"#),
            (
                SqlValue::from_json(" 12345678901234567890123 "),
                "12345678901234567890123",
            ),
            (SqlValue::from_json("no json"), r#""no json""#),
        ] {
            assert_eq!(json(&value), expected);
        }
    }

    #[test]
    fn truth_is_read_however_it_is_written() {
        for (value, expected) in [
            (SqlValue::Number("2".into()), Some(true)),
            (SqlValue::Number("0".into()), Some(false)),
            (SqlValue::Text("t".into()), Some(true)),
            (SqlValue::Text("FALSE".into()), Some(false)),
            (SqlValue::Text("maybe".into()), None),
            (SqlValue::Bytes(vec![0]), Some(false)),
            (SqlValue::Null, None),
        ] {
            assert_eq!(value.as_bool(), expected, "{value:?}");
        }
    }
}
