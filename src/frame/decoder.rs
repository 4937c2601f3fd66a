//! The decoder of one client's frames, which assembles its messages (RFC 6455 §5).
//!
//! It is strict: it refuses frames without a mask, reserved bits, long forms of short lengths, messages over the limit
//! before it buffers them, and bad UTF-8 at its first byte. Between two messages it owns no heap memory.

use std::borrow::Cow;

use super::header::{Header, MAX_HEADER, Room};
use super::mask::unmask;
use super::text::{NotUtf8, TextBuffer};
use super::{
    ClientMessage, FrameError, MESSAGE_TOO_BIG, Opcode, PAYLOAD_NOT_VALID, PROTOCOL_ERROR,
};
use crate::close_code::{CloseFrame, may_be_received};

/// The most fragments without payload in one message. The size limit does not count them, so without this bound a
/// message could be endless. Autobahn sends three, usual clients send none.
const MAX_EMPTY_FRAGMENTS: u8 = 128;

/// The decoder of one connection.
#[derive(Debug)]
pub struct Decoder {
    /// The most bytes of a message; [`u64::MAX`] means no limit. [`FINISHED`] after a close frame or an error.
    max_message: u64,
    /// The received part of a header, a frame or a fragmented message; `None` between messages.
    partial: Option<Box<Partial>>,
}

/// The limit of a decoder that ignores later input. A flag would take eight bytes of each socket.
const FINISHED: u64 = 0;

#[derive(Debug, Default)]
struct Partial {
    header: [u8; MAX_HEADER],
    header_len: u8,
    /// The frame whose header is complete and whose payload is incomplete.
    frame: Option<OpenFrame>,
    message: Option<OpenMessage>,
}

#[derive(Debug)]
struct OpenFrame {
    header: Header,
    received: u64,
    /// The payload so far of a control frame; empty for other frames.
    control: Vec<u8>,
}

#[derive(Debug)]
struct OpenMessage {
    body: Body,
    /// The number of payload bytes so far.
    len: u64,
    empty_fragments: u8,
}

#[derive(Debug)]
enum Body {
    Text(TextBuffer),
    Binary(Vec<u8>),
}

impl Decoder {
    /// Makes a decoder that refuses messages over `max_message` bytes; 0 means no limit.
    pub fn new(max_message: u64) -> Self {
        Self {
            max_message: or_endless(max_message),
            partial: None,
        }
    }

    /// Changes the limit; 0 means no limit. It applies to an open message from its next frame on.
    pub fn set_max_message(&mut self, max_message: u64) {
        if self.max_message != FINISHED {
            self.max_message = or_endless(max_message);
        }
    }

    /// Returns the bytes of heap memory that it owns: those of an incomplete message.
    pub fn memory(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.memory())
    }

    /// Takes the next message from `input`. Call it until it returns `None`: then it has taken all of `input`.
    ///
    /// After a close frame or an error it takes the input and ignores it (RFC 6455 §5.5.1).
    ///
    /// # Errors
    /// The reason for closing the connection.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<ClientMessage>, FrameError> {
        if self.max_message == FINISHED {
            *input = &[];
            return Ok(None);
        }
        let outcome = self.advance(input);
        if matches!(outcome, Err(_) | Ok(Some(ClientMessage::Close(_)))) {
            self.max_message = FINISHED;
            self.partial = None;
        }
        outcome
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<ClientMessage>, FrameError> {
        loop {
            let partial = match self.partial.take() {
                // A frame is open, and its payload comes next.
                Some(partial) if partial.frame.is_some() => partial,
                waiting => {
                    // The next header is checked against the open message, so that goes back first.
                    self.partial = waiting;
                    let Some(header) = self.read_header(input)? else {
                        return Ok(None);
                    };
                    if let Some(message) = self.whole_frame(header, input)? {
                        return Ok(Some(message));
                    }
                    self.open_frame(header)
                }
            };
            let partial = self.partial.insert(partial);
            if !partial.read_payload(input)? {
                return Ok(None);
            }
            let message = partial.end_frame()?;
            if partial.message.is_none() {
                self.partial = None;
            }
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    /// Reads the next header. An incomplete header is kept in `partial`; `input` alone is enough in the usual case.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Header>, FrameError> {
        let open = self.partial.as_ref().and_then(|p| p.message.as_ref());
        let room = Room {
            in_message: open.is_some(),
            bytes: self.max_message.saturating_sub(open.map_or(0, |m| m.len)),
        };
        if self.partial.as_ref().is_none_or(|p| p.header_len == 0) {
            if let Some((header, used)) = Header::parse(input, room)? {
                *input = &input[used..];
                return Ok(Some(header));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
        let partial = self.partial.get_or_insert_default();
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            partial.header[usize::from(partial.header_len)] = byte;
            partial.header_len += 1;
            let so_far = &partial.header[..usize::from(partial.header_len)];
            if let Some((header, _)) = Header::parse(so_far, room)? {
                partial.header_len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Decodes an unfragmented message or a control frame that `input` holds completely. This is the fast path.
    fn whole_frame(
        &mut self,
        header: Header,
        input: &mut &[u8],
    ) -> Result<Option<ClientMessage>, FrameError> {
        let len = match usize::try_from(header.len) {
            Ok(len) if header.fin && len <= input.len() => len,
            _ => return Ok(None),
        };
        if header.opcode == Opcode::Continuation {
            return Ok(None);
        }
        let (payload, rest) = input.split_at(len);
        *input = rest;
        // Frees the pieces of the header, but keeps a fragmented message around a control frame.
        if self.partial.as_ref().is_some_and(|p| p.message.is_none()) {
            self.partial = None;
        }
        let message = if header.opcode.is_control() {
            let mut bytes = payload.to_vec();
            unmask(&mut bytes, header.mask, 0);
            control_message(header.opcode, bytes)?
        } else {
            let mut body = Body::new(header.opcode);
            body.reserve(len);
            body.push(payload, header.mask, 0)?;
            body.finish()?
        };
        Ok(Some(message))
    }

    /// Opens a frame whose payload is incomplete, or that is a fragment of a message.
    fn open_frame(&mut self, header: Header) -> Box<Partial> {
        let mut partial = self.partial.take().unwrap_or_default();
        if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
            partial.message = Some(OpenMessage {
                body: Body::new(header.opcode),
                len: 0,
                empty_fragments: 0,
            });
        }
        partial.frame = Some(OpenFrame {
            header,
            received: 0,
            control: Vec::new(),
        });
        partial
    }
}

/// Returns the limit that a configured one means: 0 is none.
fn or_endless(max_message: u64) -> u64 {
    match max_message {
        0 => u64::MAX,
        limit => limit,
    }
}

impl Partial {
    fn memory(&self) -> usize {
        let message = self.message.as_ref();
        let control = self
            .frame
            .as_ref()
            .map_or(0, |frame| frame.control.capacity());
        size_of::<Self>() + message.map_or(0, |message| message.body.capacity()) + control
    }

    /// Takes the part of the open frame's payload that `input` holds; returns true if the frame is complete.
    fn read_payload(&mut self, input: &mut &[u8]) -> Result<bool, FrameError> {
        let Some(frame) = &mut self.frame else {
            return Ok(false);
        };
        let missing = frame.header.len - frame.received;
        let take = usize::try_from(missing).map_or(input.len(), |missing| missing.min(input.len()));
        let (chunk, rest) = input.split_at(take);
        *input = rest;
        match &mut self.message {
            Some(message) if !frame.header.opcode.is_control() => {
                // A full buffer doubles, or makes room for this chunk if it is larger. A header alone reserves nothing,
                // because a client can claim any length. The last frame tells how many bytes are to come.
                if message.body.room() < take {
                    let doubled = (take as u64).max(message.len);
                    let most = if frame.header.fin { missing } else { u64::MAX };
                    let doubled = usize::try_from(doubled.min(most)).unwrap_or(take);
                    message.body.reserve(doubled);
                }
                message
                    .body
                    .push(chunk, frame.header.mask, frame.received)?;
                message.len += take as u64;
            }
            _ => {
                let start = frame.control.len();
                frame.control.extend_from_slice(chunk);
                unmask(
                    &mut frame.control[start..],
                    frame.header.mask,
                    frame.received,
                );
            }
        }
        frame.received += take as u64;
        Ok(frame.received == frame.header.len)
    }

    /// Ends the complete frame, and returns the message if the frame is its last.
    fn end_frame(&mut self) -> Result<Option<ClientMessage>, FrameError> {
        let Some(frame) = self.frame.take() else {
            return Ok(None);
        };
        if frame.header.opcode.is_control() {
            return control_message(frame.header.opcode, frame.control).map(Some);
        }
        let Some(mut message) = self.message.take() else {
            // Cannot happen: `Header::parse` refuses a continuation outside of a message.
            return Err(PROTOCOL_ERROR);
        };
        if frame.header.fin {
            return message.body.finish().map(Some);
        }
        if frame.header.len == 0 {
            message.empty_fragments += 1;
            if message.empty_fragments > MAX_EMPTY_FRAGMENTS {
                return Err(MESSAGE_TOO_BIG);
            }
        }
        self.message = Some(message);
        Ok(None)
    }
}

impl Body {
    fn new(opcode: Opcode) -> Self {
        match opcode {
            Opcode::Text => Self::Text(TextBuffer::default()),
            _ => Self::Binary(Vec::new()),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Text(text) => text.capacity(),
            Self::Binary(bytes) => bytes.capacity(),
        }
    }

    /// Returns the reserved bytes that are free.
    fn room(&self) -> usize {
        match self {
            Self::Text(text) => text.room(),
            Self::Binary(bytes) => bytes.capacity() - bytes.len(),
        }
    }

    fn reserve(&mut self, additional: usize) {
        match self {
            Self::Text(text) => text.reserve(additional),
            Self::Binary(bytes) => bytes.reserve_exact(additional),
        }
    }

    fn push(&mut self, masked: &[u8], mask: [u8; 4], offset: u64) -> Result<(), FrameError> {
        match self {
            Self::Text(text) => text.push(masked, mask, offset)?,
            Self::Binary(bytes) => {
                let start = bytes.len();
                bytes.extend_from_slice(masked);
                unmask(&mut bytes[start..], mask, offset);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<ClientMessage, FrameError> {
        Ok(match self {
            Self::Text(text) => ClientMessage::Text(text.finish()?),
            Self::Binary(bytes) => ClientMessage::Binary(bytes),
        })
    }
}

impl From<NotUtf8> for FrameError {
    fn from(NotUtf8: NotUtf8) -> Self {
        PAYLOAD_NOT_VALID
    }
}

/// Returns the message of a complete, unmasked control frame.
fn control_message(opcode: Opcode, payload: Vec<u8>) -> Result<ClientMessage, FrameError> {
    Ok(match opcode {
        Opcode::Ping => ClientMessage::Ping(payload),
        Opcode::Pong => ClientMessage::Pong(payload),
        _ => ClientMessage::Close(close_frame(&payload)?),
    })
}

/// Parses the payload of a close frame: empty, or a valid code and a reason in UTF-8 (RFC 6455 §5.5.1).
fn close_frame(payload: &[u8]) -> Result<Option<CloseFrame>, FrameError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (&code, reason) = payload.split_first_chunk().ok_or(PROTOCOL_ERROR)?;
    let code = u16::from_be_bytes(code);
    if !may_be_received(code) {
        return Err(PROTOCOL_ERROR);
    }
    let reason = simdutf8::basic::from_utf8(reason).map_err(|_| PAYLOAD_NOT_VALID)?;
    Ok(Some(CloseFrame {
        code,
        reason: Cow::Owned(reason.to_owned()),
        cause: None,
    }))
}

#[cfg(test)]
mod tests;
