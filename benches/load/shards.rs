//! The shards rows: a cluster of one, two and three masters beside one Redis, with the same sockets, groups and events.
//!
//! Two cores tell costs, and no throughput of shards: all masters share the load core with the clients, so a second one adds no
//! core. The CPU of gateway and Redis for each thing is what may not grow.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::arrivals::Side;
use crate::load::Load;
use crate::report::{Row, Series, Target};
use crate::rows::{Sample, publish_windowed};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, LOCAL_TTL, World, small_channel};

/// The sizes of the clusters.
const SHARDS: [usize; 3] = [1, 2, 3];
/// Sockets of a group. The groups lie over the slots of all shards and get events in turn.
const GROUP: u64 = 5;
const EVENTS_PER_SECOND: f64 = 1_000.0;
/// Events under way in the saturated part.
const WINDOW: u64 = 512;

/// The measured figures, in the order of [`Figures::of`].
const WHAT: [(&str, &str, Target); 7] = [
    ("CPU of the gateway per delivery", "µs", Target::None),
    ("CPU of Redis per event", "µs", Target::None),
    ("deliveries, saturated", "/s", Target::None),
    ("CPU of Redis per event, saturated", "µs", Target::None),
    ("CPU of the gateway per connect", "µs", Target::None),
    ("connects, 64 at a time", "/s", Target::None),
    (
        "CPU of Redis per connect into a group of its own",
        "µs",
        Target::None,
    ),
];

/// Measures one Redis and each cluster in turn.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (what, unit, target) in WHAT {
        for shards in SHARDS {
            let plural = if shards == 1 { "" } else { "s" };
            let named = format!("{what}, {shards} shard{plural}");
            rows.push(Row::new(named, unit, target));
        }
    }
    let mut subscribes = [const { Series(Vec::new()) }; SHARDS.len()];
    for _ in 0..settings.long_runs {
        let floor = Figures::of(world, settings, 0)?;
        for (at, shards) in SHARDS.into_iter().enumerate() {
            let found = Figures::of(world, settings, shards)?;
            let pairs = found.values.into_iter().zip(floor.values);
            for (row, (found, floor)) in rows.iter_mut().skip(at).step_by(SHARDS.len()).zip(pairs) {
                row.gateway.0.push(found);
                row.floor.0.push(floor);
            }
            subscribes[at].0.push(found.subscribes);
        }
    }
    world.use_shards(0)?;
    let last = rows.len() - SHARDS.len();
    for (row, subscribes) in rows[last..].iter_mut().zip(&subscribes) {
        row.note = format!(
            "{:.2} SSUBSCRIBE for each group, which lies on one shard; the floor is one Redis without cluster, with SUBSCRIBE",
            subscribes.median()
        );
    }
    rows[0].note = format!(
        "{} sockets in groups of {GROUP} over all slots, {EVENTS_PER_SECOND:.0} events/s in turn; all masters share a core with the clients",
        settings.sockets
    );
    Ok(rows)
}

/// The figures of one run, and the commands that subscribe, for each new group.
struct Figures {
    values: [f64; WHAT.len()],
    subscribes: f64,
}

impl Figures {
    /// Measures a cluster of so many shards; 0: the world's Redis, which is none.
    fn of(world: &mut World, settings: Settings, shards: usize) -> Result<Self> {
        world.use_shards(shards)?;
        let mut stage = Stage {
            gateway: world.start_gateway(0)?,
            swarm: world.swarm()?,
            world,
            settings,
        };
        let [gateway_connect, _] = stage.connects()?;
        let [delivery, event] = stage.paced()?;
        let [saturated, saturated_event] = stage.saturated()?;
        let (own_group, subscribes) = stage.subscriptions()?;
        let rate = |sample: &Sample| sample.units as f64 / sample.wall.as_secs_f64();
        Ok(Self {
            values: [
                delivery.micros_per_unit(),
                event.micros_per_unit(),
                rate(&saturated),
                saturated_event.micros_per_unit(),
                gateway_connect.micros_per_unit(),
                rate(&gateway_connect),
                own_group.micros_per_unit(),
            ],
            subscribes,
        })
    }
}

struct Stage<'a> {
    world: &'a mut World,
    gateway: Gateway,
    swarm: Swarm,
    settings: Settings,
}

impl Stage<'_> {
    /// Measures the gateway and Redis during `work`, which does so many units for each.
    fn measured(
        &mut self,
        units: [u64; 2],
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<[Sample; 2]> {
        let before = (self.gateway.process.cpu()?, self.world.redis_cpu()?);
        let start = Instant::now();
        work(self)?;
        let wall = start.elapsed();
        let after = (self.gateway.process.cpu()?, self.world.redis_cpu()?);
        let redis = after.1.iter().zip(&before.1);
        let cpu = [
            after.0.since(&before.0),
            redis.map(|(now, then)| now.since(then)).sum(),
        ];
        let sample = |at: usize| Sample {
            cpu: cpu[at],
            wall,
            units: units[at],
        };
        Ok([sample(0), sample(1)])
    }

    fn subscribes(&mut self) -> Result<u64> {
        let counts = self.world.command_counts()?;
        let named = |name: &str| counts.get(name).copied().unwrap_or(0);
        Ok(named("SUBSCRIBE") + named("SSUBSCRIBE"))
    }

    fn open(&mut self, sockets: impl Iterator<Item = (u64, u64)>) -> Result<()> {
        let (port, world) = (self.gateway.port, &*self.world);
        let requests =
            sockets.map(|(group, user)| Ok((port, world.request_for("small", group, user)?)));
        self.swarm.open_all(Side::Gateway, requests)
    }

    /// Opens the sockets of all groups, whose users are in Redis and not in the gateway.
    fn connects(&mut self) -> Result<[Sample; 2]> {
        let sockets = self.settings.sockets;
        let all = || (1..=sockets).map(|user| (user.div_ceil(GROUP), user));
        self.open(all())?;
        self.swarm.close_from(0);
        let forgotten = LOCAL_TTL + Duration::from_millis(500);
        self.swarm.pump_until(Instant::now() + forgotten)?;
        self.measured([sockets; 2], |stage| stage.open(all()))
    }

    /// The channel of each group with its sockets.
    fn groups(&self) -> Vec<(String, u64)> {
        let groups = 1..=self.settings.sockets / GROUP;
        groups.map(|n| (small_channel(n), GROUP)).collect()
    }

    /// Publishes at a fixed pace; the units are deliveries and events.
    fn paced(&mut self) -> Result<[Sample; 2]> {
        let before = self.swarm.tally(Side::Gateway).frames;
        let mut published = 0;
        let mut load = Load::start(&self.swarm, self.groups(), EVENTS_PER_SECOND);
        let mut samples = self.measured([1; 2], |stage| {
            load.run_until(&mut stage.swarm, Instant::now() + stage.settings.idle)?;
            published = load.published;
            load.finish(&mut stage.swarm, stage.settings)?;
            Ok(())
        })?;
        samples[0].units = self.swarm.tally(Side::Gateway).frames - before;
        samples[1].units = published;
        Ok(samples)
    }

    /// Publishes as fast as deliveries come; the units are deliveries and events.
    fn saturated(&mut self) -> Result<[Sample; 2]> {
        let channels: Vec<String> = self.groups().into_iter().map(|(name, _)| name).collect();
        let events = self.settings.saturated_events;
        self.measured([events * GROUP, events], |stage| {
            publish_windowed(&mut stage.swarm, &channels, events, WINDOW, GROUP)
        })
    }

    /// Opens sockets of known users in groups of their own.
    fn subscriptions(&mut self) -> Result<(Sample, f64)> {
        let (first, count) = (self.settings.sockets, self.settings.cost_sockets);
        let forgotten = LOCAL_TTL + Duration::from_millis(500);
        self.swarm.pump_until(Instant::now() + forgotten)?;
        let before = self.subscribes()?;
        let [_, redis] = self.measured([count; 2], |stage| {
            stage.open((1..=count).map(|user| (first + user, user)))
        })?;
        let subscribes = self.subscribes()? - before;
        self.swarm.check_open()?;
        Ok((redis, subscribes as f64 / count as f64))
    }
}
