//! An event in Redis reaches the sockets of its group, on every layer and replica.

mod core_layer;
mod matrix;
mod recorded;
pub(crate) mod resume;
mod resume_clock;
mod resume_core;
mod resume_ends;
mod resume_hostile;
mod resume_metrics;
mod resume_replicas;
mod resume_tail;
mod slow;
mod socket_channels;
mod to_socket;
