//! Replies of a Redis to a subscriber. However the bytes arrive, the replies are the same.

// The file is seen from `channel_layer` alone, so this module has that name in its crate.
#[path = "../../src/channel_layer/link/resp.rs"]
#[allow(dead_code, reason = "the file belongs to the crate")]
mod resp;

use resp::Parser;

/// Gives the bytes in pieces of `step`. Returns the replies as text, and false if the server does not speak RESP2.
fn replies(bytes: &[u8], step: usize) -> (Vec<String>, bool) {
    let (mut parser, mut replies) = (Parser::default(), Vec::new());
    let (mut start, mut end) = (0, 0);
    while end < bytes.len() {
        end = (end + step).min(bytes.len());
        loop {
            match parser.next(&bytes[start..end]) {
                Err(_) => return (replies, false),
                Ok((reply, used)) => {
                    start += used;
                    assert!(start <= end);
                    match reply {
                        Some(reply) => replies.push(format!("{reply:?}")),
                        None => break,
                    }
                }
            }
        }
    }
    (replies, true)
}

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = replies(bytes, bytes.len().max(1));
    let in_pieces = replies(bytes, usize::from(*step).max(1));
    assert_eq!(whole, in_pieces);
}
