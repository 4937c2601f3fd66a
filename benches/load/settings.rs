//! The sizes and lengths of all rows.

use std::time::Duration;

use crate::noisy::Noise;

/// The sizes and lengths of all rows.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// True if times count. Otherwise a run fails for wrong results, and not for slow ones.
    pub(crate) timed: bool,
    pub(crate) runs: usize,
    /// The number of sockets of the delivery rows.
    pub(crate) sockets: u64,
    /// Rounds with one event each 20 ms.
    pub(crate) paced_events: u32,
    /// Rounds with ten events each 100 ms.
    pub(crate) bursts: u32,
    pub(crate) saturated_events: u64,
    /// Connects per run.
    pub(crate) connects: u64,
    /// Sockets in each small group of the latency row; length of a step in search of half load, and of the run.
    pub(crate) latency: (u64, Duration, Duration),
    /// Sockets before and after, and the time for the process to settle before its memory is read.
    pub(crate) memory: (u64, u64, Duration),
    /// Runs of the long rows: memory, and those of whole deployments.
    pub(crate) long_runs: usize,
    /// The first and the second size of the table of costs: sockets with [`crate::world::EXTRA_GROUPS`] groups each.
    pub(crate) cost_sockets: u64,
    /// Tenants per step.
    pub(crate) cost_tenants: usize,
    /// The time for which the commands of an idle replica are counted.
    pub(crate) idle: Duration,
    /// Sockets on three replicas, and the number of them that a run revokes.
    pub(crate) fleet_sockets: u64,
    pub(crate) revocations: u64,
    /// The length of a step in the search for half load, and of a phase of the noisy row.
    pub(crate) noisy: (Duration, Duration),
    /// The only noise of the noisy rows; `None` for all.
    pub(crate) beside: Option<Noise>,
    /// Tenants of one process, and the time for which a stream to one of them is watched for pauses.
    pub(crate) tenants: usize,
    pub(crate) reload_window: Duration,
    /// Tenants of a registry: the number that targets hold for, a much larger one, and those that get a socket.
    pub(crate) registered: (usize, usize, usize),
    /// Included files, with a tenant in each.
    pub(crate) files: usize,
    pub(crate) storm: Storm,
    /// Sockets of a run that come back one after the other.
    pub(crate) resumes: u64,
    /// The time for which groups with history are watched in which nothing happens: some quarters of `layer.expiry`.
    pub(crate) quiet: Duration,
}

/// A reconnect storm.
#[derive(Clone, Copy)]
pub(crate) struct Storm {
    pub(crate) sockets: u64,
    /// The number of distinct users of these sockets.
    pub(crate) users: u64,
    pub(crate) lasting: Duration,
    /// Sockets that stay open and get events all the time.
    pub(crate) live: u64,
    /// The time for which these are watched before the storm.
    pub(crate) calm: Duration,
}

impl Settings {
    pub(crate) const FULL: Self = Self {
        timed: true,
        runs: 5,
        sockets: 1_000,
        paced_events: 250,
        bursts: 40,
        saturated_events: 5_000,
        connects: 2_000,
        latency: (1, Duration::from_secs(1), Duration::from_secs(5)),
        memory: (2_000, 10_000, Duration::from_secs(3)),
        long_runs: 3,
        cost_sockets: 250,
        cost_tenants: 100,
        idle: Duration::from_secs(10),
        fleet_sockets: 10_000,
        revocations: 200,
        noisy: (Duration::from_secs(2), Duration::from_secs(10)),
        beside: None,
        tenants: 1_000,
        reload_window: Duration::from_secs(3),
        registered: (10_000, 100_000, 2_000),
        files: 5_000,
        storm: Storm {
            sockets: 10_000,
            users: 5_000,
            lasting: Duration::from_secs(30),
            live: 500,
            calm: Duration::from_secs(10),
        },
        resumes: 500,
        quiet: Duration::from_secs(30),
    };
    /// Runs all rows, too short for figures that may be quoted.
    pub(crate) const QUICK: Self = Self {
        runs: 2,
        paced_events: 50,
        bursts: 10,
        saturated_events: 500,
        connects: 500,
        latency: (1, Duration::from_millis(300), Duration::from_secs(1)),
        memory: (1_000, 3_000, Duration::from_secs(1)),
        long_runs: 1,
        cost_sockets: 50,
        cost_tenants: 20,
        idle: Duration::from_secs(2),
        fleet_sockets: 2_000,
        revocations: 40,
        noisy: (Duration::from_millis(500), Duration::from_secs(3)),
        tenants: 100,
        reload_window: Duration::from_secs(1),
        registered: (1_000, 10_000, 200),
        files: 500,
        storm: Storm {
            sockets: 2_000,
            users: 1_000,
            lasting: Duration::from_secs(6),
            live: 500,
            calm: Duration::from_secs(3),
        },
        resumes: 100,
        quiet: Duration::from_secs(15),
        ..Self::FULL
    };
    /// Runs all rows to check that the program works, also on a busy machine and with a debug build of the gateway.
    pub(crate) const BRIEF: Self = Self {
        timed: false,
        runs: 1,
        sockets: 50,
        paced_events: 10,
        bursts: 3,
        saturated_events: 100,
        connects: 100,
        latency: (1, Duration::from_millis(100), Duration::from_millis(300)),
        memory: (20, 60, Duration::from_millis(200)),
        long_runs: 1,
        cost_sockets: 5,
        cost_tenants: 3,
        idle: Duration::from_millis(500),
        fleet_sockets: 60,
        revocations: 4,
        noisy: (Duration::from_millis(100), Duration::from_millis(500)),
        beside: None,
        tenants: 5,
        reload_window: Duration::from_millis(200),
        registered: (20, 60, 10),
        files: 10,
        storm: Storm {
            sockets: 100,
            users: 50,
            lasting: Duration::from_secs(1),
            live: 20,
            calm: Duration::from_millis(500),
        },
        resumes: 10,
        quiet: Duration::from_millis(500),
    };
}
