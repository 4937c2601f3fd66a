//! Measures the cost of a connect: one after another, and 64 at a time, each beside its floor.
//!
//! "Cached" users are in Redis and no longer in the gateway's own cache. The others are read from the database.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::arrivals::Side;
use crate::connect_floor;
use crate::process::Process;
use crate::report::{Row, Series, Target};
use crate::rows::{Sample, Stage};
use crate::swarm::Swarm;
use crate::world::LOCAL_TTL;

/// The process of the floor, and its port.
type Floor<'f> = (&'f Process, u16);

/// The words about the floor in the notes.
const FLOOR: &str = "the floor is a plain loop on tokio with one worker";
/// The same for users that are not cached.
const FLOOR_WITH_USERS: &str = "the floor is the same loop, which reads the users of the connects that wait in one statement \
                                and writes their records to Redis";

/// The state of the user caches before a measurement.
#[derive(Clone, Copy)]
enum Users {
    InRedis,
    InDatabase,
}

impl Stage<'_> {
    /// CPU per authenticated connect, and connects per second.
    pub(crate) fn connects(&mut self) -> Result<Vec<Row>> {
        // The first connect of the users reads the database and fills Redis.
        self.gateway_at_once(Users::InDatabase)?;
        let (floor, port) = connect_floor::start(self.world.redis_port, None)?;
        let floor = (&floor, port);
        let mut rows = vec![self.one_by_one(floor)?];
        rows.extend(self.at_once(
            floor,
            Users::InRedis,
            [
                "CPU per connect, 64 at a time, users cached",
                "connects, 64 at a time, users cached",
            ],
        )?);
        let database = self.world.users_database();
        let (floor, port) = connect_floor::start(self.world.redis_port, Some(&database))?;
        let floor = (&floor, port);
        rows.extend(self.at_once(
            floor,
            Users::InDatabase,
            [
                "CPU per connect, 64 at a time, users not cached",
                "connects, 64 at a time, users not cached",
            ],
        )?);
        Ok(rows)
    }

    /// Measures connects one after another, beside the same floor as those at once.
    fn one_by_one(&mut self, floor: Floor<'_>) -> Result<Row> {
        let mut row = Row::new("CPU per authenticated connect", "µs", Target::Ratio(1.5));
        let before = self.found_in_redis()?;
        for _ in 0..self.settings.runs {
            let bare = self.on_floor(floor, |swarm, port, requests| {
                for request in requests {
                    swarm.connect(Side::Floor, port, &request)?;
                }
                Ok(())
            })?;
            row.floor.0.push(bare.micros_per_unit());
            row.gateway
                .0
                .push(self.gateway_connects()?.micros_per_unit());
        }
        row.note = format!("{}; {FLOOR}", self.note_on_users(before)?);
        Ok(row)
    }

    /// Measures 64 connects at a time: CPU per connect beside a plain loop on tokio, and connects per second.
    fn at_once(
        &mut self,
        floor: Floor<'_>,
        users: Users,
        what: [&'static str; 2],
    ) -> Result<[Row; 2]> {
        let mut rows = [
            Row::new(what[0], "µs", Target::Ratio(1.5)),
            Row::new(what[1], "/s", Target::AtLeast(15_000.0)),
        ];
        let mut busy = [Series::default(), Series::default()];
        let before = self.found_in_redis()?;
        for _ in 0..self.settings.runs {
            let bare = self.on_floor(floor, |swarm, port, requests| {
                let requests = requests.into_iter().map(|request| Ok((port, request)));
                swarm.open_all(Side::Floor, requests)
            })?;
            let ours = self.gateway_at_once(users)?;
            let rate = |sample: &Sample| sample.units as f64 / sample.wall.as_secs_f64();
            let [micros, rates] = &mut rows;
            micros.floor.0.push(bare.micros_per_unit());
            micros.gateway.0.push(ours.micros_per_unit());
            rates.floor.0.push(rate(&bare));
            rates.gateway.0.push(rate(&ours));
            busy[0].0.push(bare.busy_percent());
            busy[1].0.push(ours.busy_percent());
        }
        let floor = match users {
            Users::InRedis => FLOOR,
            Users::InDatabase => FLOOR_WITH_USERS,
        };
        rows[0].note = format!("{}; {floor}", self.note_on_users(before)?);
        rows[1].note = format!(
            "the gateway's core {:.0} % busy, the floor's {:.0} %",
            busy[1].median(),
            busy[0].median()
        );
        Ok(rows)
    }

    fn found_in_redis(&self) -> Result<f64> {
        self.gateway
            .metric("lockgate_user_lookups_total", "result=\"redis\"")
    }

    fn note_on_users(&self, before: f64) -> Result<String> {
        let found = self.found_in_redis()? - before;
        let asked = self.settings.connects * self.settings.runs as u64;
        Ok(format!(
            "{found:.0} of {asked} users came from Redis, as the gateway counts"
        ))
    }

    /// Returns users without a socket of the stage.
    fn newcomers(&self) -> std::ops::RangeInclusive<u64> {
        self.settings.sockets + 1..=self.settings.sockets + self.settings.connects
    }

    fn requests(&self) -> Result<Vec<Vec<u8>>> {
        let requests = self.newcomers().map(|user| self.world.request("ws", user));
        requests.collect()
    }

    /// Closes the sockets opened since `mark`, and waits until the gateway's own cache has dropped their users.
    fn forget(&mut self, mark: usize) -> Result<()> {
        self.swarm.close_from(mark);
        self.swarm
            .pump_until(Instant::now() + LOCAL_TTL + Duration::from_millis(500))?;
        self.swarm.check_open()
    }

    fn gateway_connects(&mut self) -> Result<Sample> {
        let requests = self.requests()?;
        let mark = self.swarm.mark();
        let sample = self.on_gateway(requests.len() as u64, |stage| {
            for request in &requests {
                stage
                    .swarm
                    .connect(Side::Gateway, stage.gateway.port, request)?;
            }
            Ok(())
        })?;
        self.forget(mark)?;
        Ok(sample)
    }

    fn gateway_at_once(&mut self, users: Users) -> Result<Sample> {
        if let Users::InDatabase = users {
            self.world.forget_users(self.newcomers())?;
        }
        let (requests, port) = (self.requests()?, self.gateway.port);
        let mark = self.swarm.mark();
        let sample = self.on_gateway(requests.len() as u64, |stage| {
            let requests = requests.into_iter().map(|request| Ok((port, request)));
            stage.swarm.open_all(Side::Gateway, requests)
        })?;
        self.forget(mark)?;
        Ok(sample)
    }

    /// Measures connects to the floor; `open` makes them.
    fn on_floor(
        &mut self,
        (floor, port): Floor<'_>,
        open: impl FnOnce(&mut Swarm, u16, Vec<Vec<u8>>) -> Result<()>,
    ) -> Result<Sample> {
        let requests = self.requests()?;
        let units = requests.len() as u64;
        let mark = self.swarm.mark();
        let (before, start) = (floor.cpu()?, Instant::now());
        open(&mut self.swarm, port, requests)?;
        let sample = Sample {
            wall: start.elapsed(),
            cpu: floor.cpu()?.since(&before),
            units,
        };
        self.swarm.close_from(mark);
        Ok(sample)
    }
}
