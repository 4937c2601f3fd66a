//! The history rows: what a group with history costs beside one without, and how fast events are recorded through the API.
//!
//! Events of groups with history are recorded by the gateway's own script, as the layer class of the Django app does it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::arrivals::Side;
use crate::http::Api;
use crate::redis::Record;
use crate::report::{Row, Series, Target};
use crate::rows::{PACE, Sample};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, Setup, World, kept_channel, small_channel};

/// Events under way in the saturated row, and those that are published at once.
const WINDOW: u64 = 512;
const BATCH: u64 = 128;
/// Messages in one call of the API, and the calls under way at once.
const CALL: u64 = 500;
const CALLS: usize = 4;
/// The longest wait before the run fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Measures recording and delivery.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let mut stage = Stage::set(world, settings)?;
    stage.fill(settings.sockets)?;
    let mut rows = vec![stage.paced()?, stage.saturated()?];
    rows.push(stage.recorded()?);
    Ok(rows)
}

/// A gateway whose groups `kept_N` have a history.
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) gateway: Gateway,
    pub(crate) swarm: Swarm,
    pub(crate) settings: Settings,
}

/// Starts a replica of that kind.
pub(crate) fn start(world: &World) -> Result<Gateway> {
    world.start(Setup {
        api: true,
        history: true,
        ..Setup::default()
    })
}

impl<'a> Stage<'a> {
    /// Starts one on an empty Redis.
    pub(crate) fn set(world: &'a mut World, settings: Settings) -> Result<Self> {
        world.link.call(&[b"FLUSHALL"])?;
        let gateway = start(world)?;
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
}
