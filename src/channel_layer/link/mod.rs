//! The common part of all subscriber links to Redis; pub/sub and core differ in the commands with which they wait.
//!
//! `endpoint` shares links among layers, `life` keeps a link through lost connections, `canary` proves that it hears,
//! `dial` opens a connection, `command` writes and `resp` reads its bytes; `bounded` is a connection that asks.

pub(super) mod bounded;
pub(super) mod canary;
pub(super) mod command;
pub(super) mod dial;
pub(super) mod endpoint;
pub(super) mod life;
pub(super) mod resp;
