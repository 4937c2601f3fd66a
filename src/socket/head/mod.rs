//! Reads the head of a request within bounds of size and time, and answers a refused one with a problem document.
//!
//! It is strict where HTTP libraries are lenient.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::http::request::Parts;
use bytes::{Buf, Bytes, BytesMut};
use ipnet::IpNet;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::request::HeadLines;
use super::answer::refuse;
use super::client_address::is_trusted;
use super::proxy_protocol;
use crate::config::{ClientAddress, ServerConfig};
use crate::error::Refusal;

mod request;

/// Bytes of the first buffer. Most upgrade requests fit, token included; the buffer grows for the others.
const FIRST_READ: usize = 2048;

/// The first byte of a TLS handshake. A client that speaks https to a plain port would not understand an answer.
const TLS_HANDSHAKE: u8 = 0x16;

/// Reads heads by the server's configuration.
#[derive(Clone, Debug)]
pub struct HeadReader {
    timeout: Duration,
    /// The proxies that may write the PROXY header; `None` unless `client_address` is `"proxy-protocol"`.
    proxies: Option<Vec<IpNet>>,
}

/// A request whose head is complete and well-formed.
#[derive(Debug)]
pub struct Arrival {
    /// The stream; its next bytes follow [`Arrival::early`].
    pub stream: TcpStream,
    /// Method, target and headers.
    pub head: Parts,
    /// The bytes of the head.
    pub bytes: Bytes,
    /// Bytes behind the head that came with it.
    pub early: Bytes,
    /// The client in the PROXY header; `None` if there is no header or it names no client.
    pub proxied: Option<SocketAddr>,
}

/// The outcome of a connection without a request to serve; it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRequest {
    /// The client was answered with the refusal's problem document.
    #[error("refused: {}", .0.code())]
    Refused(Refusal),
    /// The connection was closed without an answer: it ended, was silent, or does not speak HTTP.
    #[error("cut")]
    Cut,
}

impl From<Refusal> for NoRequest {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl HeadReader {
    /// Takes `handshake_timeout`, `client_address` and `trusted_proxies`.
    pub fn new(config: &ServerConfig) -> Self {
        let proxied = config.client_address == ClientAddress::ProxyProtocol;
        Self {
            timeout: config.handshake_timeout,
            proxies: proxied.then(|| config.trusted_proxies.clone()),
        }
    }

    /// Waits for a whole head on a new connection from `peer`, at most `server.handshake_timeout`.
    ///
    /// # Errors
    /// [`NoRequest`]: the connection is closed, after an answer if it was refused. The caller counts it.
    pub async fn read(&self, mut stream: TcpStream, peer: IpAddr) -> Result<Arrival, NoRequest> {
        let mut buffer = BytesMut::new();
        let received = timeout(self.timeout, self.receive(&mut stream, peer, &mut buffer)).await;
        let no_request = match received {
            Ok(Ok((proxied, bytes, head))) => {
                return Ok(Arrival {
                    stream,
                    head,
                    bytes,
                    early: buffer.freeze(),
                    proxied,
                });
            }
            Ok(Err(no_request)) => no_request,
            // Browsers open connections ahead of need, so a silent one is not an error to answer.
            Err(_) if buffer.is_empty() => NoRequest::Cut,
            Err(_) => NoRequest::Refused(Refusal::HandshakeTimeout),
        };
        if let NoRequest::Refused(refusal) = no_request {
            drop(buffer);
            refuse(stream, refusal).await;
        }
        Err(no_request)
    }

    /// Receives a whole head into `buffer` and takes it out, after the PROXY header if there is one.
    async fn receive(
        &self,
        stream: &mut TcpStream,
        peer: IpAddr,
        buffer: &mut BytesMut,
    ) -> Result<(Option<SocketAddr>, Bytes, Parts), NoRequest> {
        let proxied = match &self.proxies {
            Some(trusted) if is_trusted(trusted, peer) => {
                receive_proxy_header(stream, buffer).await?
            }
            Some(_) => return Err(NoRequest::Cut),
            None => None,
        };
        let mut lines = HeadLines::default();
        loop {
            if buffer.first() == Some(&TLS_HANDSHAKE) {
                return Err(NoRequest::Cut);
            }
            if let Some(length) = lines.advance(buffer)? {
                let bytes = buffer.split_to(length).freeze();
                let head = request::parse(&bytes)?;
                return Ok((proxied, bytes, head));
            }
            receive_more(stream, buffer).await?;
        }
    }
}

/// Receives a PROXY header and takes it out of `buffer`.
async fn receive_proxy_header(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<Option<SocketAddr>, NoRequest> {
    loop {
        // A proxy without the header is a wrong set-up or an attack. Neither is a client to be answered.
        if let Some(header) = proxy_protocol::parse(buffer).map_err(|_| NoRequest::Cut)? {
            buffer.advance(header.len);
            return Ok(header.source);
        }
        receive_more(stream, buffer).await?;
    }
}

/// Receives at least one more byte; fails if the connection ends.
async fn receive_more(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<(), NoRequest> {
    if buffer.capacity() == 0 {
        // A connection that has sent nothing owns no buffer.
        stream.readable().await.map_err(|_| NoRequest::Cut)?;
        buffer.reserve(FIRST_READ);
    }
    if buffer.len() == buffer.capacity() {
        buffer.reserve(buffer.len());
    }
    match stream.read_buf(buffer).await {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(NoRequest::Cut),
    }
}

#[cfg(test)]
mod tests;
