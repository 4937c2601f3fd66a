//! Hostile frames as raw bytes, each with the reaction of an `echo` route.
//!
//! `catalogue` runs every row of [`rows`] with [`check_frame_row`] against an echo route with the default `message_size`
//! of 64 KiB and without `messages_per_second`. It also has the cases that need limits, time or the metrics: floods, an end
//! in the middle of a frame, silent clients.
//!
//! `bounds/memory` has the message that never ends. Compression is never negotiated, so one row is
//! enough for it. The client never answers a close frame, so every row that closes shows that the gateway does not wait
//! for the answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, eventually};

/// The time for one row. An unanswered close frame ends the connection within five seconds; two are for a slow machine.
const DEADLINE: Duration = Duration::from_secs(7);

/// The default `message_size`.
const LIMIT: usize = 64 * 1024;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The bytes of a client after the handshake, and the reaction to them.
pub(crate) struct FrameRow {
    pub(crate) subject: &'static str,
    pub(crate) input: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expect: Reaction,
}

/// The reaction of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// These frames (first byte and payload), then a close frame with this code, then the end of the connection.
    Closes(Vec<(u8, Vec<u8>)>, u16),
    /// These frames, and the connection stays.
    Answers(Vec<(u8, Vec<u8>)>),
}

/// Returns a masked frame in the shortest form; `first` holds FIN, the reserved bits and the opcode.
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
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
    bytes
}

/// Returns only a header: a text frame that claims `len` bytes in the 64-bit form.
fn claim(len: u64) -> Vec<u8> {
    [&[0x81, 0xff][..], &len.to_be_bytes(), &MASK].concat()
}

fn closing(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes()[..], reason].concat())
}

/// Returns a message in fragments of one byte.
fn byte_by_byte(len: usize) -> Vec<u8> {
    let middle = frame(0x00, b"a").repeat(len - 2);
    [frame(0x01, b"a"), middle, frame(0x80, b"a")].concat()
}

fn row(
    subject: &'static str,
    input: impl Into<String>,
    bytes: Vec<u8>,
    expect: Reaction,
) -> FrameRow {
    FrameRow {
        subject,
        input: input.into(),
        bytes,
        expect,
    }
}

fn closes(code: u16) -> Reaction {
    Reaction::Closes(Vec::new(), code)
}

fn echoes(payload: impl Into<Vec<u8>>) -> Reaction {
    Reaction::Answers(vec![(0x81, payload.into())])
}

/// Returns every row.
pub(crate) fn rows() -> Vec<FrameRow> {
    let mut rows = protocol_errors();
    rows.extend(sizes());
    rows.extend(texts());
    rows.extend(close_frames());
    rows
}

fn protocol_errors() -> Vec<FrameRow> {
    let mut rows = Vec::new();
    let mut refuse =
        |subject, input: String, bytes| rows.push(row(subject, input, bytes, closes(1002)));
    for opcode in [0, 1, 2, 8, 9, 10] {
        refuse(
            "mask",
            format!("unmasked opcode {opcode}"),
            vec![0x80 | opcode, 1, b'a'],
        );
        refuse(
            "mask",
            format!("unmasked and empty, opcode {opcode}"),
            vec![0x80 | opcode, 0],
        );
    }
    for bits in [0x10, 0x20, 0x40] {
        for opcode in [1, 2, 8, 9, 10] {
            let bytes = frame(0x80 | bits | opcode, b"a");
            refuse(
                "reserved bits",
                format!("reserved bit {bits:#x}, opcode {opcode}"),
                bytes,
            );
        }
        let bytes = [frame(0x01, b"a"), frame(0x80 | bits, b"b")].concat();
        refuse(
            "reserved bits",
            format!("reserved bit {bits:#x} on a continuation"),
            bytes,
        );
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        refuse(
            "opcode",
            format!("opcode {opcode}"),
            frame(0x80 | opcode, b"a"),
        );
    }
    for opcode in [8, 9, 10] {
        refuse(
            "control frame",
            format!("fragmented, opcode {opcode}"),
            frame(opcode, b""),
        );
        refuse(
            "control frame",
            format!("126 bytes, opcode {opcode}"),
            frame(0x80 | opcode, &[0; 126]),
        );
    }
    refuse(
        "continuation",
        "continuation without start".into(),
        frame(0x80, b"a"),
    );
    refuse(
        "continuation",
        "open continuation without start".into(),
        frame(0x00, b"a"),
    );
    let nested = [frame(0x01, b"a"), frame(0x81, b"b")].concat();
    refuse("fragments", "new message inside fragments".into(), nested);
    let medium = [&[0x81, 0xfe, 0, 1][..], &MASK, b"a"].concat();
    refuse("length", "16-bit length that is not minimal".into(), medium);
    refuse(
        "length",
        "64-bit length that is not minimal".into(),
        claim(126),
    );
    refuse(
        "length",
        "64-bit length with the top bit".into(),
        claim(1 << 63),
    );
    refuse(
        "other protocol",
        "HTTP after 101".into(),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
    );
    let mut deflated = frame(0xc1, b"\xf2\x48\xcd\xc9\xc9\x07\x00");
    deflated.extend(frame(0x81, b"never read"));
    refuse(
        "compression",
        "compressed without an extension".into(),
        deflated,
    );
    rows
}

fn sizes() -> Vec<FrameRow> {
    let exact = vec![b'a'; LIMIT];
    let over = vec![b'a'; LIMIT + 1];
    let mut rows = Vec::new();
    for len in [1 << 32, 1 << 40, i64::MAX as u64] {
        rows.push(row(
            "size",
            format!("claims {len}"),
            claim(len),
            closes(1009),
        ));
    }
    let fragments = [frame(0x01, &over[..40_000]), frame(0x80, &over[40_000..])].concat();
    let whole_in_two = [frame(0x01, &exact[..40_000]), frame(0x80, &exact[40_000..])].concat();
    let empty = [frame(0x01, b""), frame(0x00, b"").repeat(20_000)].concat();
    let endless = [frame(0x01, b""), frame(0x00, &[b'a'; 1000]).repeat(100)].concat();
    rows.extend([
        row(
            "size",
            "limit + 1, header only",
            claim(LIMIT as u64 + 1),
            closes(1009),
        ),
        row("size", "limit + 1, whole", frame(0x81, &over), closes(1009)),
        row("size", "limit + 1, fragments", fragments, closes(1009)),
        row(
            "size",
            "limit + 1, by byte",
            byte_by_byte(LIMIT + 1),
            closes(1009),
        ),
        row("size", "limit", frame(0x81, &exact), echoes(exact.clone())),
        row(
            "size",
            "limit, fragments",
            whole_in_two,
            echoes(exact.clone()),
        ),
        row("size", "limit, by byte", byte_by_byte(LIMIT), echoes(exact)),
        row("size", "20000 empty fragments", empty, closes(1009)),
        row("size", "a message that never ends", endless, closes(1009)),
    ]);
    rows
}

fn texts() -> Vec<FrameRow> {
    let mut rows = Vec::new();
    let bad: [&[u8]; 9] = [
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\x80",
        b"\xe2\x82",
        b"abc\xf0\x9f\x98",
    ];
    for bytes in bad {
        rows.push(row(
            "UTF-8",
            bytes.escape_ascii().to_string(),
            frame(0x81, bytes),
            closes(1007),
        ));
    }
    let interrupted = [
        frame(0x01, b"\xce\xba\xe1"),
        frame(0x89, b"now"),
        frame(0x00, b"\xbd\xb9\xed\xa0"),
    ];
    let pong = vec![(0x8a, b"now".to_vec())];
    let expect = Reaction::Closes(pong, 1007);
    rows.push(row(
        "UTF-8",
        "bad across fragments, a ping between",
        interrupted.concat(),
        expect,
    ));
    for valid in ["\0", "\u{feff}x", "\u{10ffff}", "\u{ffff}"] {
        let input = valid.escape_unicode().to_string();
        rows.push(row(
            "text",
            input,
            frame(0x81, valid.as_bytes()),
            echoes(valid),
        ));
    }
    let split = [frame(0x01, b"\xf0\x9f"), frame(0x80, b"\x98\x80")].concat();
    rows.push(row("text", "split code point", split, echoes("😀")));
    let unasked = [frame(0x8a, b"whatever"), frame(0x81, b"still here")].concat();
    rows.push(row(
        "pong",
        "unsolicited pong",
        unasked,
        echoes("still here"),
    ));
    rows
}

fn close_frames() -> Vec<FrameRow> {
    let mut rows = Vec::new();
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
    ] {
        rows.push(row(
            "close code",
            format!("close {code}"),
            closing(code, b""),
            closes(1002),
        ));
    }
    for code in (1000..=1003)
        .chain(1007..=1014)
        .chain([3000, 3999, 4000, 4999])
    {
        rows.push(row(
            "close code",
            format!("close {code}"),
            closing(code, b"bye"),
            closes(code),
        ));
    }
    let after = [
        closing(1000, b""),
        frame(0x89, b"late"),
        frame(0x81, b"late"),
    ]
    .concat();
    let inside = [frame(0x01, b"open"), closing(1000, b"")].concat();
    rows.extend([
        row(
            "close frame",
            "close of one byte",
            frame(0x88, b"\x03"),
            closes(1002),
        ),
        row(
            "close frame",
            "reason that is not UTF-8",
            closing(1000, b"\xff"),
            closes(1007),
        ),
        row(
            "close frame",
            "data and ping after close",
            after,
            closes(1000),
        ),
        row(
            "close frame",
            "close inside a fragmented message",
            inside,
            closes(1000),
        ),
    ]);
    rows
}

/// Opens a socket on `path` (with its token), sends the row's bytes, and compares the reaction with the row.
///
/// # Panics
/// With the row's subject and input if the reaction is another one or is late.
pub(crate) async fn check_frame_row(addr: SocketAddr, path: &str, row: &FrameRow) {
    let name = format!("{} {}", row.subject, row.input);
    let outcome = timeout(DEADLINE, exchange(addr, path, row)).await;
    let (frames, ended) = outcome.unwrap_or_else(|_| panic!("{name}: not in time"));
    match &row.expect {
        Reaction::Answers(expected) => assert!(frames == *expected, "{name}: {}", show(&frames)),
        Reaction::Closes(expected, code) => {
            let (last, before) = frames
                .split_last()
                .unwrap_or_else(|| panic!("{name}: silence"));
            assert!(before == *expected, "{name}: {}", show(&frames));
            assert_eq!(last.0, 0x88, "{name}: {}", show(&frames));
            assert_eq!(
                last.1.get(..2),
                Some(&code.to_be_bytes()[..]),
                "{name}: {}",
                show(&frames)
            );
            assert!(ended, "{name}: still open");
        }
    }
}

fn show(frames: &[(u8, Vec<u8>)]) -> String {
    let show = |(first, payload): &(u8, Vec<u8>)| {
        let start = payload[..payload.len().min(40)].escape_ascii();
        format!("{first:#x} {} bytes \"{start}\"; ", payload.len())
    };
    frames.iter().map(show).collect()
}

/// Returns the frames of the gateway, as many as the row awaits or all until the end, and true if the connection ended.
async fn exchange(addr: SocketAddr, path: &str, row: &FrameRow) -> (Vec<(u8, Vec<u8>)>, bool) {
    let mut stream = open(addr, path).await;
    let (mut reading, mut writing) = stream.split();
    // The gateway may close before it has read everything. Writing fails then, and the frames so far count.
    let send = async { writing.write_all(&row.bytes).await.ok() };
    let awaited = match &row.expect {
        Reaction::Answers(frames) => frames.len(),
        Reaction::Closes(..) => usize::MAX,
    };
    let receive = async {
        let mut bytes = Vec::new();
        let mut frames = Vec::new();
        while frames.len() < awaited {
            if let Some(frame) = take_frame(&mut bytes) {
                // The heartbeat may come at any time, on a busy machine before the answer. No row awaits a ping.
                if frame.0 != 0x89 {
                    frames.push(frame);
                }
            } else if !matches!(reading.read_buf(&mut bytes).await, Ok(1..)) {
                return (frames, true);
            }
        }
        (frames, false)
    };
    let (_, outcome) = tokio::join!(send, receive);
    outcome
}

/// Opens a socket on `path` and returns it after the whole head of the 101.
///
/// A handshake that a dependency does not answer in time is refused with 503, which is right on a busy machine: Redis
/// has one second. The rows are about frames, so the client tries again, as it would after such a refusal.
async fn open(addr: SocketAddr, path: &str) -> TcpStream {
    eventually(PATIENCE, "a socket", async || {
        let (stream, head) = handshake(addr, path).await;
        if head.starts_with("HTTP/1.1 503 ") {
            return Err(head);
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(stream)
    })
    .await
}

/// Sends one upgrade and returns the connection with the head of the answer.
async fn handshake(addr: SocketAddr, path: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(addr).await.expect("the gateway listens");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut head = Vec::new();
    // Byte by byte, because the bytes after the head are frames.
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head"));
    }
    (stream, String::from_utf8(head).expect("an ASCII head"))
}

/// Takes the first frame off `bytes`. Servers send frames unmasked.
fn take_frame(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&[first, short], rest) = bytes.split_first_chunk()?;
    let (len, header) = match short {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), 10),
        len => (u64::from(len), 2),
    };
    let end = header + usize::try_from(len).ok()?;
    let payload = bytes.get(header..end)?.to_vec();
    bytes.drain(..end);
    Some((first, payload))
}
