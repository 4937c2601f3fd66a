//! Lockgate: a multi-tenant, stateless WebSocket gateway for teams whose users already hold a JWT.
#![doc(test(attr(deny(warnings))))]

// floor 0: words
pub mod clock;
pub mod close_code;
pub mod config;
pub mod error;
pub mod ids;
pub mod metrics;
pub mod telemetry;
// floor 1: the outside world
pub mod routes;
pub mod templates;
pub mod tenants;
// floor 2: parts that do not know each other
pub mod validation;
// floor 7: the terminal
pub mod cli;
