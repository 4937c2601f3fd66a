//! Every family of the gateway, each once: name, type, labels, help. `docs/metrics.md` explains bad values.
//!
//! A name is `lockgate_NOUN_UNIT`, with `_total` at the end for a counter; units are seconds and bytes. Labels come from
//! closed sets: no user, jti, group or connection; `tenant` is bounded by `metrics.tenant_series` in `/metrics`.

use metrics::{Counter, Gauge, Histogram};

use super::family::{Description, Family, FamilyKind, families};

/// Handshakes, joins, queries and deliveries: 100 µs to 10 s.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// Lifetimes of sockets: 1 s to a day.
const LIFETIMES: &[f64] = &[
    1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0,
];
/// Sockets that one event reached: 1 to 100,000.
const RECIPIENTS: &[f64] = &[
    0.0, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10_000.0, 100_000.0,
];

families! {
    /// 1, with the version of the binary as a label
    BUILD_INFO: Gauge = "lockgate_build_info", ["version"];
    /// 1 while /readyz answers 200
    READY: Gauge = "lockgate_ready", [];
    /// 1 from the first SIGTERM on
    DRAINING: Gauge = "lockgate_draining", [];
    /// Sockets that a drain still has to close
    DRAIN_REMAINING_CONNECTIONS: Gauge = "lockgate_drain_remaining_connections", [];
    /// Open sockets
    CONNECTIONS: Gauge = "lockgate_connections", ["tenant"];
    /// Open sockets without a user
    ANONYMOUS_CONNECTIONS: Gauge = "lockgate_anonymous_connections", ["tenant"];
    /// Sockets that this replica takes before it answers 503
    CONNECTIONS_LIMIT: Gauge = "lockgate_connections_limit", [];
    /// Open sockets divided by the limit
    CONNECTION_SATURATION: Gauge = "lockgate_connection_saturation", [];
    /// Connections whose handshake is not over
    HALF_OPEN: Gauge = "lockgate_half_open_connections", [];
    /// Half-open connections that this replica takes before the oldest silent ones go
    HALF_OPEN_LIMIT: Gauge = "lockgate_half_open_limit", [];
    /// Half-open connections that were dropped to make room
    HALF_OPEN_DROPPED: Counter = "lockgate_half_open_dropped_total", ["stage"];
    /// Upgrade requests by outcome
    HANDSHAKES: Counter = "lockgate_handshakes_total", ["tenant", "result"];
    /// Time from the request's last byte to the answer
    HANDSHAKE_DURATION: Histogram = "lockgate_handshake_duration_seconds", [] in SECONDS;
    /// Time of one step of the authentication
    AUTH_DURATION: Histogram = "lockgate_auth_duration_seconds", ["step"] in SECONDS;
    /// Closed sockets by close code and reason
    DISCONNECTS: Counter = "lockgate_disconnects_total", ["tenant", "code", "reason"];
    /// Lifetime of closed sockets
    CONNECTION_DURATION: Histogram = "lockgate_connection_duration_seconds", [] in LIFETIMES;
    /// Frames from clients
    FRAMES_RECEIVED: Counter = "lockgate_frames_received_total", ["tenant", "kind"];
    /// Frames to clients
    FRAMES_SENT: Counter = "lockgate_frames_sent_total", ["tenant"];
    /// Bytes from clients after the handshake
    RECEIVED_BYTES: Counter = "lockgate_received_bytes_total", ["tenant"];
    /// Bytes to clients after the handshake
    SENT_BYTES: Counter = "lockgate_sent_bytes_total", ["tenant"];
    /// Events by source
    EVENTS: Counter = "lockgate_events_total", ["tenant", "source"];
    /// Events queued for a socket, one per socket
    DELIVERIES: Counter = "lockgate_deliveries_total", ["tenant"];
    /// Events and frames that were dropped
    EVENTS_DROPPED: Counter = "lockgate_events_dropped_total", ["tenant", "cause"];
    /// Sockets that came back to a group for the events that they missed
    RECOVERIES: Counter = "lockgate_recoveries_total", ["tenant", "result"];
    /// Events that sockets got because they came back for them
    RECOVERED_EVENTS: Counter = "lockgate_recovered_events_total", ["tenant"];
    /// Events that this replica missed and read from a history
    HEALED_EVENTS: Counter = "lockgate_healed_events_total", ["tenant"];
    /// Events of groups with history that this replica recorded
    RECORDED: Counter = "lockgate_recorded_total", ["tenant"];
    /// Events of groups with history that came without being recorded
    EVENTS_UNRECORDED: Counter = "lockgate_events_unrecorded_total", ["tenant"];
    /// Handshakes that wait for the answer of a worker
    WORKER_WAITING: Gauge = "lockgate_worker_waiting", ["tenant"];
    /// Events that wait in the channels of workers
    WORKER_DEPTH: Gauge = "lockgate_worker_depth", ["tenant"];
    /// Age of the oldest event that waits for a worker
    WORKER_LAG: Gauge = "lockgate_worker_lag_seconds", ["tenant"];
    /// Handshakes that no worker answered in time
    WORKER_TIMEOUTS: Counter = "lockgate_worker_timeouts_total", ["tenant"];
    /// Messages of control channels, and answers to them, that were dropped
    CONTROL_DROPPED: Counter = "lockgate_control_dropped_total", ["tenant", "reason"];
    /// Calls to all replicas that could not know which replicas there are
    REPLICAS_UNKNOWN: Counter = "lockgate_replicas_unknown_total", ["tenant"];
    /// Time to decode, render and queue one event
    FANOUT_DURATION: Histogram = "lockgate_fanout_duration_seconds", [] in SECONDS;
    /// Time from the read of an event to the socket write, sampled
    DELIVERY_LAG: Histogram = "lockgate_delivery_lag_seconds", [] in SECONDS;
    /// Sockets that one event was queued for
    FANOUT_RECIPIENTS: Histogram = "lockgate_fanout_recipients", [] in RECIPIENTS;
    /// Bytes of frames waiting for sockets, shared frames once
    SEND_QUEUE_BYTES: Gauge = "lockgate_send_queue_bytes", [];
    /// Bytes held for clients and back ends, by what holds them
    HELD_BYTES: Gauge = "lockgate_held_bytes", ["kind"];
    /// The bound of these bytes
    HELD_BYTES_LIMIT: Gauge = "lockgate_held_bytes_limit", [];
    /// Bytes of events waiting for fan-out
    LAYER_QUEUE_BYTES: Gauge = "lockgate_layer_queue_bytes", ["tenant"];
    /// Memberships of sockets in groups
    SUBSCRIPTIONS: Gauge = "lockgate_subscriptions", ["tenant"];
    /// Users who are in groups with presence, by sockets of this replica
    PRESENCE_ENTRIES: Gauge = "lockgate_presence_entries", ["tenant"];
    /// Groups whose users of this replica are not in Redis as they are, because a write failed
    PRESENCE_UNWRITTEN: Gauge = "lockgate_presence_unwritten_groups", ["tenant"];
    /// Gaps in which events may have been missed
    GAPS: Counter = "lockgate_gaps_total", ["tenant", "cause"];
    /// Gaps whose events no history gives back to all sockets
    UNHEALED_GAPS: Counter = "lockgate_unhealed_gaps_total", ["tenant", "cause"];
    /// Used memory of a Redis with histories divided by its maxmemory; 0 without one
    HISTORY_MEMORY: Gauge = "lockgate_history_memory_ratio", ["endpoint"];
    /// Time of a canary's way through Redis and back
    CANARY_RTT: Histogram = "lockgate_canary_rtt_seconds", ["endpoint"] in SECONDS;
    /// Canaries that did not come back in time
    CANARY_MISSED: Counter = "lockgate_canary_missed_total", ["endpoint"];
    /// 1 while the dependency answers
    DEPENDENCY_UP: Gauge = "lockgate_dependency_up", ["dependency", "endpoint"];
    /// Time that a dependency took to answer
    DEPENDENCY_DURATION: Histogram = "lockgate_dependency_duration_seconds", ["dependency", "operation"] in SECONDS;
    /// Failures of a dependency
    DEPENDENCY_ERRORS: Counter = "lockgate_dependency_errors_total", ["dependency", "kind"];
    /// Reconnected links to a dependency
    RECONNECTS: Counter = "lockgate_reconnects_total", ["dependency"];
    /// User lookups by source of the answer
    USER_LOOKUPS: Counter = "lockgate_user_lookups_total", ["tenant", "result"];
    /// Values in Redis that are not of the form of their key
    UNREADABLE_VALUES: Counter = "lockgate_unreadable_values_total", ["tenant"];
    /// Statements that asked a database for users
    USER_QUERIES: Counter = "lockgate_user_queries_total", [];
    /// 1 while a Redis with a denylist evicts keys, is a replica, or has lost data
    DENYLIST_AT_RISK: Gauge = "lockgate_denylist_at_risk", [];
    /// Revocations that this replica received
    REVOCATIONS: Counter = "lockgate_revocations_total", ["tenant", "kind"];
    /// Time from the API call to the last confirmation of a replica
    REVOCATION_PROPAGATION: Histogram = "lockgate_revocation_propagation_seconds", [] in SECONDS;
    /// Refreshes of the tokens of open sockets by outcome
    TOKEN_REFRESHES: Counter = "lockgate_token_refreshes_total", ["tenant", "result"];
    /// Times that a limit of a tenant was hit
    RATE_LIMITED: Counter = "lockgate_rate_limited_total", ["tenant", "limit"];
    /// 1 if the newest configuration was applied
    CONFIG_RELOAD_SUCCESSFUL: Gauge = "lockgate_config_reload_successful", [];
    /// Unix time at which a configuration was last applied
    CONFIG_RELOAD_TIMESTAMP: Gauge = "lockgate_config_reload_timestamp_seconds", [];
    /// Tenants of included files that are not served as they stand there
    CONFIG_DEGRADED: Gauge = "lockgate_config_degraded", ["tenant"];
    /// 1 while the tenant cannot be served until an operator acts
    TENANT_DEGRADED: Gauge = "lockgate_tenant_degraded", ["tenant"];
    /// Tenants of the registry by what became of their stored configuration
    REGISTRY_TENANTS: Gauge = "lockgate_registry_tenants", ["state"];
    /// Tenants whose parts are made on this replica: those of the files, and those of the registry that are in use
    TENANTS_MADE: Gauge = "lockgate_tenants_made", [];
    /// Unix time at which the registry of tenants was last read
    REGISTRY_READ_TIMESTAMP: Gauge = "lockgate_registry_read_timestamp_seconds", [];
    /// Redis servers and databases whose certificates are not checked
    UNCHECKED_SERVERS: Gauge = "lockgate_unchecked_servers", [];
    /// Panics: bugs of the gateway or of a program's consumers
    PANICS: Counter = "lockgate_panics_total", [];
    /// Delay of a timer of the runtime
    LOOP_LAG: Histogram = "lockgate_loop_lag_seconds", [] in SECONDS;
    /// Tasks of the runtime that are alive
    RUNTIME_TASKS: Gauge = "lockgate_runtime_tasks", [];
}
