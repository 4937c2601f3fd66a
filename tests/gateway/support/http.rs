//! A plain HTTP/1.1 client that sends exactly what it is told and hides nothing of the answer.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, within};

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// Names in lower case, in the order in which they came.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: String,
}

impl Response {
    /// The value of a header; panics where it came twice.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} came twice: {self:?}");
        value
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// An answer's head, and the connection with what was read beyond.
pub(crate) struct Head {
    /// As [`Response`], without a body.
    pub(crate) response: Response,
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Bytes after the head.
    pub(crate) rest: Vec<u8>,
}

/// Sends `request` as it is and reads the head of the answer; `None` if the connection ends before one.
pub(crate) async fn exchange(server: SocketAddr, request: &[u8]) -> Option<Head> {
    within(PATIENCE, "an answer", async {
        let mut stream = TcpStream::connect(server).await.ok()?;
        // The server may answer and close before it has read everything.
        drop(stream.write_all(request).await);
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = find(&bytes, b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                let response = parse_head(&String::from_utf8_lossy(&bytes));
                return Some(Head {
                    response,
                    stream,
                    rest,
                });
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
    })
    .await
}

impl Head {
    /// Reads the body: as long as its length says, else to the end of the connection.
    pub(crate) async fn body(mut self) -> Response {
        let length = self.response.header("content-length");
        let length: Option<usize> = length.map(|n| n.parse().expect("a number"));
        let read = async {
            while length.is_none_or(|length| self.rest.len() < length) {
                if self
                    .stream
                    .read_buf(&mut self.rest)
                    .await
                    .is_ok_and(|n| n > 0)
                {
                    continue;
                }
                break;
            }
        };
        within(PATIENCE, "the body", read).await;
        self.response.body = String::from_utf8_lossy(&self.rest).into_owned();
        self.response
    }
}

/// One request without an upgrade, with an empty or a JSON body.
pub(crate) async fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let answer = try_request(server, method, path, headers, body).await;
    answer.unwrap_or_else(|| panic!("{method} {path}: no answer"))
}

/// As `request`; `None` where the connection ends before an answer.
pub(crate) async fn try_request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Response> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(body);
    let head = exchange(server, text.as_bytes()).await?;
    Some(head.body().await)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn parse_head(head: &str) -> Response {
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    Response {
        status: status
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("not an answer: {head}")),
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
        body: String::new(),
    }
}
