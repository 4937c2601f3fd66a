//! Listening sockets.

use std::net::SocketAddr;

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait to be accepted. A rolling update makes many clients reconnect at once.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel takes for a socket beyond those that are under way to the client. Without this bound it would
/// take up to 4 MB for a client that reads nothing, and a slow client's progress would show only in steps of a third of
/// that: at 1 Mbit/s one in ten seconds. More than is under way does not leave sooner.
const UNSENT: u32 = 128 * 1024;

/// Binds a listener.
///
/// # Errors
/// If the address is in use or is not of this machine. The message names it.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = bind_std(address)?;
    TcpListener::from_std(listener).with_context(|| format!("cannot listen on {address}"))
}

/// Binds a listener for a runtime that is started later.
pub(super) fn bind_std(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let open = || -> std::io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // Without it a restart would wait until the old process's connections leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit it on Linux, which saves one system call each.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    open()
        .map(Into::into)
        .with_context(|| format!("cannot listen on {address}"))
}
