//! What the system lets this process have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not sockets of clients: Redis, databases, listeners, scrapes, files.
const RESERVED: u64 = 256;

/// Raises the descriptor limit to the hard limit; returns what holds now.
pub(super) fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(error = %error, "Could not raise the descriptor limit");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The sockets that a process on this machine can have where `server.max_connections` is 0.
pub fn max_connections_here() -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    hard.saturating_sub(RESERVED).max(1)
}

/// `server.max_connections`; 0 is what the descriptor limit leaves.
pub(super) fn max_connections(configured: u64, descriptors: u64) -> usize {
    let possible = descriptors.saturating_sub(RESERVED).max(1);
    if configured > possible {
        tracing::warn!(
            server.max_connections = configured,
            descriptors,
            "The descriptor limit allows fewer connections than server.max_connections"
        );
    }
    let most = if configured == 0 {
        possible
    } else {
        configured.min(possible)
    };
    usize::try_from(most).unwrap_or(usize::MAX)
}
