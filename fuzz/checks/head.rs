//! Request heads. However the bytes arrive, the verdict is the same, and a good head holds what a gateway may pass on.

use bytes::Bytes;

#[path = "../../src/socket/head/request.rs"]
#[allow(dead_code, reason = "the file belongs to the crate")]
mod request;

use request::{HeadLines, parse};

/// Gives the bytes in pieces of `step`. Returns the head's length, or the refusal.
fn arrive(bytes: &[u8], step: usize) -> Result<Option<usize>, lockgate::error::Refusal> {
    let mut lines = HeadLines::default();
    let mut end = 0;
    while end < bytes.len() {
        end = (end + step).min(bytes.len());
        if let Some(length) = lines.advance(&bytes[..end])? {
            return Ok(Some(length));
        }
    }
    Ok(None)
}

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let in_pieces = arrive(bytes, usize::from(*step).max(1));
    if let Ok(Some(length)) = arrive(bytes, usize::MAX / 2) {
        let head = Bytes::copy_from_slice(&bytes[..length]);
        match parse(&head) {
            // A head that is wrong may be refused at an earlier line.
            Err(_) => assert!(in_pieces.is_err() || in_pieces == Ok(Some(length))),
            Ok(parts) => {
                assert_eq!(in_pieces, Ok(Some(length)));
                let values = parts.headers.values();
                for value in values {
                    assert!(!value.as_bytes().iter().any(|b| b"\r\n\0".contains(b)));
                }
                assert!(!parts.uri.path().contains(['#', ' ']));
            }
        }
    }
}
