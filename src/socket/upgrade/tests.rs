//! Well-formed and hostile upgrades, without a network.

use std::time::{Duration, Instant};

use axum::http::Request;

use super::*;

/// A name, what is changed in a valid upgrade, what comes of it.
type Row<'a, T> = (&'a str, &'a [(&'a str, &'a str)], Option<T>);

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A valid upgrade with `changes`: lines that replace the header of their name; without a value, the header goes.
fn parts(changes: &[(&str, &str)]) -> Parts {
    let mut headers = vec![
        ("host", "acme.example"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    headers.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    headers.extend(changes.iter().filter(|(_, value)| *value != "-"));
    let mut request = Request::builder().uri("/ws/");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn upgrades() {
    let (not_valid, required) = (Refusal::RequestNotValid, Refusal::UpgradeRequired);
    let long_key = "a".repeat(4096);
    let rows: [Row<Refusal>; 34] = [
        ("valid", &[], None),
        (
            "upper case",
            &[("upgrade", "WebSocket"), ("connection", "UPGRADE")],
            None,
        ),
        ("among others", &[("upgrade", "h2c, websocket")], None),
        (
            "in a second line",
            &[("connection", "x"), ("connection", "upgrade")],
            None,
        ),
        ("empty body", &[("content-length", "0")], None),
        (
            "extensions",
            &[("sec-websocket-extensions", "permessage-deflate; x=16")],
            None,
        ),
        ("no Upgrade", &[("upgrade", "-")], Some(required)),
        ("h2c", &[("upgrade", "h2c")], Some(required)),
        ("websocketx", &[("upgrade", "websocketx")], Some(required)),
        ("empty", &[("upgrade", "")], Some(required)),
        ("no Connection", &[("connection", "-")], Some(required)),
        (
            "keep-alive",
            &[("connection", "keep-alive")],
            Some(required),
        ),
        (
            "notupgrade",
            &[("connection", "notupgrade")],
            Some(required),
        ),
        ("no key", &[("sec-websocket-key", "-")], Some(not_valid)),
        ("empty", &[("sec-websocket-key", "")], Some(not_valid)),
        (
            "15 bytes",
            &[("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAA")],
            Some(not_valid),
        ),
        (
            "17 bytes",
            &[("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAAA=")],
            Some(not_valid),
        ),
        (
            "18 bytes",
            &[("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAAAA")],
            Some(not_valid),
        ),
        (
            "alphabet",
            &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZ_==")],
            Some(not_valid),
        ),
        (
            "4 KiB",
            &[("sec-websocket-key", &long_key)],
            Some(not_valid),
        ),
        (
            "key twice",
            &[("sec-websocket-key", KEY), ("sec-websocket-key", KEY)],
            Some(not_valid),
        ),
        ("missing", &[("sec-websocket-version", "-")], Some(required)),
        ("8", &[("sec-websocket-version", "8")], Some(required)),
        ("12", &[("sec-websocket-version", "12")], Some(required)),
        ("14", &[("sec-websocket-version", "14")], Some(required)),
        ("255", &[("sec-websocket-version", "255")], Some(required)),
        ("abc", &[("sec-websocket-version", "abc")], Some(required)),
        ("-13", &[("sec-websocket-version", "-13")], Some(required)),
        ("013", &[("sec-websocket-version", "013")], Some(required)),
        (
            "version twice",
            &[
                ("sec-websocket-version", "13"),
                ("sec-websocket-version", "13"),
            ],
            Some(not_valid),
        ),
        (
            "list",
            &[("sec-websocket-version", "13, 8")],
            Some(required),
        ),
        ("length", &[("content-length", "5")], Some(not_valid)),
        (
            "chunks",
            &[("transfer-encoding", "chunked")],
            Some(not_valid),
        ),
        (
            "not an upgrade at all",
            &[("upgrade", "-"), ("connection", "-")],
            Some(required),
        ),
    ];
    for (row, changes, refusal) in rows {
        assert_eq!(check_upgrade(&parts(changes)).err(), refusal, "{row}");
    }
}

#[test]
fn only_get_over_http_1_1() {
    for method in ["POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get"] {
        let mut parts = parts(&[]);
        parts.method = method.parse().unwrap();
        let refusal = check_upgrade(&parts).err();
        assert_eq!(refusal, Some(Refusal::MethodNotAllowed), "{method}");
    }
    for version in [Version::HTTP_10, Version::HTTP_09, Version::HTTP_2] {
        let mut parts = parts(&[]);
        parts.version = version;
        let refusal = check_upgrade(&parts).err();
        assert_eq!(refusal, Some(Refusal::RequestNotValid), "{version:?}");
    }
}

#[test]
fn hosts() {
    let rows: [Row<&str>; 13] = [
        ("plain", &[], Some("acme.example")),
        (
            "port",
            &[("host", "acme.example:8000")],
            Some("acme.example:8000"),
        ),
        ("IPv6", &[("host", "[::1]:8000")], Some("[::1]:8000")),
        ("none", &[("host", "-")], None),
        (
            "two",
            &[("host", "acme.example"), ("host", "acme.example")],
            None,
        ),
        ("empty", &[("host", "")], None),
        ("user", &[("host", "u@acme.example")], None),
        ("path", &[("host", "acme.example/a")], None),
        ("blank", &[("host", "acme example")], None),
        ("list", &[("host", "acme.example,b")], None),
        ("empty port", &[("host", "acme.example:")], None),
        ("port", &[("host", "acme.example:99999")], None),
        ("only a port", &[("host", ":80")], None),
    ];
    for (row, changes, expected) in rows {
        let host = request_host(&parts(changes)).ok();
        assert_eq!(host.as_ref().map(Authority::as_str), expected, "{row}");
    }
}

#[test]
fn an_absolute_target_names_the_host_that_the_header_names() {
    for (uri, valid) in [
        ("http://acme.example/ws/", true),
        ("http://ACME.example/ws/", true),
        ("http://other.example/ws/", false),
    ] {
        let mut parts = parts(&[]);
        parts.uri = uri.parse().unwrap();
        assert_eq!(request_host(&parts).is_ok(), valid, "{uri}");
    }
}

#[test]
fn the_answer_is_that_of_the_rfc() {
    let key = check_upgrade(&parts(&[])).unwrap();
    let plain = Upgrade {
        key,
        subprotocol: None,
        acceptance: None,
    };
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    assert_eq!(
        plain.switching_protocols(),
        format!("{answer}\r\n").into_bytes()
    );
    let mut chosen = Upgrade {
        subprotocol: Some(HeaderValue::from_static("chat")),
        ..plain
    };
    let with_chat = format!("{answer}Sec-WebSocket-Protocol: chat\r\n\r\n");
    assert_eq!(chosen.switching_protocols(), with_chat.into_bytes());
    // A consumer that chooses no subprotocol leaves the route's choice.
    let acceptance = Acceptance::default().with_header(b"X-Served-By", b"w1");
    chosen.choose(acceptance.unwrap());
    let with_header = format!("{answer}Sec-WebSocket-Protocol: chat\r\nx-served-by: w1\r\n\r\n");
    assert_eq!(chosen.switching_protocols(), with_header.into_bytes());
    chosen.choose(Acceptance::default().with_subprotocol("chat.v2"));
    let with_choice = format!("{answer}Sec-WebSocket-Protocol: chat.v2\r\n\r\n");
    assert_eq!(chosen.switching_protocols(), with_choice.into_bytes());
}

#[test]
fn a_consumer_sees_the_offers_and_no_token() {
    for (offers, seen) in [
        ("a, b", &["a", "b"][..]),
        ("bearer, eyJ.eyJ.sig, a", &["a"]),
        ("a, bearer", &["a"]),
        ("Bearer, eyJ.eyJ.sig", &[]),
        ("a, Token, opaque, b", &["a", "b"]),
        ("BEARER, eyJ.eyJ.sig", &["BEARER"]),
        ("eyJ.eyJ.sig", &[]),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offers));
        let offered = offered_subprotocols(&headers);
        let offered: Vec<&str> = offered.iter().map(|name| &**name).collect();
        assert_eq!(offered, seen, "{offers}");
    }
}

fn subprotocol(route: &[&str], offers: &str) -> Option<String> {
    let route: Vec<String> = route.iter().map(|&name| name.to_owned()).collect();
    let mut headers = HeaderMap::new();
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_str(offers).unwrap(),
    );
    let answer = answer_subprotocol(&headers, &route)?;
    Some(answer.to_str().unwrap().to_owned())
}

#[test]
fn subprotocols() {
    let many = vec!["other"; 200].join(",");
    for (row, route, offers, answer) in [
        (
            "the client's first match",
            &["a", "b"][..],
            "x, b, a",
            Some("b"),
        ),
        ("none known", &["a"], "x", None),
        ("no list", &[], "x", None),
        ("bearer", &[], "bearer, eyJ.eyJ.sig", Some("bearer")),
        (
            "a match goes before bearer",
            &["a"],
            "bearer, eyJ.eyJ.sig, a",
            Some("a"),
        ),
        ("the token alone", &["a"], "eyJ.eyJ.sig", None),
        ("200 offers", &["a"], &many, None),
        ("case counts", &["a"], "A", None),
    ] {
        assert_eq!(subprotocol(route, offers).as_deref(), answer, "{row}");
    }
}

#[test]
fn blanks_in_offers_cost_little() {
    let blanks = format!("a{}b", " ".repeat(8192));
    let began = Instant::now();
    assert_eq!(subprotocol(&["b"], &blanks), None, "empty elements");
    assert!(began.elapsed() < Duration::from_millis(50));
}
