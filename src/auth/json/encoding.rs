//! Bytes to text as Python's `json` does it: the encoding is guessed from the first bytes, lone surrogates pass.

use super::NotJson;

/// A document's text.
pub(super) enum Decoded<'a> {
    Utf8(&'a str),
    /// Code points, lone surrogates included.
    Other(Vec<u32>),
}

/// `json.detect_encoding` and the decoder it names, with `surrogatepass`.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded<'_>, NotJson> {
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
