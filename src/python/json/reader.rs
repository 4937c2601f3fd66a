//! The grammar: a recursion over valid Unicode text; [`Bounds`] limits its depth.

use super::super::{Dict, MAX_STR_DIGITS};
use super::{Bounds, Build, Decoded, JsonError, JsonText, Rules};
use crate::heavy::give_way;

pub(super) struct JsonReader<'a, B> {
    text: &'a str,
    /// The positions of lone surrogates in `text`, in bytes.
    lone: &'a [usize],
    at: usize,
    rules: Rules,
    /// The depth and the values that the document may still have.
    left: Bounds,
    build: &'a mut B,
}

impl<'a, B: Build> JsonReader<'a, B> {
    pub(super) fn new(
        decoded: &'a Decoded<'_>,
        rules: Rules,
        bounds: Bounds,
        build: &'a mut B,
    ) -> Self {
        Self {
            text: &decoded.text,
            lone: &decoded.lone,
            at: 0,
            rules,
            left: bounds,
            build,
        }
    }

    pub(super) fn document(mut self) -> Result<B::Value, JsonError> {
        self.skip_blanks();
        let value = self.value()?;
        self.skip_blanks();
        match self.peek() {
            None => Ok(value),
            Some(_) => Err(JsonError::TrailingBytes),
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        match self.take(byte) {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> JsonError {
        match self.peek() {
            Some(_) => JsonError::Syntax,
            None => JsonError::Truncated,
        }
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str) -> Result<(), JsonError> {
        match self.rest().starts_with(word.as_bytes()) {
            true => {
                self.at += word.len();
                Ok(())
            }
            false => Err(JsonError::Syntax),
        }
    }

    fn value(&mut self) -> Result<B::Value, JsonError> {
        give_way();
        let values = self.left.values.checked_sub(1);
        self.left.values = values.ok_or(JsonError::TooManyValues)?;
        let python = self.rules == Rules::Python;
        match self.peek().ok_or(JsonError::Truncated)? {
            b'{' => self.nested(Self::object),
            b'[' => self.nested(Self::array),
            b'"' => {
                let text = self.text()?;
                self.build.text(text)
            }
            b't' => self.word("true").map(|()| self.build.bool(true)),
            b'f' => self.word("false").map(|()| self.build.bool(false)),
            b'n' => self.word("null").map(|()| self.build.null()),
            b'N' if python => self.float_word("NaN", f64::NAN),
            b'I' if python => self.float_word("Infinity", f64::INFINITY),
            b'-' if python && self.rest().starts_with(b"-I") => {
                self.float_word("-Infinity", f64::NEG_INFINITY)
            }
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(JsonError::Syntax),
        }
    }

    fn float_word(&mut self, word: &str, number: f64) -> Result<B::Value, JsonError> {
        self.word(word).map(|()| self.build.float(number))
    }

    fn nested(
        &mut self,
        read: fn(&mut Self) -> Result<B::Value, JsonError>,
    ) -> Result<B::Value, JsonError> {
        let depth = self.left.depth.checked_sub(1);
        self.left.depth = depth.ok_or(JsonError::TooDeep)?;
        self.at += 1;
        self.skip_blanks();
        let value = read(self)?;
        self.left.depth += 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<B::Value, JsonError> {
        let mut members = Dict::default();
        if self.take(b'}') {
            return Ok(self.build.object(members));
        }
        loop {
            let key = self.text()?;
            let key = self.build.key(key)?;
            self.skip_blanks();
            self.expect(b':')?;
            self.skip_blanks();
            members.insert(key, self.value()?);
            self.skip_blanks();
            if self.take(b'}') {
                return Ok(self.build.object(members));
            }
            self.expect(b',')?;
            self.skip_blanks();
        }
    }

    fn array(&mut self) -> Result<B::Value, JsonError> {
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(self.build.array(items));
        }
        loop {
            items.push(self.value()?);
            self.skip_blanks();
            if self.take(b']') {
                return Ok(self.build.array(items));
            }
            self.expect(b',')?;
            self.skip_blanks();
        }
    }

    fn number(&mut self) -> Result<B::Value, JsonError> {
        let start = self.at;
        self.take(b'-');
        let unsigned = self.at;
        if !self.take(b'0') {
            self.digits()?;
        }
        let integer = self.at;
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if self.at == integer {
            if integer - unsigned > MAX_STR_DIGITS {
                return Err(JsonError::NumberRange);
            }
            // Python's int has no negative zero.
            let text = if text == "-0" { "0" } else { text };
            return Ok(self.build.int(text));
        }
        let number: f64 = text.parse().map_err(|_| JsonError::Syntax)?;
        if number.is_infinite() && self.rules == Rules::Rfc8259 {
            return Err(JsonError::NumberRange);
        }
        Ok(self.build.float(number))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        match self.at > start {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }

    fn text(&mut self) -> Result<JsonText, JsonError> {
        self.expect(b'"')?;
        let mut text = String::new();
        let mut broken = false;
        loop {
            let start = self.at;
            let special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..0x20);
            let plain = self.rest().iter().position(special);
            self.at += plain.ok_or(JsonError::Truncated)?;
            let piece = &self.text[start..self.at];
            broken |= self.has_lone(start);
            match self.rest()[0] {
                b'"' => {
                    self.at += 1;
                    let text = match text.is_empty() {
                        true => piece.into(),
                        false => (text + piece).into(),
                    };
                    return Ok(JsonText { text, broken });
                }
                b'\\' => {
                    text.push_str(piece);
                    self.at += 1;
                    let point = self.escape()?;
                    let c = char::from_u32(point);
                    broken |= c.is_none();
                    text.push(c.unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                _ => return Err(JsonError::Syntax),
            }
        }
    }

    /// Returns true if a lone surrogate lies between `start` and the present position.
    fn has_lone(&self, start: usize) -> bool {
        let before = |end: usize| self.lone.partition_point(|place| *place < end);
        !self.lone.is_empty() && before(start) < before(self.at)
    }

    /// Reads an escape behind its backslash; the code point may be a lone surrogate.
    fn escape(&mut self) -> Result<u32, JsonError> {
        let kind = self.peek().ok_or(JsonError::Truncated)?;
        self.at += 1;
        let c = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(JsonError::Syntax),
        };
        Ok(u32::from(c))
    }

    fn unicode_escape(&mut self) -> Result<u32, JsonError> {
        let high = self.hex4()?;
        if (0xD800..0xDC00).contains(&high) && self.rest().starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xDC00..0xE000).contains(&low) {
                return Ok(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00));
            }
            // The second escape is no low surrogate: the first one is lone, and the second is read on its own.
            self.at = back;
        }
        Ok(high)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.rest().first_chunk::<4>();
        let digits = digits.ok_or(JsonError::Truncated)?;
        self.at += 4;
        digits.iter().try_fold(0, |number, digit| {
            let digit = char::from(*digit).to_digit(16).ok_or(JsonError::Syntax)?;
            Ok(number << 4 | digit)
        })
    }
}
