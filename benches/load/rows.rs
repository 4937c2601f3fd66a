//! The measured rows: CPU per delivery in three rhythms, and memory.
//!
//! Gateway and floor take turns within each run and are read by the same loop. A run that loses a frame fails.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::arrivals::Side;
use crate::floor::Floor;
use crate::report::{Row, Series, Target};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, SHARED_CHANNEL, Setup, World};

pub(crate) const PACE: Duration = Duration::from_millis(20);
const BURST: u64 = 10;
const BURST_PACE: Duration = Duration::from_millis(100);
/// Events under way in the saturated row: 512 × 204 bytes are a tenth of a socket's queue bound.
const WINDOW: u64 = 512;

/// The CPU time and wall time of a piece of work.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    pub(crate) units: u64,
}

impl Sample {
    pub(crate) fn micros_per_unit(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.units as f64
    }

    pub(crate) fn busy_percent(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
}

/// A gateway and a floor with the same number of sockets each, in one loop.
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) swarm: Swarm,
    pub(crate) gateway: Gateway,
    pub(crate) floor: Floor,
    pub(crate) settings: Settings,
}

impl<'a> Stage<'a> {
    /// Starts both servers and opens their sockets.
    pub(crate) fn set(world: &'a mut World, settings: Settings) -> Result<Self> {
        let mut swarm = Swarm::new(world.redis_port)?;
        let gateway = world.start_gateway(0)?;
        let mut floor = Floor::start()?;
        floor.command(&format!("accept {}", settings.sockets))?;
        for (side, port) in [(Side::Gateway, gateway.port), (Side::Floor, floor.port)] {
            let users = 1..=settings.sockets;
            let requests = users.map(|user| Ok((port, world.request("ws", user)?)));
            swarm.open_all(side, requests)?;
        }
        floor.done()?;
        let mut this = Self {
            world,
            swarm,
            gateway,
            floor,
            settings,
        };
        // The first deliveries pay for first-time allocations on both sides; they are not measured.
        for _ in 0..5 {
            this.publish_paced(10, 1, PACE)?;
            this.floor_writes(2, 5, PACE)?;
        }
        let length = this.swarm.tally(Side::Gateway).last_len;
        let expected = crate::redis::EVENT_BYTES;
        ensure!(
            length == expected,
            "frames have {length} bytes, not {expected}"
        );
        Ok(this)
    }

    /// Measures CPU per delivery, one event at a time.
    pub(crate) fn paced(&mut self) -> Result<Row> {
        let events = self.settings.paced_events;
        self.delivery_row(
            ("CPU per delivery, one event at a time", 1.2),
            |stage| stage.publish_paced(events, 1, PACE),
            |stage| stage.floor_writes(events, 1, PACE),
            1.0,
        )
    }

    /// Measures CPU per delivery, ten events back to back; the floor is a tenth of one write of ten frames.
    pub(crate) fn bursts(&mut self) -> Result<Row> {
        let rounds = self.settings.bursts;
        self.delivery_row(
            ("CPU per delivery, bursts of 10", 1.4),
            |stage| stage.publish_paced(rounds, BURST, BURST_PACE),
            |stage| stage.floor_writes(rounds, BURST, BURST_PACE),
            BURST as f64,
        )
    }

    /// Measures CPU per delivery at full speed; the floor is the paced, bare write of one frame.
    pub(crate) fn saturated(&mut self) -> Result<Row> {
        let (events, sockets) = (self.settings.saturated_events, self.settings.sockets);
        let floor_events = self.settings.paced_events;
        let mut row = self.delivery_row(
            ("CPU per delivery, saturated", 1.0 / 6.0),
            |stage| {
                stage.on_gateway(events * sockets, |stage| {
                    let channels = [SHARED_CHANNEL.to_owned()];
                    publish_windowed(&mut stage.swarm, &channels, events, WINDOW, sockets)
                })
            },
            |stage| stage.floor_writes(floor_events, 1, PACE),
            1.0,
        )?;
        let unpaced = self.floor_writes(floor_events, 1, Duration::ZERO)?;
        row.note += &format!(
            "; the floor's writes are paced as in the first row, without pauses one takes {:.2} µs",
            unpaced.micros_per_unit()
        );
        Ok(row)
    }

    fn delivery_row(
        &mut self,
        (what, limit): (&'static str, f64),
        mut gateway: impl FnMut(&mut Self) -> Result<Sample>,
        mut floor: impl FnMut(&mut Self) -> Result<Sample>,
        frames_per_write: f64,
    ) -> Result<Row> {
        let mut row = Row::new(what, "µs", Target::Ratio(limit));
        let (mut busy, mut rate) = (Series::default(), Series::default());
        for _ in 0..self.settings.runs {
            let bare = floor(self)?;
            let ours = gateway(self)?;
            row.floor.0.push(bare.micros_per_unit() / frames_per_write);
            row.gateway.0.push(ours.micros_per_unit());
            busy.0.push(ours.busy_percent());
            rate.0.push(ours.units as f64 / ours.wall.as_secs_f64());
        }
        row.note = format!(
            "{:.0} deliveries/s, the gateway's core {:.0} % busy",
            rate.median(),
            busy.median()
        );
        Ok(row)
    }

    /// Publishes `rounds` times `burst` events in one write to Redis, one round each `pace`; returns the cost per delivery.
    fn publish_paced(&mut self, rounds: u32, burst: u64, pace: Duration) -> Result<Sample> {
        let units = u64::from(rounds) * burst * self.settings.sockets;
        let expected = self.swarm.tally(Side::Gateway).frames + units;
        self.on_gateway(units, |stage| {
            let start = Instant::now();
            for round in 1..=rounds {
                let channels = std::iter::repeat_n(SHARED_CHANNEL, burst as usize);
                stage.swarm.publisher.publish(channels)?;
                stage.swarm.pump_until(start + pace * round)?;
            }
            stage.swarm.pump_frames(Side::Gateway, expected)
        })
    }

    pub(crate) fn on_gateway(
        &mut self,
        units: u64,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Sample> {
        let before = self.gateway.process.cpu()?;
        let start = Instant::now();
        work(self)?;
        let wall = start.elapsed();
        let cpu = self.gateway.process.cpu()?.since(&before);
        Ok(Sample { cpu, wall, units })
    }

    /// Lets the floor write `frames` frames to each of its sockets, `rounds` times; returns the cost per write.
    fn floor_writes(&mut self, rounds: u32, frames: u64, pace: Duration) -> Result<Sample> {
        let units = u64::from(rounds) * self.settings.sockets;
        let expected = self.swarm.tally(Side::Floor).frames + units * frames;
        let before = self.floor.process.cpu()?;
        let start = Instant::now();
        let micros = pace.as_micros();
        self.floor
            .command(&format!("write {rounds} {micros} {frames}"))?;
        self.swarm.pump_frames(Side::Floor, expected)?;
        self.floor.done()?;
        let wall = start.elapsed();
        let cpu = self.floor.process.cpu()?.since(&before);
        Ok(Sample { cpu, wall, units })
    }
}

/// Publishes `events` events to `channels` in turn, with at most `window` of them neither delivered nor overdue; each reaches
/// so many `recipients`.
pub(crate) fn publish_windowed(
    swarm: &mut Swarm,
    channels: &[String],
    events: u64,
    window: u64,
    recipients: u64,
) -> Result<()> {
    let before = swarm.tally(Side::Gateway).frames;
    let mut names = channels.iter().map(String::as_str).cycle();
    let mut published = 0;
    while published < events {
        let arrived = (swarm.tally(Side::Gateway).frames - before) / recipients;
        let under_way = (published - arrived).max(swarm.publisher.unanswered());
        let room = window.saturating_sub(under_way).min(events - published);
        // With small batches this program would be the busy one, and not the gateway.
        if room >= (window / 4).min(events - published) {
            swarm
                .publisher
                .publish(names.by_ref().take(room as usize))?;
            published += room;
        }
        swarm.turn(Instant::now() + PACE)?;
        swarm.check_open()?;
    }
    swarm.pump_frames(Side::Gateway, before + events * recipients)
}

/// Measures the memory of an idle socket in one group, as the growth of a fresh gateway between two numbers of sockets.
pub(crate) fn memory(world: &mut World, settings: Settings) -> Result<Row> {
    let (low, high, _) = settings.memory;
    let mut row = Row {
        what: "memory of an idle authenticated socket".into(),
        unit: "KiB",
        target: Target::Value(1.5),
        gateway: Series::default(),
        floor: Series::default(),
        note: format!("growth of PSS between {low} and {high} sockets, each of another user"),
    };
    for _ in 0..settings.long_runs {
        let each = growth(world, Setup::default(), "ws", settings.memory)?;
        row.gateway.0.push(each / 1024.0);
    }
    Ok(row)
}

/// Returns the bytes (PSS) by which a fresh gateway grows for each socket of a route, between two numbers of sockets. The process has
/// the given time to settle at each.
pub(crate) fn growth(
    world: &World,
    setup: Setup,
    route: &str,
    (low, high, settle): (u64, u64, Duration),
) -> Result<f64> {
    let gateway = world.start(setup)?;
    let mut swarm = Swarm::new(world.redis_port)?;
    let mut sizes = [0.0; 2];
    let mut user = 0;
    for (size, count) in sizes.iter_mut().zip([low, high]) {
        let users = user + 1..=count;
        let requests = users.map(|user| Ok((gateway.port, world.request(route, user)?)));
        swarm.open_all(Side::Gateway, requests)?;
        user = count;
        swarm.pump_until(Instant::now() + settle)?;
        swarm.check_open()?;
        *size = gateway.process.pss()? as f64;
    }
    swarm.close_from(0);
    Ok((sizes[1] - sizes[0]) / (high - low) as f64)
}
