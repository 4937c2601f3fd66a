//! Rows of databases, replicas, clients and machines.

use crate::checker::End;
use crate::fault::{ClientFault, DatabaseFault, Fault, MachineFault, ReplicaFault, Way, WireFault};
use crate::field::Size;
use crate::row::{Clocks, Crowd, Must, NOTHING, Row, Sign, Users, WORLD, World};
use crate::support::proxy::Line;

/// Records are stale after a second, so that every user has to be looked up; users that are known are served all the same.
const POSTGRES: World = World {
    users: Users::Postgres,
    ..WORLD
};

/// Two sockets in each group.
const SPLIT: Crowd = Crowd {
    clients: 50,
    groups: 25,
    pace: 100,
};

/// The demand where the database cannot be asked: no event has anything to do with it.
const UNKNOWN_USERS: Must = Must {
    refusals: &[503],
    ..NOTHING
};

/// The demand where the first replica leaves in order.
const LEAVES: Must = Must {
    ends: &[End::Closed(1012)],
    refusals: &[503, 0],
    calm_too: true,
    ..NOTHING
};

/// The demand where the first replica is gone at once.
const DIES: Must = Must {
    ends: &[End::Cut, End::Closed(1012)],
    ..LEAVES
};

const TOO_SLOW: &[Sign] = &[Sign {
    metric: "lockgate_disconnects_total",
    label: ("reason", "too_slow"),
    at_least: 1.0,
}];

fn row(number: u8, name: &'static str, fault: Fault, lasts: [u64; 2], must: Must) -> Row {
    Row {
        number,
        name,
        fault,
        lasts,
        world: WORLD,
        must,
    }
}

/// All of them.
pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![row(0, "no fault", Fault::None, [1_000, 8_000], NOTHING)];
    rows.extend(databases());
    rows.extend(replicas());
    rows.extend(clients());
    rows.extend(machines());
    rows
}

fn databases() -> Vec<Row> {
    let line = |line| Fault::Wire(WireFault::Is(Way::Database, line));
    let made = |fault| Fault::Database(fault);
    let rows = [
        (30, "the database is away", line(Line::Cut), [2_000, 8_000]),
        (
            31,
            "the database does not answer",
            line(Line::Clogged),
            [4_000, 8_000],
        ),
        (
            32,
            "the table of users is locked",
            made(DatabaseFault::Locked),
            [4_000, 8_000],
        ),
        (
            33,
            "the database refuses the login",
            made(DatabaseFault::Refuses),
            [2_000, 8_000],
        ),
        (
            34,
            "the database ends its connections again and again",
            made(DatabaseFault::Resets),
            [2_000, 8_000],
        ),
    ];
    let rows = rows.into_iter().map(|(number, name, fault, lasts)| Row {
        world: POSTGRES,
        ..row(number, name, fault, lasts, UNKNOWN_USERS)
    });
    rows.collect()
}

fn replicas() -> Vec<Row> {
    let of = |fault| Fault::Replica(fault);
    // Redis holds back what a frozen replica does not read, and Redis is the one that gives up.
    let frozen = Must {
        gaps: true,
        ends: &[End::Closed(4009), End::Cut],
        ..LEAVES
    };
    vec![
        row(
            35,
            "a replica drains (SIGTERM)",
            of(ReplicaFault::Drains),
            [0, 0],
            LEAVES,
        ),
        row(
            36,
            "a second SIGTERM cuts the drain",
            of(ReplicaFault::DrainIsCut),
            [300, 300],
            DIES,
        ),
        row(
            37,
            "a replica is killed",
            of(ReplicaFault::Killed),
            [1_500, 8_000],
            DIES,
        ),
        row(
            38,
            "a replica is frozen (SIGSTOP)",
            of(ReplicaFault::Frozen),
            [5_000, 50_000],
            frozen,
        ),
        row(
            39,
            "all replicas are replaced under load",
            of(ReplicaFault::Rolls),
            [0, 0],
            LEAVES,
        ),
    ]
}

fn clients() -> Vec<Row> {
    let line = |line| Fault::Wire(WireFault::Is(Way::Clients, line));
    let storm = Must {
        ends: &[End::Closed(1000)],
        calm_too: true,
        ..NOTHING
    };
    // A socket whose client does not answer a ping in time is closed with 4009, if its client can hear that.
    let unheard = Must {
        ends: &[End::Cut, End::Closed(4009)],
        refusals: &[0],
        ..NOTHING
    };
    let slow = Must {
        shows: TOO_SLOW,
        ..NOTHING
    };
    let small_queues = World {
        settings: &[("server.max_queue_bytes", "'4MiB'")],
        ..WORLD
    };
    vec![
        row(
            40,
            "all clients connect again at once",
            Fault::Clients(ClientFault::Storm),
            [500, 2_000],
            storm,
        ),
        Row {
            world: World {
                settings: &[
                    ("server.heartbeat.interval", "'5s'"),
                    ("server.heartbeat.timeout", "'4s'"),
                ],
                ..WORLD
            },
            ..row(
                42,
                "replicas and clients are apart",
                line(Line::Clogged),
                [11_000, 12_000],
                unheard,
            )
        },
        row(
            43,
            "400 connections send half a request",
            Fault::Clients(ClientFault::HalfOpen(400)),
            [2_000, 12_000],
            NOTHING,
        ),
        row(
            44,
            "one socket of a busy group does not read",
            Fault::Clients(ClientFault::DoNotRead(1)),
            [3_000, 8_000],
            slow.clone(),
        ),
        Row {
            world: small_queues,
            ..row(
                45,
                "a third of the sockets do not read",
                Fault::Clients(ClientFault::DoNotRead(10)),
                [3_000, 8_000],
                slow,
            )
        },
        Row {
            // Our proxy writes each byte by itself. With few sockets it leaves the cores to what is measured.
            world: World {
                crowd: Some([Crowd::of(Size::SHORT), SPLIT]),
                ..WORLD
            },
            ..row(
                46,
                "bytes come one by one between clients and replicas",
                line(Line::Split),
                [3_000, 8_000],
                NOTHING,
            )
        },
    ]
}

fn machines() -> Vec<Row> {
    let of = |fault| Fault::Machine(fault);
    let without_descriptors = Must {
        refusals: &[503, 0],
        calm_too: true,
        ..NOTHING
    };
    let clocks = |clocks| World {
        clocks,
        // Tokens are made by the machine's clock.
        of_hurt: &[("token.leeway", "'120s'")],
        ..WORLD
    };
    // An hour ahead new tokens of five minutes have expired, an hour back they are not valid yet. Those of the open sockets
    // live for a day.
    let steps = Must {
        refusals: &[401],
        calm_too: true,
        ..NOTHING
    };
    let step = |number, name, seconds| Row {
        world: clocks(Clocks::Settable),
        ..row(
            number,
            name,
            of(MachineFault::ClockStep(seconds)),
            [2_000, 8_000],
            steps.clone(),
        )
    };
    vec![
        step(47, "the clocks step an hour ahead, and back", 3_600),
        step(47, "the clocks step an hour back, and ahead", -3_600),
        Row {
            world: clocks(Clocks::Ahead(90)),
            ..row(
                48,
                "the clocks of two replicas differ by 90 s",
                of(MachineFault::ClocksApart),
                [2_000, 8_000],
                NOTHING,
            )
        },
        row(
            49,
            "a replica has no descriptor left",
            of(MachineFault::NoDescriptors),
            [2_000, 8_000],
            without_descriptors,
        ),
        Row {
            world: World {
                settings: &[("log.level", "'trace'")],
                ..WORLD
            },
            ..row(
                54,
                "the pipe of the log is full",
                of(MachineFault::LogPaused),
                [3_000, 8_000],
                NOTHING,
            )
        },
        row(
            55,
            "the pipe of the log is closed",
            of(MachineFault::LogClosed),
            [2_000, 8_000],
            NOTHING,
        ),
        row(
            65,
            "a hundred scrapes at a time, and some that do not read",
            of(MachineFault::Scrapes),
            [2_000, 8_000],
            NOTHING,
        ),
    ]
}
