//! The table of costs: bytes and Redis commands of one more group, subscription, socket, tenant or replica.
//!
//! Each is measured at two sizes, the second on top of the first. Equal figures mean linear growth.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::arrivals::Side;
use crate::report::{Cost, Each};
use crate::settings::Settings;
use crate::world::{EXTRA_GROUPS, Gateway, World};

/// A reading of memory and commands. The program adds something between two readings.
struct Reading {
    bytes: f64,
    commands: BTreeMap<String, u64>,
}

impl Reading {
    fn of(world: &mut World, gateway: &Gateway) -> Result<Self> {
        Ok(Self {
            bytes: gateway.process.pss()? as f64,
            commands: world.command_counts()?,
        })
    }

    /// Returns the cost of one of the `count` things that were added since `earlier`.
    fn each(&self, earlier: &Self, count: u64) -> Each {
        Each {
            count,
            bytes: (self.bytes - earlier.bytes) / count as f64,
            commands: calls(&self.commands, &earlier.commands, count as f64),
        }
    }
}

fn calls(
    now: &BTreeMap<String, u64>,
    earlier: &BTreeMap<String, u64>,
    count: f64,
) -> BTreeMap<String, f64> {
    let before = |name: &String| earlier.get(name).copied().unwrap_or(0);
    now.iter()
        .map(|(name, calls)| (name.clone(), (calls - before(name)) as f64 / count))
        .filter(|(_, calls)| *calls > 0.0)
        .collect()
}

/// Returns the cost of a socket's groups without the socket. `whole` is the cost of a socket with [`EXTRA_GROUPS`] more
/// groups than `socket`.
fn without_socket(whole: Each, socket: &Each) -> Each {
    let extra = EXTRA_GROUPS as f64;
    let mut commands = whole.commands;
    for (name, calls) in &mut commands {
        *calls = (*calls - socket.commands.get(name).copied().unwrap_or(0.0)).max(0.0) / extra;
    }
    Each {
        count: whole.count * EXTRA_GROUPS,
        bytes: (whole.bytes - socket.bytes) / extra,
        commands,
    }
}

/// The masters of the cluster that the second half of the table is for.
const SHARDS: usize = 3;

/// Measures all rows of the table, with one Redis and with a cluster.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Cost>> {
    let mut costs = with_this_redis(world, settings)?;
    world.use_shards(SHARDS)?;
    let on_cluster = with_this_redis(world, settings)?;
    world.use_shards(0)?;
    costs.extend(on_cluster.into_iter().map(|cost| Cost {
        what: format!("{}, on a cluster of {SHARDS}", cost.what),
        ..cost
    }));
    Ok(costs)
}

fn with_this_redis(world: &mut World, settings: Settings) -> Result<Vec<Cost>> {
    let [socket, subscription, group] = sockets_and_groups(world, settings)?;
    let tenant = tenants(world, settings)?;
    let [replica, minute] = replicas(world, settings)?;
    Ok(vec![socket, subscription, group, tenant, replica, minute])
}

fn sockets_and_groups(world: &mut World, settings: Settings) -> Result<[Cost; 3]> {
    let gateway = world.start_gateway(0)?;
    let mut swarm = world.swarm()?;
    let mut user = 0;
    let mut add = |world: &mut World, route: &str, count: u64| -> Result<Each> {
        let before = Reading::of(world, &gateway)?;
        let users = user + 1..=user + count;
        user += count;
        let requests = users.map(|user| Ok((gateway.port, world.request(route, user)?)));
        swarm.open_all(Side::Gateway, requests)?;
        swarm.pump_until(Instant::now() + settings.memory.2)?;
        swarm.check_open()?;
        Ok(Reading::of(world, &gateway)?.each(&before, count))
    };
    let (count, plain) = (settings.cost_sockets, settings.cost_sockets * 4);
    // The first sockets and members have costs that no later ones have; they come before the first reading.
    add(world, "ws", plain)?;
    add(world, "members", 1)?;
    let socket = [add(world, "ws", plain)?, add(world, "ws", plain)?];
    let mut pair = |route: &str| -> Result<[Each; 2]> {
        let first = add(world, route, count)?;
        let second = add(world, route, count)?;
        Ok([first, second].map(|each| without_socket(each, &socket[1])))
    };
    let (subscription, group) = (pair("members")?, pair("groups")?);
    let cost = |what: &str, [first, second]: [Each; 2]| Cost {
        what: what.to_owned(),
        first,
        second,
    };
    Ok([
        cost("socket in one group, its user new to Redis", socket),
        cost("subscription to a group of this replica", subscription),
        cost("group with its first subscription", group),
    ])
}

/// Measures gateways with 1, 1 + n and 1 + 2 n tenants.
fn tenants(world: &mut World, settings: Settings) -> Result<Cost> {
    let step = settings.cost_tenants;
    let mut readings = Vec::new();
    for more in [0, step, 2 * step] {
        let before = world.command_counts()?;
        let gateway = world.start_gateway(more)?;
        std::thread::sleep(settings.memory.2);
        let after = Reading::of(world, &gateway)?;
        let commands = calls(&after.commands, &before, 1.0);
        readings.push(Reading {
            bytes: after.bytes,
            // As whole numbers again: calls of this gateway's start alone.
            commands: commands
                .into_iter()
                .map(|(name, n)| (name, n as u64))
                .collect(),
        });
    }
    let each = |now: &Reading, earlier: &Reading| Each {
        count: step as u64,
        bytes: (now.bytes - earlier.bytes) / step as f64,
        commands: growth(&now.commands, &earlier.commands, step as f64),
    };
    Ok(Cost {
        what: "tenant without sockets (commands at start)".to_owned(),
        first: each(&readings[1], &readings[0]),
        second: each(&readings[2], &readings[1]),
    })
}

/// Returns the difference as [`calls`] does, for counters that may differ in either direction by chance.
fn growth(
    now: &BTreeMap<String, u64>,
    earlier: &BTreeMap<String, u64>,
    count: f64,
) -> BTreeMap<String, f64> {
    let before = |name: &String| earlier.get(name).copied().unwrap_or(0);
    now.iter()
        .map(|(name, calls)| {
            (
                name.clone(),
                calls.saturating_sub(before(name)) as f64 / count,
            )
        })
        .collect()
}

/// Measures the start and an idle minute of a first and a second replica.
fn replicas(world: &mut World, settings: Settings) -> Result<[Cost; 2]> {
    let mut running = Vec::new();
    let (mut starts, mut minutes) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let before = world.command_counts()?;
        let gateway = world.start_gateway(0)?;
        std::thread::sleep(Duration::from_millis(500));
        let started = Reading::of(world, &gateway)?;
        running.push(gateway);
        starts.push(Each {
            count: 1,
            bytes: started.bytes,
            commands: calls(&started.commands, &before, 1.0),
        });
        let before = world.command_counts()?;
        std::thread::sleep(settings.idle);
        let after = world.command_counts()?;
        let minutes_of_all = running.len() as f64 * settings.idle.as_secs_f64() / 60.0;
        minutes.push(Each {
            count: 1,
            bytes: 0.0,
            commands: calls(&after, &before, minutes_of_all),
        });
    }
    let cost = |what: &str, list: &mut Vec<Each>| Cost {
        what: what.to_owned(),
        first: list.remove(0),
        second: list.remove(0),
    };
    Ok([
        cost("replica with one tenant, at start", &mut starts),
        cost("minute of an idle replica", &mut minutes),
    ])
}
