//! JSON as Python's `json.loads(bytes)` reads it, which is what judges a token's header and payload in Django.
//!
//! It takes what RFC 8259 readers refuse: a byte order mark, UTF-16 and UTF-32, `NaN` and `Infinity`, lone
//! surrogates; of equal keys the last wins. Integers keep all their digits. Nesting is bounded, so is the input.

use std::fmt::Write;

/// Deeper than any claim; what reads the claims after us (`serde_json`) stops at 128 too.
const MAX_DEPTH: usize = 120;

/// Python refuses to convert longer digit strings (`sys.int_info.default_max_str_digits`).
const MAX_INT_DIGITS: usize = 4300;

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

enum Decoded<'a> {
    Utf8(&'a str),
    /// Code points, lone surrogates included.
    Other(Vec<u32>),
}

/// `json.detect_encoding` and the decoder it names, with `surrogatepass`.
fn decode(bytes: &[u8]) -> Result<Decoded<'_>, NotJson> {
    type Pair = fn([u8; 2]) -> u16;
    type Quad = fn([u8; 4]) -> u32;
    let utf16 = |bytes: &[u8], read: Pair| decode_utf16(bytes, read).map(Decoded::Other);
    let utf32 = |bytes: &[u8], read: Quad| decode_utf32(bytes, read).map(Decoded::Other);
    match bytes {
        [0, 0, 0xFE, 0xFF, rest @ ..] => utf32(rest, u32::from_be_bytes),
        [0xFF, 0xFE, 0, 0, rest @ ..] => utf32(rest, u32::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => decode_utf8(rest),
        [0, second, _, _, ..] if *second != 0 => utf16(bytes, u16::from_be_bytes),
        [0, _, _, _, ..] => utf32(bytes, u32::from_be_bytes),
        [_, 0, 0, 0, ..] => utf32(bytes, u32::from_le_bytes),
        [_, 0, _, _, ..] => utf16(bytes, u16::from_le_bytes),
        [0, _] => utf16(bytes, u16::from_be_bytes),
        [_, 0] => utf16(bytes, u16::from_le_bytes),
        _ => decode_utf8(bytes),
    }
}

fn decode_utf8(bytes: &[u8]) -> Result<Decoded<'_>, NotJson> {
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return Ok(Decoded::Utf8(text));
    }
    // What is left to take is UTF-8 with encoded surrogates (ED A0 80 to ED BF BF).
    let mut points = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        if let [0xED, second @ 0xA0..=0xBF, third @ 0x80..=0xBF, tail @ ..] = rest {
            points.push(0xD000 | u32::from(second & 0x3F) << 6 | u32::from(third & 0x3F));
            rest = tail;
            continue;
        }
        let length = match rest[0] {
            0x00..=0x7F => 1,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            _ => 4,
        };
        let c = rest
            .get(..length)
            .and_then(|one| std::str::from_utf8(one).ok())
            .and_then(|one| one.chars().next())
            .ok_or(NotJson)?;
        points.push(u32::from(c));
        rest = &rest[length..];
    }
    Ok(Decoded::Other(points))
}

fn decode_utf16(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Result<Vec<u32>, NotJson> {
    let (pairs, []) = bytes.as_chunks::<2>() else {
        return Err(NotJson);
    };
    let units = pairs.iter().map(|pair| read(*pair));
    Ok(char::decode_utf16(units)
        .map(|unit| match unit {
            Ok(c) => u32::from(c),
            Err(lone) => u32::from(lone.unpaired_surrogate()),
        })
        .collect())
}

fn decode_utf32(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Result<Vec<u32>, NotJson> {
    let (quads, []) = bytes.as_chunks::<4>() else {
        return Err(NotJson);
    };
    let points: Vec<u32> = quads.iter().map(|quad| read(*quad)).collect();
    match points.iter().all(|point| *point <= 0x10_FFFF) {
        true => Ok(points),
        false => Err(NotJson),
    }
}

/// The document as code points, addressed by position.
#[derive(Clone, Copy)]
enum Points<'a> {
    Utf8(&'a str),
    Wide(&'a [u32]),
}

struct Parser<'a> {
    points: Points<'a>,
    at: usize,
    depth: usize,
    plain: &'a mut bool,
}

impl<'a> Parser<'a> {
    fn new(points: Points<'a>, plain: &'a mut bool) -> Self {
        Self {
            points,
            at: 0,
            depth: 0,
            plain,
        }
    }

    /// The unit at the cursor: a byte of UTF-8 or a code point. JSON's own characters are ASCII in both.
    fn peek(&self) -> Option<u32> {
        match self.points {
            Points::Utf8(text) => text.as_bytes().get(self.at).map(|byte| u32::from(*byte)),
            Points::Wide(points) => points.get(self.at).copied(),
        }
    }

    fn take(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(u32::from(expected));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), NotJson> {
        match word.bytes().all(|byte| self.take(byte)) {
            true => Ok(()),
            false => Err(NotJson),
        }
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(0x20 | 0x09 | 0x0A | 0x0D)) {
            self.at += 1;
        }
    }

    fn document(mut self) -> Result<Json, NotJson> {
        self.skip_blanks();
        let json = self.value()?;
        self.skip_blanks();
        match self.peek() {
            None => Ok(json),
            Some(_) => Err(NotJson),
        }
    }

    fn value(&mut self) -> Result<Json, NotJson> {
        let first = self.peek().and_then(|unit| u8::try_from(unit).ok());
        match first.ok_or(NotJson)? {
            b'"' => self.text(),
            b'{' => self.nested(Self::object),
            b'[' => self.nested(Self::array),
            b'n' => self.expect("null").map(|()| Json::Null),
            b't' => self.expect("true").map(|()| Json::Bool(true)),
            b'f' => self.expect("false").map(|()| Json::Bool(false)),
            b'N' => self.expect("NaN").map(|()| self.not_plain(f64::NAN)),
            b'I' => self
                .expect("Infinity")
                .map(|()| self.not_plain(f64::INFINITY)),
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(NotJson),
        }
    }

    fn not_plain(&mut self, value: f64) -> Json {
        *self.plain = false;
        Json::Float(value)
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Json, NotJson>) -> Result<Json, NotJson> {
        self.at += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(NotJson);
        }
        let json = read(self);
        self.depth -= 1;
        json
    }

    fn array(&mut self) -> Result<Json, NotJson> {
        let mut items = Vec::new();
        self.skip_blanks();
        if self.take(b']') {
            return Ok(Json::Array(items));
        }
        loop {
            self.skip_blanks();
            items.push(self.value()?);
            self.skip_blanks();
            if self.take(b']') {
                return Ok(Json::Array(items));
            }
            self.expect(",")?;
        }
    }

    fn object(&mut self) -> Result<Json, NotJson> {
        let mut members: Vec<(Box<str>, Json)> = Vec::new();
        self.skip_blanks();
        if self.take(b'}') {
            return Ok(Json::Object(members));
        }
        loop {
            self.skip_blanks();
            let (Json::Text(key) | Json::BrokenText(key)) = self.text()? else {
                return Err(NotJson);
            };
            self.skip_blanks();
            self.expect(":")?;
            self.skip_blanks();
            let value = self.value()?;
            members.push((key, value));
            self.skip_blanks();
            if self.take(b'}') {
                *self.plain &= !keep_last_of_equal_keys(&mut members);
                return Ok(Json::Object(members));
            }
            self.expect(",")?;
        }
    }

    fn number(&mut self) -> Result<Json, NotJson> {
        let start = self.at;
        if self.take(b'-') && self.peek() == Some(u32::from(b'I')) {
            self.expect("Infinity")?;
            return Ok(self.not_plain(f64::NEG_INFINITY));
        }
        if !self.take(b'0') && self.digits() == 0 {
            return Err(NotJson);
        }
        let int_end = self.at;
        if self.take(b'.') && self.digits() == 0 {
            return Err(NotJson);
        }
        if self.take(b'e') || self.take(b'E') {
            let _signed = self.take(b'+') || self.take(b'-');
            if self.digits() == 0 {
                return Err(NotJson);
            }
        }
        let text = self.ascii(start);
        if self.at == int_end {
            if text.len() > MAX_INT_DIGITS {
                return Err(NotJson);
            }
            *self.plain &= text.len() <= 300;
            // Python's int has no negative zero.
            return Ok(Json::Int(if &*text == "-0" { "0".into() } else { text }));
        }
        let value: f64 = text.parse().map_err(|_| NotJson)?;
        *self.plain &= value.is_finite();
        Ok(Json::Float(value))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(0x30..=0x39)) {
            self.at += 1;
        }
        self.at - start
    }

    /// What stands between `start` and the cursor, known to be ASCII.
    fn ascii(&self, start: usize) -> Box<str> {
        match self.points {
            Points::Utf8(text) => text[start..self.at].into(),
            Points::Wide(points) => points[start..self.at]
                .iter()
                .filter_map(|point| char::from_u32(*point))
                .collect::<String>()
                .into(),
        }
    }

    fn text(&mut self) -> Result<Json, NotJson> {
        self.expect("\"")?;
        if let Points::Utf8(text) = self.points {
            let rest = &text.as_bytes()[self.at..];
            let end = rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1F))
                .ok_or(NotJson)?;
            if rest[end] == b'"' {
                let found = text[self.at..self.at + end].into();
                self.at += end + 1;
                return Ok(Json::Text(found));
            }
        }
        self.escaped_text()
    }

    /// The slow way, for text with escapes or from a wide encoding.
    fn escaped_text(&mut self) -> Result<Json, NotJson> {
        let mut out = String::new();
        let mut broken = false;
        loop {
            let point = match self.next_point()? {
                0x22 => break,
                0x5C => self.escape()?,
                0..=0x1F => return Err(NotJson),
                point => point,
            };
            out.push(char::from_u32(point).unwrap_or_else(|| {
                broken = true;
                char::REPLACEMENT_CHARACTER
            }));
        }
        *self.plain &= !broken;
        Ok(match broken {
            true => Json::BrokenText(out.into()),
            false => Json::Text(out.into()),
        })
    }

    fn next_point(&mut self) -> Result<u32, NotJson> {
        match self.points {
            Points::Utf8(text) => {
                let c = text[self.at..].chars().next().ok_or(NotJson)?;
                self.at += c.len_utf8();
                Ok(u32::from(c))
            }
            Points::Wide(points) => {
                let point = points.get(self.at).ok_or(NotJson)?;
                self.at += 1;
                Ok(*point)
            }
        }
    }

    fn escape(&mut self) -> Result<u32, NotJson> {
        let c = match u8::try_from(self.next_point()?).map_err(|_| NotJson)? {
            c @ (b'"' | b'\\' | b'/') => c,
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(NotJson),
        };
        Ok(u32::from(c))
    }

    fn unicode_escape(&mut self) -> Result<u32, NotJson> {
        let high = self.hex4()?;
        if !(0xD800..0xDC00).contains(&high) {
            return Ok(high);
        }
        let back = self.at;
        if self.take(b'\\') && self.take(b'u') {
            let low = self.hex4()?;
            if (0xDC00..0xE000).contains(&low) {
                return Ok(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00));
            }
        }
        self.at = back;
        Ok(high)
    }

    fn hex4(&mut self) -> Result<u32, NotJson> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = char::from_u32(self.next_point()?).and_then(|c| c.to_digit(16));
            value = value << 4 | digit.ok_or(NotJson)?;
        }
        Ok(value)
    }
}

/// A Python dict keeps the place of the first and the value of the last of equal keys; says whether there were any.
fn keep_last_of_equal_keys(members: &mut Vec<(Box<str>, Json)>) -> bool {
    // Claims are few; past that, sort instead of comparing each with each.
    let has_twins = match members.len() {
        0 | 1 => false,
        n @ 2..=24 => (1..n).any(|i| members[..i].iter().any(|(key, _)| *key == members[i].0)),
        _ => {
            let mut keys: Vec<&str> = members.iter().map(|(key, _)| &**key).collect();
            keys.sort_unstable();
            keys.windows(2).any(|pair| pair[0] == pair[1])
        }
    };
    if !has_twins {
        return false;
    }
    let mut places = std::collections::HashMap::with_capacity(members.len());
    let mut kept: Vec<(Box<str>, Json)> = Vec::with_capacity(members.len());
    for (key, value) in members.drain(..) {
        match places.get(&key) {
            Some(&place) => kept[place] = (key, value),
            None => {
                places.insert(key.clone(), kept.len());
                kept.push((key, value));
            }
        }
    }
    *members = kept;
    true
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
