//! Rows of Redis and of the way to it.

use std::time::Duration;

use crate::fault::{Fault, RedisFault, Way, WireFault};
use crate::row::{Must, NOTHING, Redis, Road, Row, Sign, TOLD, WORLD, World};
use crate::support::proxy::Line;

const AT_RISK: &[Sign] = &[Sign {
    metric: "lockgate_denylist_at_risk",
    label: ("", ""),
    at_least: 1.0,
}];

/// A Redis that loses its data loses the denylist with them.
const FORGETS: Must = Must {
    forgets: true,
    ..TOLD
};

/// Another master is there, and the gateway has to find it: within two seconds, and on a busy machine within four.
const FOLLOWS: Must = Must {
    recovers: 4,
    ..FORGETS
};

const CORE: World = World {
    layer: "core",
    road: Road::Api,
    // A burst after an outage is not what these rows are about.
    of_hurt: &[("layer.capacity", "10000")],
    ..WORLD
};

const SENTINEL: World = World {
    redis: Redis::Sentinel,
    ..WORLD
};

fn of_redis(number: u8, name: &'static str, fault: RedisFault, lasts: [u64; 2]) -> Row {
    Row {
        number,
        name,
        fault: Fault::Redis(fault),
        lasts,
        world: WORLD,
        must: TOLD,
    }
}

fn of_wire(number: u8, name: &'static str, way: Way, line: Line, lasts: [u64; 2]) -> Row {
    Row {
        number,
        name,
        fault: Fault::Wire(WireFault::Is(way, line)),
        lasts,
        world: WORLD,
        must: TOLD,
    }
}

/// All of them.
pub(super) fn rows() -> Vec<Row> {
    let mut rows = processes();
    rows.extend(roles());
    rows.extend(limits());
    rows.extend(wires());
    rows
}

fn processes() -> Vec<Row> {
    use RedisFault::*;
    vec![
        Row {
            must: FORGETS,
            ..of_redis(
                1,
                "Redis is killed, and comes back empty",
                Killed,
                [1_500, 8_000],
            )
        },
        Row {
            must: FORGETS,
            world: CORE,
            ..of_redis(
                1,
                "Redis behind a core layer is killed, and comes back empty",
                Killed,
                [1_500, 8_000],
            )
        },
        Row {
            must: FORGETS,
            ..of_redis(2, "Redis restarts within a second", Killed, [0, 0])
        },
        Row {
            must: FORGETS,
            world: World {
                more_groups: 90,
                ..WORLD
            },
            ..of_redis(
                3,
                "Redis restarts, each socket is in 91 groups",
                Killed,
                [0, 0],
            )
        },
        of_redis(4, "Redis is frozen (SIGSTOP)", Frozen, [4_000, 12_000]),
        of_redis(
            6,
            "Redis pauses for seconds (CLIENT PAUSE)",
            Paused,
            [4_000, 6_000],
        ),
        of_redis(7, "a script keeps Redis busy", Busy, [2_500, 6_000]),
        Row {
            world: World {
                redis: Redis::Loading,
                ..WORLD
            },
            ..of_redis(
                10,
                "Redis is killed, and loads its data for seconds",
                KilledWithData,
                [500, 2_000],
            )
        },
    ]
}

fn roles() -> Vec<Row> {
    use RedisFault::*;
    vec![
        Row {
            // What the old master took after the new one was named is lost with its role.
            must: FOLLOWS,
            world: World {
                redis: Redis::Pair,
                ..WORLD
            },
            ..of_redis(
                11,
                "master and replica swap behind one name",
                Swapped,
                [0, 0],
            )
        },
        Row {
            must: FOLLOWS,
            world: World {
                redis: Redis::Pair,
                road: Road::Api,
                ..WORLD
            },
            ..of_redis(
                15,
                "master and replica swap, events come through the API",
                Swapped,
                [0, 0],
            )
        },
        Row {
            must: FOLLOWS,
            world: SENTINEL,
            ..of_redis(
                12,
                "the master dies, Sentinels name another",
                MasterKilled,
                [0, 0],
            )
        },
        Row {
            must: FOLLOWS,
            world: World {
                redis: Redis::Sentinel,
                ..CORE
            },
            ..of_redis(
                12,
                "the master behind a core layer dies, Sentinels name another",
                MasterKilled,
                [0, 0],
            )
        },
        Row {
            must: FOLLOWS,
            world: SENTINEL,
            ..of_redis(
                12,
                "an operator's failover, the old master stays",
                FailedOver,
                [0, 0],
            )
        },
        Row {
            must: NOTHING,
            world: SENTINEL,
            ..of_redis(14, "no Sentinel answers", SentinelsKilled, [6_000, 10_000])
        },
        Row {
            world: World {
                redis: Redis::Hosts,
                road: Road::Api,
                ..WORLD
            },
            ..of_redis(27, "one of two hosts is killed", HostKilled, [1_500, 8_000])
        },
    ]
}

fn limits() -> Vec<Row> {
    use RedisFault::*;
    vec![
        Row {
            must: NOTHING,
            ..of_redis(
                8,
                "Redis is full (maxmemory, noeviction)",
                Full,
                [2_000, 8_000],
            )
        },
        Row {
            must: Must {
                shows: AT_RISK,
                ..TOLD
            },
            ..of_redis(9, "Redis may evict any key", Evicts, [500, 2_000])
        },
        of_redis(
            21,
            "the right to subscribe is taken away",
            RightTaken,
            [2_000, 8_000],
        ),
        of_redis(
            22,
            "the password is changed",
            PasswordChanged,
            [2_000, 8_000],
        ),
        of_redis(
            23,
            "Redis takes no further client",
            NoMoreClients,
            [2_000, 8_000],
        ),
        of_redis(
            24,
            "Redis cuts subscribers over their output limit",
            OutputLimit,
            [500, 2_000],
        ),
        of_redis(
            25,
            "the subscribers' links are killed",
            SubscribersKilled,
            [0, 0],
        ),
        Row {
            must: Must {
                shows: AT_RISK,
                ..FORGETS
            },
            ..of_redis(26, "Redis loses its data (FLUSHALL)", Flushed, [500, 2_000])
        },
        Row {
            must: NOTHING,
            ..of_redis(29, "payloads that are no events", Poisoned, [3_000, 8_000])
        },
    ]
}

fn wires() -> Vec<Row> {
    const MILLIS_200: Duration = Duration::from_millis(200);
    const SECONDS_5: Duration = Duration::from_secs(5);
    let slow = Line::Slow(MILLIS_200);
    vec![
        Row {
            // Slow is not away: nothing may be lost, and nothing refused.
            must: NOTHING,
            ..of_wire(5, "Redis is 200 ms away", Way::Redis, slow, [3_000, 8_000])
        },
        of_wire(
            6,
            "Redis is 5 s away",
            Way::Redis,
            Line::Slow(SECONDS_5),
            [6_000, 10_000],
        ),
        Row {
            fault: Fault::Wire(WireFault::Flaps(Way::Redis)),
            ..of_wire(
                28,
                "the links to Redis are reset again and again",
                Way::Redis,
                Line::Reset,
                [2_000, 8_000],
            )
        },
        of_wire(
            41,
            "replicas and Redis are apart, without an RST",
            Way::Redis,
            Line::Clogged,
            [4_000, 12_000],
        ),
        of_wire(
            41,
            "one replica and Redis are apart",
            Way::FirstToRedis,
            Line::Clogged,
            [4_000, 12_000],
        ),
        of_wire(
            41,
            "the links of one replica are reset",
            Way::FirstToRedis,
            Line::Reset,
            [1_500, 8_000],
        ),
        Row {
            must: NOTHING,
            ..of_wire(
                46,
                "bytes come one by one between replicas and Redis",
                Way::Redis,
                Line::Split,
                [3_000, 8_000],
            )
        },
    ]
}
