//! What a WebSocket upgrade must look like (RFC 6455 §4.2) and the 101 that answers it. Pure: headers in, verdict out.
//!
//! Steps 0 (`Host`) and 5 of a socket's life; step 6 is [`crate::origin`]. Bytes of the head itself: [`super::head`].

use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::error::Refusal;

/// The one protocol version there is.
const VERSION: &str = "13";

/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The host that a request is for: the `Host` header, exactly one and well-formed, without user information.
///
/// An absolute target must name the same one. Case is as sent.
///
/// # Errors
/// `request_not_valid`.
pub fn request_host(parts: &Parts) -> Result<Authority, Refusal> {
    let header = sole(&parts.headers, HOST)?.ok_or(Refusal::RequestNotValid)?;
    let host = Authority::try_from(header.as_bytes()).map_err(|_| Refusal::RequestNotValid)?;
    // `http` also reads what no host of ours can be: user information, an empty port, a list.
    let name_byte = |b: u8| b.is_ascii_alphanumeric() || b"-._[:]".contains(&b);
    let well_formed = !host.host().is_empty()
        && host.as_str().bytes().all(name_byte)
        && (host.port_u16().is_some() || host.as_str() == host.host());
    let same = match parts.uri.authority() {
        Some(target) => target.as_str().eq_ignore_ascii_case(host.as_str()),
        None => true,
    };
    if well_formed && same {
        Ok(host)
    } else {
        Err(Refusal::RequestNotValid)
    }
}

/// A client's `Sec-WebSocket-Key`: 16 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocketKey([u8; 24]);

impl WebSocketKey {
    /// The value of `Sec-WebSocket-Accept` (RFC 6455 §4.2.2, step 5.4).
    pub fn accept(&self) -> String {
        let digest = Sha1::new()
            .chain_update(self.0)
            .chain_update(ACCEPT_GUID)
            .finalize();
        STANDARD.encode(digest)
    }

    fn from_headers(headers: &HeaderMap) -> Result<Self, Refusal> {
        let value = sole(headers, SEC_WEBSOCKET_KEY)?.ok_or(Refusal::RequestNotValid)?;
        let text: [u8; 24] = value
            .as_bytes()
            .try_into()
            .map_err(|_| Refusal::RequestNotValid)?;
        // 24 digits hold 18 bytes; the two of padding leave 16.
        let mut bytes = [0; 18];
        match STANDARD.decode_slice(text, &mut bytes) {
            Ok(16) => Ok(Self(text)),
            _ => Err(Refusal::RequestNotValid),
        }
    }
}

/// Step 5: method, version, key, `Connection`, `Upgrade`, and no body.
///
/// # Errors
/// `method_not_allowed`; `upgrade_required` where the request asks for something else than this version of WebSocket;
/// `request_not_valid` where it contradicts itself or breaks the form.
pub fn check_upgrade(parts: &Parts) -> Result<WebSocketKey, Refusal> {
    let headers = &parts.headers;
    if parts.method != Method::GET {
        return Err(Refusal::MethodNotAllowed);
    }
    if parts.version != Version::HTTP_11 || has_body(headers) {
        return Err(Refusal::RequestNotValid);
    }
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(Refusal::UpgradeRequired);
    }
    match sole(headers, SEC_WEBSOCKET_VERSION)? {
        Some(version) if version == VERSION => WebSocketKey::from_headers(headers),
        _ => Err(Refusal::UpgradeRequired),
    }
}

/// The subprotocol to answer with: the client's first that the route has; else `bearer`, if the client offered it as the
/// carrier of its token.
///
/// Offers are compared byte for byte. What is answered is our own text: a token offered beside `bearer` never comes back.
pub fn answer_subprotocol(headers: &HeaderMap, route: &[String]) -> Option<HeaderValue> {
    const BEARER: &str = "bearer";
    let mut bearer = None;
    for offer in list(headers, SEC_WEBSOCKET_PROTOCOL) {
        if let Some(known) = route.iter().find(|known| known.as_bytes() == offer) {
            // A route's name that is no header value cannot have been offered.
            return HeaderValue::from_str(known).ok();
        }
        if offer == BEARER.as_bytes() {
            bearer = Some(HeaderValue::from_static(BEARER));
        }
    }
    bearer
}

/// A well-formed upgrade: all that its 101 is made of.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// The client's key.
    pub key: WebSocketKey,
    /// The subprotocol to answer with.
    pub subprotocol: Option<HeaderValue>,
}

impl Upgrade {
    /// The 101 that opens the socket; no extension is ever negotiated.
    pub fn switching_protocols(&self) -> Vec<u8> {
        let mut answer = Vec::with_capacity(256);
        // Some clients compare the whole values, and the names as RFC 6455 writes them.
        answer.extend(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Accept: ",
        );
        answer.extend(self.key.accept().as_bytes());
        if let Some(subprotocol) = &self.subprotocol {
            answer.extend(b"\r\nSec-WebSocket-Protocol: ");
            answer.extend(subprotocol.as_bytes());
        }
        answer.extend(b"\r\n\r\n");
        answer
    }
}

/// Whether a request asks for another protocol: one that does not wants a page.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION, "upgrade")
}

/// Bytes that came with an upgrade would be taken for frames by some and for a body by others.
fn has_body(headers: &HeaderMap) -> bool {
    let length = |value: &HeaderValue| value.as_bytes().iter().any(|digit| *digit != b'0');
    headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(length)
}

/// The value of a header that may come once.
fn sole(headers: &HeaderMap, name: HeaderName) -> Result<Option<&HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Refusal::RequestNotValid),
    }
}

/// The elements of a comma-separated list, over all its lines, without blanks and empty ones (RFC 9110 §5.6.1).
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether the list has `token` as an element: `notupgrade` is not `upgrade`.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    list(headers, name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests;
