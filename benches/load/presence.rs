//! The presence rows: what a connect into a group with presence costs, and what idle sockets in such groups cost Redis.

use std::time::Instant;

use anyhow::Result;

use crate::arrivals::Side;
use crate::report::{Row, Series, Target};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Setup, World};

/// Sockets of one group, each of another user.
const GROUP: u64 = 10;
/// The routes to groups without presence and with it.
const ROUTES: [&str; 2] = ["small", "present"];

/// The costs of one kind of group.
struct Costs {
    /// CPU in microseconds for each connect.
    connect: f64,
    /// Commands and scripts that Redis runs in a second for the idle sockets; a script counts with the commands in it.
    idle: f64,
    /// Scripts alone.
    scripts: f64,
}

/// Measures both kinds of groups in turn, each in a gateway of its own.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let mut rows = [
        Row::new(
            "CPU per connect into a group with presence",
            "µs",
            Target::None,
        ),
        Row::new(
            "Redis commands per second, idle sockets with presence",
            "1/s",
            Target::None,
        ),
    ];
    let mut scripts = Series::default();
    for _ in 0..settings.long_runs {
        let [plain, present] = ROUTES.map(|route| costs(world, settings, route));
        let (plain, present) = (plain?, present?);
        rows[0].floor.0.push(plain.connect);
        rows[0].gateway.0.push(present.connect);
        rows[1].floor.0.push(plain.idle);
        rows[1].gateway.0.push(present.idle);
        scripts.0.push(present.scripts);
    }
    let sockets = settings.fleet_sockets;
    rows[0].note = format!(
        "{sockets} connects, 64 at a time, {GROUP} users in a group, who are told of each other; the frames of joins are part of it; \
         the floor is the same without presence"
    );
    rows[1].note = format!(
        "{sockets} sockets of one replica in groups of {GROUP}, counted for {:.0} s, with the commands inside of scripts; {:.1} scripts/s; \
         the floor is the same without presence",
        settings.idle.as_secs_f64(),
        scripts.median(),
    );
    Ok(rows.into())
}

fn costs(world: &mut World, settings: Settings, route: &str) -> Result<Costs> {
    world.link.call(&[b"FLUSHALL"])?;
    let gateway = world.start(Setup {
        history: true,
        ..Setup::default()
    })?;
    let mut swarm = Swarm::new(world.redis_port)?;
    let cpu = gateway.process.cpu()?;
    let requests = (1..=settings.fleet_sockets).map(|user| {
        let request = world.request_for(route, user.div_ceil(GROUP), user)?;
        Ok((gateway.port, request))
    });
    swarm.open_all(Side::Gateway, requests)?;
    // Joins are written and told in batches.
    swarm.pump_until(Instant::now() + settings.memory.2)?;
    let connect = gateway.process.cpu()?.since(&cpu);
    let (before, start) = (world.link.command_counts()?, Instant::now());
    swarm.pump_until(start + settings.idle)?;
    let (after, took) = (world.link.command_counts()?, start.elapsed().as_secs_f64());
    swarm.check_open()?;
    let since = |name: &String, count: &u64| count - before.get(name).copied().unwrap_or(0);
    let all: u64 = after.iter().map(|(name, count)| since(name, count)).sum();
    let scripts = after.iter().filter(|(name, _)| name.starts_with("EVAL"));
    let scripts: u64 = scripts.map(|(name, count)| since(name, count)).sum();
    swarm.close_from(0);
    Ok(Costs {
        connect: connect.as_secs_f64() * 1e6 / settings.fleet_sockets as f64,
        idle: all as f64 / took,
        scripts: scripts as f64 / took,
    })
}
