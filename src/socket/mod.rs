//! The edge that clients see: from an accepted TCP connection to the end of its WebSocket.

pub mod client_address;
pub mod handshake;
pub mod head;
pub mod origin;
pub mod prefixed;
pub mod proxy_protocol;
