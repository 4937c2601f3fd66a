//! Tenants beside each other: isolation, and configurations that come and go.

mod files;
mod isolation;
mod isolation_model;
mod large_members;
mod large_rows;
mod large_values;
mod life;
mod namespaces;
mod neighbours;
pub(crate) mod registry;
pub(crate) mod reload;
mod rotation;
