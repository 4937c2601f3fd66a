//! The limits of this process: file descriptors and memory.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::QueueBound;

/// Descriptors kept for everything but client sockets: Redis, databases, listeners, scrapes, files.
pub const RESERVED: u64 = 256;

/// The hard limit of descriptors. `u64::MAX`: none.
pub fn hard_descriptors() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises the descriptor limit to the hard limit. Returns the limit in force.
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

/// The number of sockets that a process on this machine can have if `server.max_connections` is 0.
pub fn max_connections_here() -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    hard.saturating_sub(RESERVED).max(1)
}

/// Resolves `server.max_connections`. 0 means all that the descriptor limit leaves.
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

/// Memory for one half-open connection: its buffers in the kernel, its task, and now and then a whole request.
const HANDSHAKE_BYTES: u64 = 40 * 1024;
/// The fewest half-open connections of a small machine.
const FEWEST_HANDSHAKES: u64 = 64;

/// Resolves `server.max_handshakes`. 0 means what memory and descriptors allow.
pub(super) fn max_handshakes(configured: u64, descriptors: u64) -> usize {
    let most = match configured {
        0 => handshakes_of(memory_limit(), descriptors),
        configured => configured.min(descriptors),
    };
    usize::try_from(most).unwrap_or(usize::MAX)
}

fn handshakes_of(memory: u64, descriptors: u64) -> u64 {
    let by_memory = memory / HANDSHAKE_BYTES;
    by_memory.min(descriptors / 4).max(FEWEST_HANDSHAKES)
}

/// Returns the most connections of clients, half-open ones included. They may take half of the reserved descriptors, so
/// that a full replica can answer 503.
pub(super) fn all_connections(descriptors: u64) -> usize {
    let most = descriptors.saturating_sub(RESERVED / 2).max(1);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Resolves `server.max_queue_bytes` to bytes. A percentage refers to [`memory_limit`].
pub fn queue_bound(bound: QueueBound) -> u64 {
    match bound {
        QueueBound::Bytes(bytes) => bytes,
        QueueBound::Percent(percent) => (memory_limit() as f64 * percent / 100.0) as u64,
    }
}

/// The memory limit of this process's control group (version 2 or 1), else the memory of the machine, in bytes.
pub fn memory_limit() -> u64 {
    let number = |path: &str| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let machine = machine_memory().unwrap_or(1 << 30);
    limits
        .into_iter()
        .find_map(number)
        .map_or(machine, |limit| limit.min(machine))
}

fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_handshakes_grows_with_memory_and_descriptors() {
        let (mib, many) = (1 << 20, 1 << 20);
        for (memory, descriptors, most) in [
            (512 * mib, many, 13_107),
            (2048 * mib, many, 52_428),
            (2048 * mib, 4096, 1024),
            (mib, 100, 64),
        ] {
            assert_eq!(handshakes_of(memory, descriptors), most);
        }
        assert_eq!(max_handshakes(5, many), 5);
        assert_eq!(max_handshakes(1 << 30, 1000), 1000);
    }
}
