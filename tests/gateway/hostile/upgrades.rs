//! Hostile upgrade requests as raw bytes, each with the only permitted answer.
//!
//! `catalogue` runs every row of [`rows`] with [`check_upgrade_row`] against a gateway with a sole tenant without `hosts`,
//! `origins` or subprotocols, a route that the given path leads to, and default limits. It also has the cases that need
//! another configuration, several connections, or time: an unknown host, slow and half handshakes, a drain.
//!
//! Unit tests of `socket::proxy_protocol` and `socket::client_address` cover PROXY and forwarding headers; `token::to_user`
//! covers origins beyond the default policy.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The time for one row: the answer and the end of the connection.
const DEADLINE: Duration = Duration::from_secs(5);

/// One hostile request.
pub(crate) struct UpgradeRow {
    pub(crate) subject: &'static str,
    pub(crate) input: &'static str,
    /// `{path}` and `{token}` stand for the path with its token, and for the token alone.
    pub(crate) request: Vec<u8>,
    pub(crate) expect: Answer,
}

/// The answer of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A problem document with this status and code, then the end of the connection.
    Refused(u16, &'static str),
    /// The end of the connection without an answer.
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

/// Returns a valid upgrade with this request line. `changes` replace all headers of their names; `-` removes them.
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

/// Returns a valid upgrade with `line` as the last line of its head.
fn with_line(line: &[u8]) -> Vec<u8> {
    let mut bytes = with(&[]);
    bytes.truncate(bytes.len() - 2);
    [&bytes, line, b"\r\n\r\n"].concat()
}

fn followed_by(changes: &[(&str, &str)], rest: &[u8]) -> Vec<u8> {
    [&with(changes), rest].concat()
}

/// Makes every row.
pub(crate) fn rows() -> Vec<UpgradeRow> {
    let mut rows = Vec::new();
    for table in [
        request_lines(),
        upgrade_headers(),
        syntax(),
        sizes(),
        offers(),
    ] {
        let row = |(subject, input, request, expect)| UpgradeRow {
            subject,
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
            "method",
            "POST",
            request("POST {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "method",
            "HEAD",
            request("HEAD {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "method",
            "PUT",
            request("PUT {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "method",
            "lower case",
            request("get {path} HTTP/1.1", &[]),
            NOT_ALLOWED,
        ),
        (
            "HTTP version",
            "HTTP/1.0",
            request("GET {path} HTTP/1.0", &[]),
            NOT_VALID,
        ),
        (
            "HTTP version",
            "HTTP/0.9",
            b"GET {path}\r\n".to_vec(),
            NOT_VALID,
        ),
        (
            "HTTP version",
            "HTTP/1.1x",
            request("GET {path} HTTP/1.1x", &[]),
            NOT_VALID,
        ),
        ("path", "%00", request("GET /%00 HTTP/1.1", &[]), NO_ROUTE),
        ("path", "%zz", request("GET /%zz HTTP/1.1", &[]), NO_ROUTE),
        (
            "path",
            "/../",
            request("GET /../../etc/passwd HTTP/1.1", &[]),
            NO_ROUTE,
        ),
        ("path", "//x", request("GET //x HTTP/1.1", &[]), NO_ROUTE),
        (
            "path",
            "raw high bytes",
            request("GET /\u{e9} HTTP/1.1", &[]),
            NOT_VALID,
        ),
        (
            "encoded line end",
            "line end in the path",
            request("GET /%0d%0aX:1 HTTP/1.1", &[]),
            NO_ROUTE,
        ),
        (
            "route",
            "unknown path",
            request("GET /no/such/route HTTP/1.1", &[]),
            NO_ROUTE,
        ),
        (
            "other protocol",
            "HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            NOT_VALID,
        ),
        (
            "other protocol",
            "TLS hello",
            b"\x16\x03\x01\x00\xee\x01\x00\x00\xea\x03\x03".to_vec(),
            Cut,
        ),
        (
            "other protocol",
            "PROXY v1",
            [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", &with(&[])[..]].concat(),
            NOT_VALID,
        ),
        (
            "other protocol",
            "PROXY v2",
            [b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", &with(&[])[..]].concat(),
            NOT_VALID,
        ),
    ]
}

fn upgrade_headers() -> Vec<Row> {
    let long_key = "a".repeat(4096);
    vec![
        ("Upgrade", "no Upgrade", with(&[("Upgrade", "-")]), REQUIRED),
        ("Upgrade", "h2c", with(&[("Upgrade", "h2c")]), REQUIRED),
        (
            "Upgrade",
            "websocketx",
            with(&[("Upgrade", "websocketx")]),
            REQUIRED,
        ),
        ("Upgrade", "empty", with(&[("Upgrade", "")]), REQUIRED),
        (
            "Connection",
            "no Connection",
            with(&[("Connection", "-")]),
            REQUIRED,
        ),
        (
            "Connection",
            "keep-alive",
            with(&[("Connection", "keep-alive")]),
            REQUIRED,
        ),
        (
            "Connection",
            "notupgrade",
            with(&[("Connection", "notupgrade")]),
            REQUIRED,
        ),
        (
            "key",
            "no key",
            with(&[("Sec-WebSocket-Key", "-")]),
            NOT_VALID,
        ),
        (
            "key",
            "empty",
            with(&[("Sec-WebSocket-Key", "")]),
            NOT_VALID,
        ),
        (
            "key",
            "15 bytes",
            with(&[("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA")]),
            NOT_VALID,
        ),
        (
            "key",
            "17 bytes",
            with(&[("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA=")]),
            NOT_VALID,
        ),
        (
            "key",
            "not base64",
            with(&[("Sec-WebSocket-Key", "dGhl?HNhbXBsZSBub25jZQ==")]),
            NOT_VALID,
        ),
        (
            "key",
            "4 KiB",
            with(&[("Sec-WebSocket-Key", &long_key)]),
            NOT_VALID,
        ),
        (
            "key",
            "two keys",
            with(&[("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Key", KEY)]),
            NOT_VALID,
        ),
        (
            "version",
            "missing",
            with(&[("Sec-WebSocket-Version", "-")]),
            REQUIRED,
        ),
        (
            "version",
            "8",
            with(&[("Sec-WebSocket-Version", "8")]),
            REQUIRED,
        ),
        (
            "version",
            "12",
            with(&[("Sec-WebSocket-Version", "12")]),
            REQUIRED,
        ),
        (
            "version",
            "14",
            with(&[("Sec-WebSocket-Version", "14")]),
            REQUIRED,
        ),
        (
            "version",
            "255",
            with(&[("Sec-WebSocket-Version", "255")]),
            REQUIRED,
        ),
        (
            "version",
            "abc",
            with(&[("Sec-WebSocket-Version", "abc")]),
            REQUIRED,
        ),
        (
            "version",
            "-13",
            with(&[("Sec-WebSocket-Version", "-13")]),
            REQUIRED,
        ),
        (
            "version",
            "two versions",
            with(&[
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Version", "8"),
            ]),
            NOT_VALID,
        ),
        ("Host", "no Host", with(&[("Host", "-")]), NOT_VALID),
        (
            "Host",
            "two Hosts",
            with(&[("Host", "localhost"), ("Host", "localhost")]),
            NOT_VALID,
        ),
        (
            "Host",
            "bad Host",
            with(&[("Host", "u@localhost/x")]),
            NOT_VALID,
        ),
        (
            "origin",
            "foreign origin",
            with(&[("Origin", "https://app.example.evil")]),
            BAD_ORIGIN,
        ),
        ("origin", "null", with(&[("Origin", "null")]), BAD_ORIGIN),
        (
            "origin",
            "suffix trick",
            with(&[("Origin", "http://localhost.evil.example")]),
            BAD_ORIGIN,
        ),
        (
            "origin",
            "other port",
            with(&[("Origin", "http://localhost:81")]),
            BAD_ORIGIN,
        ),
        (
            "origin",
            "two origins",
            with(&[
                ("Origin", "http://localhost"),
                ("Origin", "http://localhost"),
            ]),
            BAD_ORIGIN,
        ),
        (
            "origin",
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
        ("header value", "NUL", with_line(b"X: a\0b"), NOT_VALID),
        ("header value", "bare CR", with_line(b"X: a\rb"), NOT_VALID),
        (
            "header value",
            "bare LF",
            with_line(b"X: a\nY: b"),
            NOT_VALID,
        ),
        (
            "header name",
            "blank before the colon",
            with_line(b"X : a"),
            NOT_VALID,
        ),
        ("header name", "no colon", with_line(b"X"), NOT_VALID),
        ("header name", "empty name", with_line(b": a"), NOT_VALID),
        (
            "header name",
            "name is no token",
            with_line(b"X(y): a"),
            NOT_VALID,
        ),
        ("line", "folded line", with_line(b"X: a\r\n b"), NOT_VALID),
        ("line", "leading blank", with_line(b" X: a"), NOT_VALID),
        (
            "length",
            "length and chunks",
            with(&[("Content-Length", "5"), chunked]),
            NOT_VALID,
        ),
        (
            "length",
            "two lengths",
            with(&[("Content-Length", "0"), ("Content-Length", "0")]),
            NOT_VALID,
        ),
        ("length", "-1", with(&[("Content-Length", "-1")]), NOT_VALID),
        ("length", "+5", with(&[("Content-Length", "+5")]), NOT_VALID),
        (
            "length",
            "23 digits",
            with(&[("Content-Length", "00000000000000000000005")]),
            NOT_VALID,
        ),
        (
            "body",
            "body",
            followed_by(&[("Content-Length", "5")], b"Hello"),
            NOT_VALID,
        ),
        (
            "body",
            "chunked body",
            followed_by(&[chunked], b"5\r\nHello\r\n0\r\n\r\n"),
            NOT_VALID,
        ),
        (
            "coding",
            "unknown coding",
            with(&[("Transfer-Encoding", "gzip")]),
            NOT_VALID,
        ),
        (
            "encoded line end",
            "line end in a header",
            with(&[("User-Agent", "a%0d%0ab")]),
            Opened(None),
        ),
        (
            "Expect",
            "Expect",
            with(&[("Expect", "100-continue")]),
            Opened(None),
        ),
        (
            "after a refusal",
            "frames after a refusal",
            followed_by(&[("Upgrade", "-")], frame),
            REQUIRED,
        ),
        (
            "after a refusal",
            "a request after a refusal",
            followed_by(&[("Upgrade", "-")], &with(&[])),
            REQUIRED,
        ),
        (
            "after the 101",
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
            "size",
            "2000 headers",
            with_line("a: b\r\n".repeat(2000).trim_end().as_bytes()),
            TOO_LARGE,
        ),
        (
            "size",
            "a header of 33 KiB",
            with(&[("X", &"a".repeat(33 * 1024))]),
            TOO_LARGE,
        ),
        (
            "size",
            "a header of 1 MiB",
            with(&[("X", &"a".repeat(1 << 20))]),
            TOO_LARGE,
        ),
        (
            "size",
            "a request line over 16 KiB",
            request(&line, &[]),
            Refused(414, "request_too_large"),
        ),
        (
            "size",
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
        (
            "subprotocol",
            "8 KiB of blanks",
            protocol(&blanks),
            Opened(None),
        ),
        (
            "subprotocol",
            "200 offers",
            protocol(&vec!["other"; 200].join(", ")),
            Opened(None),
        ),
        (
            "subprotocol",
            "the token",
            protocol("{token}"),
            Opened(None),
        ),
        (
            "subprotocol",
            "bearer and the token",
            protocol("bearer, {token}"),
            Opened(Some("bearer")),
        ),
        (
            "extension",
            "window bits 7",
            extensions("permessage-deflate; server_max_window_bits=7"),
            Opened(None),
        ),
        (
            "extension",
            "unknown parameter",
            extensions("permessage-deflate; x=1; x=1"),
            Opened(None),
        ),
        (
            "extension",
            "350 extensions",
            extensions(&vec!["x-webkit"; 350].join(", ")),
            Opened(None),
        ),
    ]
}

/// Sends the row's bytes to `addr` and compares the answer with the row.
///
/// `path` has the token as its query's last parameter, `token`.
///
/// # Panics
/// With the row's subject and input if the answer is another one or does not come within five seconds.
pub(crate) async fn check_upgrade_row(addr: SocketAddr, path: &str, row: &UpgradeRow) {
    let name = format!("{} {}", row.subject, row.input);
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

/// Returns the answer until the end of the connection, or the head of an opened socket.
async fn exchange(addr: SocketAddr, request: &[u8], expect: Answer) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("the gateway listens");
    let (mut reading, mut writing) = stream.split();
    // The gateway may answer and close before it has read everything. Writing fails then, and the answer counts.
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
    // One document and nothing after it, because the bytes behind the request get no answer.
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
