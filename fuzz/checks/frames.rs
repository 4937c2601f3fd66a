//! Frames of clients. However the bytes arrive, the messages are the same, and none is over the limit.

use lockgate::frame::{ClientMessage, Decoder};

const LIMIT: u64 = 4096;

/// Gives the bytes in pieces of `step`. Returns the messages, and the code of the close that an error asks for.
fn decoded(bytes: &[u8], step: usize) -> (Vec<ClientMessage>, Option<u16>) {
    let (mut decoder, mut messages) = (Decoder::new(LIMIT), Vec::new());
    for mut piece in bytes.chunks(step) {
        loop {
            match decoder.push(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.0.frame().code)),
            }
        }
        assert!(piece.is_empty());
    }
    (messages, None)
}

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(whole, decoded(bytes, usize::from(*step).max(1)));
    for message in whole.0 {
        let length = match message {
            ClientMessage::Text(text) => text.len(),
            ClientMessage::Binary(bytes) => bytes.len(),
            ClientMessage::Ping(payload) | ClientMessage::Pong(payload) => {
                assert!(payload.len() <= 125);
                payload.len()
            }
            ClientMessage::Close(frame) => frame.map_or(0, |frame| frame.reason.len()),
        };
        assert!(length as u64 <= LIMIT);
    }
}
