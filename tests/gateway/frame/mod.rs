//! A frame of a client becomes what its route makes of it.

mod to_group;
mod worker_told;
mod workers;
