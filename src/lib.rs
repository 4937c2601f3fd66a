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
pub mod user_id;

// floor 1: the outside world
pub mod event;
pub mod frame;
pub mod origin;
pub mod problem;
pub mod routes;
pub mod stores;
pub mod templates;
pub mod tenants;
// floor 2: parts that do not know each other
pub mod validation;

// floor 2: four parts that do not know each other
pub mod auth;
pub mod channel_layer;
pub mod hub;
pub mod users;

// floor 3: where the parts meet
pub mod admission;
pub mod relay;
pub mod render;
pub mod token_auth;

// floor 4: what a route does
pub mod consumer;
pub mod state;

// floor 5: the edges
pub mod api;
pub mod socket;

// floor 6: wiring
pub mod server;

// floor 7: the terminal
pub mod cli;
