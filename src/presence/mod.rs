//! Presence: who is in a group, over all replicas.
//!
//! Each replica knows its own sockets ([`PresentSockets`]) and writes them to the group's Redis in batches
//! ([`PresenceWriter`]). A script there decides for all replicas which user joined and which left. [`View`] is what the
//! members on one replica were told, so that joins and leaves pair up for each of them. [`Board`] does in memory what the
//! scripts do.
//!
//! This part knows groups, users and Redis. [`crate::relay`] tells it of sockets and tells members of users.

use std::sync::Arc;

use crate::stores::redis::RedisStore;

pub use board::Board;
pub use keeper::{PageOf, PresenceKeeper, PresentNumbers};
pub use notice::{Notice, NoticeError};
pub use present::{PresentSockets, UserFields};
pub use store::{Announced, PresentUser, UserPage};
pub use view::{Shown, View};
pub use writer::PresenceWriter;

mod board;
mod books;
mod census;
mod keeper;
mod notice;
mod present;
mod store;
mod view;
mod writer;

#[cfg(test)]
mod model;

/// The place of a group's presence: a server, and the names of the group there.
#[derive(Clone)]
pub struct PresencePlace {
    /// The server of the group's channel.
    pub store: Arc<RedisStore>,
    /// The layer's own name of the group's channel; it is part of the keys.
    pub channel: Arc<str>,
}
