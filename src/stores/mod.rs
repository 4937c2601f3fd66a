//! The outside world: what the gateway asks and writes elsewhere.

pub mod database;
