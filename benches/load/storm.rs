//! The storm row: all sockets reconnect at once, no cache holds their users, and the database is five milliseconds away.
//!
//! It counts the statements of the database, and measures the deliveries to sockets that stayed open. A separate
//! PostgreSQL runs behind a proxy that delays each direction by half of the latency.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::arrivals::Side;
use crate::load::Load;
use crate::postgres::{self, Postgres};
use crate::report::{Row, Series, Target};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, Setup, World, small_channel};

const LATENCY: Duration = Duration::from_millis(5);
const EVENTS_PER_SECOND: f64 = 500.0;
/// The most handshakes under way. Further ones wait, as those of a browser that was refused.
const AT_ONCE: usize = 500;
/// The seed for the order in which users come back; the same in each run.
const SEED: u64 = 4_501;

/// Measures the statements for each distinct user, and the p99 of deliveries.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<[Row; 2]> {
    let storm = settings.storm;
    let database = Postgres::start(storm.users + storm.live)?;
    let wire = postgres::slow_wire(database.port, LATENCY / 2)?;
    let round_trip = database.round_trip(wire)?;
    ensure!(
        round_trip >= LATENCY,
        "the wire to the database takes only {round_trip:?}"
    );
    let mut rows = [
        Row::new("statements per user in a storm", "", Target::Value(1.0)),
        Row::new(
            "latency p99 of other sockets in a storm",
            "ms",
            Target::Ratio(2.0),
        ),
    ];
    let (mut statements, mut took, mut busy) =
        (Series::default(), Series::default(), Series::default());
    let mut waited = Series::default();
    let mut bare = [Series::default(), Series::default()];
    for _ in 0..settings.long_runs {
        // No user is cached, neither in Redis nor in the process.
        world.link.call(&[b"FLUSHALL"])?;
        let gateway = world.start(Setup {
            database: Some(postgres::url(wire)),
            ..Setup::default()
        })?;
        let round = Round::play(world, &gateway, &database, settings)?;
        let users = storm.users as f64;
        rows[0].gateway.0.push(round.queries / users);
        rows[0].floor.0.push(round.statements / users);
        rows[1].gateway.0.push(round.storm[0]);
        rows[1].floor.0.push(round.calm[0]);
        bare[0].0.push(round.calm[1]);
        bare[1].0.push(round.storm[1]);
        statements.0.push(round.statements);
        took.0.push(round.took);
        busy.0.push(round.busy);
        waited.0.push(round.waited);
    }
    rows[0].note = format!(
        "{} sockets of {} users within {:.1} s, the gateway's core {:.0} % busy; lockgate_user_queries_total rose by as much as the \
         database's log has statements on its table, {:.0}; a statement takes {:.1} ms at least; \
         the floor is the log's count",
        storm.sockets,
        storm.users,
        took.median(),
        busy.median(),
        statements.median(),
        round_trip.as_secs_f64() * 1e3,
    );
    rows[1].note = format!(
        "{EVENTS_PER_SECOND:.0} events/s, round robin over {} sockets that were open before; the floor is the calm before; \
         clients, Redis, PostgreSQL and its wire share one core, where a bare subscriber of the same events has a p99 of {:.2} ms \
         before and {:.2} ms in the storm; the gateway's threads waited {:.0} ms for their core",
        storm.live,
        bare[0].median(),
        bare[1].median(),
        waited.median(),
    );
    Ok(rows)
}

/// The results of one storm.
struct Round {
    /// Statements by the gateway's count, and by the database's.
    queries: f64,
    statements: f64,
    /// The p99 in milliseconds at the sockets, and at a bare subscriber of the same events.
    calm: [f64; 2],
    storm: [f64; 2],
    /// Seconds from the first connect to the last 101.
    took: f64,
    busy: f64,
    /// Milliseconds in which the gateway's threads were ready and had no core.
    waited: f64,
}

impl Round {
    fn play(
        world: &World,
        gateway: &Gateway,
        database: &Postgres,
        settings: Settings,
    ) -> Result<Self> {
        let storm = settings.storm;
        let mut swarm = Swarm::new(world.redis_port)?;
        let live = (1..=storm.live).map(|n| {
            let request = world.request_for("small", n, storm.users + n)?;
            Ok((gateway.port, request))
        });
        swarm.open_all(Side::Gateway, live)?;
        let channels: Vec<String> = (1..=storm.live).map(small_channel).collect();
        swarm.subscribe(world.redis_port, &channels)?;
        let groups = || (1..=storm.live).map(|n| (small_channel(n), 1)).collect();
        let load = Load::start(&swarm, groups(), EVENTS_PER_SECOND);
        let calm = p99(&mut swarm, settings, load, |swarm, load| {
            load.run_until(swarm, Instant::now() + storm.calm)
        })?;

        let counted = |what: &str| gateway.metric(what, "").context("no metrics");
        let queries = "lockgate_user_queries_total";
        let before = (counted(queries)?, database.statements()?);
        let (cpu, start) = (gateway.process.cpu()?, Instant::now());
        let opened = swarm.openings().opened;
        let mut took = Duration::ZERO;
        let load = Load::start(&swarm, groups(), EVENTS_PER_SECOND);
        let shaken = p99(&mut swarm, settings, load, |swarm, load| {
            connect_all(world, gateway.port, settings, swarm, load)?;
            took = start.elapsed();
            // The memory that the handshakes have left behind.
            load.run_until(swarm, Instant::now() + Duration::from_secs(1))
        })?;
        let after = gateway.process.cpu()?;
        let busy = after.since(&cpu).as_secs_f64() / start.elapsed().as_secs_f64();
        let opened = swarm.openings().opened - opened;
        ensure!(
            opened == storm.sockets,
            "{opened} of {} sockets came back",
            storm.sockets
        );
        let queries = counted(queries)? - before.0;
        let statements = (database.statements()? - before.1) as f64;
        let played = Self {
            queries,
            statements,
            calm,
            storm: shaken,
            took: took.as_secs_f64(),
            busy: 100.0 * busy,
            waited: after.waited_since(&cpu).as_secs_f64() * 1e3,
        };
        played.check(gateway, settings)?;
        swarm.close_from(0);
        Ok(played)
    }

    /// Fails unless the gateway's counts of sockets and queries are right.
    fn check(&self, gateway: &Gateway, settings: Settings) -> Result<()> {
        let (storm, queries, statements) = (settings.storm, self.queries, self.statements);
        let open = gateway.metric("lockgate_connections", "tenant=\"bench\"")?;
        ensure!(
            open == (storm.sockets + storm.live) as f64,
            "the gateway counts {open} sockets"
        );
        ensure!(
            queries == statements && statements > 0.0,
            "the gateway counts {queries} queries, the database {statements} statements"
        );
        ensure!(
            queries <= storm.users as f64,
            "{queries} queries for {} users",
            storm.users
        );
        Ok(())
    }
}

/// Returns the p99 of deliveries during `work`, in milliseconds, at the sockets and at the bare subscriber.
fn p99(
    swarm: &mut Swarm,
    settings: Settings,
    mut load: Load,
    work: impl FnOnce(&mut Swarm, &mut Load) -> Result<()>,
) -> Result<[f64; 2]> {
    swarm.begin_latencies();
    work(swarm, &mut load)?;
    load.finish(swarm, settings)?;
    swarm.end_latencies().p99()
}

/// Opens the storm's sockets evenly over its time, while the load goes on.
fn connect_all(
    world: &World,
    port: u16,
    settings: Settings,
    swarm: &mut Swarm,
    load: &mut Load,
) -> Result<()> {
    let storm = settings.storm;
    let start = Instant::now();
    let gap = storm.lasting.div_f64(storm.sockets as f64);
    let mut users: Vec<u64> = (0..storm.sockets).map(|k| k % storm.users + 1).collect();
    users.shuffle(&mut StdRng::seed_from_u64(SEED));
    for (k, user) in users.into_iter().enumerate() {
        load.run_until(swarm, start + gap.mul_f64(k as f64))?;
        while swarm.openings().under_way >= AT_ONCE {
            load.step(swarm, Instant::now() + gap)?;
        }
        swarm.open(Side::Apart, port, world.request("ws", user)?)?;
    }
    let most = match settings.timed {
        true => storm.lasting,
        false => Duration::from_secs(60),
    };
    let deadline = Instant::now() + most;
    while swarm.openings().under_way > 0 {
        load.step(swarm, deadline)?;
        ensure!(
            Instant::now() < deadline,
            "{} sockets do not open",
            swarm.openings().under_way
        );
    }
    Ok(())
}
