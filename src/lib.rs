//! Lockgate: a multi-tenant, stateless WebSocket gateway for teams whose users already hold a JWT.
#![doc(test(attr(deny(warnings))))]

// floor 0: words
pub mod clock;
pub mod close_code;
pub mod config;
pub mod error;
pub mod ids;
pub mod metrics;
pub mod user_id;
// floor 2: parts that do not know each other
pub mod auth;
