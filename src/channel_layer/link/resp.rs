//! The part of RESP2 that a subscriber receives: confirmations, messages, pongs, errors, and the role of the server.
//!
//! The parser does no IO; it works on the bytes read so far. It copies nothing and allocates nothing for a length that is
//! only claimed. A message longer than the bound is skipped as it streams by.

use crate::event::MAX_PAYLOAD;
use crate::stores::redis_answer::{MAX_LINE, NotResp, number};

/// The largest number of elements of an array; replies to a subscriber have three, and the role of a master lists its
/// replicas.
const MAX_ELEMENTS: usize = 256;
/// The deepest nesting of arrays: the role of a master has a list of lists.
const MAX_NESTING: usize = 3;
const MAX_ELEMENT: usize = MAX_PAYLOAD;

/// One reply of the server.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::channel_layer) enum RespReply<'a> {
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// A message whose payload is longer than the bound; the payload is skipped.
    Oversized {
        channel: &'a [u8],
    },
    Subscribed(&'a [u8]),
    Unsubscribed(&'a [u8]),
    Pong,
    /// The answer to ROLE of a server that is not a master.
    Replica,
    Error(&'a [u8]),
    /// `+OK` and other replies that need no action.
    Other,
}

/// The parser's state between reads.
#[derive(Default)]
pub(in crate::channel_layer) struct Parser {
    /// Bytes of an oversized message that are still to be skipped.
    skip: usize,
}

/// The input ends before the reply does.
struct Incomplete;

enum Parsing<'a> {
    Done(RespReply<'a>),
    /// The reply goes on for this many bytes, which are skipped.
    DoneAndSkip(RespReply<'a>, usize),
}

type Parsed<T> = Result<Result<T, Incomplete>, NotResp>;

/// Unwraps a complete value; returns from the function if the input is incomplete or not RESP2.
macro_rules! complete {
    ($parsed:expr) => {
        match $parsed? {
            Ok(value) => value,
            Err(incomplete) => return Ok(Err(incomplete)),
        }
    };
}

impl Parser {
    /// Reads the next reply in `input`. Returns it with the number of bytes used; `None` if it is not complete yet.
    pub(in crate::channel_layer) fn next<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(Option<RespReply<'a>>, usize), NotResp> {
        let skipped = self.skip.min(input.len());
        self.skip -= skipped;
        let input = &input[skipped..];
        if input.is_empty() {
            return Ok((None, skipped));
        }
        let mut cursor = Cursor { input, at: 0 };
        Ok(match cursor.reply()? {
            Ok(Parsing::Done(reply)) => (Some(reply), skipped + cursor.at),
            Ok(Parsing::DoneAndSkip(reply, rest)) => {
                self.skip = rest;
                (Some(reply), skipped + cursor.at)
            }
            Err(Incomplete) => (None, skipped),
        })
    }
}

struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn line(&mut self) -> Parsed<&'a [u8]> {
        let rest = &self.input[self.at..];
        let window = &rest[..rest.len().min(MAX_LINE)];
        match window.iter().position(|byte| *byte == b'\r') {
            Some(end) => match rest.get(end + 1) {
                Some(b'\n') => {
                    self.at += end + 2;
                    Ok(Ok(&rest[..end]))
                }
                Some(_) => Err(NotResp),
                None => Ok(Err(Incomplete)),
            },
            None if rest.len() >= MAX_LINE => Err(NotResp),
            None => Ok(Err(Incomplete)),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.input.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn reply(&mut self) -> Parsed<Parsing<'a>> {
        let reply = match self.byte() {
            None => return Ok(Err(Incomplete)),
            Some(b'*') => return self.array(),
            Some(b'-') => RespReply::Error(complete!(self.line())),
            Some(b'+') => match complete!(self.line()) {
                b"PONG" => RespReply::Pong,
                _ => RespReply::Other,
            },
            Some(b':') => {
                complete!(self.line());
                RespReply::Other
            }
            Some(b'$') => {
                self.at -= 1;
                complete!(self.bulk());
                RespReply::Other
            }
            Some(_) => return Err(NotResp),
        };
        Ok(Ok(Parsing::Done(reply)))
    }

    fn array(&mut self) -> Parsed<Parsing<'a>> {
        let count = number(complete!(self.line()))?.unwrap_or(0);
        if count > MAX_ELEMENTS {
            return Err(NotResp);
        }
        if count == 0 {
            return Ok(Ok(Parsing::Done(RespReply::Other)));
        }
        let kind = complete!(self.bulk());
        let reply = match (kind, count) {
            (b"message" | b"smessage", 3) => {
                let channel = complete!(self.bulk());
                let len = complete!(self.bulk_len());
                if len > MAX_PAYLOAD {
                    let reply = RespReply::Oversized { channel };
                    return Ok(Ok(Parsing::DoneAndSkip(reply, len.saturating_add(2))));
                }
                let payload = complete!(self.bulk_body(len));
                RespReply::Message { channel, payload }
            }
            (b"subscribe" | b"ssubscribe", 3) => {
                RespReply::Subscribed(complete!(self.confirmation()))
            }
            (b"unsubscribe" | b"sunsubscribe", 3) => {
                RespReply::Unsubscribed(complete!(self.confirmation()))
            }
            (b"pong", 2) => {
                complete!(self.bulk());
                RespReply::Pong
            }
            (kind, count) => {
                for _ in 1..count {
                    complete!(self.element(1));
                }
                match kind {
                    b"slave" | b"replica" => RespReply::Replica,
                    _ => RespReply::Other,
                }
            }
        };
        Ok(Ok(Parsing::Done(reply)))
    }

    /// Reads the channel of a confirmation, and skips the number of the connection's channels behind it.
    fn confirmation(&mut self) -> Parsed<&'a [u8]> {
        let channel = complete!(self.bulk());
        complete!(self.element(1));
        Ok(Ok(channel))
    }

    /// Skips an element at this depth of nesting.
    fn element(&mut self, depth: usize) -> Parsed<()> {
        match self.byte() {
            None => return Ok(Err(Incomplete)),
            Some(b'*') if depth < MAX_NESTING => {
                let count = number(complete!(self.line()))?.unwrap_or(0);
                if count > MAX_ELEMENTS {
                    return Err(NotResp);
                }
                for _ in 0..count {
                    complete!(self.element(depth + 1));
                }
            }
            Some(b':' | b'+' | b'-') => {
                complete!(self.line());
            }
            Some(b'$') => {
                self.at -= 1;
                complete!(self.bulk());
            }
            Some(_) => return Err(NotResp),
        }
        Ok(Ok(()))
    }

    /// Reads a bulk string; the null string reads as empty.
    fn bulk(&mut self) -> Parsed<&'a [u8]> {
        match self.input.get(self.at..self.at + 5) {
            Some(b"$-1\r\n") => {
                self.at += 5;
                return Ok(Ok(&[]));
            }
            Some(_) => {}
            None => return Ok(Err(Incomplete)),
        }
        let len = complete!(self.bulk_len());
        if len > MAX_ELEMENT {
            return Err(NotResp);
        }
        self.bulk_body(len)
    }

    fn bulk_len(&mut self) -> Parsed<usize> {
        match self.byte() {
            None => return Ok(Err(Incomplete)),
            Some(b'$') => {}
            Some(_) => return Err(NotResp),
        }
        Ok(Ok(number(complete!(self.line()))?.ok_or(NotResp)?))
    }

    fn bulk_body(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let rest = &self.input[self.at..];
        if rest.len() < len + 2 {
            return Ok(Err(Incomplete));
        }
        if rest[len..len + 2] != *b"\r\n" {
            return Err(NotResp);
        }
        self.at += len + 2;
        Ok(Ok(&rest[..len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"+OK\r\n+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n\
        *3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\nx\r\ny\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n\
        -NOPERM no\r\n*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n\
        *3\r\n$6\r\nmaster\r\n:7\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n$1\r\n7\r\n\
        *5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:7\r\n";

    fn expected() -> Vec<RespReply<'static>> {
        vec![
            RespReply::Other,
            RespReply::Pong,
            RespReply::Subscribed(b"a"),
            RespReply::Message {
                channel: b"a",
                payload: b"x\r\ny",
            },
            RespReply::Pong,
            RespReply::Error(b"NOPERM no"),
            RespReply::Unsubscribed(b""),
            RespReply::Other,
            RespReply::Replica,
        ]
    }

    #[test]
    fn replies_are_read_however_they_are_cut() {
        for step in 1..=STREAM.len() {
            let mut parser = Parser::default();
            let (mut start, mut end) = (0, 0);
            let mut seen = Vec::new();
            while end < STREAM.len() {
                end = (end + step).min(STREAM.len());
                loop {
                    let (reply, used) = parser.next(&STREAM[start..end]).unwrap();
                    start += used;
                    match reply {
                        Some(reply) => seen.push(reply),
                        None => break,
                    }
                }
            }
            assert_eq!(seen, expected(), "{step}");
        }
    }

    #[test]
    fn a_message_beyond_the_bound_is_skipped_as_it_streams_by() {
        let len = MAX_PAYLOAD + 1;
        let mut parser = Parser::default();
        let head = format!("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n${len}\r\n");
        let (reply, used) = parser.next(head.as_bytes()).unwrap();
        assert_eq!(
            (reply, used),
            (Some(RespReply::Oversized { channel: b"a" }), head.len())
        );
        let body = vec![b'x'; 1 << 20];
        let mut left = len + 2;
        while left > 0 {
            let piece = &body[..left.min(body.len())];
            assert_eq!(parser.next(piece), Ok((None, piece.len())));
            left -= piece.len();
        }
        assert_eq!(parser.next(b"+PONG\r\n"), Ok((Some(RespReply::Pong), 7)));
    }

    #[test]
    fn what_is_not_resp2_is_refused() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"*999\r\n",
            b"*2\r\n$1\r\na\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
            b"*-5\r\n",
            b"*3\r\n$99999999999\r\n",
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\naXX:1\r\n",
            b"+a\rb\r\n",
            b"*1\r\n$1a\r\nx\r\n",
        ] {
            assert_eq!(Parser::default().next(bytes), Err(NotResp), "{bytes:?}");
        }
        let endless = vec![b'+'; MAX_LINE + 2];
        assert_eq!(Parser::default().next(&endless), Err(NotResp));
    }
}
