//! The socket listener: turns accepted TCP connections into WebSockets and serves them until they close.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::request::Parts;
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
pub mod half_open;
pub mod handshake;
pub mod head;
pub mod heartbeat;
mod open;
mod pages;
pub mod per_address;
mod prefixed;
mod proxy_protocol;
mod refresh;
pub mod refusal_log;
pub mod registration;
mod rejection;
mod since;
pub mod unfinished;
pub mod upgrade;

use client_address::AddressFinder;
use half_open::HalfOpen;
use head::HeadReader;
use heartbeat::HeartbeatWheel;
use per_address::{AddressBudgets, AddressPlace};
use refusal_log::RefusalLog;
use registration::Occupancy;

/// The longest handshake after its head has come. Each step has a shorter deadline of its own.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(30);

/// The most times that a handshake, or the next token of a socket, is judged. Each further time takes a reload that falls into the
/// one before.
const JUDGEMENTS: usize = 5;

/// The other end of a TCP connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The client that a PROXY header named.
    pub proxied: Option<SocketAddr>,
}

/// The parts of the process that open sockets use. Each socket holds one pointer to them.
pub struct Common {
    /// Timers of all sockets.
    pub heartbeat: Arc<HeartbeatWheel>,
    /// The tenants by host and by name.
    pub tenants: Arc<Tenants>,
}

/// The parts that the socket listener works with.
pub struct Door {
    /// The table `[server]`.
    pub config: ServerConfig,
    /// Reads the heads of requests.
    pub heads: HeadReader,
    /// The pages for requests that ask for no upgrade, if the program has any.
    pub pages: Option<Router>,
    /// The state of this replica, such as draining.
    pub life: Arc<ReplicaLife>,
    /// The number of sockets, and its bound.
    pub occupancy: Arc<Occupancy>,
    /// The connections whose handshake is not over, and their bound.
    pub half_open: Arc<HalfOpen>,
    /// Finds the addresses of clients behind proxies.
    pub address_finder: AddressFinder,
    /// Budgets of client addresses.
    pub addresses: Arc<AddressBudgets>,
    /// The log of refused handshakes.
    pub refusals: Arc<RefusalLog>,
    /// The parts that open sockets use too.
    pub common: Arc<Common>,
    /// The tasks of connections, for which a drain waits.
    pub tasks: TaskTracker,
}

impl Door {
    /// Returns the address of the client that sent the request `head`.
    fn client_of(&self, peer: Peer, head: &Parts) -> IpAddr {
        let finder = &self.address_finder;
        finder.client(peer.address, peer.proxied, &head.headers)
    }

    /// Counts the handshake of a new connection whose peer is the client itself. A client behind a proxy is known only
    /// from the request, and counted then.
    fn begin_handshake(&self, peer: IpAddr) -> Result<Option<AddressPlace>, Refusal> {
        match self.config.client_address {
            ClientAddress::Peer => self.addresses.begin_handshake(peer),
            _ => Ok(None),
        }
    }
}
