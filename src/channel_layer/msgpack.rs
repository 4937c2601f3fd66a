//! MessagePack as Python's `msgpack` ≥ 1.0 reads and writes it by default; channels_redis uses that.
//!
//! Reading is recursive, at most [`MAX_DEPTH`] deep. It allocates for the bytes that are there, never for a length that is
//! only claimed. It refuses what Python refuses; only nesting, size and number of values have tighter bounds.
//!
//! It replaces rmpv, which accepts and refuses other input than Python does. `rmp` names the markers.

use rmp::Marker;

use crate::event::{DecodeError, EncodeError, Key, MAX_DEPTH, MAX_VALUES, Value};
use crate::heavy::give_way;
use crate::python::Dict;

/// Reads exactly one value.
pub(super) fn read(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut reader = MsgPackReader {
        rest: bytes,
        values: MAX_VALUES,
    };
    let value = reader.value(0)?;
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError::TrailingBytes)
    }
}

struct MsgPackReader<'a> {
    rest: &'a [u8],
    /// Values that this payload may still hold.
    values: usize,
}

impl<'a> MsgPackReader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn len8(&mut self) -> Result<usize, DecodeError> {
        Ok(usize::from(self.array::<1>()?[0]))
    }

    fn len16(&mut self) -> Result<usize, DecodeError> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn len32(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(u32::from_be_bytes(self.array()?)).map_err(|_| DecodeError::Truncated)
    }

    /// Reads one value; `depth` counts the arrays and maps around it.
    fn value(&mut self, depth: usize) -> Result<Value, DecodeError> {
        give_way();
        self.values = self
            .values
            .checked_sub(1)
            .ok_or(DecodeError::TooManyValues)?;
        let marker = Marker::from_u8(self.array::<1>()?[0]);
        Ok(match marker {
            Marker::Null => Value::Nil,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(number) => Value::Int(number.into()),
            Marker::FixNeg(number) => Value::Int(number.into()),
            Marker::U8 => Value::Int(self.array::<1>()?[0].into()),
            Marker::U16 => Value::Int(u16::from_be_bytes(self.array()?).into()),
            Marker::U32 => Value::Int(u32::from_be_bytes(self.array()?).into()),
            Marker::U64 => Value::from(u64::from_be_bytes(self.array()?)),
            Marker::I8 => Value::Int(i8::from_be_bytes(self.array()?).into()),
            Marker::I16 => Value::Int(i16::from_be_bytes(self.array()?).into()),
            Marker::I32 => Value::Int(i32::from_be_bytes(self.array()?).into()),
            Marker::I64 => Value::Int(i64::from_be_bytes(self.array()?)),
            Marker::F32 => Value::Float(f32::from_be_bytes(self.array()?).into()),
            Marker::F64 => Value::Float(f64::from_be_bytes(self.array()?)),
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                Value::Str(self.text(marker)?)
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => Value::Bin(self.binary(marker)?),
            Marker::FixArray(len) => self.items(len.into(), depth)?,
            Marker::Array16 => self.len16().and_then(|len| self.items(len, depth))?,
            Marker::Array32 => self.len32().and_then(|len| self.items(len, depth))?,
            Marker::FixMap(len) => self.pairs(len.into(), depth)?,
            Marker::Map16 => self.len16().and_then(|len| self.pairs(len, depth))?,
            Marker::Map32 => self.len32().and_then(|len| self.pairs(len, depth))?,
            Marker::FixExt1 => self.extension(1)?,
            Marker::FixExt2 => self.extension(2)?,
            Marker::FixExt4 => self.extension(4)?,
            Marker::FixExt8 => self.extension(8)?,
            Marker::FixExt16 => self.extension(16)?,
            Marker::Ext8 => self.len8().and_then(|len| self.extension(len))?,
            Marker::Ext16 => self.len16().and_then(|len| self.extension(len))?,
            Marker::Ext32 => self.len32().and_then(|len| self.extension(len))?,
            Marker::Reserved => return Err(DecodeError::Syntax),
        })
    }

    fn text(&mut self, marker: Marker) -> Result<Box<str>, DecodeError> {
        let len = match marker {
            Marker::FixStr(len) => len.into(),
            Marker::Str8 => self.len8()?,
            Marker::Str16 => self.len16()?,
            _ => self.len32()?,
        };
        let text = simdutf8::basic::from_utf8(self.bytes(len)?);
        Ok(text.map_err(|_| DecodeError::NotUnicode)?.into())
    }

    fn binary(&mut self, marker: Marker) -> Result<Box<[u8]>, DecodeError> {
        let len = match marker {
            Marker::Bin8 => self.len8()?,
            Marker::Bin16 => self.len16()?,
            _ => self.len32()?,
        };
        Ok(self.bytes(len)?.into())
    }

    fn items(&mut self, len: usize, depth: usize) -> Result<Value, DecodeError> {
        self.enter(len, depth)?;
        // A value takes far more memory than its byte in the payload, so the length alone does not decide the allocation.
        let mut items = Vec::with_capacity(len.min(1024));
        for _ in 0..len {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn pairs(&mut self, len: usize, depth: usize) -> Result<Value, DecodeError> {
        self.enter(len.saturating_mul(2), depth)?;
        let mut map = Dict::default();
        for _ in 0..len {
            let key = self.key()?;
            map.insert(key, self.value(depth + 1)?);
        }
        Ok(Value::Map(map.into_pairs()))
    }

    /// Checks the header of an array or map. Every element takes at least one byte, so a length beyond the rest of the
    /// input is false and is refused before anything is allocated.
    fn enter(&self, elements: usize, depth: usize) -> Result<(), DecodeError> {
        if depth >= MAX_DEPTH {
            return Err(DecodeError::TooDeep);
        }
        if elements > self.rest.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(())
    }

    fn key(&mut self) -> Result<Key, DecodeError> {
        match Marker::from_u8(self.array::<1>()?[0]) {
            marker @ (Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32) => {
                self.text(marker).map(Key::Text)
            }
            marker @ (Marker::Bin8 | Marker::Bin16 | Marker::Bin32) => {
                self.binary(marker).map(Key::Bytes)
            }
            Marker::Reserved => Err(DecodeError::Syntax),
            _ => Err(DecodeError::KeyType),
        }
    }

    fn extension(&mut self, len: usize) -> Result<Value, DecodeError> {
        let kind = i8::from_be_bytes(self.array()?);
        let data = self.bytes(len)?;
        if kind == -1 && !valid_timestamp(data) {
            return Err(DecodeError::Syntax);
        }
        Ok(Value::Ext(kind, data.into()))
    }
}

/// Returns true if `data` has one of the three layouts of MessagePack's timestamp, with less than a second of nanoseconds.
fn valid_timestamp(data: &[u8]) -> bool {
    const SECOND: u64 = 1_000_000_000;
    match data.len() {
        4 => true,
        8 => data
            .first_chunk()
            .is_some_and(|data| (u64::from_be_bytes(*data) >> 34) < SECOND),
        12 => data
            .first_chunk()
            .is_some_and(|data| u64::from(u32::from_be_bytes(*data)) < SECOND),
        _ => false,
    }
}

/// Writes a map; each value takes its shortest form, as in Python.
pub(super) fn write_event(fields: &[(Key, Value)], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    write_map(fields, out, 0)
}

fn write(value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), EncodeError> {
    give_way();
    match value {
        Value::Nil => out.push(0xc0),
        Value::Bool(truth) => out.push(0xc2 + u8::from(*truth)),
        Value::Int(number) => write_int(*number, out),
        Value::UInt(number) => write_uint(*number, out),
        Value::BigInt(_) => return Err(EncodeError::IntegerRange),
        Value::Float(number) => {
            out.push(0xcb);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Str(text) => write_str(text, out),
        Value::Bin(bytes) => write_bin(bytes, out),
        Value::Array(items) => {
            if depth >= MAX_DEPTH {
                return Err(EncodeError::TooDeep);
            }
            write_len(items.len(), 0x90, 15, [None, Some(0xdc), Some(0xdd)], out);
            for item in items {
                write(item, out, depth + 1)?;
            }
        }
        Value::Map(fields) => write_map(fields, out, depth)?,
        Value::Ext(kind, data) => write_ext(*kind, data, out),
    }
    Ok(())
}

fn write_map(fields: &[(Key, Value)], out: &mut Vec<u8>, depth: usize) -> Result<(), EncodeError> {
    if depth >= MAX_DEPTH {
        return Err(EncodeError::TooDeep);
    }
    write_len(fields.len(), 0x80, 15, [None, Some(0xde), Some(0xdf)], out);
    for (key, value) in fields {
        match key {
            Key::Text(text) => write_str(text, out),
            Key::Bytes(bytes) => write_bin(bytes, out),
        }
        write(value, out, depth + 1)?;
    }
    Ok(())
}

/// Writes a header: the fixed form up to `fixed_max`, then the markers for 8, 16 and 32 bits where they exist.
///
/// The cast to `u32` is safe: every length is far below 2³², since a payload has at most
/// [`crate::event::MAX_PAYLOAD`] bytes.
fn write_len(
    len: usize,
    fixed: u8,
    fixed_max: usize,
    [m8, m16, m32]: [Option<u8>; 3],
    out: &mut Vec<u8>,
) {
    let bytes = (len as u32).to_be_bytes();
    match (len, m8, m16) {
        (len, ..) if len <= fixed_max => out.push(fixed | bytes[3]),
        (..=0xff, Some(marker), _) => out.extend_from_slice(&[marker, bytes[3]]),
        (..=0xffff, _, Some(marker)) => out.extend_from_slice(&[marker, bytes[2], bytes[3]]),
        _ => {
            out.extend(m32);
            out.extend_from_slice(&bytes);
        }
    }
}

fn write_str(text: &str, out: &mut Vec<u8>) {
    let markers = [Some(0xd9), Some(0xda), Some(0xdb)];
    write_len(text.len(), 0xa0, 31, markers, out);
    out.extend_from_slice(text.as_bytes());
}

fn write_bin(bytes: &[u8], out: &mut Vec<u8>) {
    let len = (bytes.len() as u32).to_be_bytes();
    match bytes.len() {
        0..=0xff => out.extend_from_slice(&[0xc4, len[3]]),
        0x100..=0xffff => out.extend_from_slice(&[0xc5, len[2], len[3]]),
        _ => {
            out.push(0xc6);
            out.extend_from_slice(&len);
        }
    }
    out.extend_from_slice(bytes);
}

fn write_uint(number: u64, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    let (marker, from) = match number {
        ..0x80 => (None, 7),
        0x80..0x100 => (Some(0xcc), 7),
        0x100..0x1_0000 => (Some(0xcd), 6),
        0x1_0000..0x1_0000_0000 => (Some(0xce), 4),
        _ => (Some(0xcf), 0),
    };
    out.extend(marker);
    out.extend_from_slice(&bytes[from..]);
}

fn write_int(number: i64, out: &mut Vec<u8>) {
    if let Ok(number) = u64::try_from(number) {
        return write_uint(number, out);
    }
    let bytes = number.to_be_bytes();
    let (marker, from) = match number {
        -32.. => (None, 7),
        -0x80..-32 => (Some(0xd0), 7),
        -0x8000..-0x80 => (Some(0xd1), 6),
        -0x8000_0000..-0x8000 => (Some(0xd2), 4),
        _ => (Some(0xd3), 0),
    };
    out.extend(marker);
    out.extend_from_slice(&bytes[from..]);
}

fn write_ext(kind: i8, data: &[u8], out: &mut Vec<u8>) {
    let len = (data.len() as u32).to_be_bytes();
    match data.len() {
        1 => out.push(0xd4),
        2 => out.push(0xd5),
        4 => out.push(0xd6),
        8 => out.push(0xd7),
        16 => out.push(0xd8),
        0..=0xff => out.extend_from_slice(&[0xc7, len[3]]),
        0x100..=0xffff => out.extend_from_slice(&[0xc8, len[2], len[3]]),
        _ => {
            out.push(0xc9);
            out.extend_from_slice(&len);
        }
    }
    out.push(kind as u8);
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(arrays: usize) -> Vec<u8> {
        let mut bytes = vec![0x81, 0xa1, b'n'];
        bytes.extend(std::iter::repeat_n(0x91, arrays));
        bytes.push(0xc0);
        bytes
    }

    #[test]
    fn nesting_ends_at_the_bound_without_a_stack_overflow() {
        assert!(read(&nested(MAX_DEPTH - 1)).is_ok());
        for arrays in [MAX_DEPTH, 100, 1000, 100_000] {
            assert_eq!(read(&nested(arrays)), Err(DecodeError::TooDeep), "{arrays}");
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        for head in [0xdd_u8, 0xdf, 0xdb, 0xc6, 0xc9] {
            let bytes = [0x81, 0xa1, b'n', head, 0xff, 0xff, 0xff, 0xff, 0x01];
            assert_eq!(read(&bytes), Err(DecodeError::Truncated), "{head:x}");
        }
    }

    #[test]
    fn a_million_values_are_the_bound() {
        let mut bytes = vec![0xdd, 0x00, 0x10, 0x00, 0x00];
        bytes.extend(std::iter::repeat_n(0xc0, 1 << 20));
        assert_eq!(read(&bytes), Err(DecodeError::TooManyValues));
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let numbers = [
            0, 127, 128, 255, 256, 65_535, 65_536, -1, -32, -33, -128, -129, -32_769,
        ];
        let mut fields: Vec<(Key, Value)> = numbers
            .iter()
            .map(|n| (Key::from(n.to_string()), Value::Int(*n)))
            .collect();
        for len in [1_usize, 2, 3, 4, 8, 12, 16, 17, 256, 65_536] {
            let data = vec![0; len];
            fields.push((format!("e{len}").into(), Value::Ext(5, data.clone().into())));
            fields.push((Key::Bytes(data.clone().into()), Value::Bin(data.into())));
            fields.push((format!("s{len}").into(), "x".repeat(len).into()));
            fields.push((
                format!("a{len}").into(),
                Value::Array(vec![Value::Nil; len]),
            ));
        }
        let mut out = Vec::new();
        write_event(&fields, &mut out).unwrap();
        assert_eq!(read(&out), Ok(Value::Map(fields)));
    }

    #[test]
    fn timestamps_have_three_lengths() {
        for (len, good) in [(1, false), (4, true), (8, true), (12, true), (16, false)] {
            let mut out = vec![];
            write_ext(-1, &vec![0; len], &mut out);
            assert_eq!(read(&out).is_ok(), good, "{len}");
        }
        assert_eq!(
            read(&[0xd7, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            Err(DecodeError::Syntax)
        );
    }
}
