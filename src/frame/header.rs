//! The header of a client's frame (RFC 6455 §5.2). A wrong byte is refused before the rest of the header arrives.

use super::{FrameError, MAX_CONTROL_PAYLOAD, MESSAGE_TOO_BIG, Opcode, PROTOCOL_ERROR};

/// Bytes of the longest header: two bytes, a 64-bit length and a mask.
pub(super) const MAX_HEADER: usize = 14;

/// The limits that earlier frames of the connection set for the next one.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// True while a fragmented message is open.
    pub(super) in_message: bool,
    /// Payload bytes that the message may still have.
    pub(super) bytes: u64,
}

/// A client's frame header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: [u8; 4],
    /// The number of payload bytes.
    pub(super) len: u64,
}

impl Header {
    /// Returns the header at the start of `bytes` with its length; `None` if the bytes are right but not complete.
    pub(super) fn parse(bytes: &[u8], room: Room) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((&first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let fin = first & 0x80 != 0;
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(PROTOCOL_ERROR)?;
        let fits = match opcode {
            Opcode::Continuation => room.in_message,
            Opcode::Text | Opcode::Binary => !room.in_message,
            Opcode::Close | Opcode::Ping | Opcode::Pong => fin,
        };
        // No extension is ever negotiated, so no reserved bit has a meaning.
        if first & 0x70 != 0 || !fits {
            return Err(PROTOCOL_ERROR);
        }
        let Some((&second, rest)) = rest.split_first() else {
            return Ok(None);
        };
        let short = second & 0x7f;
        // Clients must mask every frame (RFC 6455 §5.1).
        if second & 0x80 == 0 || (opcode.is_control() && usize::from(short) > MAX_CONTROL_PAYLOAD) {
            return Err(PROTOCOL_ERROR);
        }
        let Some((len, rest)) = parse_len(short, rest)? else {
            return Ok(None);
        };
        if !opcode.is_control() && len > room.bytes {
            return Err(MESSAGE_TOO_BIG);
        }
        let Some((&mask, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let header = Self {
            fin,
            opcode,
            mask,
            len,
        };
        Ok(Some((header, bytes.len() - rest.len())))
    }
}

/// Parses the payload length, which must have the shortest of its three forms (RFC 6455 §5.2: "the minimal number of
/// bytes MUST be used").
fn parse_len(short: u8, bytes: &[u8]) -> Result<Option<(u64, &[u8])>, FrameError> {
    let (len, minimum, rest) = match short {
        126 => match bytes.split_first_chunk() {
            Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), 126, rest),
            None => return Ok(None),
        },
        127 => match bytes.split_first_chunk() {
            Some((len, rest)) => (u64::from_be_bytes(*len), 1 << 16, rest),
            None => return Ok(None),
        },
        len => (u64::from(len), 0, bytes),
    };
    // The top bit of a 64-bit length must be 0 (RFC 6455 §5.2).
    if len < minimum || len >> 63 != 0 {
        return Err(PROTOCOL_ERROR);
    }
    Ok(Some((len, rest)))
}
