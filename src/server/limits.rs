//! The limits of this process: file descriptors, memory and core dumps.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::QueueBound;

/// The fewest descriptors kept for everything but client sockets: half for Redis, databases, listeners and files, half for
/// probes, calls, and refusals of a full replica.
pub const RESERVED: u64 = 256;
/// The most descriptors for which the table is made at the start: 512 KiB of the kernel's memory.
const WIDE: u64 = 1 << 16;
/// The descriptors of the first half of [`RESERVED`].
const OWN: u64 = RESERVED / 2;
/// The part of a large limit that is kept if `server.max_connections` is 0, and the most of it: [`MOST_CALLS`] and
/// [`MOST_PROBES`] fit, and as many refusals.
const RESERVED_PART: u64 = 8;
const MOST_RESERVED: u64 = 2816;
/// The most connections of the API. A back end may make a thousand calls at once, and a connection whose request is on its
/// way cannot be told from an idle one.
const MOST_CALLS: u64 = 1280;
/// The most connections of the admin listener.
const MOST_PROBES: u64 = 256;

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

/// Lets the kernel write no core dump of this process: tokens and keys are in its memory. The hard limit stays, so that an
/// operator can allow one (`prlimit --core=unlimited --pid PID`).
///
/// # Errors
/// If the system refuses.
pub fn forbid_core_dumps() -> std::io::Result<()> {
    let limit = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Core)
    };
    Ok(setrlimit(Resource::Core, limit)?)
}

/// Makes room for as many descriptors in the kernel's table. It grows by doubling, and each time the process has several threads the
/// one that opens a connection waits for all processors (`synchronize_rcu`), 10 to 30 ms: all tenants wait with it. Here that
/// happens once, before anyone is connected. The table takes 8 bytes for each descriptor.
pub(super) fn widen_descriptor_table(descriptors: u64) {
    let last = descriptors.min(WIDE).saturating_sub(1);
    let last = i32::try_from(last).unwrap_or(i32::MAX);
    // The copy is closed at once. The table stays wide.
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last) {
        tracing::debug!(error = %error, "Could not widen the table of descriptors");
    }
}

/// The number of sockets that a process on this machine can have if `server.max_connections` is 0.
pub fn max_connections_here() -> u64 {
    sockets_of(hard_descriptors())
}

/// The number of sockets for a descriptor limit if `server.max_connections` is 0.
pub fn sockets_of(descriptors: u64) -> u64 {
    let reserved = (descriptors / RESERVED_PART).clamp(RESERVED, MOST_RESERVED);
    descriptors.saturating_sub(reserved).max(1)
}

/// The most connections of each listener. Together they leave [`OWN`] descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionBounds {
    /// `server.max_connections`: open sockets.
    pub(super) sockets: usize,
    /// All connections of clients, half-open ones included, so that a full replica can answer 503.
    pub(super) clients: usize,
    pub(super) admin: usize,
    pub(super) api: usize,
}

impl ConnectionBounds {
    /// Divides `descriptors`; `configured` is `server.max_connections`. What the sockets leave goes to the API for a half,
    /// to the admin listener for an eighth, and to further clients.
    pub(super) fn of(configured: u64, descriptors: u64) -> Self {
        let possible = descriptors.saturating_sub(RESERVED).max(1);
        let sockets = match configured {
            0 => sockets_of(descriptors),
            configured => configured.min(possible),
        };
        let spare = descriptors.saturating_sub(OWN + sockets);
        let api = (spare / 2).clamp(1, MOST_CALLS);
        let admin = (spare / 8).clamp(1, MOST_PROBES);
        let clients = descriptors.saturating_sub(OWN + api + admin).max(sockets);
        let in_usize = |most: u64| usize::try_from(most).unwrap_or(usize::MAX);
        Self {
            sockets: in_usize(sockets),
            clients: in_usize(clients),
            admin: in_usize(admin),
            api: in_usize(api),
        }
    }

    /// Warns of a `server.max_connections` for which there are too few descriptors.
    pub(super) fn tell(self, configured: u64, descriptors: u64) {
        if configured > self.sockets as u64 {
            tracing::warn!(
                server.max_connections = configured,
                descriptors,
                "The descriptor limit allows fewer connections than server.max_connections"
            );
        }
    }
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

/// Resolves `server.max_queue_bytes` to bytes. A percentage refers to `memory`, most often [`memory_limit`].
pub fn queue_bound(bound: QueueBound, memory: u64) -> u64 {
    match bound {
        QueueBound::Bytes(bytes) => bytes,
        QueueBound::Percent(percent) => (memory as f64 * percent / 100.0) as u64,
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
    fn the_table_of_descriptors_is_widened_without_one_that_stays() {
        let highest = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap();
            let numbers = open.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            numbers.filter_map(|name| name.parse::<u64>().ok()).max()
        };
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(WIDE);
        widen_descriptor_table(limit);
        assert!(size() >= limit.min(WIDE), "{}", size());
        assert!(highest() < Some(limit.min(WIDE) - 1));
    }

    /// Before, API and admin could have 1,280 each beside sockets that left 128.
    #[test]
    fn the_connections_of_all_listeners_fit_the_descriptors() {
        for configured in [0, 1, 500, 20_000, u64::MAX] {
            for descriptors in [512, 1024, 4096, 20_256, 65_536, 1 << 20] {
                let bounds = ConnectionBounds::of(configured, descriptors);
                let all = bounds.clients + bounds.admin + bounds.api;
                assert!(
                    all as u64 <= descriptors - OWN && bounds.sockets <= bounds.clients,
                    "{configured} of {descriptors}: {bounds:?}"
                );
                assert!(bounds.admin >= 16 && bounds.api >= 64, "{bounds:?}");
            }
        }
        let bounds = |sockets, clients, admin, api| ConnectionBounds {
            sockets,
            clients,
            admin,
            api,
        };
        for (configured, descriptors, expected) in [
            (0, 1024, bounds(768, 816, 16, 64)),
            (20_000, 20_256, bounds(20_000, 20_048, 16, 64)),
            (0, 65_536, bounds(62_720, 63_872, 256, 1280)),
            (1000, 65_536, bounds(1000, 63_872, 256, 1280)),
        ] {
            assert_eq!(ConnectionBounds::of(configured, descriptors), expected);
        }
    }

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
