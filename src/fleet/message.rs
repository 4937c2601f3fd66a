//! Commands from a replica or a back end to all replicas, on `lockgate:TENANT:control` and `lockgate::control`.
//! [`super::answer`] has the answers.
//!
//! The messages are public (JSON, `{"v":1,"op",…}`) and may come from any sender with the right to publish. A message that
//! cannot be read is its sender's error and changes nothing. [`crate::tenant`] carries the messages out.

use std::sync::Arc;

use crate::close_code::RequestedClose;
use crate::event::{Event, NotRenderable};
use crate::ids::{GroupName, RevocationTarget, UserId};

mod wire;

/// The version of the messages.
pub const VERSION: u32 = 1;
/// Bytes of the longest message that is written or read: the largest event of the API (1 MiB), and room for the other
/// members. An event can be longer than it came, because numbers are written out: `1e15` is `1000000000000000.0`.
pub const MAX_MESSAGE: usize = 2 * 1024 * 1024;
/// Bytes of the longest `id` and `reply`. An answer repeats the id, so a longer one would make long answers.
const MAX_ADDRESS: usize = 128;
/// Sockets in one answer to a `list` without a `limit`.
pub const PAGE: usize = 100;
/// The largest number of sockets in one answer to a `list`.
pub const LARGEST_PAGE: usize = 1000;

/// A command to a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Close the sockets of revoked tokens.
    Revoke(RevocationTarget),
    /// Forget a user's record, and check the user's sockets against a new one.
    Invalidate(UserId),
    /// Close sockets.
    Disconnect {
        /// The sockets.
        sockets: Sockets,
        /// The code and the reason of the close frame.
        close: RequestedClose,
    },
    /// Send an event to every socket of a user.
    Send {
        /// The user.
        user: UserId,
        /// The event.
        event: Arc<Event>,
    },
    /// Count the open sockets.
    Count,
    /// List open sockets.
    List {
        /// The sockets to list.
        of: ListScope,
        /// List only sockets whose channel name comes after this one.
        cursor: Option<String>,
        /// The largest number of sockets in the answer.
        limit: usize,
    },
    /// Put open sockets into a group.
    GroupAdd {
        /// The sockets.
        sockets: Sockets,
        /// The group.
        group: GroupName,
    },
    /// Take open sockets out of a group.
    GroupDiscard {
        /// The sockets.
        sockets: Sockets,
        /// The group.
        group: GroupName,
    },
    /// Stop serving the tenant.
    Suspend,
    /// Serve the tenant again.
    Resume,
    /// Read the configuration again (`lockgate::control` only).
    Reload,
    /// Look for changes of the registry of tenants (`lockgate::control` only).
    Registry,
}

/// The sockets of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListScope {
    /// All sockets of the tenant.
    All,
    /// Those in a group.
    Group(GroupName),
    /// Those of a user.
    User(UserId),
}

/// The sockets that a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// All sockets of a user.
    OfUser(UserId),
    /// The socket with this channel name.
    OfChannel(String),
}

impl Sockets {
    /// Returns the member of a message that names the sockets.
    fn member(&self) -> (&'static str, &str) {
        match self {
            Self::OfUser(user) => ("user_id", user.as_str()),
            Self::OfChannel(channel) => ("channel", channel),
        }
    }
}

/// A message of a control channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The command itself.
    pub op: Op,
    /// The id that the answer repeats.
    pub id: Option<String>,
    /// The channel for the answer; without it no answer is sent.
    pub reply: Option<String>,
}

/// The reason why a message cannot be carried out by this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    /// The message is longer than 2 MiB.
    #[error("it is longer than 2 MiB")]
    TooLong,
    /// The message is not a JSON object, or a member has a wrong type.
    #[error("it is not a JSON object with members of the right types")]
    NotReadable,
    /// The member `v` is not 1.
    #[error("its version is not 1")]
    Version,
    /// The member `op` is not known.
    #[error("its op is not known")]
    Op,
    /// A member is absent or not valid.
    #[error("{0} is missing or not valid")]
    Member(&'static str),
}

/// A command that no replica would read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarried {
    /// The message would be longer than [`MAX_MESSAGE`].
    #[error("the message to the replicas would be longer than 2 MiB")]
    TooLong,
    /// The event has a value that JSON cannot carry.
    #[error("{0}")]
    Event(NotRenderable),
}

impl Op {
    /// Returns true for what must never be dropped: it takes something back.
    pub const fn is_urgent(&self) -> bool {
        matches!(
            self,
            Op::Revoke(_) | Op::Invalidate(_) | Op::GroupDiscard { .. } | Op::Suspend | Op::Resume
        )
    }

    /// Returns the word in the member `op`.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Revoke(_) => "revoke",
            Op::Invalidate(_) => "invalidate",
            Op::Disconnect { .. } => "disconnect",
            Op::Send { .. } => "send",
            Op::Count => "count",
            Op::List {
                of: ListScope::User(_),
                ..
            } => "list_user",
            Op::List { .. } => "list",
            Op::GroupAdd { .. } => "group_add",
            Op::GroupDiscard { .. } => "group_discard",
            Op::Suspend => "suspend",
            Op::Resume => "resume",
            Op::Reload => "reload",
            Op::Registry => "registry",
        }
    }
}

#[cfg(test)]
mod tests;
