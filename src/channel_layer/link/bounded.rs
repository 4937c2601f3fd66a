//! A connection for commands whose answers hold what tenants wrote. A bulk string over a bound is skipped as it streams by,
//! and reads as nil.
//!
//! It replaces redis-rs' `MultiplexedConnection`, which holds an answer whole: a message in one tenant's mailbox took memory of
//! its whole length from the process of all tenants (measured with 48 MB; here none). Values are redis-rs'.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::stores::redis_answer::{AnswerWalk, MAX_LINE, NotResp};
use crate::stores::redis_stream::Stream;

/// Bytes of one read.
const READ_SIZE: usize = 64 * 1024;
/// The most values of one answer. A batch of messages has some 260.
const MAX_VALUES: u64 = 4096;

/// A connection whose answers are bounded.
pub(in crate::channel_layer) struct BoundedLink {
    stream: Box<dyn Stream>,
    input: BytesMut,
    /// Bytes of the longest bulk string that is kept.
    longest: usize,
    /// The longest silence while an answer is waited for.
    silence: Duration,
}

impl BoundedLink {
    /// Takes over a connection that is logged in and has no answer unread.
    pub(in crate::channel_layer) fn new(
        stream: Box<dyn Stream>,
        longest: usize,
        silence: Duration,
    ) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            longest,
            silence,
        }
    }

    /// Sends one command and returns its answer. The connection is of no more use if the future is dropped.
    ///
    /// # Errors
    /// The server's error, or that of the connection.
    pub(in crate::channel_layer) async fn query<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
    ) -> RedisResult<T> {
        let heard = AtomicBool::new(false);
        self.round(&command.get_packed_command(), 1, &heard).await
    }

    /// Sends packed commands and returns the answer of the last one. `heard` is set with each read after which an answer is
    /// not complete. The connection is of no more use if the future is dropped.
    ///
    /// # Errors
    /// The first error of the server, or that of the connection.
    pub(in crate::channel_layer) async fn round<T: FromRedisValue>(
        &mut self,
        commands: &[u8],
        answers: usize,
        heard: &AtomicBool,
    ) -> RedisResult<T> {
        let stream = &mut self.stream;
        let write = async {
            stream.write_all(commands).await?;
            stream.flush().await
        };
        timeout(self.silence, write).await.map_err(|_| late())??;
        let mut last = Ok(Value::Nil);
        for _ in 0..answers {
            let answer = self.answer(heard).await?;
            last = last.and(answer.extract_error());
        }
        Ok(redis::from_redis_value(last?)?)
    }

    async fn answer(&mut self, heard: &AtomicBool) -> RedisResult<Value> {
        let (mut answer, mut began) = (AnswerParts::new(self.longest), false);
        while !answer.take(&mut self.input).map_err(not_understood)? {
            if began {
                heard.store(true, Ordering::Relaxed);
            }
            self.input.reserve(READ_SIZE);
            let read = timeout(self.silence, self.stream.read_buf(&mut self.input)).await;
            if read.map_err(|_| late())?? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            began = true;
        }
        redis::parse_redis_value(&answer.kept)
    }
}

fn late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

fn not_understood(error: NotResp) -> RedisError {
    io::Error::new(io::ErrorKind::InvalidData, error).into()
}

/// One answer as far as it has come, without what is too long. It does no IO.
struct AnswerParts {
    walk: AnswerWalk,
    kept: Vec<u8>,
    longest: usize,
    /// The present bulk string is too long.
    skips: bool,
}

impl AnswerParts {
    fn new(longest: usize) -> Self {
        Self {
            walk: AnswerWalk::new(MAX_VALUES),
            kept: Vec::new(),
            longest,
            skips: false,
        }
    }

    /// Takes what belongs to the answer out of `input`; returns true once it is complete.
    fn take(&mut self, input: &mut BytesMut) -> Result<bool, NotResp> {
        loop {
            let here = self.walk.pass(input.len());
            if !self.skips {
                self.kept.extend_from_slice(&input[..here]);
            }
            input.advance(here);
            if self.walk.is_in_body() {
                return Ok(false);
            }
            if self.walk.is_complete() {
                return Ok(true);
            }
            let window = &input[..input.len().min(MAX_LINE)];
            let Some(end) = window.windows(2).position(|two| two == b"\r\n") else {
                return match window.len() == MAX_LINE {
                    true => Err(NotResp),
                    false => Ok(false),
                };
            };
            let line = input.split_to(end + 2);
            self.begin(&line[..end])?;
        }
    }

    /// Begins the value that has this first line.
    fn begin(&mut self, line: &[u8]) -> Result<(), NotResp> {
        let bulk = self.walk.begin(line)?;
        self.skips = bulk.is_some_and(|len| len > self.longest);
        let line = if self.skips { b"$-1" } else { line };
        self.kept.extend_from_slice(line);
        self.kept.extend_from_slice(b"\r\n");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: usize = 6;
    const STREAM: &[u8] = b"*3\r\n$3\r\nkey\r\n$7\r\ntoo\r\nlo\r\n$1\r\n5\r\n*-1\r\n:12\r\n$-1\r\n\
        -NOPERM no\r\n*2\r\n*1\r\n$6\r\n\r\n\r\n\r\n\r\n*0\r\n$0\r\n\r\n";

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// Every answer of `STREAM`, which comes in pieces of `step` bytes.
    fn answers(step: usize) -> Vec<RedisResult<Value>> {
        let (mut input, mut answers) = (BytesMut::new(), Vec::new());
        let mut answer = AnswerParts::new(LONGEST);
        for piece in STREAM.chunks(step) {
            input.extend_from_slice(piece);
            while answer.take(&mut input).expect("it is RESP") {
                let value = redis::parse_redis_value(&answer.kept);
                answers.push(value.and_then(Value::extract_error));
                answer = AnswerParts::new(LONGEST);
            }
        }
        answers
    }

    #[test]
    fn answers_are_read_however_they_are_cut_and_what_is_too_long_is_nil() {
        for step in 1..=STREAM.len() {
            let mut answers = answers(step).into_iter();
            let mut next = || answers.next().expect("one more answer");
            let popped = Value::Array(vec![text("key"), Value::Nil, text("5")]);
            assert_eq!(next(), Ok(popped), "{step}");
            assert_eq!(next(), Ok(Value::Nil));
            assert_eq!(next(), Ok(Value::Int(12)));
            assert_eq!(next(), Ok(Value::Nil));
            let refused = next().expect_err("NOPERM");
            assert_eq!(refused.code(), Some("NOPERM"));
            let nested = Value::Array(vec![text("\r\n\r\n\r\n")]);
            assert_eq!(next(), Ok(Value::Array(vec![nested, Value::Array(vec![])])));
            assert_eq!(next(), Ok(text("")));
            assert!(answers.next().is_none());
        }
    }

    #[test]
    fn what_is_skipped_takes_no_memory_and_what_is_not_resp_is_refused() {
        let mut answer = AnswerParts::new(LONGEST);
        let mut input = BytesMut::from(&b"$1000000000\r\n"[..]);
        for _ in 0..100 {
            assert_eq!(answer.take(&mut input), Ok(false));
            assert!(input.is_empty());
            input.extend_from_slice(&[b'x'; 1000]);
        }
        assert_eq!(answer.kept, b"$-1\r\n");
        let long = [b"+", &[b'x'; MAX_LINE][..]].concat();
        for wrong in [
            &b"HTTP/1.1 200 OK\r\n"[..],
            b"*5000\r\n",
            b"$x\r\n",
            b"\r\n",
            &long,
        ] {
            let mut input = BytesMut::from(wrong);
            assert_eq!(AnswerParts::new(LONGEST).take(&mut input), Err(NotResp));
        }
    }

    #[tokio::test]
    async fn a_round_returns_its_last_answer_or_its_first_error_and_keeps_in_step() {
        let (ours, mut server) = tokio::io::duplex(1024);
        let mut link = BoundedLink::new(Box::new(ours), LONGEST, Duration::from_secs(5));
        let heard = AtomicBool::new(false);
        for (sent, expected) in [
            (&b":1\r\n$5\r\nhello\r\n"[..], Ok("hello")),
            (b"-NOPERM no\r\n$5\r\nhello\r\n", Err(Some("NOPERM"))),
            (b":1\r\n+OK\r\n", Ok("OK")),
        ] {
            server.write_all(sent).await.unwrap();
            let answer = link.round::<String>(b"", 2, &heard).await;
            let answer = answer.as_deref().map_err(RedisError::code);
            assert_eq!(answer, expected);
        }
        assert!(!heard.load(Ordering::Relaxed), "each came whole");
        // Longer than the pipe, so that it comes in several reads.
        let long = [b"$3000\r\n", &[b'x'; 3000][..], b"\r\n"].concat();
        let (sent, answer) = tokio::join!(
            server.write_all(&long),
            link.round::<Option<String>>(b"", 1, &heard)
        );
        assert!(sent.is_ok());
        assert_eq!(answer, Ok(None));
        assert!(heard.load(Ordering::Relaxed), "it came in pieces");
        drop(server);
        assert!(link.round::<String>(b"", 1, &heard).await.is_err());
    }
}
