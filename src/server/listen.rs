//! Listening sockets.

use std::net::SocketAddr;

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Handshakes that wait to be accepted: a reconnect storm of a rolling update, for as long as one accept takes.
const BACKLOG: i32 = 4096;

/// Binds a listener.
///
/// # Errors
/// If the address is taken or not ours; the message names it.
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
        // A restart must not wait for connections of the last process to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        // What is accepted inherits it (Linux): one system call less for each socket.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    open()
        .map(Into::into)
        .with_context(|| format!("cannot listen on {address}"))
}
