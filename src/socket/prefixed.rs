//! A TCP stream with a prefix: reads return bytes that were read before, then those of the stream. For [`super::pages`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::buf::Chain;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The stream of a request whose head was read already.
#[derive(Debug)]
pub(super) struct Prefixed {
    prefix: Chain<Bytes, Bytes>,
    stream: TcpStream,
}

impl Prefixed {
    /// Creates a stream whose reads return `head` and `behind` first.
    pub(super) fn new([head, behind]: [Bytes; 2], stream: TcpStream) -> Self {
        Self {
            prefix: head.chain(behind),
            stream,
        }
    }

    /// Returns the bare stream.
    pub(super) fn into_tcp(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let there = self.prefix.chunk();
        if there.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let take = there.len().min(buf.remaining());
        buf.put_slice(&there[..take]);
        self.prefix.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
