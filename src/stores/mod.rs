//! The stores that the gateway reads and writes: Redis and the tenants' databases.

pub mod backoff;
pub mod database;
pub mod inspection;
pub mod key_read;
pub mod key_store;
mod login;
pub mod memory;
pub mod misfit;
pub mod redis;
pub mod redis_answer;
pub mod redis_keys;
mod redis_link;
mod redis_master;
mod redis_pool;
mod redis_reads;
mod redis_role;
pub mod redis_round;
pub mod redis_stream;
pub mod redis_url;
pub mod scripting;
pub mod server_identity;
pub mod standing;
pub mod trust;
