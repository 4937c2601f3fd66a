//! The part of a 101 that an application chooses: the subprotocol and further headers, as in ASGI's `websocket.accept`.

use axum::http::{HeaderName, HeaderValue};

use crate::event::{Event, Value};

/// The most headers that an application may add. An answer with more is likely a mistake.
const MAX_HEADERS: usize = 32;
/// The most bytes of these headers. Clients read heads of 8 to 16 KiB.
const MAX_BYTES: usize = 4 * 1024;
/// The headers that the handshake itself sets, or that would give the 101 a body.
const OURS: [&str; 4] = [
    "connection",
    "upgrade",
    "content-length",
    "transfer-encoding",
];
const OURS_BEGIN: &str = "sec-websocket-";

/// The answer of an application to a handshake that it accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    subprotocol: Option<Box<str>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// An answer that cannot become a 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptanceError {
    /// The client did not offer the subprotocol; it would end the connection (RFC 6455 §4.1).
    #[error("`subprotocol` is none that the client offered")]
    NotOffered,
    /// `subprotocol` is no text.
    #[error("`subprotocol` is neither a text nor None")]
    SubprotocolNotText,
    /// `headers` is no list of pairs.
    #[error("`headers` is not a list of pairs of bytes")]
    NotPairs,
    /// A name is no token, or a value has a line end or another control character.
    #[error("a header has a name or a value that HTTP does not allow")]
    NotHttp,
    /// The handshake sets the header itself.
    #[error(
        "a header is one that the handshake sets: Sec-WebSocket-*, Connection, Upgrade, Content-Length or Transfer-Encoding"
    )]
    Reserved,
    /// More than 32 headers or 4 KiB of them.
    #[error("`headers` has more than 32 headers or 4 KiB")]
    TooLong,
}

impl Acceptance {
    /// Chooses a subprotocol, which the client must have offered.
    pub fn with_subprotocol(mut self, subprotocol: &str) -> Self {
        self.subprotocol = Some(subprotocol.into());
        self
    }

    /// Adds a header.
    ///
    /// # Errors
    /// [`AcceptanceError`] for a header that HTTP does not allow or that the handshake sets, and above the bounds.
    pub fn with_header(mut self, name: &[u8], value: &[u8]) -> Result<Self, AcceptanceError> {
        let name = HeaderName::from_bytes(name).map_err(|_| AcceptanceError::NotHttp)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| AcceptanceError::NotHttp)?;
        if OURS.contains(&name.as_str()) || name.as_str().starts_with(OURS_BEGIN) {
            return Err(AcceptanceError::Reserved);
        }
        self.headers.push((name, value));
        let bytes = self.headers.iter();
        let bytes: usize = bytes
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if self.headers.len() > MAX_HEADERS || bytes > MAX_BYTES {
            return Err(AcceptanceError::TooLong);
        }
        Ok(self)
    }

    /// Reads a `websocket.accept` by the rules of ASGI: `subprotocol` is a text or None, `headers` a list of pairs of
    /// bytes. Texts are taken for bytes, because a JSON layer has none.
    ///
    /// # Errors
    /// [`AcceptanceError`].
    pub(super) fn of_event(event: &Event) -> Result<Self, AcceptanceError> {
        let mut acceptance = Self::default();
        match event.get("subprotocol") {
            None | Some(Value::Nil) => {}
            Some(Value::Str(subprotocol)) => acceptance.subprotocol = Some(subprotocol.clone()),
            Some(_) => return Err(AcceptanceError::SubprotocolNotText),
        }
        let pairs = match event.get("headers") {
            None | Some(Value::Nil) => return Ok(acceptance),
            Some(Value::Array(pairs)) => pairs,
            Some(_) => return Err(AcceptanceError::NotPairs),
        };
        for pair in pairs {
            let Value::Array(pair) = pair else {
                return Err(AcceptanceError::NotPairs);
            };
            let [name, value] = pair.as_slice() else {
                return Err(AcceptanceError::NotPairs);
            };
            let (name, value) = (bytes(name)?, bytes(value)?);
            acceptance = acceptance.with_header(name, value)?;
        }
        Ok(acceptance)
    }

    /// Returns the subprotocol, if one is chosen.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// Returns the headers in their order.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }
}

fn bytes(value: &Value) -> Result<&[u8], AcceptanceError> {
    match value {
        Value::Bin(bytes) => Ok(bytes),
        Value::Str(text) => Ok(text.as_bytes()),
        _ => Err(AcceptanceError::NotPairs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Acceptance, AcceptanceError> {
        Acceptance::of_event(&Event::from_json(json.as_bytes()).unwrap())
    }

    #[test]
    fn an_answer_is_read_as_asgi_gives_it() {
        assert_eq!(read("{}"), Ok(Acceptance::default()));
        let none = r#"{"subprotocol": null, "headers": []}"#;
        assert_eq!(read(none), Ok(Acceptance::default()));
        let full = r#"{"subprotocol": "v2", "headers": [["X-A", "1"], ["set-cookie", "b=2"]]}"#;
        let expected = Acceptance::default()
            .with_subprotocol("v2")
            .with_header(b"x-a", b"1");
        let expected = expected.and_then(|answer| answer.with_header(b"set-cookie", b"b=2"));
        assert_eq!(read(full), expected);
    }

    #[test]
    fn what_would_break_the_handshake_is_refused() {
        use AcceptanceError::*;
        let pair =
            |name: &str, value: &str| serde_json::json!({ "headers": [[name, value]] }).to_string();
        for (json, error) in [
            (pair("Sec-WebSocket-Protocol", "x"), Reserved),
            (pair("sec-websocket-extensions", "x"), Reserved),
            (pair("Upgrade", "h2c"), Reserved),
            (pair("content-length", "5"), Reserved),
            (pair("x-a", "1\r\nx-b: 2"), NotHttp),
            (pair("x-a\r\nx-b", "1"), NotHttp),
            (pair("", "1"), NotHttp),
            (pair("x-a", &"x".repeat(MAX_BYTES)), TooLong),
            (r#"{"headers": {"x-a": "1"}}"#.to_owned(), NotPairs),
            (r#"{"headers": [["x-a"]]}"#.to_owned(), NotPairs),
            (r#"{"headers": [["x-a", 1]]}"#.to_owned(), NotPairs),
            (r#"{"subprotocol": 1}"#.to_owned(), SubprotocolNotText),
        ] {
            assert_eq!(read(&json), Err(error), "{json}");
        }
        let many = vec![["x-a", "1"]; MAX_HEADERS + 1];
        let many = serde_json::json!({ "headers": many }).to_string();
        assert_eq!(read(&many), Err(TooLong));
    }
}
