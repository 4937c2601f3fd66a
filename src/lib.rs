//! Lockgate: a multi-tenant, stateless WebSocket gateway for teams whose users already hold a JWT.
#![doc(test(attr(deny(warnings))))]

// floor 0: words
pub mod clock;
pub mod close_code;
pub mod config;
pub mod error;
pub mod ids;
pub mod metrics;

// floor 1: the outside world
pub mod routes;
pub mod stores;
pub mod templates;

// floor 2: four parts that do not know each other
pub mod users;
