//! A trial: a described deployment on this machine, with real replicas and a real Redis, and its meters.
//!
//! Every frame to a socket that stays open is counted; a trial that loses one fails. Sockets that go and come back are others:
//! the number of frames to them depends on the moment.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::arrivals::Side;
use crate::deployment::{Deployment, Fleet, Kind};
use crate::floor::Floor;
use crate::followers;
use crate::positions::Positions;
use crate::process::{CpuReading, Process};
use crate::redis::Record;
use crate::rhythm::{Beat, Busy, Churn, Revoking, Stream};
use crate::swarm::Swarm;
use crate::tables::setup;
use crate::units::Meter;
use crate::world::{Gateway, Ticket, USERS, World};

/// The seed of the places of sockets: the same in each run.
const SEED: u64 = 17;
/// Seconds that a socket stays before it goes and comes back: longer than the gateway's own cache of users.
const STAYS: f64 = 2.5;
/// The sockets of the floor, and the rounds in which it writes to all of them.
const FLOOR_SOCKETS: u64 = 200;
const FLOOR_ROUNDS: u64 = 50;
const FLOOR_PACE_MICROS: u64 = 10_000;
/// The time after which a socket that has gone is forgotten.
const EMPTY_AFTER: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// The lengths of a trial.
#[derive(Clone, Copy)]
pub(crate) struct Lengths {
    /// The time after the last socket has opened, and with events before anything is measured.
    pub(crate) settle: Duration,
    pub(crate) warm: Duration,
    pub(crate) measured: Duration,
}

/// The results of a trial.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    values: [f64; Meter::ALL.len()],
    /// Bytes of all replicas and of Redis before the sockets came.
    pub(crate) empty: [f64; 2],
    /// Seconds from the first event to the reading of memory.
    pub(crate) age: f64,
    /// Microseconds of a bare `write()` of a frame, before and after.
    pub(crate) floor: f64,
}

impl Measured {
    /// Returns the values in words, to follow a run.
    fn told(&self) -> String {
        let of = |meter| self.of(meter);
        let mib = |meter| of(meter) / 1_048_576.0;
        format!(
            "replicas {:.2} %, Redis {:.2} %, {:.1} and {:.2} MiB",
            of(Meter::GatewayCpu) / 1e4,
            of(Meter::RedisCpu) / 1e4,
            mib(Meter::GatewayMemory),
            mib(Meter::RedisMemory)
        )
    }

    pub(crate) fn of(&self, meter: Meter) -> f64 {
        self.values[meter as usize]
    }

    /// Returns the bytes of a meter of memory by which it has grown since the sockets came.
    pub(crate) fn growth(&self, meter: Meter) -> f64 {
        let at = usize::from(meter == Meter::RedisMemory);
        self.of(meter) - self.empty[at]
    }
}

/// Fails if this machine cannot play the deployment.
fn check_playable(deployment: &Deployment, fleet: Fleet) -> Result<()> {
    ensure!(
        deployment.sockets <= USERS as f64,
        "a trial has at most {USERS} sockets"
    );
    let fits = |kind: &Kind| kind.history == 0.0 || kind.history == Record::SIZE as f64;
    ensure!(
        deployment.kinds.iter().all(fits),
        "a trial keeps {} events",
        Record::SIZE
    );
    ensure!(
        fleet.shards == 1.0 || deployment.kinds.iter().all(|kind| kind.history == 0.0),
        "a trial with histories has one Redis"
    );
    ensure!(
        fleet.shards == 1.0 || deployment.redis_replicas == 0.0,
        "redis_replicas: a trial has them beside one Redis"
    );
    Ok(())
}

/// Plays a deployment with `fleet` on this machine.
fn play(program: &Path, deployment: &Deployment, lengths: Lengths) -> Result<Measured> {
    let fleet = deployment.fleet.context("a trial has a fleet")?;
    check_playable(deployment, fleet)?;
    let mut world = World::create(program, false)?;
    // One shard is a Redis that is no cluster.
    if fleet.shards > 1.0 {
        world.use_shards(fleet.shards as usize)?;
    }
    let followers = match deployment.redis_replicas as usize {
        0 => Vec::new(),
        count => followers::start(&mut world, count)?,
    };
    let start = |_| world.start(setup(deployment));
    let replicas = (0..fleet.replicas as usize).map(start);
    let replicas = replicas.collect::<Result<Vec<_>>>()?;
    let swarm = world.swarm()?;
    let mut trial = Trial {
        deployment,
        world,
        _followers: followers,
        replicas,
        swarm,
        positions: Positions::default(),
        dice: StdRng::seed_from_u64(SEED),
        streams: Vec::new(),
        expected: 0,
    };
    let empty = trial.empty()?;
    let churn = trial.open_all()?;
    trial.swarm.pump_until(Instant::now() + lengths.settle)?;
    let mut floor = trial.start_floor()?;
    let before = trial.floor_micros(&mut floor)?;
    let mut measured = trial.measure(churn, lengths)?;
    measured.empty = empty;
    let after = trial.floor_micros(&mut floor)?;
    measured.floor = (before + after) / 2.0;
    eprintln!(
        "  {}, write() {before:.1} and {after:.1} µs",
        measured.told()
    );
    Ok(measured)
}

/// Plays the deployments of some lists `runs` times. The lists take turns, so that all of them see the same speeds of a shared
/// machine, which change by a third within minutes. Returns the results of each list, by run.
pub(crate) fn play_all<const N: usize>(
    program: &Path,
    lists: [&[Deployment]; N],
    lengths: Lengths,
    runs: usize,
) -> Result<[Vec<Vec<Measured>>; N]> {
    let places = |(list, deployments): (usize, &&[Deployment])| {
        let count = deployments.len();
        (0..count).map(move |at| ((at as f64 + 0.5) / count as f64, list, at))
    };
    let mut order: Vec<_> = lists.iter().enumerate().flat_map(places).collect();
    order.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut results = lists.map(|_| Vec::new());
    for run in 1..=runs {
        let mut measured = lists.map(|_| Vec::new());
        for &(_, list, at) in &order {
            let deployment = &lists[list][at];
            eprintln!("run {run} of {runs}: {}", deployment.name);
            let played = play(program, deployment, lengths);
            measured[list].push(played.with_context(|| deployment.name.clone())?);
        }
        for (results, measured) in results.iter_mut().zip(measured) {
            results.push(measured);
        }
    }
    Ok(results)
}

struct Trial<'a> {
    deployment: &'a Deployment,
    world: World,
    /// They end with the trial.
    _followers: Vec<Process>,
    replicas: Vec<Gateway>,
    swarm: Swarm,
    positions: Positions,
    dice: StdRng,
    streams: Vec<Stream>,
    /// The frames at the sockets that stay, when all have come.
    expected: u64,
}

impl Trial<'_> {
    /// Returns the memory of all replicas, and of Redis, when each replica has had one socket: the code that sockets need
    /// is in memory then.
    fn empty(&mut self) -> Result<[f64; 2]> {
        let mark = self.swarm.mark();
        for replica in &self.replicas {
            let request = self.world.request("ws", USERS)?;
            self.swarm.open(Side::Apart, replica.port, request)?;
        }
        self.swarm.pump_openings(0)?;
        self.swarm.close_from(mark);
        self.swarm.pump_until(Instant::now() + EMPTY_AFTER)?;
        Ok([self.resident()?, self.redis_info("memory", "used_memory")?])
    }

    /// Returns the resident bytes of all replicas.
    fn resident(&self) -> Result<f64> {
        let resident = self.replicas.iter().map(|replica| replica.process.rss());
        Ok(resident.sum::<Result<u64>>()? as f64)
    }

    /// Opens all sockets; returns those that will go and come back.
    fn open_all(&mut self) -> Result<VecDeque<(usize, u64)>> {
        let sockets = self.deployment.sockets as u64;
        let going = (self.deployment.reconnects_per_second * STAYS).ceil() as u64;
        ensure!(
            going <= sockets,
            "reconnects_per_second: at most {:.0} for {sockets} sockets of a trial",
            sockets as f64 / STAYS
        );
        let staying = sockets - going;
        for (k, kind) in self.deployment.kinds.iter().enumerate() {
            let quiet = |n: u64| Busy {
                channel: format!("bench__group__k{k}_{n}"),
                sockets: 0,
                published: 0,
            };
            let mut groups: Vec<Busy> = (0..kind.groups as u64).map(quiet).collect();
            for socket in 0..staying {
                for group in groups_of(kind, socket) {
                    groups[group as usize].sockets += 1;
                }
            }
            self.streams.push(Stream {
                groups,
                next_group: 0,
                history: kind.history > 0.0,
                burst: kind.burst as u64,
                beat: Beat::new(kind.groups * kind.events_per_second / kind.burst),
            });
        }
        for socket in 0..sockets {
            let side = match socket < staying {
                true => Side::Gateway,
                false => Side::Apart,
            };
            self.open(side, socket, "")?;
            self.swarm.pump_openings(32)?;
        }
        self.swarm.pump_openings(0)?;
        if self.deployment.kinds.iter().any(|kind| kind.resume) {
            let histories: f64 = { self.deployment.kinds.iter() }
                .filter(|kind| kind.history > 0.0)
                .map(|kind| kind.per_socket)
                .sum();
            // Each socket is told its position in each group with history.
            self.expected += staying * histories as u64;
        }
        Ok((staying..sockets)
            .map(|socket| (socket as usize, socket))
            .collect())
    }

    /// Returns the query by which a socket comes back, with its positions.
    fn since(&mut self, socket: u64) -> Result<String> {
        let mut query = String::new();
        let kinds = self.deployment.kinds.iter().enumerate();
        for (k, kind) in kinds.filter(|(_, kind)| kind.resume) {
            let missed = kind.missed(self.deployment.away_seconds) as u64;
            for n in groups_of(kind, socket) {
                let published = self.streams[k].groups[n as usize].published;
                let (group, link) = (format!("k{k}_{n}"), &mut self.world.link);
                query += &self.positions.since(link, &group, published, missed)?;
            }
        }
        Ok(query)
    }

    /// Begins to open this socket on a replica by chance, with more of a query; returns its index.
    fn open(&mut self, side: Side, socket: u64, query: &str) -> Result<usize> {
        let mut numbers: Vec<u64> = { self.deployment.kinds.iter() }
            .flat_map(|kind| groups_of(kind, socket))
            .collect();
        let last = numbers.pop().context("a socket is in a group")?;
        let path = numbers
            .iter()
            .fold(String::from("trial"), |path, n| format!("{path}/{n}"));
        let ticket = Ticket {
            tenant: "bench",
            route: &path,
            n: last,
            user: socket + 1,
            token: socket + 1,
        };
        let replica = self.dice.random_range(0..self.replicas.len());
        let port = self.replicas[replica].port;
        let request = String::from_utf8(ticket.request()?)?;
        let request = request.replacen(" HTTP/1.1\r\n", &format!("{query} HTTP/1.1\r\n"), 1);
        self.swarm.open(side, port, request.into_bytes())
    }

    fn measure(&mut self, churn: VecDeque<(usize, u64)>, lengths: Lengths) -> Result<Measured> {
        let resident = self.resident()?;
        let mut churn = Churn {
            sockets: churn,
            late: 0,
            beat: Beat::new(self.deployment.reconnects_per_second),
        };
        let mut revoking = Revoking::start(&self.replicas, self.deployment.revocations_per_second)?;
        let began = Instant::now();
        for stream in &mut self.streams {
            stream.beat.start = began;
        }
        self.run_until(began + lengths.warm, &mut churn, &mut revoking)?;
        let (before, start) = (self.cpu()?, Instant::now());
        self.run_until(start + lengths.measured, &mut churn, &mut revoking)?;
        let (after, seconds) = (self.cpu()?, start.elapsed().as_secs_f64());
        let age = began.elapsed().as_secs_f64();
        let micros = |at: usize| {
            let used = after[at].iter().zip(&before[at]);
            let used = used.map(|(now, then)| now.since(then).as_secs_f64());
            used.sum::<f64>() * 1e6 / seconds
        };
        let [gateways, redis] = [0, 1].map(micros);
        let memory = self.redis_info("memory", "used_memory")?;
        // Two of the clients of each server are the links of this program.
        let own = 2.0 * before[1].len() as f64;
        let clients = self.redis_info("clients", "connected_clients")? - own;
        self.check_resumed()?;
        if churn.late > 0 {
            eprintln!("{} sockets were not open after {STAYS} s", churn.late);
        }
        self.finish(revoking)?;
        Ok(Measured {
            values: [gateways, redis, resident, memory, clients],
            empty: [0.0; 2],
            age,
            floor: f64::NAN,
        })
    }

    /// Fails unless the sockets that came back with a position got what they missed.
    fn check_resumed(&self) -> Result<()> {
        let count =
            |replica: &Gateway| replica.metric("lockgate_recoveries_total", "result=\"recovered\"");
        let recovered = self.replicas.iter().map(count).sum::<Result<f64>>()?;
        let given = self.positions.given as f64;
        // The last ones are under way, and a socket that goes early is not served.
        ensure!(
            recovered >= 0.9 * given - 20.0,
            "of {given} sockets that came back with a position {recovered} got what they missed"
        );
        Ok(())
    }

    fn start_floor(&mut self) -> Result<Floor> {
        let mut floor = Floor::start()?;
        floor.command(&format!("accept {FLOOR_SOCKETS}"))?;
        let (world, port) = (&self.world, floor.port);
        let requests = (1..=FLOOR_SOCKETS).map(|user| Ok((port, world.request("ws", user)?)));
        self.swarm.open_all(Side::Floor, requests)?;
        floor.done()?;
        Ok(floor)
    }

    /// Measures a bare `write()` of a frame.
    fn floor_micros(&mut self, floor: &mut Floor) -> Result<f64> {
        let writes = FLOOR_ROUNDS * FLOOR_SOCKETS;
        let expected = self.swarm.tally(Side::Floor).frames + writes;
        let before = floor.process.cpu()?;
        floor.command(&format!("write {FLOOR_ROUNDS} {FLOOR_PACE_MICROS} 1"))?;
        self.swarm.pump_frames(Side::Floor, expected)?;
        floor.done()?;
        let used = floor.process.cpu()?.since(&before);
        Ok(used.as_secs_f64() * 1e6 / writes as f64)
    }

    /// The readings of the replicas, and of Redis.
    fn cpu(&self) -> Result<[Vec<CpuReading>; 2]> {
        let replicas = self.replicas.iter().map(|replica| replica.process.cpu());
        Ok([replicas.collect::<Result<_>>()?, self.world.redis_cpu()?])
    }

    fn redis_info(&mut self, section: &str, field: &str) -> Result<f64> {
        match &mut self.world.cluster {
            Some(cluster) => cluster.info(section, field),
            None => self.world.link.info(section, field),
        }
    }

    /// Publishes, reconnects and revokes what is due, and reads, until `until`.
    fn run_until(
        &mut self,
        until: Instant,
        churn: &mut Churn,
        revoking: &mut Revoking,
    ) -> Result<()> {
        while Instant::now() < until {
            for stream in &mut self.streams {
                self.expected += stream.publish(&mut self.swarm)?;
            }
            for _ in 0..churn.beat.due() {
                churn.beat.done += 1;
                let (index, socket) = churn.sockets.pop_front().context("sockets come back")?;
                churn.late += u64::from(!self.swarm.close(index));
                let since = self.since(socket)?;
                let index = self.open(Side::Apart, socket, &since)?;
                churn.sockets.push_back((index, socket));
            }
            revoking.step()?;
            let beats = self.streams.iter().map(|stream| &stream.beat);
            let beats = beats.chain([&churn.beat, &revoking.beat]);
            let next = beats.filter_map(Beat::next).min().unwrap_or(until);
            // Answers of the API do not wake the loop.
            let awake = match revoking.apis.is_empty() {
                true => until,
                false => Instant::now() + Duration::from_millis(2),
            };
            self.swarm.turn(next.min(until).min(awake))?;
            self.swarm.check_open()?;
        }
        Ok(())
    }

    /// Waits for all frames and answers; fails if there are more or less than expected.
    fn finish(&mut self, mut revoking: Revoking) -> Result<()> {
        self.swarm.pump_openings(0)?;
        self.swarm.pump_frames(Side::Gateway, self.expected)?;
        let frames = self.swarm.tally(Side::Gateway).frames;
        ensure!(
            frames == self.expected,
            "{frames} frames arrived where {} were due",
            self.expected
        );
        let deadline = Instant::now() + PATIENCE;
        while !revoking.read()? {
            ensure!(Instant::now() < deadline, "a revocation is not answered");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Returns the groups of a kind that a socket is in.
fn groups_of(kind: &Kind, socket: u64) -> impl Iterator<Item = u64> {
    let (groups, slots) = (kind.groups as u64, kind.per_socket as u64);
    let apart = (groups / slots).max(1);
    (0..slots).map(move |slot| (socket + slot * apart) % groups)
}
