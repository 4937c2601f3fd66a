//! Text to values: the grammar of Python's `json`, strict about everything but what its documentation allows.

use super::{Json, NotJson};

/// Deeper than any claim; what reads the claims after us (`serde_json`) stops at 128 too.
const MAX_DEPTH: usize = 120;

/// Python refuses to convert longer digit strings (`sys.int_info.default_max_str_digits`).
const MAX_INT_DIGITS: usize = 4300;

/// The document as code points, addressed by position.
#[derive(Clone, Copy)]
pub(super) enum Points<'a> {
    Utf8(&'a str),
    Wide(&'a [u32]),
}

pub(super) struct Parser<'a> {
    points: Points<'a>,
    at: usize,
    depth: usize,
    plain: &'a mut bool,
}

impl<'a> Parser<'a> {
    pub(super) fn new(points: Points<'a>, plain: &'a mut bool) -> Self {
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

    pub(super) fn document(mut self) -> Result<Json, NotJson> {
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
