//! The frame decoder against tungstenite's: the same bytes, split at random points, give the same messages and the same
//! verdict.
//!
//! The generator avoids the points in which the two differ on purpose, which the decoder's own tests cover: lengths that are
//! not minimal or have the top bit (tungstenite takes the former), close code 1014 (tungstenite does not know it), more
//! than 128 empty fragments (tungstenite has no bound). Ours also refuses earlier, while tungstenite waits for the rest
//! of a frame; so verdicts on a stream that ends inside a frame are compared one way only.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use lockgate::close_code::{CloseFrame, CloseReason};
use lockgate::frame::{ClientMessage, Decoder, Frame, FrameError};
use proptest::prelude::*;
use tokio_tungstenite::tungstenite;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

const LIMIT: usize = 400;

/// The messages that a decoder made of a stream.
#[derive(Debug, PartialEq)]
struct Outcome {
    messages: Vec<ClientMessage>,
    verdict: Result<(), CloseReason>,
}

fn ours(pieces: &[&[u8]]) -> Outcome {
    let mut decoder = Decoder::new(LIMIT as u64);
    let mut messages = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            match decoder.push(&mut input) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(FrameError(reason)) => {
                    return Outcome {
                        messages,
                        verdict: Err(reason),
                    };
                }
            }
        }
    }
    Outcome {
        messages,
        verdict: Ok(()),
    }
}

/// Gives a piece per read, then "would block"; swallows what is written.
struct Pieces(VecDeque<Vec<u8>>);

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(mut piece) = self.0.pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if piece.len() > buffer.len() {
            self.0.push_front(piece.split_off(buffer.len()));
        }
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn theirs(pieces: &[&[u8]]) -> Outcome {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    // A read of no bytes would be the end of the stream.
    let pieces = pieces.iter().filter(|piece| !piece.is_empty());
    let stream = Pieces(pieces.map(|piece| piece.to_vec()).collect());
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
    let mut messages = Vec::new();
    let verdict = loop {
        match socket.read() {
            Ok(tungstenite::Message::Close(Some(close)))
                if close.reason == "Protocol violation" =>
            {
                break Err(CloseReason::ProtocolError);
            }
            Ok(message) => {
                let last = message.is_close();
                messages.push(translate(message));
                if last {
                    break Ok(());
                }
            }
            Err(error) => break verdict(&error),
        }
    };
    Outcome { messages, verdict }
}

/// The same verdict. Of a frame that is too long and also out of place, tungstenite reports the former, we the latter.
fn agree(ours: Result<(), CloseReason>, theirs: Result<(), CloseReason>) -> bool {
    let twice_wrong = (
        Err(CloseReason::ProtocolError),
        Err(CloseReason::MessageTooBig),
    );
    ours == theirs || (ours, theirs) == twice_wrong
}

fn translate(message: tungstenite::Message) -> ClientMessage {
    match message {
        tungstenite::Message::Text(text) => ClientMessage::Text(text.to_string()),
        tungstenite::Message::Binary(bytes) => ClientMessage::Binary(bytes.to_vec()),
        tungstenite::Message::Ping(payload) => ClientMessage::Ping(payload.to_vec()),
        tungstenite::Message::Pong(payload) => ClientMessage::Pong(payload.to_vec()),
        tungstenite::Message::Close(close) => ClientMessage::Close(close.map(|close| CloseFrame {
            code: close.code.into(),
            reason: close.reason.to_string().into(),
            cause: None,
        })),
        tungstenite::Message::Frame(_) => panic!("never read"),
    }
}

fn verdict(error: &tungstenite::Error) -> Result<(), CloseReason> {
    match error {
        tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        tungstenite::Error::Protocol(_) => Err(CloseReason::ProtocolError),
        tungstenite::Error::Utf8(_) => Err(CloseReason::PayloadNotValid),
        tungstenite::Error::Capacity(_) => Err(CloseReason::MessageTooBig),
        other => panic!("unexpected: {other}"),
    }
}

/// One frame as a client sends it, or nearly so.
fn encode(first: u8, masked: bool, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(mask_bit | len as u8),
        len => {
            bytes.push(mask_bit | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
    }
    if masked {
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    } else {
        bytes.extend(payload);
    }
    bytes
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => any::<String>().prop_map(|text| text.into_bytes().into_iter().take(125).collect()),
        // The beginnings and ends of characters, whole and not.
        3 => prop::collection::vec(prop::sample::select(&b"a\x00\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xed\xa0\xf4\x90"[..]), 0..6),
        2 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (100..LIMIT + 20).prop_map(|len| vec![b'x'; len]),
    ]
}

fn close_payload() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![
        3 => 1000..1014_u16,
        1 => 1015..1020_u16,
        2 => 2990..5010_u16,
        1 => 1015..=u16::MAX,
    ];
    // A bad code and a bad reason together: either may be reported.
    let with_code = (code, "[a-zé€]{0,4}")
        .prop_map(|(code, reason)| [&code.to_be_bytes()[..], reason.as_bytes()].concat());
    let with_reason = prop::collection::vec(any::<u8>(), 0..4)
        .prop_map(|reason| [&1000_u16.to_be_bytes()[..], &reason].concat());
    prop_oneof![4 => with_code, 2 => with_reason, 1 => Just(Vec::new()), 1 => Just(vec![3])]
}

/// Mostly what a client may send next; at times anything.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let data =
        prop::sample::select(&[0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x80, 0x80, 0x89, 0x8a][..]);
    let sound = (data, any::<[u8; 4]>(), payload())
        .prop_map(|(first, mask, payload)| encode(first, true, mask, &payload));
    let close = (any::<[u8; 4]>(), close_payload())
        .prop_map(|(mask, payload)| encode(0x88, true, mask, &payload));
    let unsound = (any::<u8>(), any::<bool>(), any::<[u8; 4]>(), payload()).prop_map(
        |(first, masked, mask, mut payload)| {
            if first & 0x0f == 8 {
                payload.clear();
            }
            encode(first, masked, mask, &payload)
        },
    );
    prop_oneof![30 => sound, 2 => close, 1 => unsound]
}

/// Several frames one after another, and where the stream is cut into pieces.
fn stream() -> impl Strategy<Value = (Vec<u8>, Vec<prop::sample::Index>)> {
    (
        prop::collection::vec(frame(), 1..12).prop_map(|frames| frames.concat()),
        prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    )
}

fn split<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.sort_unstable();
    at.push(bytes.len());
    let mut start = 0;
    let piece = |end: usize| &bytes[std::mem::replace(&mut start, end)..end];
    at.into_iter().map(piece).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(2000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whole_frames_give_what_tungstenite_gives((bytes, cuts) in stream()) {
        let pieces = split(&bytes, &cuts);
        let (ours, theirs) = (ours(&pieces), theirs(&pieces));
        prop_assert_eq!(&ours.messages, &theirs.messages);
        prop_assert!(agree(ours.verdict, theirs.verdict), "{:?} {:?}", ours, theirs);
    }

    #[test]
    fn a_stream_that_ends_anywhere_gives_no_less((bytes, cuts) in stream(), end in any::<prop::sample::Index>()) {
        let bytes = &bytes[..end.index(bytes.len() + 1)];
        let pieces = split(bytes, &cuts);
        let (ours, theirs) = (ours(&pieces), theirs(&pieces));
        prop_assert_eq!(&ours.messages, &theirs.messages);
        if theirs.verdict.is_err() {
            prop_assert!(agree(ours.verdict, theirs.verdict), "{:?} {:?}", ours, theirs);
        }
    }

    #[test]
    fn the_outcome_does_not_depend_on_the_cuts(
        (mut bytes, cuts) in stream(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 0..4),
    ) {
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let whole = ours(&[&bytes]);
        let by_byte: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&ours(&split(&bytes, &cuts)), &whole);
        prop_assert_eq!(&ours(&by_byte), &whole);
    }
}

#[test]
fn tungstenite_reads_what_we_send() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
        let (text, bytes) = ("é".repeat(len / 2), vec![0xff; len]);
        let ping = bytes[..len.min(125)].to_vec();
        let frames = [
            Frame::text(&text),
            Frame::binary(&bytes),
            Frame::ping(&ping),
        ];
        let sent = frames.iter().map(|frame| frame.as_bytes().to_vec());
        let mut socket = WebSocket::from_raw_socket(Pieces(sent.collect()), Role::Client, None);
        for expected in [
            ClientMessage::Text(text),
            ClientMessage::Binary(bytes),
            ClientMessage::Ping(ping),
        ] {
            assert_eq!(translate(socket.read().unwrap()), expected, "{len}");
        }
    }
}
