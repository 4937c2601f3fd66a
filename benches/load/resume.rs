//! The resume rows: how fast sockets that come back get what they missed, one alone and all those of a replica that was killed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::arrivals::{Side, quantile};
use crate::history::{PATIENCE, Stage, start};
use crate::load::Load;
use crate::redis::{Record, Reply};
use crate::report::{Row, Series, Target};
use crate::settings::{Settings, Storm};
use crate::world::{Gateway, World, kept_channel, small_channel};

/// Events that a socket has missed when it comes back.
const MISSED: u64 = 50;
/// Events of each group that are recorded while the sockets of the storm come back.
const LATER: u64 = 10;
/// Sockets in a group of the storm.
const GROUP: u64 = 100;
/// The storm's pace of deliveries to other sockets.
const EVENTS_PER_SECOND: f64 = 500.0;
/// The time within which the sockets of the storm come back.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// Returns that time, of a shorter run as well.
fn back_within(storm: Storm) -> Duration {
    BACK_WITHIN.min(storm.lasting)
}

/// Measures sockets that come back.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let one = Stage::set(world, settings)?.one_comes_back()?;
    let mut rows = vec![one];
    rows.extend(Stage::set(world, settings)?.all_come_back()?);
    Ok(rows)
}

impl Stage<'_> {
    /// Returns the position of a group that has one.
    fn position(&mut self, n: u64) -> Result<String> {
        let record = Record::to(&kept_channel(n));
        let fields = [b"HMGET", record.position.as_bytes(), b"epoch", b"offset"];
        let Reply::Array(fields) = self.world.link.call(&fields)? else {
            bail!("HMGET answers a list");
        };
        let [Reply::Text(epoch), Reply::Text(offset)] = &fields[..] else {
            bail!("no position: {fields:?}");
        };
        let (epoch, offset) = (std::str::from_utf8(epoch)?, std::str::from_utf8(offset)?);
        Ok(format!("kept_{n}~{epoch}~{offset}"))
    }

    fn record(&mut self, n: u64, events: u64) -> Result<()> {
        let record = Record::to(&kept_channel(n));
        self.swarm.publisher.record(&record, events)
    }

    fn answered(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.swarm.publisher.unanswered() > 0 {
            self.swarm.turn(deadline)?;
            ensure!(Instant::now() < deadline, "Redis does not answer");
        }
        Ok(())
    }

    fn request(&self, n: u64, user: u64, since: &str) -> Result<Vec<u8>> {
        let request = String::from_utf8(self.world.request_for("resume", n, user)?)?;
        let with_since = format!("&since={since} HTTP/1.1\r\n");
        Ok(request
            .replacen(" HTTP/1.1\r\n", &with_since, 1)
            .into_bytes())
    }

    /// Measures the time from the connect of one socket to the last of the events that it missed.
    fn one_comes_back(&mut self) -> Result<Row> {
        let mut row = Row::new("resume of one socket, p99", "ms", Target::Value(20.0));
        self.record(1, 1)?;
        self.answered()?;
        let since = self.position(1)?;
        self.record(1, MISSED)?;
        self.answered()?;
        for _ in 0..self.settings.runs {
            let mut times = [Vec::new(), Vec::new()];
            for n in 0..self.settings.resumes {
                let user = 1 + n % 1_000;
                let mark = self.swarm.mark();
                let plain = self.world.request_for("small", 1, user)?;
                let back = self.request(1, user, &since)?;
                let due = [(plain, 0), (back, MISSED + 1)];
                for (times, (request, frames)) in times.iter_mut().zip(due) {
                    let expected = self.swarm.tally(Side::Gateway).frames + frames;
                    let began = Instant::now();
                    self.swarm
                        .connect(Side::Gateway, self.gateway.port, &request)?;
                    self.swarm.pump_frames(Side::Gateway, expected)?;
                    times.push(began.elapsed().as_nanos() as u64);
                }
                self.swarm.close_from(mark);
            }
            for (series, mut times) in [&mut row.floor, &mut row.gateway].into_iter().zip(times) {
                times.sort_unstable();
                series.0.push(quantile(&times, 0.99) / 1e3);
            }
        }
        row.note = format!(
            "from connect() to the position frame behind {MISSED} missed events, {} times, one after the other; the floor is the 101 \
             of a socket without history",
            self.settings.resumes
        );
        Ok(row)
    }

    /// Measures the time until all sockets of a killed replica have what they missed, and the deliveries to those of another one
    /// meanwhile.
    fn all_come_back(mut self) -> Result<[Row; 2]> {
        let mut rows = [
            Row::new(
                "resume after a killed replica, until all are complete",
                "s",
                Target::Value(15.0),
            ),
            Row::new(
                "latency p99 of the other replica's sockets meanwhile",
                "ms",
                Target::Ratio(2.0),
            ),
        ];
        let storm = self.settings.storm;
        let (world, port) = (&*self.world, self.gateway.port);
        let live = (1..=storm.live).map(|n| Ok((port, world.request_for("small", n, n)?)));
        self.swarm.open_all(Side::Gateway, live)?;
        let channels: Vec<String> = (1..=storm.live).map(small_channel).collect();
        self.swarm.subscribe(self.world.redis_port, &channels)?;
        let (mut busy, mut back) = (Series::default(), Series::default());
        let mut bare = [Series::default(), Series::default()];
        for _ in 0..self.settings.long_runs {
            let mark = self.swarm.mark();
            let (killed, since) = self.fill_another()?;
            let calm = self
                .p99(|stage, load| load.run_until(&mut stage.swarm, Instant::now() + storm.calm))?;
            let (cpu, start) = (self.gateway.process.cpu()?, Instant::now());
            // The drop is a SIGKILL.
            drop(killed);
            self.swarm.close_from(mark);
            // In real life they come one by one. All at once, they would keep Redis from the deliveries that are timed.
            for n in 1..=self.groups() {
                self.record(n, MISSED)?;
            }
            self.answered()?;
            let mut last_back = Duration::ZERO;
            let meanwhile = self.p99(|stage, load| {
                last_back = stage.come_back(&since, load)?;
                Ok(())
            })?;
            let took = start.elapsed().as_secs_f64();
            self.swarm.check_each(mark, MISSED + LATER + 1)?;
            let cpu = self.gateway.process.cpu()?.since(&cpu).as_secs_f64();
            busy.0.push(100.0 * cpu / took);
            back.0.push(last_back.as_secs_f64());
            rows[0].gateway.0.push(took);
            rows[1].floor.0.push(calm[0]);
            rows[1].gateway.0.push(meanwhile[0]);
            bare[0].0.push(calm[1]);
            bare[1].0.push(meanwhile[1]);
            self.swarm.close_from(mark);
        }
        rows[0].note = format!(
            "{} sockets in {} groups of one of two replicas, which gets a SIGKILL; each comes back to the other one within {:.0} s and \
             gets {MISSED} missed events and {LATER} that are recorded while the others come; the last one connects after {:.1} s; \
             the time is that from the SIGKILL to the last event; the other replica's core {:.0} % busy",
            storm.sockets,
            self.groups(),
            back_within(storm).as_secs_f64(),
            back.median(),
            busy.median(),
        );
        rows[1].note = format!(
            "{EVENTS_PER_SECOND:.0} events/s, round robin over {} sockets without history; the floor is the calm before, with both replicas; \
             clients and Redis share one core, where a bare subscriber of the same events has a p99 of {:.2} ms before and {:.2} ms meanwhile",
            storm.live,
            bare[0].median(),
            bare[1].median(),
        );
        Ok(rows)
    }

    fn groups(&self) -> u64 {
        self.settings.storm.sockets.div_ceil(GROUP)
    }

    /// Starts another replica with the sockets of the storm; returns it and the positions that all of them have reached.
    fn fill_another(&mut self) -> Result<(Gateway, Vec<String>)> {
        let another = start(self.world)?;
        let (world, sockets) = (&*self.world, self.settings.storm.sockets);
        let before = self.swarm.tally(Side::Apart).frames;
        let requests = (0..sockets).map(|k| {
            let request = world.request_for("resume", 1 + k / GROUP, 1 + k)?;
            Ok((another.port, request))
        });
        self.swarm.open_all(Side::Apart, requests)?;
        self.swarm.pump_frames(Side::Apart, before + sockets)?;
        for n in 1..=self.groups() {
            self.record(n, 1)?;
        }
        self.swarm.pump_frames(Side::Apart, before + 2 * sockets)?;
        let since: Result<_> = (1..=self.groups()).map(|n| self.position(n)).collect();
        Ok((another, since?))
    }

    /// Opens the sockets of the storm evenly over its time, and waits until each has all. Returns the time of the last connect.
    fn come_back(&mut self, since: &[String], load: &mut Load) -> Result<Duration> {
        let storm = self.settings.storm;
        let start = Instant::now();
        let gap = back_within(storm).div_f64(storm.sockets as f64);
        let before = self.swarm.tally(Side::Apart).frames;
        for k in 0..storm.sockets {
            load.run_until(&mut self.swarm, start + gap.mul_f64(k as f64))?;
            if k % (GROUP / LATER) == 0 {
                self.record(1 + k / (GROUP / LATER) % self.groups(), 1)?;
            }
            let n = 1 + k / GROUP;
            let request = self.request(n, 1 + k, &since[(n - 1) as usize])?;
            self.swarm.open(Side::Apart, self.gateway.port, request)?;
        }
        let last = start.elapsed();
        let expected = before + storm.sockets * (MISSED + LATER + 1);
        let deadline = Instant::now() + PATIENCE;
        while self.swarm.tally(Side::Apart).frames < expected {
            load.step(&mut self.swarm, deadline)?;
            let missing = expected.saturating_sub(self.swarm.tally(Side::Apart).frames);
            ensure!(Instant::now() < deadline, "{missing} frames do not arrive");
        }
        Ok(last)
    }

    /// Returns the p99 of deliveries during `work`, in milliseconds, at the sockets without history and at the bare subscriber.
    fn p99(&mut self, work: impl FnOnce(&mut Self, &mut Load) -> Result<()>) -> Result<[f64; 2]> {
        let groups = (1..=self.settings.storm.live).map(|n| (small_channel(n), 1));
        let mut load = Load::start(&self.swarm, groups.collect(), EVENTS_PER_SECOND);
        self.swarm.begin_latencies();
        work(self, &mut load)?;
        load.finish(&mut self.swarm, self.settings)?;
        self.swarm.end_latencies().p99()
    }
}
