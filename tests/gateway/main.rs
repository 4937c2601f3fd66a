//! The gateway's behaviour from outside: its binary, against real servers.
//!
//! Files are named after the way through the gateway that they follow. `tests/run` installs what these tests
//! need; `support` starts and ends it.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected has failed"
)]

mod support;

mod house;
