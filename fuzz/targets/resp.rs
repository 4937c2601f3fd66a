//! Replies of a Redis to a subscriber. However the bytes arrive, the replies are the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
// The file below names it from the root of its crate.
use lockgate::event;

#[path = "../../src/channel_layer"]
mod channel_layer {
    pub mod link {
        #[allow(dead_code, reason = "the file belongs to the crate")]
        pub mod resp;
    }

    use link::resp::Parser;

    /// Gives the bytes in pieces of `step`. Returns the replies as text, and false if the server does not speak RESP2.
    pub fn replies(bytes: &[u8], step: usize) -> (Vec<String>, bool) {
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
}

fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = channel_layer::replies(bytes, bytes.len().max(1));
    let in_pieces = channel_layer::replies(bytes, usize::from(*step).max(1));
    assert_eq!(whole, in_pieces);
});
