//! The shape of an answer in RESP2: where it ends, and whether it is longer than the answers that the gateway asks for.
//!
//! It does no IO and holds no answer. The commands of the stores take it to end a link, those of `channel_layer` to skip a value.

use std::io;

/// Bytes of the longest line of an answer; Redis' own error texts are far shorter.
pub const MAX_LINE: usize = 64 * 1024;
/// Bytes of the longest answer that a store asks for. A page of presence ends behind 8 MiB and one entry more; an entry, as an
/// event of a history, may have 8 MiB; and 200,000 names, as many as one answer has, take under 10 bytes each for their lengths.
pub const LONGEST_ANSWER: usize = 24 * 1024 * 1024;
/// The most values of such an answer: some 200,000 users with what is noted of each. A value takes 32 bytes of memory, and may have
/// come as four.
const MAX_VALUES: u64 = 1024 * 1024;

/// The server does not speak RESP2, or sends an answer that the gateway does not ask for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's reply is not RESP2")]
pub struct NotResp;

/// One answer as far as it has come.
#[derive(Debug)]
pub struct AnswerWalk {
    /// The number of values that are still to come.
    values: u64,
    most_values: u64,
    /// Bytes of the present bulk string that are still to come, with its line end.
    body: usize,
}

impl AnswerWalk {
    /// Begins an answer of at most `most_values` values.
    pub fn new(most_values: u64) -> Self {
        Self {
            values: 1,
            most_values,
            body: 0,
        }
    }

    /// Passes what belongs to the present bulk string of `available` bytes; returns their number.
    pub fn pass(&mut self, available: usize) -> usize {
        let here = self.body.min(available);
        self.body -= here;
        here
    }

    /// Returns true within a bulk string.
    pub fn is_in_body(&self) -> bool {
        self.body > 0
    }

    /// Returns true once nothing is to come.
    pub fn is_complete(&self) -> bool {
        self.values == 0 && self.body == 0
    }

    /// Begins the value that has this first line, without its end. Returns the length of a bulk string.
    ///
    /// # Errors
    /// [`NotResp`], also if the values become too many.
    pub fn begin(&mut self, line: &[u8]) -> Result<Option<usize>, NotResp> {
        let (mark, rest) = line.split_first().ok_or(NotResp)?;
        self.values -= 1;
        let mut bulk = None;
        match mark {
            b'+' | b'-' | b':' => {}
            b'*' => {
                let count = number(rest)?.unwrap_or(0) as u64;
                self.values = self.values.saturating_add(count);
            }
            b'$' => {
                bulk = number(rest)?;
                if let Some(len) = bulk {
                    self.body = len.checked_add(2).ok_or(NotResp)?;
                }
            }
            _ => return Err(NotResp),
        }
        match self.values > self.most_values {
            true => Err(NotResp),
            false => Ok(bulk),
        }
    }
}

/// Reads a length; `None` for that of nil.
pub fn number(line: &[u8]) -> Result<Option<usize>, NotResp> {
    let text = str::from_utf8(line).map_err(|_| NotResp)?;
    if text == "-1" {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NotResp);
    }
    text.parse().map(Some).map_err(|_| NotResp)
}

/// An answer that no command of the gateway has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's answer is longer than {} MiB, or is not RESP2", LONGEST_ANSWER >> 20)]
pub(super) struct WrongAnswer;

impl From<WrongAnswer> for io::Error {
    fn from(wrong: WrongAnswer) -> Self {
        // The kind after which redis-rs gives up the connection.
        io::Error::new(io::ErrorKind::ConnectionAborted, wrong)
    }
}

/// Measures the answers of a connection as they stream by.
///
/// It looks at the lines that begin values, and passes what is between them: two reads of keys cost it some 100 ns.
#[derive(Debug)]
pub(super) struct AnswerMeter {
    walk: AnswerWalk,
    /// The beginning of a line that a read has cut.
    line: Vec<u8>,
    /// Bytes of the present answer.
    bytes: usize,
    longest: usize,
}

impl AnswerMeter {
    pub(super) fn new(longest: usize) -> Self {
        Self {
            walk: AnswerWalk::new(MAX_VALUES),
            line: Vec::new(),
            bytes: 0,
            longest,
        }
    }

    /// Takes note of the next bytes.
    pub(super) fn pass(&mut self, mut input: &[u8]) -> Result<(), WrongAnswer> {
        loop {
            let here = self.walk.pass(input.len());
            input = &input[here..];
            if input.is_empty() {
                return Ok(());
            }
            if self.walk.is_complete() {
                self.walk = AnswerWalk::new(MAX_VALUES);
                self.bytes = 0;
            }
            let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
                self.line.extend_from_slice(input);
                return match self.line.len() > MAX_LINE {
                    true => Err(WrongAnswer),
                    false => Ok(()),
                };
            };
            let (line, rest) = input.split_at(end + 1);
            input = rest;
            self.line_ends(line)?;
        }
    }

    fn line_ends(&mut self, end: &[u8]) -> Result<(), WrongAnswer> {
        let begun = std::mem::take(&mut self.line);
        let joined;
        let line = match begun.is_empty() {
            true => end,
            false => {
                joined = [&begun, end].concat();
                &joined
            }
        };
        let text = line.strip_suffix(b"\r\n").ok_or(WrongAnswer)?;
        let bulk = self.walk.begin(text).map_err(|NotResp| WrongAnswer)?;
        self.bytes += line.len();
        // Before a byte of the body has come.
        self.bytes = self.bytes.saturating_add(bulk.unwrap_or(0));
        match self.bytes > self.longest {
            true => Err(WrongAnswer),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: usize = 32;

    fn passes(stream: &[u8], step: usize) -> bool {
        let mut meter = AnswerMeter::new(LONGEST);
        stream.chunks(step).all(|piece| meter.pass(piece).is_ok())
    }

    #[test]
    fn answers_are_measured_one_by_one_however_they_are_cut() {
        let short = b":1\r\n*2\r\n$8\r\n12345\r\n8\r\n:777\r\n-ERR a text of the server\r\n$-1\r\n*0\r\n"[..].repeat(3);
        for step in 1..=short.len() {
            assert!(passes(&short, step), "{step}");
        }
        for long in [
            &b":1\r\n$30\r\n"[..],
            b"*2\r\n$8\r\n12345678\r\n$15\r\n123456789012345\r\n",
            b"*3\r\n:12345678\r\n:12345678\r\n:12345678\r\n",
            b"*18446744073709551615\r\n",
            b"*2\r\n*18446744073709551615\r\n",
            b"$18446744073709551615\r\n",
            b"*1048577\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b":1\n",
        ] {
            for step in 1..=long.len() {
                assert!(!passes(long, step), "{long:?} {step}");
            }
        }
        let mut meter = AnswerMeter::new(LONGEST);
        let endless = std::iter::repeat_n(b"+aaaaaaa", MAX_LINE);
        let passed = endless.take_while(|piece| meter.pass(*piece).is_ok());
        assert_eq!(passed.count(), MAX_LINE / 8);
    }
}
