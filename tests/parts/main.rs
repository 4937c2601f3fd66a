//! Parts of the library by themselves, through its public interface: what needs no running gateway.
//!
//! `gateway`, the other test binary, has the behaviour of the whole.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected has failed"
)]

mod channel_layer;
mod command_line;
mod configuration;
mod documentation;
mod frames;
mod fuzzing;
mod redis_answers;
mod tasks;
mod tokens;
mod users;

/// Free ports, as the tests of the gateway find them.
#[path = "../gateway/support/ports.rs"]
mod ports;

/// The account of the suite of faults, whose own tests are here.
#[allow(dead_code, reason = "the suite uses all of it")]
#[path = "../faults/checker/mod.rs"]
mod checker;

/// Its rule for the tenant that no fault concerns.
#[allow(dead_code, reason = "the suite uses all of it")]
#[path = "../faults/noise.rs"]
mod noise;
