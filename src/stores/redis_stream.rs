//! Opens byte streams to Redis servers, TCP and TLS, whose answers are bounded.
//!
//! It replaces the streams of redis-rs, which hold an answer of any length until it is whole. Only the links for
//! commands have them. Other connections are redis-rs' own and hold any answer: those to Sentinels, to a server that they name,
//! which is asked for its role, to a node of a cluster that is asked for the map, and those that wait for replicas (`WAIT`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
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

/// The addresses of a name that are tried at a time. A name may have thousands, and each attempt holds a descriptor.
const TRIED_AT_ONCE: usize = 8;
/// The time after which the oldest attempt gives way to the next address, if there is one: that between two attempts in RFC 8305,
/// section 5. An address then has two seconds.
const NEXT_AFTER: Duration = Duration::from_millis(250);

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

/// Connects to `host`: to eight of its addresses at a time, and the first that answers counts. One that drops packets would use
/// up the time of the others.
///
/// # Errors
/// That of the look-up, or of the last address.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = tokio::net::lookup_host((host, port)).await?;
    let tcp = first_of(addresses, TcpStream::connect).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Returns the first stream of an attempt that succeeds, of at most [`TRIED_AT_ONCE`] at a time.
async fn first_of<S, F: Future<Output = io::Result<S>>>(
    addresses: impl Iterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<S> {
    let mut addresses = addresses.peekable();
    let mut attempts = VecDeque::with_capacity(TRIED_AT_ONCE);
    let mut error = io::Error::other("the name has no address");
    loop {
        let room = TRIED_AT_ONCE - attempts.len();
        let next = addresses.by_ref().take(room);
        attempts.extend(next.map(|address| Box::pin(connect(address))));
        if attempts.is_empty() {
            return Err(error);
        }
        let ended = poll_fn(|cx| {
            let mut attempts = attempts.iter_mut().enumerate();
            let ended = attempts.find_map(|(at, attempt)| match attempt.as_mut().poll(cx) {
                Poll::Ready(result) => Some((at, result)),
                Poll::Pending => None,
            });
            ended.map_or(Poll::Pending, Poll::Ready)
        });
        let ended = match addresses.peek() {
            Some(_) => tokio::time::timeout(NEXT_AFTER, ended).await.ok(),
            None => Some(ended.await),
        };
        match ended {
            Some((_, Ok(stream))) => return Ok(stream),
            Some((at, Err(why))) => {
                error = why;
                drop(attempts.remove(at));
            }
            None => drop(attempts.pop_front()),
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
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
        let first = first_of([drops, answers].into_iter(), TcpStream::connect);
        let first = tokio::time::timeout(Duration::from_secs(15), first).await;
        assert_eq!(first.unwrap().unwrap().peer_addr().unwrap(), answers);
        let none = first_of(std::iter::empty(), TcpStream::connect);
        assert!(none.await.is_err());
    }

    /// An attempt to connect, of which so many are under way.
    struct Attempt<'a>(&'a Cell<usize>);

    impl Drop for Attempt<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    /// Before, all addresses of a name were tried at once, each with a descriptor.
    #[tokio::test(start_paused = true)]
    async fn a_thousand_addresses_are_tried_a_few_at_a_time() {
        let address = |number: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, number));
        // Those that drop packets; those that refuse.
        for is_silent in [true, false] {
            let (under_way, most) = (Cell::new(0), Cell::new(0));
            let connect = |to: SocketAddr| {
                under_way.set(under_way.get() + 1);
                most.set(most.get().max(under_way.get()));
                let attempt = Attempt(&under_way);
                async move {
                    let _attempt = attempt;
                    match to.port() {
                        1000 => Ok(to),
                        _ if is_silent => std::future::pending().await,
                        _ => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                    }
                }
            };
            let first = first_of((1..=1000).map(address), connect).await;
            assert_eq!(first.unwrap(), address(1000));
            assert_eq!(most.get(), TRIED_AT_ONCE);
            let none = first_of((1..1000).map(address), async |_| {
                Err::<(), _>(io::Error::other("refused"))
            });
            assert_eq!(none.await.unwrap_err().to_string(), "refused");
        }
    }
}
