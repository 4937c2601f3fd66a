//! Hostile and unusual frames, and the decoder's answer to each.

use super::*;
use crate::close_code::CloseReason;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const LIMIT: u64 = 1000;

/// Returns a masked frame; `first` holds FIN, the reserved bits and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    let masked = payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m);
    bytes.extend(masked);
    bytes
}

/// Returns the header of a masked text frame that claims `len` bytes in the 64-bit form.
fn claim(len: u64) -> Vec<u8> {
    let mut bytes = vec![0x81, 0x80 | 127];
    bytes.extend(len.to_be_bytes());
    bytes.extend(MASK);
    bytes
}

/// Decodes bytes that arrive in pieces of `step`.
fn decode(bytes: &[u8], step: usize) -> (Vec<ClientMessage>, Result<(), CloseReason>) {
    let mut decoder = Decoder::new(LIMIT);
    let mut messages = Vec::new();
    for mut piece in bytes.chunks(step) {
        loop {
            match decoder.push(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(FrameError(reason)) => return (messages, Err(reason)),
            }
        }
        assert!(piece.is_empty(), "None means that all was taken");
    }
    (messages, Ok(()))
}

#[track_caller]
fn assert_closes(row: &str, bytes: &[u8], reason: CloseReason) {
    for step in [1, 2, 3, 7, usize::MAX] {
        assert_eq!(decode(bytes, step).1, Err(reason), "{row}, step {step}");
    }
}

#[track_caller]
fn assert_gives(row: &str, bytes: &[u8], messages: &[ClientMessage]) {
    for step in [1, 2, 3, 7, usize::MAX] {
        assert_eq!(
            decode(bytes, step),
            (messages.to_vec(), Ok(())),
            "{row}, step {step}"
        );
    }
}

fn text(text: &str) -> ClientMessage {
    ClientMessage::Text(text.to_owned())
}

fn closing(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend(reason.as_bytes());
    frame(0x88, &payload)
}

#[test]
fn frames_that_break_the_protocol_close_with_1002() {
    for opcode in [0, 1, 2, 8, 9, 10] {
        for payload in [0, 5] {
            let mut bytes = vec![0x80 | opcode, payload];
            bytes.extend(vec![b'a'; usize::from(payload)]);
            assert_closes("unmasked", &bytes, CloseReason::ProtocolError);
        }
    }
    for reserved in [0x10, 0x20, 0x40, 0x70] {
        for opcode in [1, 2, 8, 9, 10] {
            let bytes = frame(0x80 | reserved | opcode, b"a");
            assert_closes("reserved bits", &bytes, CloseReason::ProtocolError);
        }
        let mut bytes = frame(0x01, b"a");
        bytes.extend(frame(0x80 | reserved, b"a"));
        assert_closes(
            "reserved bits on a continuation",
            &bytes,
            CloseReason::ProtocolError,
        );
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_closes(
            "opcodes",
            &frame(0x80 | opcode, b"a"),
            CloseReason::ProtocolError,
        );
    }
    for opcode in [8, 9, 10] {
        assert_closes(
            "fragmented control",
            &frame(opcode, b""),
            CloseReason::ProtocolError,
        );
        assert_closes(
            "long control",
            &frame(0x80 | opcode, &[b'a'; 126]),
            CloseReason::ProtocolError,
        );
    }
    for first in [0x00, 0x80] {
        assert_closes(
            "continuation without start",
            &frame(first, b"a"),
            CloseReason::ProtocolError,
        );
    }
    let mut bytes = frame(0x01, b"a");
    bytes.extend(frame(0x81, b"b"));
    assert_closes("new message inside", &bytes, CloseReason::ProtocolError);
    let mut medium = vec![0x81, 0x80 | 126, 0, 125];
    medium.extend(MASK);
    assert_closes("non-minimal length", &medium, CloseReason::ProtocolError);
    assert_closes(
        "non-minimal length",
        &claim(65_535),
        CloseReason::ProtocolError,
    );
    assert_closes(
        "top bit of the length",
        &claim(1 << 63),
        CloseReason::ProtocolError,
    );
    assert_closes(
        "HTTP after 101",
        b"GET / HTTP/1.1\r\n\r\n",
        CloseReason::ProtocolError,
    );
}

#[test]
fn what_passes_the_limit_closes_with_1009_before_it_is_buffered() {
    for len in [1 << 16, 1 << 32, 1 << 40, i64::MAX as u64] {
        assert_closes("claimed length", &claim(len), CloseReason::MessageTooBig);
    }
    let over = vec![b'a'; LIMIT as usize + 1];
    let whole = frame(0x81, &over);
    assert_closes("header only", &whole[..8], CloseReason::MessageTooBig);
    assert_closes("whole", &whole, CloseReason::MessageTooBig);
    let mut pieces = frame(0x01, &over[..600]);
    pieces.extend(frame(0x80, &over[600..]));
    assert_closes("fragments", &pieces, CloseReason::MessageTooBig);
    let mut bytes = frame(0x01, b"a");
    for _ in 0..LIMIT {
        bytes.extend(frame(0x00, b"a"));
    }
    assert_closes("one-byte fragments", &bytes, CloseReason::MessageTooBig);
    let mut bytes = frame(0x02, b"");
    for _ in 0..20_000 {
        bytes.extend(frame(0x00, b""));
    }
    assert_closes("empty fragments", &bytes, CloseReason::MessageTooBig);
    let endless = frame(0x00, b"0123456789").repeat(200);
    let mut bytes = frame(0x01, b"");
    bytes.extend(endless);
    assert_closes("never ends", &bytes, CloseReason::MessageTooBig);
}

#[test]
fn the_limit_itself_is_delivered() {
    let exact = "a".repeat(LIMIT as usize);
    assert_gives(
        "the limit itself",
        &frame(0x81, exact.as_bytes()),
        &[text(&exact)],
    );
    let mut bytes = frame(0x01, b"a");
    for _ in 2..LIMIT {
        bytes.extend(frame(0x00, b"a"));
    }
    bytes.extend(frame(0x80, b"a"));
    assert_gives("one-byte fragments", &bytes, &[text(&exact)]);
    let mut unlimited = Decoder::new(0);
    let large = vec![7; 200_000];
    let message = unlimited.push(&mut &*frame(0x82, &large));
    assert_eq!(message, Ok(Some(ClientMessage::Binary(large))));
}

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    let sequences: [&[u8]; 10] = [
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\x80",
        b"\xc3\x28",
        b"\xe2\x82",
        b"abc\xf0\x9f\x98",
    ];
    for bytes in sequences {
        assert_closes(
            "not UTF-8",
            &frame(0x81, bytes),
            CloseReason::PayloadNotValid,
        );
    }
    let mut bytes = frame(0x01, b"\xce\xba\xe1");
    bytes.extend(frame(0x89, b"ping"));
    bytes.extend(frame(0x00, b"\xbd\xb9\xed\xa0"));
    // The message is not complete, but no further bytes could make it valid.
    assert_closes(
        "not UTF-8 in a fragment",
        &bytes,
        CloseReason::PayloadNotValid,
    );
}

#[test]
fn valid_text_is_delivered_however_it_is_split() {
    for valid in ["\0", "\u{feff}x", "\u{10ffff}", "\u{ffff}", "aé€😀"] {
        assert_gives("valid text", &frame(0x81, valid.as_bytes()), &[text(valid)]);
        for split in 0..valid.len() {
            let (a, b) = valid.as_bytes().split_at(split);
            let mut bytes = frame(0x01, a);
            bytes.extend(frame(0x80, b));
            assert_gives("split text", &bytes, &[text(valid)]);
        }
    }
}

#[test]
fn close_frames() {
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
    ] {
        assert_closes(
            "code not allowed",
            &closing(code, ""),
            CloseReason::ProtocolError,
        );
    }
    for code in [1000, 1001, 1003, 1007, 1014, 3000, 4999] {
        let close = CloseFrame {
            code,
            reason: "bye".into(),
            cause: None,
        };
        let message = ClientMessage::Close(Some(close));
        assert_gives("code allowed", &closing(code, "bye"), &[message]);
    }
    assert_gives("no code", &frame(0x88, b""), &[ClientMessage::Close(None)]);
    assert_closes(
        "half a code",
        &frame(0x88, b"\x03"),
        CloseReason::ProtocolError,
    );
    let bad_reason = frame(0x88, b"\x03\xe8\xff");
    assert_closes(
        "reason not UTF-8",
        &bad_reason,
        CloseReason::PayloadNotValid,
    );
}

#[test]
fn nothing_is_decoded_after_a_close_or_an_error() {
    let mut bytes = frame(0x01, b"open");
    bytes.extend(frame(0x88, b""));
    bytes.extend(frame(0x89, b"late"));
    bytes.extend(b"\xff\xff\xff");
    assert_gives("after a close", &bytes, &[ClientMessage::Close(None)]);
    let mut decoder = Decoder::new(LIMIT);
    assert!(decoder.push(&mut &b"\xff"[..]).is_err());
    let late = frame(0x81, b"late");
    let mut input = &*late;
    assert_eq!(decoder.push(&mut input), Ok(None));
    assert!(input.is_empty());
}

#[test]
fn control_frames_come_through_fragments() {
    let mut bytes = frame(0x01, b"Hel");
    bytes.extend(frame(0x89, b"now"));
    bytes.extend(frame(0x00, b""));
    bytes.extend(frame(0x8a, b""));
    bytes.extend(frame(0x80, b"lo"));
    bytes.extend(frame(0x82, b"\x00\xff"));
    let expected = [
        ClientMessage::Ping(b"now".to_vec()),
        ClientMessage::Pong(Vec::new()),
        text("Hello"),
        ClientMessage::Binary(b"\x00\xff".to_vec()),
    ];
    assert_gives("interleaved", &bytes, &expected);
}

#[test]
fn an_idle_decoder_is_small_and_owns_nothing() {
    assert!(size_of::<Decoder>() <= 24);
    let mut decoder = Decoder::new(LIMIT);
    let mut bytes = frame(0x01, b"a");
    bytes.extend(frame(0x89, b""));
    bytes.extend(frame(0x80, b"b"));
    for piece in bytes.chunks(1) {
        let mut piece = piece;
        while decoder.push(&mut piece).unwrap().is_some() {}
    }
    assert_eq!(decoder.memory(), 0);
}

#[test]
fn a_claimed_length_reserves_nothing() {
    let mut decoder = Decoder::new(1 << 40);
    let mut header = claim(1 << 39);
    header.push(0);
    assert_eq!(decoder.push(&mut &*header), Ok(None));
    let message = decoder.partial.unwrap().message.unwrap();
    match message.body {
        Body::Text(_) => assert_eq!(message.len, 1),
        Body::Binary(_) => panic!("a text frame"),
    }
}

/// Before, each fragment made the buffer longer by its own length: 65,000 of one byte moved it 65,000 times.
#[test]
fn a_message_of_small_fragments_takes_at_most_twice_what_came() {
    let mut decoder = Decoder::new(1 << 20);
    let mut sizes = std::collections::BTreeSet::new();
    decoder.push(&mut &*frame(0x02, b"a")).unwrap();
    for came in 2..=20_000 {
        decoder.push(&mut &*frame(0x00, b"a")).unwrap();
        let size = decoder.memory() - size_of::<Partial>();
        assert!(size <= 2 * came, "{size} of {came}");
        sizes.insert(size);
    }
    assert!(sizes.len() < 20, "{sizes:?}");
    let ends = frame(0x80, b"");
    assert!(matches!(decoder.push(&mut &*ends), Ok(Some(_))));
    assert_eq!(decoder.memory(), 0);
}
