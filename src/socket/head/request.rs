//! Checks and parses an HTTP/1.1 request head (RFC 9112), in linear time however the bytes arrive. It does no input or
//! output.
//!
//! httparse parses the complete head. It is more lenient than a gateway may be and has no bounds, so line ends, sizes and
//! framing are checked here.

use std::mem::MaybeUninit;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use bytes::Bytes;
use httparse::Status;

use crate::error::Refusal;

/// The most bytes of the request line, without its line end.
const MAX_REQUEST_LINE: usize = 16 * 1024;

/// The most bytes of the whole head, with its empty line.
const MAX_HEAD: usize = 32 * 1024;

/// The most header lines.
const MAX_HEADERS: usize = 100;

/// The part of a head that is checked already, so that each line is checked once.
#[derive(Debug, Default)]
pub(super) struct HeadLines {
    /// The position of the first incomplete line.
    line_start: usize,
    /// The position up to which the bytes hold no further line end.
    searched: usize,
    /// The number of complete lines, with the request line.
    lines: usize,
}

impl HeadLines {
    /// Checks the new bytes of `bytes`, which only grows. Returns the length of the head once it is complete.
    ///
    /// An incomplete head is parsed whenever a line is complete, at most [`MAX_HEADERS`] times, so that a client with a
    /// wrong head is refused at once. A complete head is left to [`parse`].
    ///
    /// # Errors
    /// 400, 414 or 431 at the first line that is wrong or too long, also while that line is not complete.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        if bytes.first().is_some_and(|first| !is_token_byte(*first)) {
            return Err(Refusal::RequestNotValid);
        }
        let before = self.lines;
        let bounded = self.next_lines(bytes);
        if !matches!(bounded, Ok(Some(_))) && self.lines > before {
            // An error in an earlier line goes before the bound that a later line exceeds.
            let lines = [&bytes[..self.line_start], b"\r\n"].concat();
            parse(&lines.into())?;
        }
        bounded
    }

    /// Steps over the complete lines and checks their bounds.
    fn next_lines(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(found) = bytes[self.searched..].iter().position(|b| *b == b'\n') {
            let end = self.searched + found;
            self.check_size(end + 1)?;
            let line = bytes[self.line_start..end]
                .strip_suffix(b"\r")
                .ok_or(Refusal::RequestNotValid)?;
            if line.is_empty() && self.lines > 0 {
                return Ok(Some(end + 1));
            }
            if self.lines > MAX_HEADERS {
                return Err(Refusal::HeadTooLarge);
            }
            self.lines += 1;
            self.line_start = end + 1;
            self.searched = end + 1;
        }
        self.searched = bytes.len();
        // The incomplete line needs at least one more byte.
        self.check_size(bytes.len() + 1)?;
        Ok(None)
    }

    /// Checks the bounds; `end` is the position after the current line and its line end.
    fn check_size(&self, end: usize) -> Result<(), Refusal> {
        if self.lines == 0 && end > MAX_REQUEST_LINE + 2 {
            return Err(Refusal::RequestLineTooLarge);
        }
        if end > MAX_HEAD {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(())
    }
}

/// Parses a complete head that [`HeadLines`] has found within its bounds. Header values share its bytes.
///
/// # Errors
/// 400 if the head breaks RFC 9112.
pub(super) fn parse(head: &Bytes) -> Result<Parts, Refusal> {
    let not_valid = Refusal::RequestNotValid;
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut lines) {
        Ok(Status::Complete(length)) if length == head.len() && request.version == Some(1) => {}
        _ => return Err(not_valid),
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    let method = request.method.unwrap_or_default();
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| not_valid)?;
    parts.uri = target(head.slice_ref(request.path.unwrap_or_default().as_bytes()))?;
    parts.headers = HeaderMap::with_capacity(request.headers.len());
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| not_valid)?;
        let value = head.slice_ref(line.value);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| not_valid)?;
        parts.headers.append(name, value);
    }
    check_framing(&parts.headers)?;
    Ok(parts)
}

/// Parses the target: a path or an absolute URI, without a fragment.
fn target(text: Bytes) -> Result<Uri, Refusal> {
    let printable = |b: &u8| b.is_ascii_graphic() && *b != b'#';
    if !text.iter().all(printable) {
        return Err(Refusal::RequestNotValid);
    }
    let is_path = text.first() == Some(&b'/');
    let uri = Uri::from_maybe_shared(text).map_err(|_| Refusal::RequestNotValid)?;
    if !is_path && uri.scheme().is_none() {
        return Err(Refusal::RequestNotValid);
    }
    Ok(uri)
}

/// Checks that the body has one length or is chunked, not both, since programs disagree about such a body (RFC 9112 §6).
fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
    let is_length =
        |value: &[u8]| matches!(value.len(), 1..=19) && value.iter().all(u8::is_ascii_digit);
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let valid = match (lengths.next(), codings.next()) {
        (None, None) => true,
        (Some(length), None) => is_length(length.as_bytes()),
        (None, Some(coding)) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    };
    if valid && lengths.next().is_none() && codings.next().is_none() {
        Ok(())
    } else {
        Err(Refusal::RequestNotValid)
    }
}

/// Returns true for a byte of a token (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
// From this file's folder, so that the file can stand elsewhere, too: the fuzz target of heads takes it in.
#[path = "request/tests.rs"]
mod tests;
