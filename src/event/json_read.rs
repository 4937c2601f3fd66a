//! Reads JSON twice: as Python's `json` does on a layer, and as RFC 8259 says for clients.
//!
//! Integers stay exact at any size and key order is kept, which is why this is not serde_json. Python's reader takes
//! more than the RFC (a byte order mark, UTF-16 and UTF-32, bare `NaN`, numbers beyond a double). Lone surrogates, which
//! Python text can hold, are refused.

use std::borrow::Cow;

use super::{DecodeError, Key, MAX_DEPTH, MAX_VALUES, MapBuilder, Value};

/// Python refuses to turn longer decimal text into an integer (`sys.int_info.default_max_str_digits`).
const MAX_DIGITS: usize = 4300;

/// Reads one value as `json.loads(bytes)` does, but for lone surrogates and nesting.
pub(crate) fn read_python(bytes: &[u8]) -> Result<Value, DecodeError> {
    Reader::read(&decode_text(bytes)?, false)
}

/// Reads one value as RFC 8259 defines it.
pub(crate) fn read_strict(bytes: &[u8]) -> Result<Value, DecodeError> {
    let text = simdutf8::basic::from_utf8(bytes).map_err(|_| DecodeError::NotUnicode)?;
    Reader::read(text, true)
}

/// Python's `json.detect_encoding` and the decoding after it.
fn decode_text(bytes: &[u8]) -> Result<Cow<'_, str>, DecodeError> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks::<2>();
        let text: Result<String, _> =
            char::decode_utf16(units.iter().map(|pair| unit(*pair))).collect();
        (text.ok().filter(|_| rest.is_empty())).ok_or(DecodeError::NotUnicode)
    };
    let utf32 = |bytes: &[u8], unit: fn([u8; 4]) -> u32| {
        let (units, rest) = bytes.as_chunks::<4>();
        let text: Option<String> = units
            .iter()
            .map(|four| char::from_u32(unit(*four)))
            .collect();
        (text.filter(|_| rest.is_empty())).ok_or(DecodeError::NotUnicode)
    };
    match bytes {
        [0, 0, 0xfe, 0xff, rest @ ..] => utf32(rest, u32::from_be_bytes).map(Cow::Owned),
        [0xff, 0xfe, 0, 0, rest @ ..] => utf32(rest, u32::from_le_bytes).map(Cow::Owned),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).map(Cow::Owned),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).map(Cow::Owned),
        [0, 0, _, _, ..] => utf32(bytes, u32::from_be_bytes).map(Cow::Owned),
        [0, _, _, _, ..] | [0, _] => utf16(bytes, u16::from_be_bytes).map(Cow::Owned),
        [_, 0, 0, 0, ..] => utf32(bytes, u32::from_le_bytes).map(Cow::Owned),
        [_, 0, _, _, ..] | [_, 0] => utf16(bytes, u16::from_le_bytes).map(Cow::Owned),
        _ => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let text = simdutf8::basic::from_utf8(bytes);
            text.map(Cow::Borrowed).map_err(|_| DecodeError::NotUnicode)
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    strict: bool,
    /// How many more values this text may hold.
    values: usize,
}

impl<'a> Reader<'a> {
    fn read(text: &'a str, strict: bool) -> Result<Value, DecodeError> {
        let mut reader = Reader {
            text,
            at: 0,
            strict,
            values: MAX_VALUES,
        };
        reader.skip_blanks();
        let value = reader.value(0)?;
        reader.skip_blanks();
        if reader.at == text.len() {
            Ok(value)
        } else {
            Err(DecodeError::TrailingBytes)
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), DecodeError> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&self) -> DecodeError {
        match self.peek() {
            Some(_) => DecodeError::Syntax,
            None => DecodeError::Truncated,
        }
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, DecodeError> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(DecodeError::Syntax);
        }
        self.at += word.len();
        Ok(value)
    }

    /// `depth` counts the arrays and objects around this value.
    fn value(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.values = self
            .values
            .checked_sub(1)
            .ok_or(DecodeError::TooManyValues)?;
        match self.peek().ok_or(DecodeError::Truncated)? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(Value::Str),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Nil),
            b'N' if !self.strict => self.word("NaN", Value::Float(f64::NAN)),
            b'I' if !self.strict => self.word("Infinity", Value::Float(f64::INFINITY)),
            b'-' if !self.strict && self.text[self.at..].starts_with("-I") => {
                self.word("-Infinity", Value::Float(f64::NEG_INFINITY))
            }
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(DecodeError::Syntax),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.open(depth)?;
        let mut map = MapBuilder::default();
        if self.take(b'}') {
            return Ok(Value::Map(map.finish()));
        }
        loop {
            let key = self.string()?;
            self.skip_blanks();
            self.expect(b':')?;
            self.skip_blanks();
            map.insert(Key::Text(key), self.value(depth + 1)?);
            self.skip_blanks();
            if self.take(b'}') {
                return Ok(Value::Map(map.finish()));
            }
            self.expect(b',')?;
            self.skip_blanks();
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.open(depth)?;
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_blanks();
            if self.take(b']') {
                return Ok(Value::Array(items));
            }
            self.expect(b',')?;
            self.skip_blanks();
        }
    }

    fn open(&mut self, depth: usize) -> Result<(), DecodeError> {
        if depth >= MAX_DEPTH {
            return Err(DecodeError::TooDeep);
        }
        self.at += 1;
        self.skip_blanks();
        Ok(())
    }

    fn string(&mut self) -> Result<Box<str>, DecodeError> {
        self.expect(b'"')?;
        let mut owned = String::new();
        loop {
            let start = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | ..0x20)) {
                self.at += 1;
            }
            let piece = &self.text[start..self.at];
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(if owned.is_empty() {
                        piece.into()
                    } else {
                        owned.push_str(piece);
                        owned.into()
                    });
                }
                Some(b'\\') => {
                    owned.push_str(piece);
                    self.at += 1;
                    owned.push(self.escape()?);
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn escape(&mut self) -> Result<char, DecodeError> {
        let kind = self.peek().ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex4()?;
                let second = match first {
                    0xd800..0xdc00 if self.take(b'\\') && self.take(b'u') => Some(self.hex4()?),
                    _ => None,
                };
                let mut units = char::decode_utf16([first].into_iter().chain(second));
                match (units.next(), units.next()) {
                    (Some(Ok(char)), None) => char,
                    _ => return Err(DecodeError::NotUnicode),
                }
            }
            _ => return Err(DecodeError::Syntax),
        })
    }

    fn hex4(&mut self) -> Result<u16, DecodeError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.ok_or(DecodeError::Truncated)?;
        self.at += 4;
        digits.iter().try_fold(0, |number, digit| {
            let digit = char::from(*digit).to_digit(16).ok_or(DecodeError::Syntax)?;
            Ok(number << 4 | digit as u16)
        })
    }

    fn digits(&mut self) -> Result<(), DecodeError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn number(&mut self) -> Result<Value, DecodeError> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        let integer = self.at;
        if self.take(b'.') {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if !self.take(b'+') {
                self.take(b'-');
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if self.at == integer {
            return integer_value(text);
        }
        let number: f64 = text.parse().map_err(|_| DecodeError::Syntax)?;
        if self.strict && number.is_infinite() {
            return Err(DecodeError::NumberRange);
        }
        Ok(Value::Float(number))
    }
}

fn integer_value(text: &str) -> Result<Value, DecodeError> {
    if let Ok(number) = text.parse() {
        return Ok(Value::Int(number));
    }
    if let Ok(number) = text.parse() {
        return Ok(Value::UInt(number));
    }
    if text.trim_start_matches('-').len() > MAX_DIGITS {
        return Err(DecodeError::NumberRange);
    }
    Ok(Value::BigInt(text.into()))
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
