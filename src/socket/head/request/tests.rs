//! Well-formed and hostile request heads, without a network.

use super::*;

/// Returns true if the head in these bytes is complete, or its refusal.
fn read(lines: &mut HeadLines, bytes: &[u8]) -> Result<bool, Refusal> {
    match lines.advance(bytes)? {
        Some(length) => parse(&Bytes::copy_from_slice(&bytes[..length])).map(|_| true),
        None => Ok(false),
    }
}

fn read_whole(bytes: &[u8]) -> Result<bool, Refusal> {
    read(&mut HeadLines::default(), bytes)
}

/// Returns the verdict, and checks that it does not depend on the segments in which the bytes arrive.
#[track_caller]
fn scan(head: &[u8]) -> Result<bool, Refusal> {
    let whole = read_whole(head);
    let mut by_byte = HeadLines::default();
    let mut last = Ok(false);
    for end in 0..=head.len() {
        last = read(&mut by_byte, &head[..end]);
        if last != Ok(false) {
            break;
        }
    }
    assert_eq!(last, whole, "{}", head.escape_ascii());
    whole
}

fn with_header(header: &str) -> Vec<u8> {
    format!("GET /ws/?token=x HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n").into_bytes()
}

#[test]
fn well_formed_heads() {
    for header in [
        "Upgrade: websocket",
        "X:",
        "X: \t v \t",
        "X-Latin: \u{e9}",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
    ] {
        assert_eq!(scan(&with_header(header)), Ok(true), "{header}");
    }
    assert_eq!(scan(b"get http://a/ws HTTP/1.1\r\n\r\n"), Ok(true));
    assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(false));
    assert_eq!(scan(b""), Ok(false));
}

#[test]
fn what_follows_the_head_is_not_looked_at() {
    let mut head = with_header("A: b");
    head.extend([0xff; 40_000]);
    assert_eq!(read_whole(&head), Ok(true));
}

#[test]
fn malformed_request_lines() {
    for (row, line) in [
        ("HTTP/1.0", "GET / HTTP/1.0"),
        ("HTTP/0.9", "GET /"),
        ("HTTP/1.1x", "GET / HTTP/1.1x"),
        ("lower case", "GET / http/1.1"),
        ("HTTP/2 preface", "PRI * HTTP/2.0"),
        ("PROXY line", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2"),
        ("raw high byte", "GET /\u{e9} HTTP/1.1"),
        ("tab", "GET /\t HTTP/1.1"),
        ("fragment", "GET /#a HTTP/1.1"),
        ("two blanks", "GET  / HTTP/1.1"),
        ("trailing blank", "GET / HTTP/1.1 "),
        ("no method", " / HTTP/1.1"),
        ("method is no token", "G(T / HTTP/1.1"),
        ("asterisk", "GET * HTTP/1.1"),
        ("authority", "GET a:80 HTTP/1.1"),
        ("no target", "GET HTTP/1.1"),
        ("NUL", "GET /\0 HTTP/1.1"),
        ("bare CR", "GET /\r HTTP/1.1"),
        ("empty", ""),
    ] {
        let head = format!("{line}\r\nHost: a\r\n\r\n");
        assert_eq!(
            scan(head.as_bytes()),
            Err(Refusal::RequestNotValid),
            "{row}"
        );
    }
    let signature = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
    assert_eq!(scan(signature), Err(Refusal::RequestNotValid), "v2");
    let hello = b"\x16\x03\x01\x02\x00\x01";
    assert_eq!(
        scan(hello),
        Err(Refusal::RequestNotValid),
        "a TLS handshake"
    );
}

#[test]
fn malformed_headers() {
    for (row, header) in [
        ("NUL", "X: a\0b"),
        ("bare CR", "X: a\rb"),
        ("bare LF", "X: a\nY: b"),
        ("escape", "X: \x1b[31m"),
        ("DEL", "X: \x7f"),
        ("blank before the colon", "X : a"),
        ("no colon", "X"),
        ("empty name", ": a"),
        ("name is no token", "X(y): a"),
        ("name beyond ASCII", "\u{e9}: a"),
        ("folded line", "X: a\r\n b"),
        ("leading tab", "\tX: a"),
        (
            "length and chunks",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
        ),
        (
            "chunks and length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
        ),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 5"),
        ("a list", "Content-Length: 5, 5"),
        ("negative", "Content-Length: -1"),
        ("sign", "Content-Length: +5"),
        ("23 digits", "Content-Length: 00000000000000000000005"),
        ("empty", "Content-Length:"),
        ("unknown", "Transfer-Encoding: gzip"),
        ("list", "Transfer-Encoding: gzip, chunked"),
        (
            "twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
    ] {
        assert_eq!(
            scan(&with_header(header)),
            Err(Refusal::RequestNotValid),
            "{row}"
        );
    }
    assert_eq!(
        scan(b"GET / HTTP/1.1\nHost: a\n\n"),
        Err(Refusal::RequestNotValid),
        "bare line ends"
    );
}

/// A request whose line, line end apart, has `len` bytes.
fn request_line(len: usize) -> Vec<u8> {
    let fixed = "GET / HTTP/1.1".len();
    format!("GET /{} HTTP/1.1", "a".repeat(len - fixed)).into_bytes()
}

#[test]
fn sizes_are_bounded_to_the_byte() {
    let mut exact = request_line(MAX_REQUEST_LINE);
    exact.extend(b"\r\nHost: a\r\n\r\n");
    assert_eq!(scan(&exact), Ok(true));
    let over = request_line(MAX_REQUEST_LINE + 1);
    let too_large = Err(Refusal::RequestLineTooLarge);
    assert_eq!(scan(&over), Ok(false), "the line end may follow");
    let with_end = [&over[..], b"\r\n"].concat();
    assert_eq!(scan(&with_end), too_large, "with its line end");
    assert_eq!(scan(&[b'a'; 1 << 20][..20_000]), too_large, "no blank");

    let fixed = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
    for (len, verdict) in [
        (MAX_HEAD, Ok(true)),
        (MAX_HEAD + 1, Err(Refusal::HeadTooLarge)),
    ] {
        let value = "a".repeat(len - fixed);
        let head = format!("GET / HTTP/1.1\r\nX: {value}\r\n\r\n");
        assert_eq!(read_whole(head.as_bytes()), verdict, "{len} bytes");
    }
    let endless = format!("GET / HTTP/1.1\r\n{}", "n".repeat(MAX_HEAD));
    let verdict = read_whole(endless.as_bytes());
    assert_eq!(verdict, Err(Refusal::HeadTooLarge), "an endless line");
}

#[test]
fn a_hundred_headers_and_no_more() {
    for (count, verdict) in [
        (MAX_HEADERS, Ok(true)),
        (MAX_HEADERS + 1, Err(Refusal::HeadTooLarge)),
        (2000, Err(Refusal::HeadTooLarge)),
    ] {
        let head = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert_eq!(scan(head.as_bytes()), verdict, "{count}");
    }
}

#[test]
fn a_wrong_line_is_told_before_the_head_is_complete() {
    let mut lines = HeadLines::default();
    assert_eq!(lines.advance(b"GET / HTTP/1.1\r\nX : a"), Ok(None));
    let wrong = lines.advance(b"GET / HTTP/1.1\r\nX : a\r\n");
    assert_eq!(wrong, Err(Refusal::RequestNotValid));
}

#[test]
fn the_first_thing_that_is_wrong_counts() {
    let long = "a".repeat(MAX_HEAD);
    let head = format!("GET / HTTP/1.1\r\nX : a\r\nY: {long}\r\n\r\n");
    assert_eq!(scan(head.as_bytes()), Err(Refusal::RequestNotValid));
}

#[test]
fn the_parts_are_those_that_were_sent() {
    let head =
        b"GET http://a:80/ws/?token=x HTTP/1.1\r\nhost: a:80\r\nX:  b, c \r\nx: d\r\nY:\r\n\r\n";
    let parts = parse(&Bytes::from_static(head)).unwrap();
    assert_eq!(parts.method, Method::GET);
    assert_eq!(parts.uri.path(), "/ws/");
    assert_eq!(parts.uri.query(), Some("token=x"));
    assert_eq!(
        parts.uri.authority().map(|host| host.as_str()),
        Some("a:80")
    );
    let values: Vec<_> = parts.headers.get_all("x").iter().collect();
    assert_eq!(values, ["b, c", "d"]);
    assert_eq!(parts.headers["y"], "");
}
