//! The gateway's behaviour from outside: its binary, against real servers.
//!
//! Files are named after the way through the gateway that they follow. `tests/run` installs what these tests
//! need; `support` starts and ends it.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected has failed"
)]

mod support;

mod api;
mod api_calls;
mod coherence;
mod command_line;
mod core_layer;
mod dev;
mod django_project;
mod doctor;
mod drain;
mod floors;
mod frame_to_group;
mod hostile;
mod hostile_control;
mod hostile_events;
mod hostile_frames;
mod hostile_ids;
mod hostile_names;
mod hostile_upgrades;
mod hostile_values;
mod house;
mod isolation;
mod isolation_model;
mod limits;
mod matrix;
mod message_to_socket;
mod metrics;
mod operations;
mod problem;
mod refusals;
mod reload;
mod requests;
mod revocation_to_close;
mod sentinel;
mod socket_channels;
mod store_outage;
mod token_explain;
mod token_sources;
mod token_to_user;
mod workers;
