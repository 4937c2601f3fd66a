//! The part that every subscriber link to Redis shares, whichever commands it waits with.
//!
//! `endpoint` shares links among layers, `life` keeps one through lost connections, `canary` proves that it hears, `dial`
//! is the way in, `command` and `resp` are its bytes.

pub(super) mod canary;
pub(super) mod command;
pub(super) mod dial;
pub(super) mod endpoint;
pub(super) mod life;
pub(super) mod resp;
