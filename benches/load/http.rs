//! The part of HTTP/1.1 that a load program needs: pages of the admin listener, calls of the management API.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::world::API_KEY;

const PATIENCE: Duration = Duration::from_secs(10);

/// Returns status and body of a page.
pub(crate) fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("no HTTP answer");
    };
    Ok((status(head)?, body.to_owned()))
}

/// Returns the status of the answer to a request.
pub(crate) fn status_of(port: u16, request: &[u8]) -> Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut start = [0; 64];
    let read = stream.read(&mut start)?;
    status(&String::from_utf8_lossy(&start[..read]))
}

fn status(head: &str) -> Result<u16> {
    let word = head.split(' ').nth(1).context("no status")?;
    Ok(word.parse()?)
}

/// A kept connection to the management API of one replica; one call at a time.
pub(crate) struct Api {
    port: u16,
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Api {
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("no API")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            port,
            stream,
            answer: Vec::new(),
        })
    }

    /// Sends a call and does not wait for its answer.
    pub(crate) fn begin(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // A call fits into the kernel's buffer, so this does not block.
        Ok(self.stream.write_all(request.as_bytes())?)
    }

    /// Returns status and JSON of the answer, once it is complete.
    pub(crate) fn poll(&mut self) -> Result<Option<(u16, Value)>> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the API hung up"),
            Ok(read) => self.answer.extend(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = answer.parse(&self.answer)? else {
            return Ok(None);
        };
        let status = answer.code.context("no status")?;
        let named =
            |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("content-length");
        let length = answer.headers.iter().find(named).context("no length")?;
        let length: usize = std::str::from_utf8(length.value)?.parse()?;
        let Some(body) = self.answer.get(head..head + length) else {
            return Ok(None);
        };
        let body = serde_json::from_slice(body)?;
        let is_last = { answer.headers.iter() }.any(|header| {
            header.name.eq_ignore_ascii_case("connection")
                && header.value.eq_ignore_ascii_case(b"close")
        });
        self.answer.drain(..head + length);
        if is_last {
            // The API takes requests on a connection for a minute.
            *self = Self::connect(self.port)?;
        }
        Ok(Some((status, body)))
    }

    /// Sends a call and waits for its answer.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        self.begin(method, path, body)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.poll()? {
                return Ok(answer);
            }
            ensure!(Instant::now() < deadline, "the API does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
