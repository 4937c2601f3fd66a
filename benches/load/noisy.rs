//! The noisy rows: the latency of a tenant at a tenth of its share while another publishes at fifty times its share, or wastes
//! what tenants share in one of the ways of [`Nuisance`].
//!
//! The capacity is twice the rate of single events at which the gateway's core is half busy. A share is half of the
//! capacity, since there are two tenants with the same number of sockets. The quiet phase is the floor.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::arrivals::{Side, quantile};
use crate::flood::{self, Flood};
use crate::load::Load;
use crate::nuisance::{Handle, Nuisance};
use crate::report::{Row, Series, Target};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, Limit, SHARED_CHANNEL, Setup, World};

/// The number of sockets of each tenant, in one group.
const SOCKETS: u64 = 100;
/// The first rate of the search for half load; any gateway sustains it.
const FIRST_RATE: f64 = 100.0;
const QUIET_SHARE: f64 = 0.1;
const NOISY_SHARE: f64 = 50.0;
/// A queue bound above the default, since a late reader would otherwise end the noise: its sockets would be closed as too
/// slow.
const NOISY_LIMIT: &str = "send_queue = \"64MiB\"";
/// The least percentage of time in which the gateway runs or waits for its core. Below it the noise saturates nothing.
const SATURATED: f64 = 90.0;
/// The pause of a nuisance between two acts in a run that measures nothing, with a debug build on a busy machine.
const BRIEF_PAUSE: Duration = Duration::from_millis(20);
/// The pause between two phases, in which the queues run empty.
const REST: Duration = Duration::from_secs(2);

/// The noise of a row.
#[derive(Clone, Copy)]
pub(crate) enum Noise {
    /// Fifty times the share of events.
    Events,
    Nuisance(Nuisance),
}

impl Noise {
    fn all() -> Vec<Self> {
        let nuisances = Nuisance::ALL.into_iter().map(Self::Nuisance);
        std::iter::once(Self::Events).chain(nuisances).collect()
    }

    /// Returns the noise of that name, such as `slow-readers`.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let all = Self::all();
        let found = all.iter().find(|noise| noise.name() == name);
        found.copied().with_context(|| {
            let names: Vec<_> = all.iter().map(Self::name).collect();
            format!("no such noise: {name}; there are {}", names.join(", "))
        })
    }

    /// Returns the last words of its row, with dashes.
    fn name(&self) -> String {
        match self {
            Self::Events => "events".to_owned(),
            Self::Nuisance(kind) => {
                let words = kind.row().split_once("beside ").map(|(_, words)| words);
                words.unwrap_or_default().replace(' ', "-")
            }
        }
    }
}

/// The result of one phase.
struct Phase {
    /// Sorted nanoseconds, at the sockets and at a bare subscriber of the same events.
    sockets: Vec<u64>,
    subscriber: Vec<u64>,
    /// The percentages of time in which the gateway ran, and in which it waited for its core.
    busy: f64,
    waited: f64,
}

/// Measures the rows: the p99 of the quiet tenant beside each kind of noise.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let noises = settings.beside.map_or_else(Noise::all, |noise| vec![noise]);
    let row = |noise| match noise {
        Noise::Events => beside_events(world, settings),
        Noise::Nuisance(kind) => beside(kind, world, settings).context(kind.row()),
    };
    noises.into_iter().map(row).collect()
}

/// Measures beside a nuisance, with a gateway that has met no other.
fn beside(kind: Nuisance, world: &mut World, settings: Settings) -> Result<Row> {
    world.link.call(&[b"FLUSHALL"])?;
    let mut stage = Stage::set(world, settings, None)?;
    let mut row = Row::new(kind.row(), "ms", Target::Ratio(1.2));
    let quiet = stage.capacity()? / 2.0 * QUIET_SHARE;
    let api = stage.gateway.api.context("it has an API")?;
    let mut nuisance = Handle::start(kind, [world.redis_port, stage.gateway.port, api])?;
    let (mut rate, mut busy) = (Series::default(), Series::default());
    let mut subscribers = [Series::default(), Series::default()];
    let lasting = settings.noisy.1 + settings.noisy.0 * 2;
    let pause = if settings.timed {
        Duration::ZERO
    } else {
        BRIEF_PAUSE
    };
    for _ in 0..settings.long_runs {
        let alone = stage.phase(quiet)?;
        stage.rest()?;
        nuisance.begin(lasting, pause)?;
        stage.swarm.pump_until(Instant::now() + settings.noisy.0)?;
        let beside = stage.phase(quiet)?;
        let acts = nuisance.done()?;
        ensure!(acts > 0, "the nuisance did nothing");
        rate.0.push(acts as f64 / lasting.as_secs_f64());
        busy.0.push(beside.busy);
        row.floor.0.push(quantile(&alone.sockets, 0.99) / 1e3);
        row.gateway.0.push(quantile(&beside.sockets, 0.99) / 1e3);
        push_subscribers(&mut subscribers, [&alone, &beside]);
        stage.rest()?;
    }
    let gaps = stage
        .gateway
        .metric("lockgate_gaps_total", "tenant=\"bench\"")?;
    ensure!(gaps == 0.0, "the quiet tenant has gaps: {gaps}");
    row.note = format!(
        "{:.0} acts/s of another tenant, the gateway's core {:.0} % busy; the quiet tenant sends {quiet:.0} events/s to {SOCKETS} sockets; \
         a bare subscriber of its events, on the core of the nuisance, has a p99 of {:.2} ms alone and {:.2} ms beside it",
        rate.median(),
        busy.median(),
        subscribers[0].median(),
        subscribers[1].median(),
    );
    Ok(row)
}

/// Notes the p99 of a bare subscriber in two phases, in milliseconds.
fn push_subscribers(subscribers: &mut [Series; 2], phases: [&Phase; 2]) {
    for (series, phase) in subscribers.iter_mut().zip(phases) {
        series.0.push(quantile(&phase.subscriber, 0.99) / 1e3);
    }
}

/// Measures beside events.
fn beside_events(world: &mut World, settings: Settings) -> Result<Row> {
    let limit = Limit {
        tenant: flood::tenant(),
        line: NOISY_LIMIT.to_owned(),
    };
    let mut stage = Stage::set(world, settings, Some(limit))?;
    let mut flood = Flood::start(
        world.redis_port,
        stage.gateway.port,
        SOCKETS,
        settings.timed,
    )?;
    let mut row = Row::new(
        "latency p99 of a quiet tenant, a noisy one beside it",
        "ms",
        Target::Ratio(1.2),
    );
    let capacity = stage.capacity()?;
    let (quiet, noisy) = (capacity / 2.0 * QUIET_SHARE, capacity / 2.0 * NOISY_SHARE);
    let mut subscribers = [Series::default(), Series::default()];
    let (mut achieved, mut delivered) = (Series::default(), Series::default());
    let (mut busy, mut waited) = (Series::default(), Series::default());
    for _ in 0..settings.long_runs {
        let alone = stage.phase(quiet)?;
        std::thread::sleep(REST);
        flood.begin(noisy, settings.noisy.1 + settings.noisy.0 * 2)?;
        stage.swarm.pump_until(Instant::now() + settings.noisy.0)?;
        let beside = stage.phase(quiet)?;
        let flooded = flood.done()?;
        ensure!(
            flooded.closed == 0,
            "the gateway closed {} sockets of the noisy tenant",
            flooded.closed
        );
        ensure!(
            !settings.timed || beside.busy + beside.waited >= SATURATED,
            "the flood keeps the gateway's core only {:.0} % busy, with {} of its events and {} deliveries",
            beside.busy,
            flooded.published,
            flooded.frames
        );
        let lasting = (settings.noisy.1 + settings.noisy.0 * 2).as_secs_f64();
        achieved.0.push(flooded.published as f64 / lasting);
        delivered.0.push(flooded.frames as f64 / lasting);
        busy.0.push(beside.busy);
        waited.0.push(beside.waited);
        row.floor.0.push(quantile(&alone.sockets, 0.99) / 1e3);
        row.gateway.0.push(quantile(&beside.sockets, 0.99) / 1e3);
        push_subscribers(&mut subscribers, [&alone, &beside]);
        stage.rest()?;
    }
    let gaps = |label: &str| {
        let tenant = format!("tenant=\"{label}\"");
        stage.gateway.metric("lockgate_gaps_total", &tenant)
    };
    ensure!(
        gaps("bench")? == 0.0,
        "the quiet tenant has gaps: {}",
        gaps("bench")?
    );
    row.note = format!(
        "capacity {capacity:.0} events/s, each to {SOCKETS} sockets; the quiet tenant sends {quiet:.0}/s, the noisy one {:.0}/s of {noisy:.0} \
         that are due ({:.0} deliveries/s, {:.0} gaps), the gateway's core {:.0} % busy, and {:.0} % of the time \
         it waited for it; \
         a bare subscriber of the quiet tenant's events has a p99 of {:.2} ms alone and {:.2} ms beside the noise",
        achieved.median(),
        delivered.median(),
        gaps(&flood::tenant())?,
        busy.median(),
        waited.median(),
        subscribers[0].median(),
        subscribers[1].median(),
    );
    Ok(row)
}

/// A gateway with the quiet tenant's sockets in this process; the noisy tenant is in another.
struct Stage {
    gateway: Gateway,
    swarm: Swarm,
    settings: Settings,
}

impl Stage {
    fn set(world: &World, settings: Settings, limit: Option<Limit>) -> Result<Self> {
        let gateway = world.start(Setup {
            more: 1,
            api: true,
            limit,
            ..Setup::default()
        })?;
        let mut swarm = Swarm::new(world.redis_port)?;
        let port = gateway.port;
        let requests = (1..=SOCKETS).map(|user| Ok((port, world.request("ws", user)?)));
        swarm.open_all(Side::Gateway, requests)?;
        swarm.subscribe(world.redis_port, &[SHARED_CHANNEL.to_owned()])?;
        Ok(Self {
            gateway,
            swarm,
            settings,
        })
    }

    /// Returns the capacity in events per second.
    fn capacity(&mut self) -> Result<f64> {
        if !self.settings.timed {
            return Ok(FIRST_RATE);
        }
        let mut half = FIRST_RATE;
        for _ in 0..4 {
            let step = self.publish(half, self.settings.noisy.0)?;
            half *= 50.0 / step.busy;
        }
        Ok(2.0 * half)
    }

    /// Returns the load of the quiet tenant at this rate.
    fn phase(&mut self, per_second: f64) -> Result<Phase> {
        self.publish(per_second, self.settings.noisy.1)
    }

    fn publish(&mut self, per_second: f64, lasting: Duration) -> Result<Phase> {
        let swarm = &mut self.swarm;
        let (cpu, start) = (self.gateway.process.cpu()?, Instant::now());
        swarm.begin_latencies();
        let groups = vec![(SHARED_CHANNEL.to_owned(), SOCKETS)];
        let mut load = Load::start(swarm, groups, per_second);
        load.run_until(swarm, start + lasting)?;
        let after = self.gateway.process.cpu()?;
        let percent = |part: Duration| 100.0 * part.div_duration_f64(start.elapsed());
        let (busy, waited) = (
            percent(after.since(&cpu)),
            percent(after.waited_since(&cpu)),
        );
        let published = load.published;
        load.finish(swarm, self.settings)?;
        let mut latencies = swarm.end_latencies();
        // The stamp of a frame that arrives in two pieces is not read.
        ensure!(
            !self.settings.timed
                || latencies.sockets.len() as u64 >= published * SOCKETS * 99 / 100,
            "{} of {} deliveries could be timed",
            latencies.sockets.len(),
            published * SOCKETS
        );
        latencies.sockets.sort_unstable();
        latencies.subscriber.sort_unstable();
        Ok(Phase {
            sockets: latencies.sockets,
            subscriber: latencies.subscriber,
            busy,
            waited,
        })
    }

    /// Waits until the noise has ended.
    fn rest(&mut self) -> Result<()> {
        self.swarm.pump_until(Instant::now() + REST)?;
        self.swarm.check_open()
    }
}
