//! The cases of the Autobahn suite, played by hand on a raw connection, and the suite itself where it can run.
//!
//! A case sends frames to an echo route and knows what has to come back; after a close frame TCP has to end.
//! Numbers in names are Autobahn's, `F` rows are cases that it lacks.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::database::ALICE;
use crate::support::django::python;
use crate::support::process::Program;
use crate::support::{Gateway, PATIENCE, gateway, within};

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// What has to come back.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// A whole message or a pong: opcode and payload.
    Frame(u8, Vec<u8>),
    /// A close frame with this code, and then the end; 1005 for one without a code.
    Close(u16),
}

struct Case {
    name: String,
    send: Vec<u8>,
    /// Bytes in one write; 0: all at once.
    chop: usize,
    expected: Vec<Answer>,
}

fn case(name: impl Into<String>, frames: &[Vec<u8>], expected: &[Answer]) -> Case {
    Case {
        name: name.into(),
        send: frames.concat(),
        chop: 0,
        expected: expected.to_vec(),
    }
}

/// A masked frame with a length as short as it can be; `first` is FIN, the reserved bits and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        n if n < 126 => out.push(0x80 | n as u8),
        n if n <= 0xffff => {
            out.push(0x80 | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    out.extend(MASK);
    out.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    out
}

fn text(payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(FIN | TEXT, payload.as_ref())
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

fn echo(payload: impl AsRef<[u8]>) -> Answer {
    Answer::Frame(TEXT, payload.as_ref().to_vec())
}

fn pong(payload: impl AsRef<[u8]>) -> Answer {
    Answer::Frame(PONG, payload.as_ref().to_vec())
}

/// 1: sizes. 10: many fragments.
fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, opcode) in [(1, TEXT), (2, BINARY)] {
        for (n, size) in [0, 125, 126, 127, 128, 65_535, 65_536]
            .into_iter()
            .enumerate()
        {
            let payload = vec![if opcode == TEXT { b'*' } else { 0xfe }; size];
            let back = [Answer::Frame(opcode, payload.clone())];
            let whole = [frame(FIN | opcode, &payload)];
            cases.push(case(format!("1.{kind}.{}", n + 1), &whole, &back));
            let mut chopped = case(format!("1.{kind}.{} in pieces", n + 1), &whole, &back);
            chopped.chop = if size > 1000 { 997 } else { 1 };
            cases.push(chopped);
        }
    }
    let payload = vec![b'*'; 65_536];
    let mut fragments: Vec<_> = payload.chunks(1300).map(|part| frame(0, part)).collect();
    fragments[0][0] = TEXT;
    fragments.last_mut().unwrap()[0] |= FIN;
    cases.push(case("10.1.1", &fragments, &[echo(payload)]));
    cases
}

/// 2: pings and pongs.
fn pings() -> Vec<Case> {
    let ping = |payload: &[u8]| frame(FIN | PING, payload);
    let full = vec![0xfe; 125];
    let mut slow = case("2.6", &[ping(&full)], &[pong(&full)]);
    slow.chop = 1;
    let numbers: Vec<_> = (0..10).map(|n| format!("payload-{n}")).collect();
    let pongs: Vec<_> = numbers.iter().map(pong).collect();
    let pings: Vec<_> = numbers.iter().map(|n| ping(n.as_bytes())).collect();
    let mut slow_pings = case("2.11", &pings, &pongs);
    slow_pings.chop = 1;
    vec![
        case("2.1", &[ping(b"")], &[pong(b"")]),
        case("2.2", &[ping(b"Hello, world!")], &[pong(b"Hello, world!")]),
        case(
            "2.3",
            &[ping(&[0, 255, 254, 253])],
            &[pong([0, 255, 254, 253])],
        ),
        case("2.4", &[ping(&full)], &[pong(&full)]),
        case("2.5", &[ping(&[0xfe; 126])], &[Answer::Close(1002)]),
        slow,
        case("2.7", &[frame(FIN | PONG, b""), ping(b"x")], &[pong("x")]),
        case(
            "2.8",
            &[frame(FIN | PONG, b"unsolicited"), ping(b"x")],
            &[pong("x")],
        ),
        case("2.10", &pings, &pongs),
        slow_pings,
    ]
}

/// 3: reserved bits. 4: reserved opcodes.
fn reserved() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in 1..8_u8 {
        for (what, opcode) in [
            ("text", TEXT),
            ("binary", BINARY),
            ("ping", PING),
            ("close", CLOSE),
        ] {
            let bad = frame(FIN | bits << 4 | opcode, b"");
            let name = format!("3.{bits} {what}");
            cases.push(case(
                &name,
                &[text("first"), bad],
                &[echo("first"), Answer::Close(1002)],
            ));
        }
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for payload in [&b""[..], b"payload"] {
            let bad = frame(FIN | opcode, payload);
            let name = format!("4 opcode {opcode}, {} bytes", payload.len());
            let then = text("not looked at");
            cases.push(case(
                &name,
                &[text("first"), bad, then],
                &[echo("first"), Answer::Close(1002)],
            ));
        }
    }
    cases
}

/// 5: fragments.
fn fragments() -> Vec<Case> {
    let refused = [Answer::Close(1002)];
    let start = |payload: &str| frame(TEXT, payload.as_bytes());
    let middle = |payload: &str| frame(0, payload.as_bytes());
    let end = |payload: &str| frame(FIN, payload.as_bytes());
    let ping = frame(FIN | PING, b"ping");
    let mut slow = case("5.5", &[start("one"), end("two")], &[echo("onetwo")]);
    slow.chop = 1;
    let mut slow_ping = case(
        "5.8",
        &[start("one"), ping.clone(), end("two")],
        &[pong("ping"), echo("onetwo")],
    );
    slow_ping.chop = 1;
    let both = [
        start("a"),
        end("b"),
        start("c"),
        ping.clone(),
        middle(""),
        end("d"),
    ];
    vec![
        case("5.1", &[frame(PING, b"a"), end("b")], &refused),
        case("5.2", &[frame(PONG, b"a"), end("b")], &refused),
        case(
            "F a close in fragments",
            &[frame(CLOSE, b""), end("")],
            &refused,
        ),
        case("5.3", &[start("one"), end("two")], &[echo("onetwo")]),
        slow,
        case(
            "5.6",
            &[start("one"), ping.clone(), end("two")],
            &[pong("ping"), echo("onetwo")],
        ),
        slow_ping,
        case("5.9", &[end("nothing to continue"), text("x")], &refused),
        case(
            "5.12",
            &[middle("nothing to continue"), text("x")],
            &refused,
        ),
        case(
            "5.15",
            &[start("a"), end("b"), middle("c"), text("d")],
            &[echo("ab"), Answer::Close(1002)],
        ),
        case("5.18", &[start("a"), text("b")], &refused),
        case("5.19", &both, &[echo("ab"), pong("ping"), echo("cd")]),
        case(
            "F empty fragments",
            &[start(""), middle(""), end("")],
            &[echo("")],
        ),
        case(
            "F binary within text",
            &[start("a"), frame(BINARY, b"b")],
            &refused,
        ),
    ]
}

/// 6: UTF-8, refused as soon as a byte can no longer be right.
fn utf8() -> Vec<Case> {
    let mut cases = Vec::new();
    let valid: [&[u8]; 14] = [
        "Hello-µ@ßöäüàá-UTF-8!!".as_bytes(),
        "κόσμε".as_bytes(),
        b"\0",
        b"\x7f",
        b"\xc2\x80",
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbd",
        b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
        b"\xf0\x9f\xbf\xbe",
    ];
    for payload in valid {
        let name = format!("6 valid {payload:x?}");
        cases.push(case(&name, &[text(payload)], &[echo(payload)]));
        // One fragment for each byte: code points are cut anywhere.
        let mut bytes: Vec<_> = payload.chunks(1).map(|byte| frame(0, byte)).collect();
        bytes[0][0] = TEXT;
        bytes.push(frame(FIN, b""));
        cases.push(case(
            format!("{name}, byte by byte"),
            &bytes,
            &[echo(payload)],
        ));
    }
    let invalid: [&[u8]; 18] = [
        b"\x80",
        b"\xbf",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\xaf",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xf0\x8f\xbf\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe",
        b"\xff",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"Hello-\xc2\xb5@\xc3\x9f\xc3\xb6\xa4",
    ];
    for payload in invalid {
        let name = format!("6 invalid {payload:x?}");
        let refused = [Answer::Close(1007)];
        cases.push(case(&name, &[text(payload)], &refused));
        // Nothing more than the first fragment is sent: it is refused without waiting for the rest.
        cases.push(case(
            format!("{name}, unfinished"),
            &[frame(TEXT, payload)],
            &refused,
        ));
    }
    for cut in [&b"\xce"[..], b"\xe1\xbd", b"\xf0\x90\x80"] {
        let name = format!("6 ends within a character {cut:x?}");
        cases.push(case(name, &[text(cut)], &[Answer::Close(1007)]));
    }
    // 6.4: fail fast within one frame whose rest has not come.
    let mut half = frame(
        FIN | TEXT,
        &[b"\xce\xba\xf4\x90".as_slice(), &[b'a'; 50]].concat(),
    );
    half.truncate(half.len() - 50);
    cases.push(case("6.4 within a frame", &[half], &[Answer::Close(1007)]));
    cases.push(case(
        "6 binary is not looked at",
        &[frame(FIN | BINARY, b"\xff")],
        &[Answer::Frame(BINARY, vec![0xff])],
    ));
    cases
}

/// 7: closing.
fn closes() -> Vec<Case> {
    let mut cases = vec![
        case(
            "7.1.1",
            &[text("Hello"), close(1000, b"")],
            &[echo("Hello"), Answer::Close(1000)],
        ),
        case(
            "7.1.2",
            &[close(1000, b""), close(1000, b"")],
            &[Answer::Close(1000)],
        ),
        case(
            "7.1.3",
            &[close(1000, b""), frame(FIN | PING, b"x")],
            &[Answer::Close(1000)],
        ),
        case(
            "7.1.4",
            &[close(1000, b""), text("late")],
            &[Answer::Close(1000)],
        ),
        case(
            "7.1.5",
            &[frame(TEXT, b"a"), close(1000, b""), frame(FIN, b"b")],
            &[Answer::Close(1000)],
        ),
        case("7.3.2", &[frame(FIN | CLOSE, b"a")], &[Answer::Close(1002)]),
        case("7.3.3", &[close(1000, b"")], &[Answer::Close(1000)]),
        case(
            "7.3.4",
            &[close(1000, b"Hello World!")],
            &[Answer::Close(1000)],
        ),
        case(
            "7.3.5",
            &[close(1000, &[b'*'; 123])],
            &[Answer::Close(1000)],
        ),
        case(
            "7.3.6",
            &[close(1000, &[b'*'; 124])],
            &[Answer::Close(1002)],
        ),
        case(
            "7.5.1",
            &[close(1000, b"\xce\xba\xed\xa0\x80")],
            &[Answer::Close(1007)],
        ),
    ];
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999,
    ] {
        cases.push(case(
            format!("7.7 {code}"),
            &[close(code, b"")],
            &[Answer::Close(code)],
        ));
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535,
    ] {
        cases.push(case(
            format!("7.9 {code}"),
            &[close(code, b"")],
            &[Answer::Close(1002)],
        ));
    }
    cases
}

/// Lengths and masks that no honest client sends.
fn dishonest() -> Vec<Case> {
    let refused = [Answer::Close(1002)];
    let raw = |bytes: &[u8]| vec![bytes.to_vec()];
    vec![
        case("F no mask", &raw(b"\x81\x02hi"), &refused),
        case("F no mask, empty", &raw(b"\x81\x00"), &refused),
        case(
            "F 5 bytes as 16 bits",
            &raw(b"\x81\xfe\x00\x05\0\0\0\0hello"),
            &refused,
        ),
        case(
            "F 5 bytes as 64 bits",
            &raw(b"\x81\xff\0\0\0\0\0\0\0\x05\0\0\0\0hello"),
            &refused,
        ),
        case(
            "F a length with its top bit",
            &raw(b"\x81\xff\x80\0\0\0\0\0\0\0\0\0\0\0"),
            &refused,
        ),
        case(
            "F a ping with 16 bits of length",
            &raw(b"\x89\xfe\x00\x7e\0\0\0\0"),
            &refused,
        ),
        case(
            "F larger than is taken, claimed",
            &raw(b"\x81\xff\0\0\0\x01\0\0\0\0\0\0\0\0"),
            &[Answer::Close(1009)],
        ),
        case(
            "F larger than is taken, in fragments",
            &[frame(TEXT, &[b'a'; 40_000]), frame(0, &[b'a'; 40_000])],
            &[Answer::Close(1009)],
        ),
    ]
}

/// Reads frames; the server's are never masked and, here, never in fragments.
struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Reader {
    async fn need(&mut self, count: usize) -> Result<(), String> {
        while self.bytes.len() < count {
            match self.stream.read_buf(&mut self.bytes).await {
                Ok(0) => return Err("the connection ended".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Answer, String> {
        self.need(2).await?;
        if self.bytes[0] & 0xf0 != FIN || self.bytes[1] & 0x80 != 0 {
            return Err(format!(
                "not a whole frame without a mask: {:x?}",
                &self.bytes[..2]
            ));
        }
        let opcode = self.bytes[0] & 0x0f;
        let (head, length) = match self.bytes[1] {
            126 => {
                self.need(4).await?;
                (
                    4,
                    usize::from(u16::from_be_bytes([self.bytes[2], self.bytes[3]])),
                )
            }
            127 => {
                self.need(10).await?;
                let length = self.bytes[2..10].try_into().expect("eight bytes");
                (
                    10,
                    usize::try_from(u64::from_be_bytes(length)).expect("it fits"),
                )
            }
            length => (2, usize::from(length)),
        };
        self.need(head + length).await?;
        let payload: Vec<u8> = self.bytes.drain(..head + length).skip(head).collect();
        Ok(match (opcode, payload.as_slice()) {
            (CLOSE, []) => Answer::Close(1005),
            (CLOSE, [high, low, ..]) => Answer::Close(u16::from_be_bytes([*high, *low])),
            _ => Answer::Frame(opcode, payload),
        })
    }
}

/// Plays one case; what went wrong.
async fn play(gateway: &Gateway, case: &Case) -> Result<(), String> {
    let token = gateway.tenant().token(ALICE);
    let dial = gateway
        .replica()
        .dial(gateway.tenant(), "/echo/")
        .token(&token);
    let stream = dial.open().await.into_stream();
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let mut reader = Reader {
        stream,
        bytes: Vec::new(),
    };
    let chop = if case.chop == 0 {
        case.send.len()
    } else {
        case.chop
    };
    for piece in case.send.chunks(chop.max(1)) {
        // The gateway may have closed before it has read everything.
        if reader.stream.write_all(piece).await.is_err() {
            break;
        }
        if case.chop > 0 {
            // One segment for each piece.
            tokio::task::yield_now().await;
        }
    }
    for expected in &case.expected {
        let answer = reader.next().await?;
        if answer != *expected {
            return Err(format!("{}, not {}", short(&answer), short(expected)));
        }
    }
    if !matches!(case.expected.last(), Some(Answer::Close(_))) {
        // Still open: it says goodbye when asked to.
        let goodbye = reader.stream.write_all(&close(1000, b"")).await;
        goodbye.map_err(|e| e.to_string())?;
        match reader.next().await? {
            Answer::Close(1000) => {}
            other => return Err(format!("{} instead of a goodbye", short(&other))),
        }
    }
    match reader.next().await {
        Err(_) => Ok(()),
        Ok(answer) => Err(format!("{} after the close frame", short(&answer))),
    }
}

fn short(answer: &Answer) -> String {
    let text = format!("{answer:?}");
    text.chars().take(120).collect()
}

async fn echo_gateway(host: &str) -> Gateway {
    gateway()
        .tenant("acme")
        .with("hosts", vec![host])
        .with("limits.messages_per_second", 0)
        .route("path = 'echo/'\n consumer = { kind = 'echo' }")
        .start()
        .await
}

#[tokio::test]
async fn every_case_has_its_answer() {
    let gateway = echo_gateway("echo.test").await;
    let cases = [
        sizes(),
        pings(),
        reserved(),
        fragments(),
        utf8(),
        closes(),
        dishonest(),
    ];
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in cases.iter().flatten() {
        let played = within(PATIENCE, &case.name, play(&gateway, case)).await;
        if let Err(error) = played {
            wrong.push(format!("{}: {error}", case.name));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
}

/// The suite needs CPython 2.7, which few machines have: it says so itself, and the cases above stand in for it.
#[tokio::test]
async fn the_autobahn_suite_passes_where_it_can_run() {
    let gateway = echo_gateway("*").await;
    let host = gateway.replica().server;
    let token = gateway.tenant().token(ALICE);
    let suite = Program::new("the Autobahn suite", python())
        .args([Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/autobahn/run")])
        .args([format!("ws://{host}/echo/?token={token}")])
        .start();
    let status = suite.exited(Duration::from_secs(600)).await;
    println!("{}", suite.output.text());
    assert!(matches!(status.code(), Some(0 | 2)), "{status}");
}
