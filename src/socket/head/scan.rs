//! Is it a well-formed HTTP/1.1 request head within its bounds (RFC 9112)? Pure, and linear however the bytes arrive.

use axum::http::Uri;

use crate::error::Refusal;

/// Bytes of the request line, without its line end.
const MAX_REQUEST_LINE: usize = 16 * 1024;

/// Bytes of the whole head, the empty line included.
const MAX_HEAD: usize = 32 * 1024;

/// Header lines; hyper's own bound, which would answer without a problem document.
const MAX_HEADERS: usize = 100;

/// How far a head has been looked at: every line once.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Where the first incomplete line begins.
    line_start: usize,
    /// Bytes that are known to hold no further line end.
    searched: usize,
    /// Complete lines, the request line included.
    lines: usize,
    content_length: bool,
    transfer_encoding: bool,
}

impl Scan {
    /// Looks at what is new in `head`, which only ever grows; whether the head is complete.
    ///
    /// # Errors
    /// 400, 414 or 431 at the first line that is wrong or too long, also while that line is not complete.
    pub(super) fn advance(&mut self, head: &[u8]) -> Result<bool, Refusal> {
        if head.first().is_some_and(|first| !is_token_byte(*first)) {
            return Err(Refusal::RequestNotValid);
        }
        while let Some(found) = head[self.searched..].iter().position(|b| *b == b'\n') {
            let end = self.searched + found;
            self.check_size(end + 1)?;
            let line = head[self.line_start..end]
                .strip_suffix(b"\r")
                .ok_or(Refusal::RequestNotValid)?;
            self.line_start = end + 1;
            self.searched = end + 1;
            if self.lines == 0 {
                check_request_line(line)?;
            } else if line.is_empty() {
                return Ok(true);
            } else {
                self.check_header(line)?;
            }
            self.lines += 1;
            if self.lines > MAX_HEADERS + 1 {
                return Err(Refusal::HeadTooLarge);
            }
        }
        self.searched = head.len();
        // The line that is still open needs one more byte at least.
        self.check_size(head.len() + 1)?;
        Ok(false)
    }

    /// `end` bytes of the head are taken by the lines up to the current one, its line end included.
    fn check_size(&self, end: usize) -> Result<(), Refusal> {
        if self.lines == 0 && end > MAX_REQUEST_LINE + 2 {
            return Err(Refusal::RequestLineTooLarge);
        }
        if end > MAX_HEAD {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(())
    }

    fn check_header(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let colon = line.iter().position(|b| *b == b':');
        let (name, value) = line.split_at(colon.ok_or(Refusal::RequestNotValid)?);
        let value = value[1..].trim_ascii();
        // No blank belongs to a token: that refuses folded lines and "Name :" as well.
        let name_is_token = !name.is_empty() && name.iter().copied().all(is_token_byte);
        if !name_is_token || !value.iter().copied().all(is_value_byte) {
            return Err(Refusal::RequestNotValid);
        }
        // What follows the head must be beyond doubt (RFC 9112 §6): one length, or chunks, not both.
        let valid = if name.eq_ignore_ascii_case(b"content-length") {
            let first = !std::mem::replace(&mut self.content_length, true);
            first && matches!(value.len(), 1..=19) && value.iter().all(u8::is_ascii_digit)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let first = !std::mem::replace(&mut self.transfer_encoding, true);
            first && value.eq_ignore_ascii_case(b"chunked")
        } else {
            true
        };
        if !valid || (self.content_length && self.transfer_encoding) {
            return Err(Refusal::RequestNotValid);
        }
        Ok(())
    }
}

/// `METHOD SP target SP HTTP/1.1`. The target is a path or an absolute URI, without a fragment.
fn check_request_line(line: &[u8]) -> Result<(), Refusal> {
    let mut words = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(b"HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::RequestNotValid);
    };
    let method_is_token = !method.is_empty() && method.iter().copied().all(is_token_byte);
    let printable = |b: &u8| b.is_ascii_graphic() && *b != b'#';
    if !method_is_token || !target.iter().all(printable) {
        return Err(Refusal::RequestNotValid);
    }
    let uri = Uri::try_from(target).map_err(|_| Refusal::RequestNotValid)?;
    if target.first() != Some(&b'/') && uri.scheme().is_none() {
        return Err(Refusal::RequestNotValid);
    }
    Ok(())
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 §5.5: visible, blank, tab or beyond ASCII; no other control character, above all no CR and no NUL.
fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests;
