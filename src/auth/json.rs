//! Reads a token's header and payload like Python's `json.loads(bytes)`, which reads them in Django.
//!
//! [`crate::python::json`] has the grammar. This module has the values of claims, and writes them as JSON for any reader.

use crate::python::json::{self, Bounds, Build, JsonError, JsonText, Rules};
use crate::python::{Dict, Scalar};

/// The depth stays below 128, the limit of `serde_json`, which reads the claims later. The number of values needs no limit,
/// because a token is short.
const BOUNDS: Bounds = Bounds {
    depth: 120,
    values: usize::MAX,
};

/// Most digits of an integer that is written out. Many readers convert long integers to floats, which end at 1.8e308.
const LONG_INT: usize = 300;

/// A JSON value, with every distinction that a check needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// Decimal digits, with a leading `-` if negative.
    Int(Box<str>),
    /// A float, which may be NaN or infinite.
    Float(f64),
    Text(Box<str>),
    /// Text with a lone surrogate, here replaced by U+FFFD. It equals no valid text.
    BrokenText(Box<str>),
    Array(Vec<Json>),
    Object(Vec<(Box<str>, Json)>),
}

impl Json {
    /// Reads a whole document.
    ///
    /// The flag is true if the bytes are UTF-8 JSON that every reader accepts.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Json, bool), JsonError> {
        let decoded = json::decode(bytes)?;
        let mut claims = ClaimBuilder {
            plain: matches!(decoded.text, std::borrow::Cow::Borrowed(_)),
        };
        let json = json::read(&decoded, Rules::Python, BOUNDS, &mut claims)?;
        Ok((json, claims.plain))
    }

    /// Returns the value in the form that Python's `int()` and `str()` take.
    pub(crate) fn scalar(&self) -> Scalar<'_> {
        match self {
            Json::Null => Scalar::None,
            Json::Bool(truth) => Scalar::Bool(*truth),
            Json::Int(digits) => Scalar::Int(digits),
            Json::Float(number) => Scalar::Float(*number),
            Json::Text(text) => Scalar::Text(text),
            Json::BrokenText(_) => Scalar::BrokenText,
            Json::Array(_) | Json::Object(_) => Scalar::Container,
        }
    }

    /// Returns valid text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns true if Python's `isinstance(value, str)` holds.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Json::Text(_) | Json::BrokenText(_))
    }

    /// Writes JSON that every reader accepts. Values outside of JSON become `null` or U+FFFD.
    pub(crate) fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            // A reader could fail to convert it to a float.
            Json::Int(digits) if digits.len() > LONG_INT => out.push_str("null"),
            Json::Int(digits) => out.push_str(digits),
            Json::Float(value) => {
                if !json::write_finite(*value, out) {
                    out.push_str("null");
                }
            }
            Json::Text(text) | Json::BrokenText(text) => json::write_text(text, out, false),
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
                    json::write_text(key, out, false);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// Converts the value for a report, with the losses of [`Json::write`].
    pub(crate) fn to_value(&self) -> serde_json::Value {
        let mut text = String::new();
        self.write(&mut text);
        serde_json::from_str(&text).unwrap_or(serde_json::Value::Null)
    }
}

/// Builds the values of a token.
struct ClaimBuilder {
    /// Every reader reads the text the same way.
    plain: bool,
}

impl Build for ClaimBuilder {
    type Value = Json;
    type Key = Box<str>;

    fn null(&mut self) -> Json {
        Json::Null
    }

    fn bool(&mut self, truth: bool) -> Json {
        Json::Bool(truth)
    }

    fn int(&mut self, digits: &str) -> Json {
        self.plain &= digits.len() <= LONG_INT;
        Json::Int(digits.into())
    }

    fn float(&mut self, number: f64) -> Json {
        self.plain &= number.is_finite();
        Json::Float(number)
    }

    fn text(&mut self, JsonText { text, broken }: JsonText) -> Result<Json, JsonError> {
        self.plain &= !broken;
        Ok(match broken {
            true => Json::BrokenText(text),
            false => Json::Text(text),
        })
    }

    fn key(&mut self, JsonText { text, broken }: JsonText) -> Result<Box<str>, JsonError> {
        self.plain &= !broken;
        Ok(text)
    }

    fn array(&mut self, items: Vec<Json>) -> Json {
        Json::Array(items)
    }

    fn object(&mut self, members: Dict<Box<str>, Json>) -> Json {
        self.plain &= !members.repeated();
        Json::Object(members.into_pairs())
    }
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
    fn the_bound_of_digits_leaves_the_sign_out() {
        let longest = "1".repeat(4300);
        assert!(Json::parse(longest.as_bytes()).is_ok());
        assert!(Json::parse(format!("-{longest}").as_bytes()).is_ok());
        assert!(Json::parse(format!("-{longest}1").as_bytes()).is_err());
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
