//! Opens byte streams to Redis servers, TCP and TLS, whose answers are bounded.
//!
//! It replaces the streams of redis-rs, which hold an answer of any length until it is whole. Only the links for
//! commands have them. Other connections are redis-rs' own and hold any answer: those to Sentinels, to a server that they name,
//! which is asked for its role, to a node of a cluster that is asked for the map, and those that wait for replicas (`WAIT`).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::select_ok;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::warn;

use super::redis_answer::{AnswerMeter, LONGEST_ANSWER};
use super::redis_url::RedisUrl;
use super::trust;
use crate::config::Trust;
use crate::error::{Dependency, ErrorKind};
use crate::metrics;

/// The time after which the kernel gives up on unacknowledged bytes. It detects a partition; a busy server still
/// acknowledges them.
pub(super) const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(5);

/// A byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The way to open streams to the servers of a URL.
pub(super) struct Dialler {
    dependency: Dependency,
    is_encrypted: bool,
    trust: Trust,
    /// Made with the first stream, since the system's authorities take a while.
    tls: OnceLock<Arc<ClientConfig>>,
    /// An answer that was too long is told once.
    told: AtomicBool,
}

impl Dialler {
    pub(super) fn new(url: &RedisUrl, dependency: Dependency) -> Self {
        Self {
            dependency,
            is_encrypted: url.tls(),
            trust: url.trust().clone(),
            tls: OnceLock::new(),
            told: AtomicBool::new(false),
        }
    }

    /// Opens a stream with the socket options of every link for commands.
    pub(super) async fn open(self: &Arc<Self>, host: &str, port: u16) -> io::Result<BoundedStream> {
        let tcp = connect(host, port).await?;
        SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))?;
        let inner: Box<dyn Stream> = match self.is_encrypted {
            true => encrypted(self.tls().map_err(io::Error::other)?, host, tcp).await?,
            false => Box::new(tcp),
        };
        Ok(BoundedStream {
            inner,
            meter: AnswerMeter::new(LONGEST_ANSWER),
            dialler: self.clone(),
            host: host.to_owned(),
        })
    }

    /// Returns the settings of a TLS link.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(known) = self.tls.get() {
            return Ok(known.clone());
        }
        let made = Arc::new(trust::client_config(&self.trust, true)?);
        Ok(self.tls.get_or_init(|| made).clone())
    }

    /// Notes an answer that was too long.
    fn tell(&self, host: &str, error: &io::Error) {
        metrics::dependency_error(self.dependency, ErrorKind::Protocol);
        if !self.told.swap(true, Ordering::Relaxed) {
            warn!(
                redis.host = host, dependency = self.dependency.label(), error = %error,
                "A link to Redis ends, because an answer on it cannot be one to the gateway"
            );
        }
    }
}

/// Connects to `host`: to all of its addresses at once, and the first that answers counts. One that drops packets would use
/// up the time of the others.
///
/// # Errors
/// That of the look-up, or of the last address.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = tokio::net::lookup_host((host, port)).await?;
    first_of(addresses).await
}

async fn first_of(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let attempts: Vec<_> = addresses
        .map(|address| Box::pin(TcpStream::connect(address)))
        .collect();
    if attempts.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    let (tcp, _) = select_ok(attempts).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Encrypts a connection to `host`.
///
/// # Errors
/// That of the handshake; [`io::ErrorKind::Other`] if `host` can have no certificate.
pub async fn encrypted(
    settings: Arc<ClientConfig>,
    host: &str,
    tcp: TcpStream,
) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(settings).connect(name, tcp).await?;
    Ok(Box::new(stream))
}

/// A stream that ends with an answer that is too long.
pub(super) struct BoundedStream {
    inner: Box<dyn Stream>,
    meter: AnswerMeter,
    dialler: Arc<Dialler>,
    host: String,
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read
            && let Err(wrong) = this.meter.pass(&buf.filled()[before..])
        {
            let error = io::Error::from(wrong);
            this.dialler.tell(&this.host, &error);
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Before, the addresses were tried one after another: one that drops packets took the time of all.
    #[tokio::test]
    async fn an_address_that_drops_packets_does_not_hold_up_the_next() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        silent.bind(&any.into()).unwrap();
        // The kernel drops what comes while one connection waits to be accepted.
        silent.listen(0).unwrap();
        let drops = silent.local_addr().unwrap().as_socket().unwrap();
        let _waits = std::net::TcpStream::connect(drops).unwrap();
        let answering = TcpListener::bind(any).unwrap();
        let answers = answering.local_addr().unwrap();
        let first = first_of([drops, answers].into_iter());
        let first = tokio::time::timeout(Duration::from_secs(15), first).await;
        assert_eq!(first.unwrap().unwrap().peer_addr().unwrap(), answers);
        assert!(first_of(std::iter::empty()).await.is_err());
    }
}
