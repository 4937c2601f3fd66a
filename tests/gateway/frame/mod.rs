//! A frame of a client becomes what its route makes of it.

mod meanwhile;
mod page_pings;
mod ping_floods;
mod rust_consumer;
mod to_group;
mod worker_example;
mod worker_told;
mod workers;
