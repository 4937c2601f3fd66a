//! The history rows: what a group with history costs beside one without, how fast events are recorded through the API, and how
//! fast sockets that come back get what they missed.
//!
//! Events of groups with history are recorded by the gateway's own script, as the layer class of the Django app does it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::http::Api;
use crate::latency::quantile;
use crate::load::Load;
use crate::redis::{Record, Reply};
use crate::report::{Row, Series, Target};
use crate::rows::{PACE, Sample};
use crate::settings::Settings;
use crate::swarm::{Side, Swarm};
use crate::world::{Gateway, Setup, World, kept_channel, small_channel};

/// Events that a socket has missed when it comes back.
const MISSED: u64 = 50;
/// Sockets in a group of the storm.
const GROUP: u64 = 100;
/// Events under way in the saturated row, and those that are published at once.
const WINDOW: u64 = 512;
const BATCH: u64 = 128;
/// Messages in one call of the API, and the calls under way at once.
const CALL: u64 = 500;
const CALLS: usize = 4;
/// The storm's pace of deliveries to other sockets.
const EVENTS_PER_SECOND: f64 = 500.0;
/// The time within which the sockets of the storm come back.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// The longest wait before the run fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures recording and delivery.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let mut stage = Stage::set(world, settings)?;
    stage.fill(settings.sockets)?;
    let mut rows = vec![stage.paced()?, stage.saturated()?];
    rows.push(stage.recorded()?);
    Ok(rows)
}

/// Measures sockets that come back.
pub(crate) fn resume(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let one = Stage::set(world, settings)?.one_comes_back()?;
    let mut rows = vec![one];
    rows.extend(Stage::set(world, settings)?.all_come_back()?);
    Ok(rows)
}

/// A gateway whose groups `kept_N` have a history.
struct Stage<'a> {
    world: &'a mut World,
    gateway: Gateway,
    swarm: Swarm,
    settings: Settings,
}

impl<'a> Stage<'a> {
    fn set(world: &'a mut World, settings: Settings) -> Result<Self> {
        world.link.call(&[b"FLUSHALL"])?;
        let gateway = world.start(Setup {
            api: true,
            history: true,
            ..Setup::default()
        })?;
        let swarm = Swarm::new(world.redis_port)?;
        Ok(Self {
            world,
            gateway,
            swarm,
            settings,
        })
    }

    /// Opens `sockets` sockets in the group without history, and as many in the one with it.
    fn fill(&mut self, sockets: u64) -> Result<()> {
        let (world, port) = (&*self.world, self.gateway.port);
        for route in ["small", "resume"] {
            let requests = (1..=sockets).map(|user| Ok((port, world.request_for(route, 1, user)?)));
            self.swarm.open_all(Side::Gateway, requests)?;
        }
        self.positions(sockets)
    }

    /// Waits until each of `sockets` sockets with `resume` has its position.
    fn positions(&mut self, sockets: u64) -> Result<()> {
        self.swarm.pump_frames(Side::Gateway, sockets)
    }

    /// Measures CPU per delivery, one event at a time.
    fn paced(&mut self) -> Result<Row> {
        let events = u64::from(self.settings.paced_events);
        self.beside(
            "CPU per delivery with history, one event at a time",
            |stage, kept| {
                let units = events * stage.settings.sockets;
                let expected = stage.swarm.tally(Side::Gateway).frames + units;
                stage.on_gateway(units, |stage| {
                    let start = Instant::now();
                    for event in 1..=events {
                        stage.publish(kept, 1)?;
                        stage.swarm.pump_until(start + PACE * event as u32)?;
                    }
                    stage.swarm.pump_frames(Side::Gateway, expected)
                })
            },
        )
    }

    /// Measures CPU per delivery at full speed.
    fn saturated(&mut self) -> Result<Row> {
        let (events, sockets) = (self.settings.saturated_events, self.settings.sockets);
        self.beside("CPU per delivery with history, saturated", |stage, kept| {
            let before = stage.swarm.tally(Side::Gateway).frames;
            stage.on_gateway(events * sockets, |stage| {
                let mut published = 0;
                while published < events {
                    let arrived = (stage.swarm.tally(Side::Gateway).frames - before) / sockets;
                    let room = WINDOW
                        .saturating_sub(published - arrived)
                        .min(events - published);
                    if room >= BATCH.min(events - published) {
                        stage.publish(kept, room)?;
                        published += room;
                    }
                    stage.swarm.turn(Instant::now() + PACE)?;
                    stage.swarm.check_open()?;
                }
                stage
                    .swarm
                    .pump_frames(Side::Gateway, before + events * sockets)
            })
        })
    }

    /// Measures the group with history, beside the one without it.
    fn beside(
        &mut self,
        what: &'static str,
        mut deliver: impl FnMut(&mut Self, bool) -> Result<Sample>,
    ) -> Result<Row> {
        let mut row = Row::new(what, "µs", Target::Ratio(1.15));
        let mut rates = [Series::default(), Series::default()];
        for _ in 0..self.settings.runs {
            let (plain, kept) = (deliver(self, false)?, deliver(self, true)?);
            row.floor.0.push(plain.micros_per_unit());
            row.gateway.0.push(kept.micros_per_unit());
            for (series, sample) in rates.iter_mut().zip([plain, kept]) {
                series
                    .0
                    .push(sample.units as f64 / sample.wall.as_secs_f64());
            }
        }
        row.note = format!(
            "{} sockets with `resume`, {:.0} deliveries/s; the floor is a group of as many sockets without history, {:.0} deliveries/s",
            self.settings.sockets,
            rates[1].median(),
            rates[0].median(),
        );
        Ok(row)
    }

    fn publish(&mut self, kept: bool, events: u64) -> Result<()> {
        if kept {
            let record = Record::to(&kept_channel(1));
            return self.swarm.publisher.record(&record, events);
        }
        let channel = small_channel(1);
        let channels = std::iter::repeat_n(channel.as_str(), events as usize);
        self.swarm.publisher.publish(channels)
    }

    fn on_gateway(
        &mut self,
        units: u64,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Sample> {
        let (cpu, start) = (self.gateway.process.cpu()?, Instant::now());
        work(self)?;
        let wall = start.elapsed();
        let cpu = self.gateway.process.cpu()?.since(&cpu);
        Ok(Sample { cpu, wall, units })
    }

    /// Measures the events that the batch call of the API records in a second, in groups that no socket is in.
    fn recorded(&mut self) -> Result<Row> {
        let mut row = Row::new(
            "events per second that the API records",
            "1/s",
            Target::AtLeast(20_000.0),
        );
        for _ in 0..self.settings.runs {
            row.floor.0.push(self.calls("plain")?);
            row.gateway.0.push(self.calls("kept_999")?);
        }
        row.note = format!(
            "{CALLS} calls of {CALL} messages at once, each of 200 bytes; the floor is a group without history"
        );
        Ok(row)
    }

    fn calls(&mut self, group: &str) -> Result<f64> {
        let port = self.gateway.api.context("it has an API")?;
        let event = json!({"type": "bench.event", "message": "m".repeat(180)});
        let message = json!({"group": group, "event": event});
        let body = json!({"messages": vec![message; CALL as usize]}).to_string();
        let mut apis = Vec::new();
        for _ in 0..CALLS {
            apis.push(Api::connect(port)?);
        }
        let calls = (self.settings.saturated_events * 8).div_ceil(CALL);
        let (mut begun, mut done, start) = (0, 0, Instant::now());
        let path = "/v1/tenants/bench/send";
        for api in &mut apis {
            api.begin("POST", path, &body)?;
            begun += 1;
        }
        while done < begun {
            for api in &mut apis {
                let Some((status, answer)) = api.poll()? else {
                    continue;
                };
                let published = answer["results"].as_array().into_iter().flatten();
                let published = published.filter(|result| result["published"] == 1).count();
                ensure!(
                    status == 200 && published as u64 == CALL,
                    "{status}: {published} of {CALL}"
                );
                done += 1;
                if begun < calls {
                    api.begin("POST", path, &body)?;
                    begun += 1;
                }
            }
            ensure!(start.elapsed() < PATIENCE, "the API does not answer");
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok((done * CALL) as f64 / start.elapsed().as_secs_f64())
    }

    /// Records the missed events of a group; returns the position before them.
    fn miss(&mut self, n: u64) -> Result<String> {
        let channel = kept_channel(n);
        let record = Record::to(&channel);
        self.swarm.publisher.record(&record, 1)?;
        self.answered()?;
        let fields = [b"HMGET", record.position.as_bytes(), b"epoch", b"offset"];
        let Reply::Array(fields) = self.world.link.call(&fields)? else {
            bail!("HMGET answers a list");
        };
        let [Reply::Text(epoch), Reply::Text(offset)] = &fields[..] else {
            bail!("no position: {fields:?}");
        };
        let (epoch, offset) = (std::str::from_utf8(epoch)?, std::str::from_utf8(offset)?);
        self.swarm.publisher.record(&record, MISSED)?;
        self.answered()?;
        Ok(format!("kept_{n}~{epoch}~{offset}"))
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
        let since = self.miss(1)?;
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

    /// Measures the time until all sockets of a storm have what they missed, and the deliveries to others meanwhile.
    fn all_come_back(mut self) -> Result<[Row; 2]> {
        let mut rows = [
            Row::new(
                "resume of many sockets, until all are complete",
                "s",
                Target::Value(15.0),
            ),
            Row::new(
                "latency p99 of other sockets meanwhile",
                "ms",
                Target::Ratio(2.0),
            ),
        ];
        let storm = self.settings.storm;
        let (world, port) = (&*self.world, self.gateway.port);
        let live = (1..=storm.live).map(|n| Ok((port, world.request_for("small", n, n)?)));
        self.swarm.open_all(Side::Gateway, live)?;
        let groups = storm.sockets.div_ceil(GROUP);
        let since = (1..=groups)
            .map(|n| self.miss(n))
            .collect::<Result<Vec<_>>>()?;
        let mut busy = Series::default();
        for _ in 0..self.settings.long_runs {
            let calm = self
                .p99(|stage, load| load.run_until(&mut stage.swarm, Instant::now() + storm.calm))?;
            let mark = self.swarm.mark();
            let (cpu, start) = (self.gateway.process.cpu()?, Instant::now());
            let meanwhile = self.p99(|stage, load| stage.come_back(&since, load))?;
            let took = start.elapsed().as_secs_f64();
            busy.0
                .push(100.0 * self.gateway.process.cpu()?.since(&cpu).as_secs_f64() / took);
            rows[0].gateway.0.push(took);
            rows[1].floor.0.push(calm);
            rows[1].gateway.0.push(meanwhile);
            self.swarm.close_from(mark);
        }
        rows[0].note = format!(
            "{} sockets in {groups} groups within {:.0} s, each with {MISSED} missed events; the gateway's core {:.0} % busy",
            storm.sockets,
            BACK_WITHIN.as_secs_f64(),
            busy.median(),
        );
        rows[1].note = format!(
            "{EVENTS_PER_SECOND:.0} events/s, round robin over {} sockets without history; the floor is the calm before",
            storm.live
        );
        Ok(rows)
    }

    /// Opens the sockets of the storm evenly over its time, and waits until each has all.
    fn come_back(&mut self, since: &[String], load: &mut Load) -> Result<()> {
        let storm = self.settings.storm;
        let start = Instant::now();
        let gap = BACK_WITHIN.min(storm.lasting).div_f64(storm.sockets as f64);
        let expected = self.swarm.tally(Side::Apart).frames + storm.sockets * (MISSED + 1);
        for k in 0..storm.sockets {
            load.run_until(&mut self.swarm, start + gap.mul_f64(k as f64))?;
            let n = 1 + k / GROUP;
            let request = self.request(n, 1 + k, &since[(n - 1) as usize])?;
            self.swarm.open(Side::Apart, self.gateway.port, request)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.swarm.tally(Side::Apart).frames < expected {
            load.step(&mut self.swarm, deadline)?;
            let missing = expected.saturating_sub(self.swarm.tally(Side::Apart).frames);
            ensure!(Instant::now() < deadline, "{missing} frames do not arrive");
        }
        let frames = self.swarm.tally(Side::Apart).frames;
        ensure!(
            frames == expected,
            "{frames} frames arrived where {expected} were due"
        );
        Ok(())
    }

    /// Returns the p99 of deliveries to the sockets without history during `work`, in milliseconds.
    fn p99(&mut self, work: impl FnOnce(&mut Self, &mut Load) -> Result<()>) -> Result<f64> {
        let groups = (1..=self.settings.storm.live).map(|n| (small_channel(n), 1));
        let mut load = Load::start(&self.swarm, groups.collect(), EVENTS_PER_SECOND);
        self.swarm.begin_latencies();
        work(self, &mut load)?;
        load.finish(&mut self.swarm, self.settings)?;
        let mut latencies = self.swarm.end_latencies().sockets;
        ensure!(!latencies.is_empty(), "no delivery could be timed");
        latencies.sort_unstable();
        Ok(quantile(&latencies, 0.99) / 1e3)
    }
}
