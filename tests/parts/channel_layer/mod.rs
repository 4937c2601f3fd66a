//! The pub/sub layer and the Redis store against a real redis-server, started by each test on a port of its own.
//!
//! Rows of the catalogues of bad payloads and faults that are not here: whole-process effects (memory, descriptors) and
//! what needs sockets belong to the gateway's tests; R20 (bytes for a text socket), R28 (patterns are never subscribed to),
//! R29 and R30 (types) are judged by consumers; R21 and R22 by the denylist; R31 to R33 concern history and control
//! channels. Sentinel and Cluster faults (11 to 19) wait for those topologies; 8 and 9 concern stored keys.

mod core;
mod deliver;
mod faults;
mod poison;
mod store;
mod support;
mod tls;
mod vectors_core;
mod vectors_pubsub;
