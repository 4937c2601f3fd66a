//! The part of RFC 6455 that a load program needs: it counts a server's frames and answers its pings.

/// The kinds of frames that the load program tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// Text, binary, or the last continuation.
    Data,
    Ping,
    Close,
    Other,
}

/// Reads unmasked frames from a stream that may break anywhere.
#[derive(Default)]
pub(crate) struct Parser {
    head: [u8; 10],
    head_len: usize,
    left: usize,
    length: usize,
}

impl Parser {
    /// Calls `on_frame` at the end of each frame, with the payload's length and the part of it in `bytes`: the whole
    /// payload, unless the frame came in several pieces.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_frame: impl FnMut(Opcode, &[u8], usize),
    ) {
        while !bytes.is_empty() {
            if self.left == 0 && !self.read_head(&mut bytes) {
                return;
            }
            let here = self.left.min(bytes.len());
            let (payload, rest) = bytes.split_at(here);
            self.left -= here;
            bytes = rest;
            if self.left == 0 {
                on_frame(opcode(self.head[0]), payload, self.length);
                self.head_len = 0;
            }
        }
    }

    /// Takes header bytes; true once the header is complete and `left` is known.
    fn read_head(&mut self, bytes: &mut &[u8]) -> bool {
        while let Some((&first, rest)) = bytes.split_first() {
            self.head[self.head_len] = first;
            self.head_len += 1;
            *bytes = rest;
            let wanted = match self.head[1] & 0x7f {
                126 => 4,
                127 => 10,
                _ => 2,
            };
            if self.head_len >= 2 && self.head_len == wanted {
                self.length = match wanted {
                    2 => usize::from(self.head[1] & 0x7f),
                    _ => self.head[2..wanted]
                        .iter()
                        .fold(0, |length, &byte| length << 8 | usize::from(byte)),
                };
                self.left = self.length;
                return true;
            }
        }
        false
    }
}

fn opcode(first: u8) -> Opcode {
    match (first & 0x80 != 0, first & 0x0f) {
        (true, 0..=2) => Opcode::Data,
        (_, 8) => Opcode::Close,
        (_, 9) => Opcode::Ping,
        _ => Opcode::Other,
    }
}

/// Returns a server's text frame.
pub(crate) fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length => {
            let length = u16::try_from(length).expect("load frames are small");
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// Returns a client's answer to a ping; the mask is zero.
pub(crate) fn masked_pong(payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(125)];
    let mut frame = vec![0x8a, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend(payload);
    frame
}

/// Returns a client's close frame; the mask is zero.
pub(crate) fn masked_close(code: u16) -> [u8; 8] {
    let [high, low] = code.to_be_bytes();
    [0x88, 0x82, 0, 0, 0, 0, high, low]
}

/// Returns the code of a close frame, if it has one.
pub(crate) fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}

/// Returns code and reason of a close frame as text for people.
pub(crate) fn describe_close(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => format!(
            "{} {}",
            u16::from_be_bytes([*high, *low]),
            String::from_utf8_lossy(reason)
        ),
        _ => "an empty close frame".into(),
    }
}

/// Checks the parser with frames that are cut at each byte. It is part of the self-test, since a bench has no test harness.
pub(crate) fn check() {
    let mut stream = text_frame(&[b'a'; 200]);
    stream.extend([0x89, 0]);
    stream.extend(text_frame(b"short"));
    stream.extend([0x88, 2, 0x03, 0xe8]);
    for cut in 0..stream.len() {
        let mut seen = Vec::new();
        let mut parser = Parser::default();
        parser.feed(&stream[..cut], |opcode, _, length| {
            seen.push((opcode, length));
        });
        parser.feed(&stream[cut..], |opcode, _, length| {
            seen.push((opcode, length));
        });
        let expected = [
            (Opcode::Data, 200),
            (Opcode::Ping, 0),
            (Opcode::Data, 5),
            (Opcode::Close, 2),
        ];
        assert_eq!(seen, expected, "cut at {cut}");
    }
}
