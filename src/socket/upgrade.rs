//! Checks the headers of a WebSocket upgrade (RFC 6455 §4.2) and builds the 101. It does no input or output.
//!
//! [`super::head`] reads the bytes of the head, and [`crate::origin`] checks the origin.

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

use crate::auth::query_token::CARRIERS;
use crate::consumer::Acceptance;
use crate::error::Refusal;

/// The version of RFC 6455, the only one.
const VERSION: &str = "13";

/// The text that is hashed with the client's key (RFC 6455 §1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Returns the host of a request: the one `Host` header, well-formed and without user information, in the case as sent.
///
/// An absolute target must name the same host.
///
/// # Errors
/// `request_not_valid`.
pub fn request_host(parts: &Parts) -> Result<Authority, Refusal> {
    let header = sole(&parts.headers, HOST)?.ok_or(Refusal::RequestNotValid)?;
    let host = Authority::try_from(header.as_bytes()).map_err(|_| Refusal::RequestNotValid)?;
    // `Authority` also accepts user information, an empty port and a list of hosts.
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
    /// Returns the value of `Sec-WebSocket-Accept` (RFC 6455 §4.2.2, step 5.4).
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
        // 24 base64 digits hold 18 bytes; two digits of padding leave 16.
        let mut bytes = [0; 18];
        match STANDARD.decode_slice(text, &mut bytes) {
            Ok(16) => Ok(Self(text)),
            _ => Err(Refusal::RequestNotValid),
        }
    }
}

/// Checks method, version, `Connection`, `Upgrade` and that there is no body; returns the key.
///
/// # Errors
/// `method_not_allowed`; `upgrade_required` if the request does not ask for this version of WebSocket;
/// `request_not_valid` if it contradicts itself or is malformed.
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

/// Returns the subprotocol of the answer: the client's first offer that the route has, else the one that the client offered
/// as the carrier of its token, such as `bearer`.
///
/// Offers are compared byte for byte. The answer is our own text, so a token offered beside it is never sent back.
pub fn answer_subprotocol(headers: &HeaderMap, route: &[String]) -> Option<HeaderValue> {
    let mut announced = None;
    for offer in list(headers, SEC_WEBSOCKET_PROTOCOL) {
        if let Some(known) = route.iter().find(|known| known.as_bytes() == offer) {
            // This is always a header value, since the client has sent it as one.
            return HeaderValue::from_str(known).ok();
        }
        if let Some(carrier) = carrier(offer) {
            announced.get_or_insert(HeaderValue::from_static(carrier));
        }
    }
    announced
}

/// Returns the subprotocol if it announces a token.
fn carrier(offer: &[u8]) -> Option<&'static str> {
    CARRIERS
        .into_iter()
        .find(|carrier| carrier.as_bytes() == offer)
}

/// Returns the subprotocols that the client offers, without a carrier, the token that follows it, and all else that looks
/// like a token: the base64 of a JSON object, and dots.
pub fn offered_subprotocols(headers: &HeaderMap) -> Vec<Box<str>> {
    let mut offers = list(headers, SEC_WEBSOCKET_PROTOCOL);
    let mut offered = Vec::new();
    while let Some(offer) = offers.next() {
        if carrier(offer).is_some() {
            offers.next();
        } else if let Ok(name) = str::from_utf8(offer)
            && !(name.starts_with("ey") && name.contains('.'))
        {
            offered.push(name.into());
        }
    }
    offered
}

/// A well-formed upgrade: the content of its 101.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// The client's key.
    pub key: WebSocketKey,
    /// The subprotocol of the answer.
    pub subprotocol: Option<HeaderValue>,
    /// The choice of the route's consumer, if it made one.
    pub acceptance: Option<Box<Acceptance>>,
}

impl Upgrade {
    /// Puts the choice of the consumer in the place of the route's.
    pub fn choose(&mut self, acceptance: Acceptance) {
        let subprotocol = acceptance.subprotocol();
        // This is always a header value, since the client has sent it as one.
        if let Some(Ok(chosen)) = subprotocol.map(HeaderValue::from_str) {
            self.subprotocol = Some(chosen);
        }
        self.acceptance = Some(Box::new(acceptance));
    }

    /// Returns the 101 that opens the socket, without extensions.
    pub fn switching_protocols(&self) -> Vec<u8> {
        let mut answer = Vec::with_capacity(256);
        // Some clients compare whole values and expect the names in the case that RFC 6455 uses.
        answer.extend(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Accept: ",
        );
        answer.extend(self.key.accept().as_bytes());
        if let Some(subprotocol) = &self.subprotocol {
            answer.extend(b"\r\nSec-WebSocket-Protocol: ");
            answer.extend(subprotocol.as_bytes());
        }
        let chosen = self.acceptance.as_ref().map(|chosen| chosen.headers());
        for (name, value) in chosen.unwrap_or_default() {
            answer.extend(b"\r\n");
            answer.extend(name.as_str().as_bytes());
            answer.extend(b": ");
            answer.extend(value.as_bytes());
        }
        answer.extend(b"\r\n\r\n");
        answer
    }
}

/// Returns true if a request asks for another protocol; any other request is for a page.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION, "upgrade")
}

/// Returns true if the request announces a body. Programs disagree whether bytes behind an upgrade are body or frames.
fn has_body(headers: &HeaderMap) -> bool {
    let length = |value: &HeaderValue| value.as_bytes().iter().any(|digit| *digit != b'0');
    headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(length)
}

/// Returns the value of a header that may come at most once.
fn sole(headers: &HeaderMap, name: HeaderName) -> Result<Option<&HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Refusal::RequestNotValid),
    }
}

/// Returns the elements of a comma-separated list over all its lines, trimmed and without empty ones (RFC 9110 §5.6.1).
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Returns true if the list has `token` as an element, in any case; `notupgrade` is not `upgrade`.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    list(headers, name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests;
