//! Reads a request's head (step 0 of a socket's life): bounded in size and time, strict where HTTP libraries are lenient,
//! with a problem document for what is refused.

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

/// Most upgrade requests, token included, fit; what does not, grows.
const FIRST_READ: usize = 2048;

/// First byte of a TLS record with a handshake: someone speaks https to a plain port, and would not understand an answer.
const TLS_HANDSHAKE: u8 = 0x16;

/// Reads heads as the server's configuration says.
#[derive(Clone, Debug)]
pub struct HeadReader {
    timeout: Duration,
    /// With `client_address = "proxy-protocol"`: who may write the PROXY header.
    proxies: Option<Vec<IpNet>>,
}

/// A request whose head is complete and well-formed.
#[derive(Debug)]
pub struct Arrival {
    /// Gives what follows [`Arrival::early`].
    pub stream: TcpStream,
    /// Method, target and headers.
    pub head: Parts,
    /// The head as it came.
    pub bytes: Bytes,
    /// What came in the same segments behind the head.
    pub early: Bytes,
    /// The client, as a PROXY header named it; `None` without one, or where it names nobody.
    pub proxied: Option<SocketAddr>,
}

/// There is no request to serve; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRequest {
    /// The client was answered with the refusal's problem document.
    #[error("refused: {}", .0.code())]
    Refused(Refusal),
    /// The connection was closed without a word: it ended or was silent, or does not speak HTTP.
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
    /// [`NoRequest`]: the client was answered where that makes sense, and the connection is closed. The caller counts it.
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
            // Browsers open connections ahead of need: a silent one is not answered.
            Err(_) if buffer.is_empty() => NoRequest::Cut,
            Err(_) => NoRequest::Refused(Refusal::HandshakeTimeout),
        };
        if let NoRequest::Refused(refusal) = no_request {
            drop(buffer);
            refuse(stream, refusal).await;
        }
        Err(no_request)
    }

    /// Takes a whole head out of `buffer`, which it fills, without the PROXY header that may stand before it.
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

async fn receive_proxy_header(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<Option<SocketAddr>, NoRequest> {
    loop {
        // A peer that breaks the agreement is a wrong set-up or an attack; neither is a client to be answered.
        if let Some(header) = proxy_protocol::parse(buffer).map_err(|_| NoRequest::Cut)? {
            buffer.advance(header.len);
            return Ok(header.source);
        }
        receive_more(stream, buffer).await?;
    }
}

/// At least one more byte, or the connection is over.
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
