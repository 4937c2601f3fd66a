//! The rows of quiet groups: what a group with history costs in which nothing happens, beside one without. On `core` each replica
//! looks into its mailbox every quarter of `layer.expiry`.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::arrivals::Side;
use crate::report::{Row, Series, Target};
use crate::rows::growth;
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{EXTRA_GROUPS, Setup, World};

/// The routes of one socket a group, without a history and with one.
const ROUTES: [&str; 2] = ["small", "resume"];

/// Measures commands, processor time and memory.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let mut rows = Vec::from(rounds(world, settings)?);
    rows.extend(memory(world, settings)?);
    Ok(rows)
}

/// The cost of one second, for each group but the commands.
struct Second {
    /// Commands and scripts that Redis runs; a script counts with the commands in it.
    commands: f64,
    /// Scripts alone.
    scripts: f64,
    /// Microseconds of the gateway and of Redis.
    gateway: f64,
    redis: f64,
}

fn rounds(world: &mut World, settings: Settings) -> Result<[Row; 3]> {
    let mut rows = [
        (
            "Redis commands per second, quiet groups with history",
            "1/s",
        ),
        ("CPU per second, a quiet group with history: gateway", "µs"),
        ("CPU per second, a quiet group with history: Redis", "µs"),
    ]
    .map(|(what, unit)| Row::new(what, unit, Target::None));
    let mut scripts = Series::default();
    for _ in 0..settings.long_runs {
        let [plain, kept] = ROUTES.map(|route| second(world, settings, route));
        let (plain, kept) = (plain?, kept?);
        let values = |second: &Second| [second.commands, second.gateway, second.redis];
        for (row, value) in rows.iter_mut().zip(values(&plain)) {
            row.floor.0.push(value);
        }
        for (row, value) in rows.iter_mut().zip(values(&kept)) {
            row.gateway.0.push(value);
        }
        scripts.0.push(kept.scripts);
    }
    let note = format!(
        "{} groups of one socket each on `core`, watched for {:.1} s in which nothing is sent; the floor is the same without history",
        settings.sockets,
        settings.quiet.as_secs_f64(),
    );
    rows[0].note = format!(
        "{note}; with the commands inside of scripts; {:.1} scripts/s",
        scripts.median()
    );
    rows[1].note.clone_from(&note);
    rows[2].note = note;
    Ok(rows)
}

fn second(world: &mut World, settings: Settings, route: &str) -> Result<Second> {
    world.link.call(&[b"FLUSHALL"])?;
    let gateway = world.start(Setup {
        history: true,
        core: true,
        ..Setup::default()
    })?;
    let mut swarm = Swarm::new(world.redis_port)?;
    let groups = settings.sockets;
    let requests = (1..=groups).map(|user| Ok((gateway.port, world.request(route, user)?)));
    swarm.open_all(Side::Gateway, requests)?;
    swarm.pump_until(Instant::now() + settings.memory.2)?;
    let (before, start) = (world.link.command_counts()?, Instant::now());
    let (cpu, [redis, _]) = (gateway.process.cpu()?, world.load_cpu()?);
    swarm.pump_until(start + settings.quiet)?;
    let used = [
        gateway.process.cpu()?.since(&cpu),
        world.load_cpu()?[0].since(&redis),
    ];
    let (after, took) = (world.link.command_counts()?, start.elapsed().as_secs_f64());
    swarm.check_open()?;
    let since = |name: &String, count: &u64| count - before.get(name).copied().unwrap_or(0);
    let count = |is_one: fn(&str) -> bool| -> u64 {
        let some = after.iter().filter(|(name, _)| is_one(name));
        some.map(|(name, count)| since(name, count)).sum()
    };
    swarm.close_from(0);
    let each = |used: Duration| used.as_secs_f64() * 1e6 / took / groups as f64;
    Ok(Second {
        commands: count(|_| true) as f64 / took,
        scripts: count(|name| name.starts_with("EVAL")) as f64 / took,
        gateway: each(used[0]),
        redis: each(used[1]),
    })
}

fn memory(world: &mut World, settings: Settings) -> Result<[Row; 2]> {
    let mut rows = [
        Row::new(
            "memory that a history adds to a socket, for each group",
            "B",
            Target::Value(48.0),
        ),
        Row::new(
            "memory of a group of one socket, with a history",
            "B",
            Target::None,
        ),
    ];
    // A quarter of the sockets, since each of them is in many groups.
    let (low, high, settle) = settings.memory;
    let sizes = (low / 4, high / 4, settle);
    let mut shared = Series::default();
    for _ in 0..settings.long_runs {
        let mut of = |route: &str| -> Result<f64> {
            world.link.call(&[b"FLUSHALL"])?;
            let setup = Setup {
                history: true,
                ..Setup::default()
            };
            Ok(growth(world, setup, route, sizes)? / EXTRA_GROUPS as f64)
        };
        let alone = of("ws")?;
        let (plain, held) = (of("members")?, of("held-members")?);
        shared.0.push(plain - alone);
        rows[0].gateway.0.push(held - plain);
        rows[1].floor.0.push(of("groups")? - alone);
        rows[1].gateway.0.push(of("held-groups")? - alone);
    }
    rows[0].note = format!(
        "growth of PSS between {} and {} sockets in {EXTRA_GROUPS} groups that all of them share, less the same without history, where \
         each takes {:.0} B",
        sizes.0,
        sizes.1,
        shared.median(),
    );
    rows[1].note = format!(
        "the same with {EXTRA_GROUPS} groups of its own for each socket; its subscriptions at this replica are part of it; the floor is a \
         group without history"
    );
    Ok(rows)
}
