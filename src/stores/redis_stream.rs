//! Opens byte streams to Redis servers, TCP and TLS, whose answers are bounded.
//!
//! It replaces the streams of redis-rs, which hold an answer of any length until it is whole.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

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
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
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
