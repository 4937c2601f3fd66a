//! Lockgate: a multi-tenant, stateless WebSocket gateway for teams whose users already hold a JWT.
//!
//! The binary `lockgate` is the complete gateway. The library has two more uses: [`TokenAuth`] puts the token check in
//! front of an axum router, and a type that implements [`consumer::Consumer`] can be registered by name and handle the
//! sockets of a route. `examples/` shows both.
//!
//! # The house
//!
//! A module imports only from lower floors.
//!
//! | floor | modules | contents |
//! | --- | --- | --- |
//! | 7 | [`cli`] | the terminal: one file per verb |
//! | 6 | [`server`], [`registry`] | wiring: builds the parts, starts their tasks, drains; tenants in a database |
//! | 5 | [`socket`], [`api`], [`validation`] | the edges, which do not know each other: sockets, the API, configuration files |
//! | 4 | [`tenant`], [`consumer`], [`fleet`], [`replica`] | a tenant's life, what a route does, all replicas as one, this replica's life |
//! | 3 | [`admission`], [`relay`], [`revocation`], [`coherence`], [`token_auth`], [`render`] | where the parts meet, and nowhere else |
//! | 2 | [`auth`], [`users`], [`channel_layer`], [`hub`], [`presence`] | parts that do not know each other |
//! | 1 | [`stores`], [`frame`], [`event`], [`channel_names`], [`routes`], [`templates`], [`group_rules`], [`position`], [`hosts`], [`origin`], [`problem`], [`sealing`] | the outside world |
//! | 0 | [`ids`], [`ages`], [`budget`], [`user_id`], [`python`], [`clock`], [`packed_json`], [`rate`], [`close_code`], [`error`], [`labels`], [`metrics`], [`config`], [`heavy`], [`tasks`], [`telemetry`] | words |
//!
//! # Five ways through it
//!
//! * A token in the URL to a user: `socket/accept` → `socket/handshake` (`socket/head` → `socket/admit` → `admission`:
//!   `auth/query_token`, `auth`, `auth/denylist`, `users` → `socket/open`) → `socket/connection`.
//! * An event in Redis to a socket: `channel_layer/pubsub/subscriber` or `channel_layer/core/reader` → `channel_layer/inbox` →
//!   `relay/turn` (`channel_layer/codec`, `relay/audience`, `render`) → `hub/fan_out` → `hub/outbound` → `socket/connection`.
//! * A frame to a Channels worker: `socket/connection` → `consumer/worker` → `channel_layer`; the answer is an event to the socket's
//!   own channel, which `relay/audience` obeys or delivers.
//! * A frame with the next token of its socket: `socket/connection` → `socket/refresh` → `admission` → `hub/roster`.
//! * A revocation in the API to a closed socket: `api/revocations` → `revocation` (denied first) → `fleet` →
//!   `channel_layer/control` → on each replica `tenant/obey` → `tenant/eviction` → `hub/eviction` → `socket/connection`.
#![doc(test(attr(deny(warnings))))]

pub use admission::Identity;
pub use close_code::CloseFrame;
pub use config::Config;
pub use token_auth::TokenAuth;
pub use validation::LoadOptions;

// floor 0: words
pub mod ages;
pub mod budget;
pub mod clock;
pub mod close_code;
pub mod config;
pub mod error;
pub mod heavy;
pub mod ids;
pub mod labels;
pub mod metrics;
pub mod packed_json;
pub mod python;
pub mod rate;
pub mod tasks;
pub mod telemetry;
pub mod user_id;

// floor 1: the outside world
pub mod channel_names;
pub mod event;
pub mod frame;
pub mod group_rules;
pub mod hosts;
pub mod origin;
pub mod position;
pub mod problem;
pub mod routes;
pub mod sealing;
pub mod stores;
pub mod templates;

// floor 2: parts that do not know each other
pub mod auth;
pub mod channel_layer;
pub mod hub;
pub mod presence;
pub mod users;

// floor 3: where the parts meet
pub mod admission;
pub mod coherence;
pub mod relay;
pub mod render;
pub mod revocation;
pub mod token_auth;

// floor 4: what a route does, a tenant's life, all replicas as one
pub mod consumer;
pub mod fleet;
pub mod replica;
pub mod tenant;

// floor 5: the edges
pub mod api;
pub mod socket;
pub mod validation;

// floor 6: wiring
pub mod registry;
pub mod server;

// floor 7: the terminal
pub mod cli;
