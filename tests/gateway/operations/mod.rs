//! Operators: the management API, the command line, metrics, and the start and end of a replica.

mod acl;
mod acl_namespaces;
mod api;
mod api_bounds;
mod api_calls;
mod call_lines;
mod closes;
mod command_line;
mod denylist_remarks;
mod dev;
pub(crate) mod doctor;
mod doctor_history;
mod drain;
mod explain;
mod group_calls;
mod leaks;
mod machine;
mod metrics;
mod replicas;
mod signals;
mod silence;
mod tenant_series;
mod terminal;
