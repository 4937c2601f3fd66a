//! Reads the head of a request within bounds of size and time, and answers a refused one with a problem document.
//!
//! It is strict where HTTP libraries are lenient.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::http::request::Parts;
use bytes::{Buf, Bytes, BytesMut};
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use self::request::HeadLines;
use super::answer::refuse;
use super::client_address::is_trusted;
use super::half_open::HandshakePlace;
use super::proxy_protocol;
use crate::config::{ClientAddress, ServerConfig};
use crate::error::Refusal;
use crate::metrics::HandshakeStage;

mod request;

/// Bytes of the first buffer. Most upgrade requests fit, token included; the buffer grows for the others.
const FIRST_READ: usize = 2048;

/// The first byte of a TLS handshake. A client that speaks https to a plain port would not understand an answer.
const TLS_HANDSHAKE: u8 = 0x16;

thread_local! {
    /// Takes the first bytes of a connection until their buffer is made.
    static FIRST: RefCell<[u8; FIRST_READ]> = const { RefCell::new([0; FIRST_READ]) };
}

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

/// Reads what is there. A read that does not fill the buffer has taken everything, so the stream counts as drained until
/// more comes, and no later look at it costs a system call.
fn read_first(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut taken = Ok(0);
    let drained = stream.try_io(Interest::READABLE, || {
        let count = rustix::io::read(stream, &mut *buffer)?;
        taken = Ok(count);
        match 0 < count && count < buffer.len() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    });
    match (drained, &taken) {
        (Err(error), Ok(0)) => Err(error),
        _ => taken,
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

    /// Returns the end of `server.handshake_timeout` for a connection that comes now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Waits for the first bytes of a connection until `deadline`. Returns `None` if none come.
    ///
    /// A new connection may count as readable before it is: until bytes are there, they have no buffer of their own.
    pub async fn first_bytes(&self, stream: &TcpStream, deadline: Instant) -> Option<BytesMut> {
        loop {
            timeout_at(deadline, stream.readable()).await.ok()?.ok()?;
            let read = FIRST.with_borrow_mut(|scratch| {
                let count = read_first(stream, scratch)?;
                let mut first = BytesMut::with_capacity(FIRST_READ);
                first.extend_from_slice(&scratch[..count]);
                io::Result::Ok(first)
            });
            match read {
                Ok(first) if first.is_empty() => return None,
                Ok(first) => return Some(first),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for a whole head on a connection from `peer` until `deadline`, behind its first bytes. The bytes of the head
    /// count in `place`.
    ///
    /// # Errors
    /// [`NoRequest`]: the connection is closed, after an answer if it was refused. The caller counts it.
    pub async fn read(
        &self,
        (stream, first): (TcpStream, BytesMut),
        peer: IpAddr,
        deadline: Instant,
        place: &mut HandshakePlace,
    ) -> Result<Arrival, NoRequest> {
        place.hold(first.capacity());
        let mut arriving = Arriving {
            stream,
            buffer: first,
            place,
        };
        let received = timeout_at(deadline, self.receive(&mut arriving, peer)).await;
        let Arriving {
            stream,
            buffer,
            place,
        } = arriving;
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
            // A load balancer's connection ahead of need: only its PROXY header has come.
            Err(_) if buffer.is_empty() => NoRequest::Cut,
            Err(_) => NoRequest::Refused(Refusal::HandshakeTimeout),
        };
        if let NoRequest::Refused(refusal) = no_request {
            drop(buffer);
            place.enter(HandshakeStage::Answered);
            // Boxed, so that a connection that is not refused has no room for it.
            Box::pin(refuse(stream, refusal)).await;
        }
        Err(no_request)
    }

    /// Receives a whole head and takes it out of the buffer, after the PROXY header if there is one.
    async fn receive(
        &self,
        arriving: &mut Arriving<'_>,
        peer: IpAddr,
    ) -> Result<(Option<SocketAddr>, Bytes, Parts), NoRequest> {
        let proxied = match &self.proxies {
            Some(trusted) if is_trusted(trusted, peer) => arriving.receive_proxy_header().await?,
            Some(_) => return Err(NoRequest::Cut),
            None => None,
        };
        let mut lines = HeadLines::default();
        loop {
            if arriving.buffer.first() == Some(&TLS_HANDSHAKE) {
                return Err(NoRequest::Cut);
            }
            if let Some(length) = lines.advance(&arriving.buffer)? {
                let bytes = arriving.buffer.split_to(length).freeze();
                let head = request::parse(&bytes)?;
                return Ok((proxied, bytes, head));
            }
            arriving.receive_more().await?;
        }
    }
}

/// A connection whose request is on its way.
struct Arriving<'p> {
    stream: TcpStream,
    buffer: BytesMut,
    place: &'p mut HandshakePlace,
}

impl Arriving<'_> {
    /// Receives a PROXY header and takes it out of the buffer.
    async fn receive_proxy_header(&mut self) -> Result<Option<SocketAddr>, NoRequest> {
        loop {
            // A proxy without the header is a wrong set-up or an attack. Neither is a client to be answered.
            let header = proxy_protocol::parse(&self.buffer).map_err(|_| NoRequest::Cut)?;
            if let Some(header) = header {
                self.buffer.advance(header.len);
                return Ok(header.source);
            }
            self.receive_more().await?;
        }
    }

    /// Receives at least one more byte; fails if the connection ends, or if there is no memory for a longer request.
    async fn receive_more(&mut self) -> Result<(), NoRequest> {
        self.place.enter(HandshakeStage::Head);
        if self.buffer.len() == self.buffer.capacity() {
            self.grow(self.buffer.len().max(FIRST_READ))?;
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(NoRequest::Cut),
        }
    }

    fn grow(&mut self, additional: usize) -> Result<(), NoRequest> {
        if !self.place.hold(self.buffer.len() + additional) {
            return Err(Refusal::Overloaded.into());
        }
        self.buffer.reserve(additional);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
