//! Users against real databases and a real Redis.

mod database;
mod faults;
pub(crate) mod servers;
mod wide;
