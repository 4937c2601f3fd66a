//! A frame of a client becomes what its route makes of it.

mod page_pings;
mod to_group;
mod worker_told;
mod workers;
