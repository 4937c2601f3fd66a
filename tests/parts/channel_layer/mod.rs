//! The pub/sub layer and the Redis store against a real redis-server, started by each test on a port of its own.
//!
//! The gateway's tests cover the effects on a whole process (memory, descriptors), sockets, event types, control channels
//! and Sentinel.

mod core;
mod deaf_shard;
mod deliver;
mod faults;
mod poison;
mod recorded;
mod recorded_core;
mod recorded_losses;
mod recorded_process;
mod store;
mod support;
mod tls;
mod vectors_core;
mod vectors_pubsub;
