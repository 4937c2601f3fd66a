//! The socket listener: from an accepted TCP connection to an open WebSocket, and its life until it closes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio_util::task::TaskTracker;

use crate::config::{ClientAddress, ServerConfig};
use crate::error::Refusal;
use crate::replica::ReplicaLife;
use crate::tenant::Tenants;

pub mod accept;
mod admit;
mod answer;
pub mod client_address;
pub mod connection;
pub mod handshake;
pub mod head;
pub mod heartbeat;
mod open;
mod pages;
pub mod per_address;
mod prefixed;
mod proxy_protocol;
pub mod registration;
mod rejection;
pub mod upgrade;

use client_address::AddressFinder;
use head::HeadReader;
use heartbeat::HeartbeatWheel;
use per_address::{AddressBudgets, AddressPlace};
use registration::Occupancy;

/// A handshake may take this long after its head has come; every step has a shorter deadline of its own.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(30);

/// Who connects, as far as the network says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// The other end of the TCP connection.
    pub address: IpAddr,
    /// The client that a PROXY header named.
    pub proxied: Option<SocketAddr>,
}

/// What the socket listener works with.
pub struct Door {
    /// `[server]`.
    pub config: ServerConfig,
    /// Reads the heads of requests.
    pub heads: HeadReader,
    /// What answers requests that ask for no upgrade, where the program has it.
    pub pages: Option<Router>,
    /// Whose sockets come in.
    pub tenants: Arc<Tenants>,
    /// Whether the replica drains.
    pub life: Arc<ReplicaLife>,
    /// How many sockets there are and may be.
    pub occupancy: Arc<Occupancy>,
    /// Who a client is, behind proxies.
    pub address_finder: AddressFinder,
    /// Budgets of client addresses.
    pub addresses: Arc<AddressBudgets>,
    /// Timers of all sockets.
    pub heartbeat: Arc<HeartbeatWheel>,
    /// The tasks of connections: they may end, and a drain waits for them.
    pub tasks: TaskTracker,
}

impl Door {
    /// Counts a handshake of a new connection, where its peer is the client itself. Behind a proxy the client is
    /// known from the request only, and counted then.
    fn begin_handshake(&self, peer: IpAddr) -> Result<Option<AddressPlace>, Refusal> {
        match self.config.client_address {
            ClientAddress::Peer => self.addresses.begin_handshake(peer),
            _ => Ok(None),
        }
    }
}
