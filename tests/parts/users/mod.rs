//! Users against real databases and a real Redis.

mod database;
pub(crate) mod servers;
