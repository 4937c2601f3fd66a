//! WebSocket frames (RFC 6455 §5), without input or output and without `unsafe`.
//!
//! A frame to clients is encoded once and shared by all sockets. A [`Decoder`] reads the frames of one client.
//!
//! Instead of tungstenite: no WebSocket library lets sockets share one encoded frame, and the buffers of one cost an idle
//! socket 5 KiB or more (`docs/architecture.md` has the measurements). `tests/parts/frames.rs` compares both.

use std::sync::Arc;
use std::time::Instant;

use crate::budget::{HeldKind, MemoryBudget};
use crate::close_code::{CloseFrame, CloseReason};

pub use decoder::Decoder;

mod decoder;
mod header;
mod mask;
mod text;

/// The longest payload of a ping, pong or close frame (RFC 6455 §5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// The type of a frame (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The next fragment of a message; the gateway never sends one.
    Continuation = 0,
    /// UTF-8 text.
    Text = 1,
    /// Any bytes.
    Binary = 2,
    /// The end of the connection.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

impl Opcode {
    /// Returns true for close, ping and pong: short, never fragmented, and allowed inside a fragmented message.
    pub const fn is_control(self) -> bool {
        self as u8 >= 8
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }
}

/// The budget of a frame and the time at which its event was read.
#[derive(Clone, Debug, Default)]
pub struct Accounting {
    /// The time at which the event was read from the channel layer; set if its delivery is timed.
    pub read_at: Option<Instant>,
    /// The budget that counts the frame's bytes while any clone of it lives.
    pub budget: Option<Arc<MemoryBudget>>,
}

/// An encoded frame to clients, header and payload in one buffer. A clone costs one counter.
#[derive(Clone, Debug)]
pub struct Frame(Arc<FrameInner>);

#[derive(Debug)]
struct FrameInner {
    bytes: Box<[u8]>,
    read_at: Option<Instant>,
    budget: Option<Arc<MemoryBudget>>,
}

impl Drop for FrameInner {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.release(HeldKind::Frames, self.bytes.len() as u64);
        }
    }
}

impl Frame {
    /// Encodes a whole message as one unfragmented, unmasked frame whose bytes count against `accounting`.
    ///
    /// The payload of a control frame is cut at [`MAX_CONTROL_PAYLOAD`].
    pub fn encode(opcode: Opcode, payload: &[u8], accounting: Accounting) -> Self {
        let payload = if opcode.is_control() {
            &payload[..payload.len().min(MAX_CONTROL_PAYLOAD)]
        } else {
            payload
        };
        let bytes = encode(opcode, payload);
        if let Some(budget) = &accounting.budget {
            budget.hold(HeldKind::Frames, bytes.len() as u64);
        }
        Self(Arc::new(FrameInner {
            bytes,
            read_at: accounting.read_at,
            budget: accounting.budget,
        }))
    }

    /// Returns a text message without a budget.
    pub fn text(text: &str) -> Self {
        Self::encode(Opcode::Text, text.as_bytes(), Accounting::default())
    }

    /// Returns a binary message without a budget.
    pub fn binary(bytes: &[u8]) -> Self {
        Self::encode(Opcode::Binary, bytes, Accounting::default())
    }

    /// Returns a ping; the payload is cut at 125 bytes.
    pub fn ping(payload: &[u8]) -> Self {
        Self::encode(Opcode::Ping, payload, Accounting::default())
    }

    /// Returns a pong; the payload is cut at 125 bytes.
    pub fn pong(payload: &[u8]) -> Self {
        Self::encode(Opcode::Pong, payload, Accounting::default())
    }

    /// Returns a close frame. Its payload is empty for the codes 1005 and 1006, which must never be sent.
    ///
    /// A reason over 123 bytes is cut at the end of a character.
    pub fn close(close: &CloseFrame) -> Self {
        let mut payload = Vec::with_capacity(2 + close.reason.len());
        if !matches!(close.code, 1005 | 1006) {
            payload.extend_from_slice(&close.code.to_be_bytes());
            let room = MAX_CONTROL_PAYLOAD - payload.len();
            let end = close.reason.floor_char_boundary(room);
            payload.extend_from_slice(&close.reason.as_bytes()[..end]);
        }
        Self::encode(Opcode::Close, &payload, Accounting::default())
    }

    /// Returns the bytes for the socket.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Returns the number of bytes, including the header; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a frame has a header")]
    pub fn len(&self) -> usize {
        self.0.bytes.len()
    }

    /// Returns true if the frame is a ping; the gateway sends its own pings only.
    pub fn is_ping(&self) -> bool {
        self.0.bytes[0] & 0x0f == Opcode::Ping as u8
    }

    /// Returns the time at which the event was read from the channel layer, if its delivery is timed.
    pub fn read_at(&self) -> Option<Instant> {
        self.0.read_at
    }
}

/// Encodes header and payload without a mask, as servers must (RFC 6455 §5.1).
fn encode(opcode: Opcode, payload: &[u8]) -> Box<[u8]> {
    const FIN: u8 = 0x80;
    let mut bytes = Vec::with_capacity(payload.len() + 10);
    bytes.push(FIN | opcode as u8);
    match (payload.len(), u16::try_from(payload.len())) {
        (short @ 0..=125, _) => bytes.push(short as u8),
        (_, Ok(medium)) => {
            bytes.push(126);
            bytes.extend_from_slice(&medium.to_be_bytes());
        }
        (long, Err(_)) => {
            bytes.push(127);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes.into_boxed_slice()
}

/// A whole message or a control frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// A text message, valid UTF-8.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A ping, which wants a pong with the same payload.
    Ping(Vec<u8>),
    /// A pong, solicited or not.
    Pong(Vec<u8>),
    /// A close frame; `None` if it has no code.
    Close(Option<CloseFrame>),
}

/// A client's frame that violates RFC 6455 or the size limit, with the reason for closing the socket.
///
/// The reason is `ProtocolError` (1002), `PayloadNotValid` (1007) or `MessageTooBig` (1009).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's frames are not acceptable: {}", .0.label())]
pub struct FrameError(pub CloseReason);

const PROTOCOL_ERROR: FrameError = FrameError(CloseReason::ProtocolError);
const PAYLOAD_NOT_VALID: FrameError = FrameError(CloseReason::PayloadNotValid);
const MESSAGE_TOO_BIG: FrameError = FrameError(CloseReason::MessageTooBig);

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, header) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65_535, vec![0x82, 126, 0xff, 0xff]),
            (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let frame = Frame::binary(&vec![7; len]);
            assert_eq!(&frame.as_bytes()[..header.len()], header, "{len}");
            assert_eq!(frame.len(), header.len() + len);
        }
        assert_eq!(Frame::text("Hello").as_bytes(), b"\x81\x05Hello");
    }

    #[test]
    fn a_close_frame_carries_code_and_reason_and_fits() {
        let close = |code, reason: &str| {
            Frame::close(&CloseFrame {
                code,
                reason: Cow::Owned(reason.to_owned()),
                cause: None,
            })
        };
        assert_eq!(close(1000, "bye").as_bytes(), b"\x88\x05\x03\xe8bye");
        assert_eq!(close(1005, "x").as_bytes(), b"\x88\x00");
        assert_eq!(close(1006, "").as_bytes(), b"\x88\x00");
        // 123 bytes of two-byte letters: 61 of them, and no half one.
        assert_eq!(close(4000, &"é".repeat(100)).len(), 2 + 2 + 122);
    }

    #[test]
    fn long_control_payloads_are_cut() {
        assert_eq!(Frame::ping(&[1; 200]).len(), 2 + 125);
    }

    #[test]
    fn a_shared_frame_counts_once_until_its_last_clone_is_gone() {
        let budget = Arc::new(MemoryBudget::default());
        let accounting = Accounting {
            budget: Some(Arc::clone(&budget)),
            ..Accounting::default()
        };
        let frame = Frame::encode(Opcode::Text, b"Hello", accounting);
        let clones = vec![frame.clone(); 1000];
        assert_eq!(budget.bytes(), 7);
        drop(frame);
        assert_eq!(budget.bytes(), 7);
        drop(clones);
        assert_eq!(budget.bytes(), 0);
    }
}
