//! Hostile upgrade requests as raw bytes, each with the one answer that the contract allows. The ids are those of the
//! catalogue of bad inputs (H01-H42).
//!
//! `catalogue` runs every row of [`rows`] with [`check_upgrade_row`] against a gateway with a sole tenant without `hosts`,
//! `origins` or subprotocols, a route that the given path leads to, and default limits. It also has the rows that need
//! another configuration, several connections, or time: H18 for an unknown host, H26, H28, H42.
//!
//! Left out: H18's equal timing, H27 (`bad_upgrades`), H34-H36 (PROXY and forwarding headers, unit tests of
//! `socket::proxy_protocol` and `socket::client_address`), H37 beyond the default policy (`token::to_user`).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Everything must have happened by then: an answer, the end of the connection.
const DEADLINE: Duration = Duration::from_secs(5);

/// One hostile request.
pub(crate) struct UpgradeRow {
    pub(crate) id: &'static str,
    pub(crate) input: &'static str,
    /// `{path}` and `{token}` stand for the path with its token, and for the token alone.
    pub(crate) request: Vec<u8>,
    pub(crate) expect: Answer,
}

/// What must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A problem document with this status and code, then the end of the connection.
    Refused(u16, &'static str),
    /// The connection ends without a word.
    Cut,
    /// 101, with this subprotocol.
    Opened(Option<&'static str>),
    /// 101, then a close frame with this code.
    OpenedAndClosed(u16),
}

use Answer::{Cut, Opened, OpenedAndClosed, Refused};

const NOT_VALID: Answer = Refused(400, "request_not_valid");
const TOO_LARGE: Answer = Refused(431, "request_too_large");
const REQUIRED: Answer = Refused(426, "upgrade_required");
const NO_ROUTE: Answer = Refused(404, "route_not_found");
const NOT_ALLOWED: Answer = Refused(405, "method_not_allowed");
const BAD_ORIGIN: Answer = Refused(403, "origin_not_allowed");

/// A valid upgrade with this request line; `changes` replace all headers of their names, or, with `-`, take them away.
fn request(line: &str, changes: &[(&str, &str)]) -> Vec<u8> {
    let mut headers = vec![
        ("Host", "localhost"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ];
    headers.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    headers.extend(changes.iter().filter(|(_, value)| *value != "-"));
    let mut text = format!("{line}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    (text + "\r\n").into_bytes()
}

const GET: &str = "GET {path} HTTP/1.1";

fn with(changes: &[(&str, &str)]) -> Vec<u8> {
    request(GET, changes)
}

/// A valid upgrade with `line` as one more line of its head.
fn with_line(line: &[u8]) -> Vec<u8> {
    let mut bytes = with(&[]);
    bytes.truncate(bytes.len() - 2);
    [&bytes, line, b"\r\n\r\n"].concat()
}

fn followed_by(changes: &[(&str, &str)], rest: &[u8]) -> Vec<u8> {
    [&with(changes), rest].concat()
}

/// Every row; the requests are made anew at each call.
pub(crate) fn rows() -> Vec<UpgradeRow> {
    let mut rows = Vec::new();
    for table in [
        request_lines(),
        upgrade_headers(),
        syntax(),
        sizes(),
        offers(),
    ] {
        let row = |(id, input, request, expect)| UpgradeRow {
            id,
            input,
            request,
            expect,
        };
        rows.extend(table.into_iter().map(row));
    }
    rows
}

type Row = (&'static str, &'static str, Vec<u8>, Answer);

fn request_lines() -> Vec<Row> {
    vec![
        ("--", "the valid request", with(&[]), Opened(None)),
        (
            "H01",
            "POST",
            request("POST {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "H01",
            "HEAD",
            request("HEAD {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "H01",
            "PUT",
            request("PUT {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "H01",
            "lower case",
            request("get {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "H02",
            "HTTP/1.0",
            request("GET {path} HTTP/1.0", &[]),
            NOT_VALID,
        ),
        ("H02", "HTTP/0.9", b"GET {path}\r\n".to_vec(), NOT_VALID),
        (
            "H02",
            "HTTP/1.1x",
            request("GET {path} HTTP/1.1x", &[]),
            NOT_VALID,
        ),
        ("H16", "%00", request("GET /%00 HTTP/1.1", &[]), NO_ROUTE),
        ("H16", "%zz", request("GET /%zz HTTP/1.1", &[]), NO_ROUTE),
        (
            "H16",
            "/../",
            request("GET /../../etc/passwd HTTP/1.1", &[]),
            NO_ROUTE,
        ),
        ("H16", "//x", request("GET //x HTTP/1.1", &[]), NO_ROUTE),
        (
            "H16",
            "raw high bytes",
            request("GET /\u{e9} HTTP/1.1", &[]),
            NOT_VALID,
        ),
        (
            "H17",
            "line end in the path",
            request("GET /%0d%0aX:1 HTTP/1.1", &[]),
            NO_ROUTE,
        ),
        (
            "H18",
            "unknown path",
            request("GET /no/such/route HTTP/1.1", &[]),
            NO_ROUTE,
        ),
        (
            "H31",
            "HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            NOT_VALID,
        ),
        (
            "H32",
            "TLS hello",
            b"\x16\x03\x01\x00\xee\x01\x00\x00\xea\x03\x03".to_vec(),
            Cut,
        ),
        (
            "H33",
            "PROXY v1",
            [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", &with(&[])[..]].concat(),
            NOT_VALID,
        ),
        (
            "H33",
            "PROXY v2",
            [b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", &with(&[])[..]].concat(),
            NOT_VALID,
        ),
    ]
}

fn upgrade_headers() -> Vec<Row> {
    let long_key = "a".repeat(4096);
    vec![
        ("H03", "no Upgrade", with(&[("Upgrade", "-")]), REQUIRED),
        ("H03", "h2c", with(&[("Upgrade", "h2c")]), REQUIRED),
        (
            "H03",
            "websocketx",
            with(&[("Upgrade", "websocketx")]),
            REQUIRED,
        ),
        ("H03", "empty", with(&[("Upgrade", "")]), REQUIRED),
        (
            "H04",
            "no Connection",
            with(&[("Connection", "-")]),
            REQUIRED,
        ),
        (
            "H04",
            "keep-alive",
            with(&[("Connection", "keep-alive")]),
            REQUIRED,
        ),
        (
            "H04",
            "notupgrade",
            with(&[("Connection", "notupgrade")]),
            REQUIRED,
        ),
        (
            "H05",
            "no key",
            with(&[("Sec-WebSocket-Key", "-")]),
            NOT_VALID,
        ),
        (
            "H05",
            "empty",
            with(&[("Sec-WebSocket-Key", "")]),
            NOT_VALID,
        ),
        (
            "H05",
            "15 bytes",
            with(&[("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA")]),
            NOT_VALID,
        ),
        (
            "H05",
            "17 bytes",
            with(&[("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA=")]),
            NOT_VALID,
        ),
        (
            "H05",
            "not base64",
            with(&[("Sec-WebSocket-Key", "dGhl?HNhbXBsZSBub25jZQ==")]),
            NOT_VALID,
        ),
        (
            "H05",
            "4 KiB",
            with(&[("Sec-WebSocket-Key", &long_key)]),
            NOT_VALID,
        ),
        (
            "H06",
            "two keys",
            with(&[("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Key", KEY)]),
            NOT_VALID,
        ),
        (
            "H07",
            "missing",
            with(&[("Sec-WebSocket-Version", "-")]),
            REQUIRED,
        ),
        (
            "H07",
            "8",
            with(&[("Sec-WebSocket-Version", "8")]),
            REQUIRED,
        ),
        (
            "H07",
            "12",
            with(&[("Sec-WebSocket-Version", "12")]),
            REQUIRED,
        ),
        (
            "H07",
            "14",
            with(&[("Sec-WebSocket-Version", "14")]),
            REQUIRED,
        ),
        (
            "H07",
            "255",
            with(&[("Sec-WebSocket-Version", "255")]),
            REQUIRED,
        ),
        (
            "H07",
            "abc",
            with(&[("Sec-WebSocket-Version", "abc")]),
            REQUIRED,
        ),
        (
            "H07",
            "-13",
            with(&[("Sec-WebSocket-Version", "-13")]),
            REQUIRED,
        ),
        (
            "H08",
            "two versions",
            with(&[
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Version", "8"),
            ]),
            NOT_VALID,
        ),
        ("H09", "no Host", with(&[("Host", "-")]), NOT_VALID),
        (
            "H09",
            "two Hosts",
            with(&[("Host", "localhost"), ("Host", "localhost")]),
            NOT_VALID,
        ),
        (
            "H09",
            "bad Host",
            with(&[("Host", "u@localhost/x")]),
            NOT_VALID,
        ),
        (
            "H37",
            "foreign origin",
            with(&[("Origin", "https://app.example.evil")]),
            BAD_ORIGIN,
        ),
        ("H37", "null", with(&[("Origin", "null")]), BAD_ORIGIN),
        (
            "H37",
            "suffix trick",
            with(&[("Origin", "http://localhost.evil.example")]),
            BAD_ORIGIN,
        ),
        (
            "H37",
            "other port",
            with(&[("Origin", "http://localhost:81")]),
            BAD_ORIGIN,
        ),
        (
            "H38",
            "two origins",
            with(&[
                ("Origin", "http://localhost"),
                ("Origin", "http://localhost"),
            ]),
            BAD_ORIGIN,
        ),
        (
            "H39",
            "own origin",
            with(&[("Origin", "http://localhost")]),
            Opened(None),
        ),
    ]
}

fn syntax() -> Vec<Row> {
    let chunked = ("Transfer-Encoding", "chunked");
    let frame = b"\x81\x85\0\0\0\0Hello";
    vec![
        ("H10", "NUL", with_line(b"X: a\0b"), NOT_VALID),
        ("H10", "bare CR", with_line(b"X: a\rb"), NOT_VALID),
        ("H10", "bare LF", with_line(b"X: a\nY: b"), NOT_VALID),
        (
            "H11",
            "blank before the colon",
            with_line(b"X : a"),
            NOT_VALID,
        ),
        ("H11", "no colon", with_line(b"X"), NOT_VALID),
        ("H11", "empty name", with_line(b": a"), NOT_VALID),
        ("H11", "name is no token", with_line(b"X(y): a"), NOT_VALID),
        ("H12", "folded line", with_line(b"X: a\r\n b"), NOT_VALID),
        ("H12", "leading blank", with_line(b" X: a"), NOT_VALID),
        (
            "H13",
            "length and chunks",
            with(&[("Content-Length", "5"), chunked]),
            NOT_VALID,
        ),
        (
            "H13",
            "two lengths",
            with(&[("Content-Length", "0"), ("Content-Length", "0")]),
            NOT_VALID,
        ),
        ("H13", "-1", with(&[("Content-Length", "-1")]), NOT_VALID),
        ("H13", "+5", with(&[("Content-Length", "+5")]), NOT_VALID),
        (
            "H13",
            "23 digits",
            with(&[("Content-Length", "00000000000000000000005")]),
            NOT_VALID,
        ),
        (
            "H14",
            "body",
            followed_by(&[("Content-Length", "5")], b"Hello"),
            NOT_VALID,
        ),
        (
            "H14",
            "chunked body",
            followed_by(&[chunked], b"5\r\nHello\r\n0\r\n\r\n"),
            NOT_VALID,
        ),
        (
            "H15",
            "unknown coding",
            with(&[("Transfer-Encoding", "gzip")]),
            NOT_VALID,
        ),
        (
            "H17",
            "line end in a header",
            with(&[("User-Agent", "a%0d%0ab")]),
            Opened(None),
        ),
        (
            "H21",
            "Expect",
            with(&[("Expect", "100-continue")]),
            Opened(None),
        ),
        (
            "H29",
            "frames after a refusal",
            followed_by(&[("Upgrade", "-")], frame),
            REQUIRED,
        ),
        (
            "H29",
            "a request after a refusal",
            followed_by(&[("Upgrade", "-")], &with(&[])),
            REQUIRED,
        ),
        (
            "H30",
            "a second request",
            followed_by(&[], &with(&[])),
            OpenedAndClosed(1002),
        ),
    ]
}

fn sizes() -> Vec<Row> {
    let line = format!("GET /{} HTTP/1.1", "a".repeat(16 * 1024));
    vec![
        (
            "H22",
            "2000 headers",
            with_line("a: b\r\n".repeat(2000).trim_end().as_bytes()),
            TOO_LARGE,
        ),
        (
            "H23",
            "a header of 33 KiB",
            with(&[("X", &"a".repeat(33 * 1024))]),
            TOO_LARGE,
        ),
        (
            "H23",
            "a header of 1 MiB",
            with(&[("X", &"a".repeat(1 << 20))]),
            TOO_LARGE,
        ),
        (
            "H24",
            "a request line over 16 KiB",
            request(&line, &[]),
            Refused(414, "request_too_large"),
        ),
        (
            "H25",
            "endless name",
            [b"GET / HTTP/1.1\r\n", &[b'n'; 40_000][..]].concat(),
            TOO_LARGE,
        ),
    ]
}

fn offers() -> Vec<Row> {
    let protocol = |offers: &str| with(&[("Sec-WebSocket-Protocol", offers)]);
    let extensions = |offers: &str| with(&[("Sec-WebSocket-Extensions", offers)]);
    let blanks = format!("a{}b", " ".repeat(8192));
    vec![
        ("H19", "8 KiB of blanks", protocol(&blanks), Opened(None)),
        (
            "H19",
            "200 offers",
            protocol(&vec!["other"; 200].join(", ")),
            Opened(None),
        ),
        ("H20", "the token", protocol("{token}"), Opened(None)),
        (
            "H20",
            "bearer and the token",
            protocol("bearer, {token}"),
            Opened(Some("bearer")),
        ),
        (
            "H40",
            "window bits 7",
            extensions("permessage-deflate; server_max_window_bits=7"),
            Opened(None),
        ),
        (
            "H40",
            "unknown parameter",
            extensions("permessage-deflate; x=1; x=1"),
            Opened(None),
        ),
        (
            "H41",
            "350 extensions",
            extensions(&vec!["x-webkit"; 350].join(", ")),
            Opened(None),
        ),
    ]
}

/// Sends the row's bytes to `addr` and holds the answer against it.
///
/// `path` has the token as its query's last parameter, `token`.
///
/// # Panics
/// With the row's id, if the answer is another one or does not come within five seconds.
pub(crate) async fn check_upgrade_row(addr: SocketAddr, path: &str, row: &UpgradeRow) {
    let name = format!("{} {}", row.id, row.input);
    let token = path.rsplit_once("token=").map_or("", |(_, token)| token);
    let request = fill(&row.request, &[("{path}", path), ("{token}", token)]);
    let answer = timeout(DEADLINE, exchange(addr, &request, row.expect)).await;
    let answer = answer.unwrap_or_else(|_| panic!("{name}: no answer in time"));
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        token.is_empty() || !text.contains(token),
        "{name}: echoes the token"
    );
    if row.expect == Cut {
        assert_eq!(text, "", "{name}");
        return;
    }
    let (head, _) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{name}: {text:?}"));
    let rest = &answer[head.len() + 4..];
    match row.expect {
        Refused(status, code) => check_refusal(&name, head, rest, status, code, &request),
        Opened(subprotocol) => check_opened(&name, head, subprotocol),
        OpenedAndClosed(code) => {
            check_opened(&name, head, None);
            let [first, _, high, low, ..] = *rest else {
                panic!("{name}: no close frame in {rest:?}");
            };
            assert_eq!(
                (first, u16::from_be_bytes([high, low])),
                (0x88, code),
                "{name}"
            );
        }
        Cut => {}
    }
}

fn fill(template: &[u8], values: &[(&str, &str)]) -> Vec<u8> {
    let mut filled = template.to_vec();
    for (name, value) in values {
        while let Some(at) = filled
            .windows(name.len())
            .position(|w| w == name.as_bytes())
        {
            filled.splice(at..at + name.len(), value.bytes());
        }
    }
    filled
}

/// What comes back until the connection ends; of an opened socket, the head.
async fn exchange(addr: SocketAddr, request: &[u8], expect: Answer) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("the gateway listens");
    let (mut reading, mut writing) = stream.split();
    // The gateway may answer and close before it has read everything: then writing fails, and the answer counts.
    let send = async { writing.write_all(request).await.ok() };
    let receive = async {
        let mut answer = Vec::new();
        while let Ok(1..) = reading.read_buf(&mut answer).await {
            let opened = answer.starts_with(b"HTTP/1.1 101 ");
            let complete = answer.windows(4).any(|w| w == b"\r\n\r\n");
            if matches!(expect, Opened(_)) && opened && complete {
                break;
            }
        }
        answer
    };
    let (_, answer) = tokio::join!(send, receive);
    answer
}

fn check_refusal(name: &str, head: &str, body: &[u8], status: u16, code: &str, request: &[u8]) {
    let head = head.to_ascii_lowercase();
    let has = |text: &str| assert!(head.contains(text), "{name}: no {text} in {head}");
    assert!(
        head.starts_with(&format!("http/1.1 {status} ")),
        "{name}: {head}"
    );
    has("content-type: application/problem+json");
    has("cache-control: no-store");
    match status {
        405 => has("allow: get"),
        426 => has("sec-websocket-version: 13"),
        _ => {}
    }
    if request.starts_with(b"HEAD") {
        return assert!(body.is_empty(), "{name}");
    }
    // One document and nothing after it: what was sent behind the request was not answered.
    let document: serde_json::Value = serde_json::from_slice(body)
        .unwrap_or_else(|error| panic!("{name}: {error} in {:?}", body.escape_ascii().to_string()));
    assert_eq!(document["code"], code, "{name}");
    assert_eq!(document["status"], status, "{name}");
    assert_eq!(
        document["type"],
        format!("urn:lockgate:problem:{code}"),
        "{name}"
    );
}

fn check_opened(name: &str, head: &str, subprotocol: Option<&str>) {
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{name}: {head}");
    assert!(!head.contains("sec-websocket-extensions"), "{name}: {head}");
    let header = |header: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(header)?.strip_prefix(": "))
    };
    assert_eq!(header("sec-websocket-protocol"), subprotocol, "{name}");
    let accept = header("sec-websocket-accept");
    assert_eq!(accept, Some("s3pplmbitxaq9kygzzhzrbk+xoo="), "{name}");
}
