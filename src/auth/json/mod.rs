//! JSON as Python's `json.loads(bytes)` reads it, which is what judges a token's header and payload in Django.
//!
//! It takes what RFC 8259 readers refuse: a byte order mark, UTF-16 and UTF-32, `NaN` and `Infinity`, lone
//! surrogates; of equal keys the last wins. Integers keep all their digits. Nesting is bounded, so is the input.

use std::fmt::Write;

use encoding::{Decoded, decode};
use parser::{Parser, Points};

mod encoding;
mod parser;

/// A JSON value with everything that a check needs to tell apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// Decimal digits, with `-` in front of negative ones.
    Int(Box<str>),
    /// Also NaN and the infinities.
    Float(f64),
    Text(Box<str>),
    /// Text with a lone surrogate; each is written as U+FFFD here. It equals no proper text.
    BrokenText(Box<str>),
    Array(Vec<Json>),
    Object(Vec<(Box<str>, Json)>),
}

/// Why bytes are not JSON; without any of the input.
#[derive(Debug)]
pub(crate) struct NotJson;

impl Json {
    /// Reads a whole document.
    ///
    /// The flag tells whether the bytes are plain UTF-8 JSON that every reader takes, too.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Json, bool), NotJson> {
        let mut plain = true;
        let decoded;
        let text = match decode(bytes)? {
            Decoded::Utf8(text) => text,
            Decoded::Other(units) => {
                plain = false;
                decoded = units;
                return Parser::new(Points::Wide(&decoded), &mut plain)
                    .document()
                    .map(|json| (json, false));
            }
        };
        let json = Parser::new(Points::Utf8(text), &mut plain).document()?;
        Ok((json, plain))
    }

    /// The text, if it is proper text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether Python's `isinstance(value, str)` holds.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Json::Text(_) | Json::BrokenText(_))
    }

    /// Writes JSON that every reader takes: what it cannot say becomes `null` or U+FFFD.
    pub(crate) fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            // A reader that turns long integers into floats must not meet one beyond 1.8e308.
            Json::Int(digits) if digits.len() > 300 => out.push_str("null"),
            Json::Int(digits) => out.push_str(digits),
            Json::Float(value) if value.is_finite() => {
                // Writing to a String cannot fail.
                write!(out, "{value:?}").unwrap_or_default();
            }
            Json::Float(_) => out.push_str("null"),
            Json::Text(text) | Json::BrokenText(text) => write_text(text, out),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_text(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// The same value for a report; see [`Json::write`] for what is lost.
    pub(crate) fn to_value(&self) -> serde_json::Value {
        let mut text = String::new();
        self.write(&mut text);
        serde_json::from_str(&text).unwrap_or(serde_json::Value::Null)
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> Option<(String, bool)> {
        let (json, plain) = Json::parse(bytes).ok()?;
        let mut out = String::new();
        json.write(&mut out);
        Some((out, plain))
    }

    #[test]
    fn plain_json_is_read_and_written() {
        let text = r#"{"a":[1,-2,3.5,1e3,true,false,null,"x"],"b":{"c":""},"é":"\n\"\\"}"#;
        let (out, plain) = written(text.as_bytes()).unwrap();
        assert!(plain);
        let same: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&out).unwrap(),
            same
        );
    }

    #[test]
    fn what_python_takes_beyond_the_norm_is_taken() {
        let utf16: Vec<u8> = "{\"é\":\"\u{1F600}\"}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let cases: [(&[u8], &str); 8] = [
            (b"\xEF\xBB\xBF{}", "{}"),
            (&utf16, "{\"é\":\"\u{1F600}\"}"),
            (b"[NaN,Infinity,-Infinity,1e400]", "[null,null,null,null]"),
            (br#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#),
            (br#""\ud800""#, "\"\u{FFFD}\""),
            (br#""\ud83d\ude00""#, "\"\u{1F600}\""),
            (b"\"\xED\xA0\x80\"", "\"\u{FFFD}\""),
            (b" \t\r\n1 ", "1"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                written(bytes).map(|(out, _)| out).as_deref(),
                Some(expected)
            );
        }
        assert!(!written(b"[NaN]").unwrap().1);
        assert!(!written(br#""\ud800""#).unwrap().1);
    }

    #[test]
    fn what_python_refuses_is_refused() {
        let deep = [b"[".repeat(121), b"]".repeat(121)].concat();
        let long = "1".repeat(4301);
        let cases: [&[u8]; 18] = [
            b"",
            b"{",
            b"[1,]",
            b"{\"a\"}",
            b"{\"a\":1,}",
            b"01",
            b"1.",
            b".5",
            b"+1",
            b"1e",
            b"nul",
            b"\"\x01\"",
            br#""\x""#,
            br#""\ud8""#,
            b"{} {}",
            b"\xFF",
            &deep,
            long.as_bytes(),
        ];
        for bytes in cases {
            assert!(
                Json::parse(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
