//! Reads a request's head before hyper sees it: bounded in size and time, strict where HTTP libraries are lenient, with
//! a problem document for what is refused. On success hyper reads the same bytes again from a prefixed stream.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::scan::Scan;
use super::client_address::is_trusted;
use super::prefixed::Prefixed;
use super::proxy_protocol;
use crate::config::{ClientAddress, ServerConfig};
use crate::error::Refusal;
use crate::problem::Problem;

mod scan;

/// Most upgrade requests, token included, fit; what does not, grows.
const FIRST_READ: usize = 2048;

/// A refused client's bytes are read and thrown away for so long: closing over unread bytes sends RST, and the client's
/// system would then discard the answer before the client has seen it.
const LINGER: Duration = Duration::from_secs(1);

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
    /// Gives the head's bytes first, then what follows them.
    pub stream: Prefixed,
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
        let mut buffer = Vec::new();
        let received = timeout(self.timeout, self.receive(&mut stream, peer, &mut buffer)).await;
        let no_request = match received {
            Ok(Ok(proxied)) => {
                let stream = Prefixed::new(Bytes::from(buffer), stream);
                return Ok(Arrival { stream, proxied });
            }
            Ok(Err(no_request)) => no_request,
            // Browsers open connections ahead of need: a silent one is not answered.
            Err(_) if buffer.is_empty() => NoRequest::Cut,
            Err(_) => NoRequest::Refused(Refusal::HandshakeTimeout),
        };
        if let NoRequest::Refused(refusal) = no_request {
            drop(buffer);
            answer(stream, refusal).await;
        }
        Err(no_request)
    }

    /// Fills `buffer` until it holds a whole head, without the PROXY header that may stand before it.
    async fn receive(
        &self,
        stream: &mut TcpStream,
        peer: IpAddr,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<SocketAddr>, NoRequest> {
        let proxied = match &self.proxies {
            Some(trusted) if is_trusted(trusted, peer) => {
                receive_proxy_header(stream, buffer).await?
            }
            Some(_) => return Err(NoRequest::Cut),
            None => None,
        };
        let mut scan = Scan::default();
        loop {
            if buffer.first() == Some(&TLS_HANDSHAKE) {
                return Err(NoRequest::Cut);
            }
            if scan.advance(buffer)? {
                return Ok(proxied);
            }
            receive_more(stream, buffer).await?;
        }
    }
}

async fn receive_proxy_header(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> Result<Option<SocketAddr>, NoRequest> {
    loop {
        // A peer that breaks the agreement is a wrong set-up or an attack; neither is a client to be answered.
        if let Some(header) = proxy_protocol::parse(buffer).map_err(|_| NoRequest::Cut)? {
            buffer.drain(..header.len);
            return Ok(header.source);
        }
        receive_more(stream, buffer).await?;
    }
}

/// At least one more byte, or the connection is over.
async fn receive_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(), NoRequest> {
    if buffer.capacity() == 0 {
        // A connection that has sent nothing owns no buffer.
        stream.readable().await.map_err(|_| NoRequest::Cut)?;
        buffer.reserve_exact(FIRST_READ);
    }
    if buffer.len() == buffer.capacity() {
        buffer.reserve(buffer.len());
    }
    match stream.read_buf(buffer).await {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(NoRequest::Cut),
    }
}

/// Sends the problem document and closes without losing it. What goes wrong here concerns nobody: the client is gone.
pub async fn answer(mut stream: TcpStream, refusal: Refusal) {
    let problem = Problem {
        refusal,
        tenant: None,
    };
    let farewell = async {
        if stream.write_all(&problem.to_http1()).await.is_ok() {
            end(&mut stream).await;
        }
    };
    timeout(LINGER, farewell).await.ok();
}

/// Ends our half of a stream whose answer is out, and throws away what its client still sends, for a moment.
pub async fn end(stream: &mut TcpStream) {
    let discard = async {
        stream.shutdown().await?;
        let mut buffer = Vec::with_capacity(FIRST_READ);
        while stream.read_buf(&mut buffer).await? != 0 {
            buffer.clear();
        }
        std::io::Result::Ok(())
    };
    timeout(LINGER, discard).await.ok();
}

#[cfg(test)]
mod tests;
