//! Bytes to text. The encoding is detected from the first bytes, and lone surrogates pass.

use std::borrow::Cow;

use super::JsonError;

/// A document's text.
#[derive(Clone, Debug)]
pub struct Decoded<'a> {
    /// The text, with U+FFFD in place of each lone surrogate.
    pub text: Cow<'a, str>,
    /// The positions of lone surrogates in `text`, in bytes and in order.
    pub(super) lone: Vec<usize>,
}

impl<'a> From<&'a str> for Decoded<'a> {
    fn from(text: &'a str) -> Self {
        Self {
            text: text.into(),
            lone: Vec::new(),
        }
    }
}

impl FromIterator<u32> for Decoded<'static> {
    /// Builds the text of code points up to U+10FFFF; surrogates among them are lone.
    fn from_iter<I: IntoIterator<Item = u32>>(points: I) -> Self {
        let (mut text, mut lone) = (String::new(), Vec::new());
        for point in points {
            text.push(char::from_u32(point).unwrap_or_else(|| {
                lone.push(text.len());
                char::REPLACEMENT_CHARACTER
            }));
        }
        Decoded {
            text: text.into(),
            lone,
        }
    }
}

/// Decodes bytes as `json.loads` does: with the encoding of `json.detect_encoding` and the error handler `surrogatepass`.
///
/// # Errors
/// [`JsonError::NotUnicode`]
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, JsonError> {
    // The order matters: the byte order mark of UTF-32 LE begins with that of UTF-16 LE.
    match bytes {
        [0, 0, 0xFE, 0xFF, rest @ ..] => decode_utf32(rest, u32::from_be_bytes),
        [0xFF, 0xFE, 0, 0, rest @ ..] => decode_utf32(rest, u32::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => decode_utf16(rest, u16::from_be_bytes),
        [0xFF, 0xFE, rest @ ..] => decode_utf16(rest, u16::from_le_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => decode_utf8(rest),
        [0, 0, _, _, ..] => decode_utf32(bytes, u32::from_be_bytes),
        [0, _, _, _, ..] | [0, _] => decode_utf16(bytes, u16::from_be_bytes),
        [_, 0, 0, 0, ..] => decode_utf32(bytes, u32::from_le_bytes),
        [_, 0, _, _, ..] | [_, 0] => decode_utf16(bytes, u16::from_le_bytes),
        _ => decode_utf8(bytes),
    }
}

fn decode_utf8(bytes: &[u8]) -> Result<Decoded<'_>, JsonError> {
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return Ok(text.into());
    }
    // The only other valid form is UTF-8 with encoded surrogates (ED A0 80 to ED BF BF).
    let mut points = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        if let [0xED, second @ 0xA0..=0xBF, third @ 0x80..=0xBF, tail @ ..] = rest {
            points.push(0xD000 | u32::from(second & 0x3F) << 6 | u32::from(third & 0x3F));
            rest = tail;
            continue;
        }
        let length = match first {
            0x00..=0x7F => 1,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            _ => 4,
        };
        let (one, tail) = rest.split_at_checked(length).ok_or(JsonError::NotUnicode)?;
        let one = str::from_utf8(one).map_err(|_| JsonError::NotUnicode)?;
        points.extend(one.chars().map(u32::from));
        rest = tail;
    }
    Ok(points.into_iter().collect())
}

fn decode_utf16(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Result<Decoded<'_>, JsonError> {
    let (pairs, []) = bytes.as_chunks::<2>() else {
        return Err(JsonError::NotUnicode);
    };
    let units = char::decode_utf16(pairs.iter().map(|pair| read(*pair)));
    let point = |unit: Result<char, std::char::DecodeUtf16Error>| match unit {
        Ok(c) => u32::from(c),
        Err(lone) => u32::from(lone.unpaired_surrogate()),
    };
    Ok(units.map(point).collect())
}

fn decode_utf32(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Result<Decoded<'_>, JsonError> {
    let (quads, []) = bytes.as_chunks::<4>() else {
        return Err(JsonError::NotUnicode);
    };
    let points = quads.iter().map(|quad| read(*quad));
    match points.clone().all(|point| point <= 0x10_FFFF) {
        true => Ok(points.collect()),
        false => Err(JsonError::NotUnicode),
    }
}
