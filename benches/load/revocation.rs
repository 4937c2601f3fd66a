//! The revocation row: the time from a call of the management API to the close frame at the client, with three replicas.
//!
//! The floor is the time from a bare PUBLISH to a bare subscriber, measured between the calls in the same loop.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::arrivals::{Side, quantile};
use crate::http::Api;
use crate::load::Load;
use crate::process::CpuReading;
use crate::report::{Row, Series, Target};
use crate::settings::Settings;
use crate::stamp;
use crate::swarm::Swarm;
use crate::world::{Gateway, SMALL_GROUPS, Setup, TOKEN_SECONDS, Ticket, World, small_channel};

const REPLICAS: usize = 3;
const DELIVERIES_PER_SECOND: f64 = 5_000.0;
/// The time between the beginnings of two revocations.
const PACE: Duration = Duration::from_millis(50);
/// The channel of the floor; only the bare subscriber hears it.
const FLOOR_CHANNEL: &str = "bench-floor";
const REVOKED: u16 = 4501;
/// The longest time for a close frame or an answer before the run fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first token number of sockets that are revoked; it is above the number of each user.
const FIRST_TOKEN: u64 = 1_000_000;

/// Measures the p50 and the p99.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<[Row; 2]> {
    let mut stage = Stage::set(world, settings)?;
    let row = |what, target| Row::new(what, "ms", target);
    let mut rows = [
        row("revocation to close frame, p50", Target::None),
        row("revocation to close frame, p99", Target::Value(50.0)),
    ];
    let (mut rates, mut worst) = (Series::default(), Series::default());
    let (mut busy, mut waited) = (Series::default(), Series::default());
    for run in 0..settings.long_runs {
        let round = stage.round(run as u64)?;
        for (row, part) in rows.iter_mut().zip([0.5, 0.99]) {
            row.gateway.0.push(quantile(&round.took, part) / 1e3);
            row.floor.0.push(quantile(&round.floor, part) / 1e3);
        }
        rates.0.push(round.deliveries_per_second);
        busy.0.push(round.busy);
        waited.0.push(round.waited);
        worst.0.push(quantile(&round.took, 1.0) / 1e3);
    }
    rows[1].note = format!(
        "{} revocations a run by jti, each call on one of {REPLICAS} replicas and its socket on any, {} sockets, beside {:.0} \
         deliveries/s; the slowest took {:.2} ms; {REPLICAS} gateways share one core, {:.0} % busy, and \
         were without it for {:.0} % of the time, summed; clients and Redis the other; \
         the floor is PUBLISH to a bare subscriber in the same loop",
        settings.revocations,
        settings.fleet_sockets,
        rates.median(),
        worst.median(),
        busy.median(),
        waited.median(),
    );
    Ok(rows)
}

/// The replicas, and the sockets that stay open.
struct Stage {
    gateways: Vec<Gateway>,
    swarm: Swarm,
    settings: Settings,
    /// The number of staying sockets in each small group, from group 1.
    members: Vec<u64>,
}

/// The results of one run, in sorted nanoseconds.
struct Round {
    took: Vec<u64>,
    floor: Vec<u64>,
    deliveries_per_second: f64,
    /// The percentages of time in which gateways ran, and in which they waited for the core, summed over all.
    busy: f64,
    waited: f64,
}

impl Stage {
    fn set(world: &mut World, settings: Settings) -> Result<Self> {
        // Redis still lists the killed gateways of other rows, and the API would wait for their answers.
        world.link.call(&[b"FLUSHALL"])?;
        let start = |_| {
            world.start(Setup {
                api: true,
                ..Setup::default()
            })
        };
        let gateways = (0..REPLICAS).map(start).collect::<Result<Vec<_>>>()?;
        for gateway in &gateways {
            knows_the_others(gateway)?;
        }
        let mut swarm = Swarm::new(world.redis_port)?;
        swarm.subscribe(world.redis_port, &[FLOOR_CHANNEL.to_owned()])?;
        let mut members = vec![0; SMALL_GROUPS as usize];
        let staying = settings.fleet_sockets - settings.revocations;
        let requests = (1..=staying).map(|user| {
            let group = user % SMALL_GROUPS;
            members[group as usize] += 1;
            let port = gateways[user as usize % REPLICAS].port;
            Ok((port, world.request_for("small", group + 1, user)?))
        });
        swarm.open_all(Side::Gateway, requests)?;
        Ok(Self {
            gateways,
            swarm,
            settings,
            members,
        })
    }

    /// Opens the sockets that are to be revoked, and returns the index of the first. The number k of a socket decides its
    /// group and replica.
    fn open_victims(&mut self, run: u64) -> Result<usize> {
        let first = self.swarm.mark();
        let count = self.settings.revocations;
        let staying = self.settings.fleet_sockets - count;
        let gateways = &self.gateways;
        let requests = (0..count).map(|k| {
            let ticket = Ticket {
                tenant: "bench",
                route: "small",
                n: k % SMALL_GROUPS + 1,
                user: staying + k + 1,
                token: token(run, k),
            };
            Ok((gateways[k as usize % REPLICAS].port, ticket.request()?))
        });
        self.swarm.open_all(Side::Apart, requests)?;
        Ok(first)
    }

    fn round(&mut self, run: u64) -> Result<Round> {
        let first = self.open_victims(run)?;
        let mut apis = Vec::new();
        for gateway in &self.gateways {
            apis.push(Api::connect(gateway.api.context("it has an API")?)?);
        }
        let groups = (0..SMALL_GROUPS).map(|n| (small_channel(n + 1), self.members[n as usize]));
        let members = self.members.iter().sum::<u64>() as f64 / SMALL_GROUPS as f64;
        let swarm = &mut self.swarm;
        let mut load = Load::start(swarm, groups.collect(), DELIVERIES_PER_SECOND / members);
        load.run_until(swarm, Instant::now() + Duration::from_secs(1))?;
        let (cpu, start) = (cpu(&self.gateways)?, Instant::now());
        swarm.begin_latencies();
        let mut took = Vec::new();
        for k in 0..self.settings.revocations {
            load.run_until(swarm, start + PACE * k as u32)?;
            swarm.publisher.publish([FLOOR_CHANNEL])?;
            load.run_until(swarm, start + PACE * k as u32 + PACE / 2)?;
            let (index, api) = (first + k as usize, k as usize / REPLICAS % REPLICAS);
            let revocation = Revocation {
                index,
                token: token(run, k),
            };
            let nanos = revocation.carry_out(&mut apis[api], swarm, &mut load);
            took.push(nanos.with_context(|| format!("revocation {k}"))?);
        }
        let wall = start.elapsed();
        let after = self::cpu(&self.gateways)?;
        let both = || after.iter().zip(&cpu);
        let used: Duration = both().map(|(now, then)| now.since(then)).sum();
        let waited: Duration = both().map(|(now, then)| now.waited_since(then)).sum();
        let deliveries_per_second = load.finish(swarm, self.settings)?;
        let mut floor = swarm.end_latencies().subscriber;
        ensure!(
            floor.len() == took.len(),
            "the bare subscriber saw {} of {} events",
            floor.len(),
            took.len()
        );
        took.sort_unstable();
        floor.sort_unstable();
        Ok(Round {
            took,
            floor,
            deliveries_per_second,
            busy: 100.0 * used.div_duration_f64(wall),
            waited: 100.0 * waited.div_duration_f64(wall),
        })
    }
}

fn token(run: u64, k: u64) -> u64 {
    FIRST_TOKEN * (run + 1) + k
}

fn cpu(gateways: &[Gateway]) -> Result<Vec<CpuReading>> {
    gateways
        .iter()
        .map(|gateway| gateway.process.cpu())
        .collect()
}

/// A token and the socket that it opened.
struct Revocation {
    index: usize,
    token: u64,
}

impl Revocation {
    /// Revokes the token and returns the nanoseconds from the call to the close frame. Fails unless the socket closes as
    /// revoked, and all replicas confirm that one socket closed.
    fn carry_out(&self, api: &mut Api, swarm: &mut Swarm, load: &mut Load) -> Result<u64> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let body = json!({ "jti": crate::world::jti(self.token), "exp": now + TOKEN_SECONDS });
        swarm.want_goodbye(self.index, REVOKED);
        let began = stamp::now();
        api.begin("POST", "/v1/tenants/bench/revocations", &body.to_string())?;
        let deadline = Instant::now() + PATIENCE;
        let mut answer = None;
        loop {
            load.step(swarm, deadline)?;
            if answer.is_none() {
                answer = api.poll()?;
            }
            if let (Some((status, body)), Some(closed)) = (&answer, swarm.goodbye(self.index)) {
                let all = json!({ "closed": 1, "expected": REPLICAS, "confirmed": REPLICAS });
                let told = json!({
                    "closed": body["closed"], "expected": body["replicas"]["expected"],
                    "confirmed": body["replicas"]["confirmed"],
                });
                ensure!(
                    *status == 200 && told == all,
                    "the API answers {status}: {body}"
                );
                return Ok(closed - began);
            }
            ensure!(
                Instant::now() < deadline,
                "no close frame, or no answer: {answer:?}"
            );
        }
    }
}

/// Waits until the replica counts all of its sockets.
fn knows_the_others(gateway: &Gateway) -> Result<()> {
    let mut api = Api::connect(gateway.api.context("it has an API")?)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, body): (u16, Value) =
            api.call("GET", "/v1/tenants/bench/connections?limit=1", "")?;
        if body["replicas"]["confirmed"] == REPLICAS {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the replicas do not find each other: {body}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
