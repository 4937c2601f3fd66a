//! The gateway's behaviour from outside: its binary, against real servers.
//!
//! A folder for each way through the gateway (`token`, `event`, `frame`, `revocation`), and one for each thing around
//! them. `support` starts and ends servers, gateways and clients; `tests/run` installs what they need.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected has failed"
)]

mod problem;
mod support;

// The five ways.
mod event;
mod frame;
mod refresh;
mod revocation;
mod token;

// The tests of their surroundings.
mod bounds;
mod hostile;
mod operations;
mod outside;
mod presence;
mod tenants;

// The sources and the test servers themselves.
mod house;
