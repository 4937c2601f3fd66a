//! A trial: a described deployment on this machine, with real replicas and a real Redis, and its meters.
//!
//! Every frame to a socket that stays open is counted; a trial that loses one fails. Sockets that go and come back are others:
//! the number of frames to them depends on the moment.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::arrivals::Side;
use crate::deployment::{Deployment, Kind};
use crate::floor::Floor;
use crate::model::HISTORY_SECONDS;
use crate::process::CpuReading;
use crate::redis::Record;
use crate::rhythm::{Beat, Churn, Revoking, Stream};
use crate::swarm::Swarm;
use crate::units::Meter;
use crate::world::{Gateway, Setup, Ticket, USERS, World};

/// The seed of the places of sockets: the same in each run.
const SEED: u64 = 17;
/// Seconds that a socket stays before it goes and comes back: longer than the gateway's own cache of users.
const STAYS: f64 = 2.5;
/// The sockets of the floor, and the rounds in which it writes to all of them.
const FLOOR_SOCKETS: u64 = 200;
const FLOOR_ROUNDS: u64 = 50;
const FLOOR_PACE_MICROS: u64 = 10_000;
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
    /// Seconds from the first event to the reading of memory.
    pub(crate) age: f64,
    /// Microseconds of a bare `write()` of a frame, before and after: the speed of the machine at this time.
    pub(crate) floor: f64,
}

impl Measured {
    pub(crate) fn of(&self, meter: Meter) -> f64 {
        self.values[meter as usize]
    }

    /// Returns the cost of something that takes `cost` where a bare `write()` takes `floor`, on the machine as it was.
    pub(crate) fn at_this_speed(&self, meter: Meter, cost: f64, floor: f64) -> f64 {
        match meter {
            Meter::GatewayCpu | Meter::RedisCpu => cost * self.floor / floor,
            Meter::GatewayMemory | Meter::RedisMemory | Meter::RedisClients => cost,
        }
    }
}

/// Plays a deployment with `fleet` on this machine.
pub(crate) fn play(program: &Path, deployment: &Deployment, lengths: Lengths) -> Result<Measured> {
    let fleet = deployment.fleet.context("a trial has a fleet")?;
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
    let mut world = World::create(program, false)?;
    // One shard is a Redis that is no cluster.
    if fleet.shards > 1.0 {
        world.use_shards(fleet.shards as usize)?;
    }
    let start = |_| world.start(setup(deployment));
    let replicas = (0..fleet.replicas as usize).map(start);
    let replicas = replicas.collect::<Result<Vec<_>>>()?;
    let swarm = world.swarm()?;
    let mut trial = Trial {
        deployment,
        world,
        replicas,
        swarm,
        dice: StdRng::seed_from_u64(SEED),
        streams: Vec::new(),
        expected: 0,
    };
    let churn = trial.open_all()?;
    trial.swarm.pump_until(Instant::now() + lengths.settle)?;
    let mut floor = trial.start_floor()?;
    let before = trial.floor_micros(&mut floor)?;
    let mut measured = trial.measure(churn, lengths)?;
    measured.floor = (before + trial.floor_micros(&mut floor)?) / 2.0;
    Ok(measured)
}

fn setup(deployment: &Deployment) -> Setup {
    let mut tables = format!(
        "[server.heartbeat]\ninterval = \"{:.0}s\"\ntimeout = \"1s\"\n",
        deployment.heartbeat_seconds
    );
    let slots = deployment.kinds.iter().enumerate();
    let slots = slots.flat_map(|(k, kind)| (0..kind.per_socket as u64).map(move |slot| (k, slot)));
    let (mut path, mut groups) = (String::from("trial/"), Vec::new());
    for (k, slot) in slots {
        // Writing into a String cannot fail.
        write!(path, "<int:n{k}_{slot}>/").ok();
        groups.push(format!("\"k{k}_{{n{k}_{slot}}}\""));
    }
    let groups = groups.join(", ");
    write!(
        tables,
        "[[tenants.bench.routes]]\npath = \"{path}\"\ngroups = [{groups}]\n"
    )
    .ok();
    for (k, kind) in deployment.kinds.iter().enumerate() {
        write!(
            tables,
            "[[tenants.bench.groups]]\nname = \"k{k}_<int:n>\"\n"
        )
        .ok();
        if kind.history > 0.0 {
            let (size, seconds) = (kind.history, HISTORY_SECONDS);
            writeln!(
                tables,
                "history = {{ size = {size}, ttl = \"{seconds}s\" }}"
            )
            .ok();
        }
        if kind.presence {
            tables += "presence = { fields = [\"username\"] }\n";
        }
    }
    Setup {
        more: deployment.tenants as usize - 1,
        api: deployment.revocations_per_second > 0.0,
        more_tables: tables,
        ..Setup::default()
    }
}

struct Trial<'a> {
    deployment: &'a Deployment,
    world: World,
    replicas: Vec<Gateway>,
    swarm: Swarm,
    dice: StdRng,
    streams: Vec<Stream>,
    /// The frames at the sockets that stay, when all have come.
    expected: u64,
}

impl Trial<'_> {
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
            let mut groups: Vec<_> = (0..kind.groups as u64)
                .map(|n| (format!("bench__group__k{k}_{n}"), 0))
                .collect();
            for socket in 0..staying {
                for group in groups_of(kind, socket) {
                    groups[group as usize].1 += 1;
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
            self.open(side, socket)?;
            self.swarm.pump_openings(32)?;
        }
        self.swarm.pump_openings(0)?;
        Ok((staying..sockets)
            .map(|socket| (socket as usize, socket))
            .collect())
    }

    /// Begins to open this socket on a replica by chance; returns its index.
    fn open(&mut self, side: Side, socket: u64) -> Result<usize> {
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
        self.swarm.open(side, port, ticket.request()?)
    }

    fn measure(&mut self, churn: VecDeque<(usize, u64)>, lengths: Lengths) -> Result<Measured> {
        let resident = self.replicas.iter().map(|replica| replica.process.rss());
        let resident: u64 = resident.sum::<Result<u64>>()?;
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
        if churn.late > 0 {
            eprintln!("{} sockets were not open after {STAYS} s", churn.late);
        }
        self.finish(revoking)?;
        Ok(Measured {
            values: [gateways, redis, resident as f64, memory, clients],
            age,
            floor: f64::NAN,
        })
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
                let index = self.open(Side::Apart, socket)?;
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
