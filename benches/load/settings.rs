//! How much is measured: sizes and lengths of every row.

use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// Whether times are worth anything: else a run fails for what is wrong, and not for what is slow.
    pub(crate) timed: bool,
    pub(crate) runs: usize,
    /// Sockets of the delivery rows.
    pub(crate) sockets: u64,
    /// One event each 20 ms.
    pub(crate) paced_events: u32,
    /// Ten events each 100 ms.
    pub(crate) bursts: u32,
    pub(crate) saturated_events: u64,
    /// Connects per run.
    pub(crate) connects: u64,
    /// Sockets in each small group of the latency row; length of a step in search of half load, and of the run.
    pub(crate) latency: (u64, Duration, Duration),
    /// Sockets before and after, and how long the process may settle before it is weighed.
    pub(crate) memory: (u64, u64, Duration),
    /// Runs of the rows that take long: memory, and those of whole deployments.
    pub(crate) long_runs: usize,
    /// The first and the second size of the table of costs: sockets with [`crate::world::EXTRA_GROUPS`] groups each.
    pub(crate) cost_sockets: u64,
    /// Tenants per step.
    pub(crate) cost_tenants: usize,
    /// How long an idle replica's commands are counted.
    pub(crate) idle: Duration,
    /// Sockets on three replicas, and how many of them are revoked in a run.
    pub(crate) fleet_sockets: u64,
    pub(crate) revocations: u64,
    /// A step in search of half load, and a phase of the noisy row.
    pub(crate) noisy: (Duration, Duration),
    /// Tenants of one process, and how long a stream to one of them is watched for pauses.
    pub(crate) tenants: usize,
    pub(crate) reload_window: Duration,
    pub(crate) storm: Storm,
}

/// A reconnect storm.
#[derive(Clone, Copy)]
pub(crate) struct Storm {
    pub(crate) sockets: u64,
    /// Distinct users of these sockets.
    pub(crate) users: u64,
    pub(crate) lasting: Duration,
    /// Sockets of others that get events all the time.
    pub(crate) live: u64,
    /// How long these are watched before.
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
        tenants: 1_000,
        reload_window: Duration::from_secs(3),
        storm: Storm {
            sockets: 10_000,
            users: 5_000,
            lasting: Duration::from_secs(30),
            live: 500,
            calm: Duration::from_secs(10),
        },
    };
    /// Every row, but too short to be quoted.
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
        storm: Storm {
            sockets: 2_000,
            users: 1_000,
            lasting: Duration::from_secs(6),
            live: 500,
            calm: Duration::from_secs(3),
        },
        ..Self::FULL
    };
    /// Every row, to see that the program works: on a busy machine, with a gateway that was built for debugging.
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
        tenants: 5,
        reload_window: Duration::from_millis(200),
        storm: Storm {
            sockets: 100,
            users: 50,
            lasting: Duration::from_secs(1),
            live: 20,
            calm: Duration::from_millis(500),
        },
    };
}
