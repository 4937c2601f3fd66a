//! A WebSocket client: tungstenite's framing on a handshake that is written by hand, so that nothing is hidden.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::http::{Response, exchange};
use super::{PATIENCE, within};

/// The key of RFC 6455's example, whose answer is `s3pPLMBiTxaQ9kYGzzhZRbK+xOo=`.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// An upgrade request in the making.
pub(crate) struct Dial {
    server: SocketAddr,
    host: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
}

impl Dial {
    /// To `server`, for `host`, on `path`.
    pub(crate) fn new(server: SocketAddr, host: &str, path: &str) -> Self {
        let upgrade = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        Self {
            server,
            host: host.to_owned(),
            path: path.to_owned(),
            query: String::new(),
            headers: upgrade.map(|(n, v)| (n.into(), v.into())).into(),
        }
    }

    /// With `?token=TOKEN`.
    pub(crate) fn token(self, token: &str) -> Self {
        self.query(&format!("token={token}"))
    }

    /// With this query.
    pub(crate) fn query(mut self, query: &str) -> Self {
        self.query = format!("?{query}");
        self
    }

    /// With a further header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Without a header, or with another value.
    pub(crate) fn replace(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.retain(|(n, _)| n != name);
        match value {
            Some(value) => self.header(name, value),
            None => self,
        }
    }

    /// Offers subprotocols.
    pub(crate) fn subprotocols(self, offered: &str) -> Self {
        self.header("Sec-WebSocket-Protocol", offered)
    }

    /// Opens the socket; panics with the answer if it is refused.
    pub(crate) async fn open(self) -> Socket {
        let path = self.path.clone();
        self.attempt()
            .await
            .unwrap_or_else(|refusal| panic!("{path}: refused: {refusal:?}"))
    }

    /// The refusal; panics if there is none.
    pub(crate) async fn refused(self) -> Response {
        let path = self.path.clone();
        match self.attempt().await {
            Ok(_) => panic!("{path}: not refused"),
            Err(response) => response,
        }
    }

    /// One attempt.
    pub(crate) async fn attempt(self) -> Result<Socket, Response> {
        let path = self.path.clone();
        let attempt = self.attempt_or_cut().await;
        attempt.unwrap_or_else(|| panic!("{path}: cut without an answer"))
    }

    /// One attempt; `None` where the connection ends before an answer.
    pub(crate) async fn attempt_or_cut(self) -> Option<Result<Socket, Response>> {
        let mut request = format!(
            "GET {}{} HTTP/1.1\r\nHost: {}\r\n",
            self.path, self.query, self.host
        );
        for (name, value) in &self.headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let head = exchange(self.server, request.as_bytes()).await?;
        if head.response.status != 101 {
            return Some(Err(head.body().await));
        }
        let config = WebSocketConfig::default();
        let stream = WebSocketStream::from_partially_read(
            head.stream,
            head.rest,
            Role::Client,
            Some(config),
        );
        Some(Ok(Socket {
            stream: stream.await,
            handshake: head.response,
        }))
    }
}

/// An open socket.
pub(crate) struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The 101 with its headers.
    pub(crate) handshake: Response,
}

impl Socket {
    /// The next message that is not a ping or a pong.
    pub(crate) async fn next(&mut self) -> Message {
        self.next_within(PATIENCE).await
    }

    /// The next message of any kind, however long it takes; `None` where the connection ends.
    pub(crate) async fn read(&mut self) -> Option<Result<Message, Error>> {
        self.stream.next().await
    }

    async fn next_within(&mut self, deadline: Duration) -> Message {
        within(deadline, "a message", async {
            loop {
                match self.read().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(message)) => return message,
                    Some(Err(error)) => panic!("a message: {error}"),
                    None => panic!("a message: the connection ended"),
                }
            }
        })
        .await
    }

    /// The next message, a text.
    pub(crate) async fn next_text(&mut self) -> String {
        match self.next().await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("not a text: {other:?}"),
        }
    }

    /// As `next_text`, with a deadline of its own.
    pub(crate) async fn next_text_within(&mut self, deadline: Duration) -> String {
        match self.next_within(deadline).await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("not a text: {other:?}"),
        }
    }

    /// The next message, a text that is JSON.
    pub(crate) async fn next_json(&mut self) -> Value {
        let text = self.next_text().await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// As `next_json`, with a deadline of its own.
    pub(crate) async fn next_json_within(&mut self, deadline: Duration) -> Value {
        match self.next_within(deadline).await {
            Message::Text(text) => {
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
            }
            other => panic!("not a text: {other:?}"),
        }
    }

    /// Sends a text.
    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: Message) {
        within(PATIENCE, "sending", self.stream.send(message))
            .await
            .unwrap_or_else(|e| panic!("sending: {e}"));
    }

    /// Sends a message if that is still possible: the other side may have closed.
    pub(crate) async fn try_send(&mut self, message: Message) -> bool {
        within(PATIENCE, "sending", self.stream.send(message))
            .await
            .is_ok()
    }

    /// Waits for the close frame, which must be next but for pings; its code and reason, 1005 for an empty one.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        self.closed_within(PATIENCE).await
    }

    /// As `closed`, with a deadline of its own.
    pub(crate) async fn closed_within(&mut self, deadline: Duration) -> (u16, String) {
        match self.next_within(deadline).await {
            Message::Close(Some(frame)) => (frame.code.into(), frame.reason.as_str().to_owned()),
            Message::Close(None) => (1005, String::new()),
            other => panic!("not a close frame: {other:?}"),
        }
    }

    /// Reads to the close frame, whatever comes before it.
    pub(crate) async fn drained(&mut self) -> (Vec<Message>, (u16, String)) {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                Message::Close(Some(frame)) => {
                    return (
                        before,
                        (frame.code.into(), frame.reason.as_str().to_owned()),
                    );
                }
                Message::Close(None) => return (before, (1005, String::new())),
                other => before.push(other),
            }
        }
    }

    /// Sends a ping and waits for the answer: what was sent to us before it has arrived, and the socket lives.
    pub(crate) async fn ping(&mut self) -> Vec<Message> {
        self.send(Message::Ping("are you there".into())).await;
        let mut before = Vec::new();
        within(PATIENCE, "a pong", async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Pong(_))) => return,
                    Some(Ok(Message::Ping(_))) => {}
                    Some(Ok(message)) => before.push(message),
                    ended => panic!("a pong: {ended:?}"),
                }
            }
        })
        .await;
        before
    }

    /// Closes with a code.
    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        use tokio_tungstenite::tungstenite::protocol::CloseFrame;
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        self.send(Message::Close(Some(frame))).await;
    }

    /// Lets the system keep no more than this for us, so that a server notices soon if we do not read.
    pub(crate) fn keep_little(&self, bytes: usize) {
        let stream = socket2::SockRef::from(self.stream.get_ref());
        let little = stream.set_recv_buffer_size(bytes);
        little.expect("the system takes it");
    }

    /// The bare connection, for bytes that no client library would send and for not reading at all.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}
