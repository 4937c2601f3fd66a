//! The rows of a process with many tenants: its start, its memory, and a reload under load.
//!
//! The floor of each is the same process with one tenant; the floor of a reload's pause is the longest pause without a
//! reload. Each tenant has an open socket, one tenant gets a steady stream, and the reload changes another tenant.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::arrivals::Side;
use crate::http;
use crate::load::Load;
use crate::report::{Row, Series, Target};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, Limit, Setup, Ticket, World, idle_tenant, small_channel};

const STREAM_PER_SECOND: f64 = 1_000.0;
/// A limit that no tenant reaches, and one that the tenant's open socket has reached.
const LIMITS: [u64; 2] = [1_000, 1];
const TOO_MANY: u16 = 429;
const RELOADED: &str = "lockgate_config_reload_timestamp_seconds";
/// The longest reload before the run fails, and the time between two looks at it after the window.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);

/// Measures start, memory, reload and pause.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<[Row; 4]> {
    let mut rows = [
        Row::new("start of a process with many tenants", "ms", Target::None),
        Row::new("memory of one of many tenants", "KiB", Target::None),
        Row::new(
            "reload that changes one of many tenants",
            "ms",
            Target::None,
        ),
        Row::new(
            "longest pause of a stream during that reload",
            "ms",
            Target::Value(50.0),
        ),
    ];
    let count = settings.tenants;
    let mut waited = Series::default();
    for run in 0..settings.long_runs {
        let one = Fleet::start(world, 1, settings)?;
        rows[0].floor.0.push(one.start_millis);
        rows[1].floor.0.push(one.pss / 1024.0);
        let (one_pss, reload) = (one.pss, one.reload(world, settings, run)?);
        rows[2].floor.0.push(reload.millis);
        let many = Fleet::start(world, count, settings)?;
        rows[0].gateway.0.push(many.start_millis);
        let each = (many.pss - one_pss) / (count - 1) as f64;
        rows[1].gateway.0.push(each / 1024.0);
        let reload = many.reload(world, settings, run)?;
        rows[2].gateway.0.push(reload.millis);
        rows[3].gateway.0.push(reload.pause);
        rows[3].floor.0.push(reload.pause_before);
        waited.0.push(reload.waited);
    }
    rows[0].note =
        format!("{count} tenants in one file, until /readyz answers 200; the floor is one tenant");
    rows[1].note = format!(
        "growth of PSS from 1 to {count} tenants without sockets, for each; the floor is the whole process with one tenant"
    );
    rows[2].note = format!(
        "from SIGHUP to the time at {RELOADED}, {count} sockets of as many tenants open and {STREAM_PER_SECOND:.0} events/s to one \
         of them; the floor is one tenant, which is the one that changes"
    );
    rows[3].note = format!(
        "between two deliveries of {STREAM_PER_SECOND:.0} events/s to an unchanged tenant; no socket was lost, and each got an event \
         afterwards; the floor is as long a time without a reload, {:.0} ms; the gateway's threads waited {:.0} ms for their core",
        settings.reload_window.as_secs_f64() * 1e3,
        waited.median(),
    );
    Ok(rows)
}

/// A process with a number of tenants.
struct Fleet {
    gateway: Gateway,
    /// `bench` is the last one.
    names: Vec<String>,
    start_millis: f64,
    pss: f64,
}

struct Reload {
    millis: f64,
    /// The longest pauses in milliseconds.
    pause: f64,
    pause_before: f64,
    /// Milliseconds in which the gateway's threads were ready and had no core.
    waited: f64,
}

impl Fleet {
    fn start(world: &World, count: usize, settings: Settings) -> Result<Self> {
        let began = Instant::now();
        let gateway = world.start(Setup {
            more: count - 1,
            ..Setup::default()
        })?;
        let start_millis = began.elapsed().as_secs_f64() * 1e3;
        std::thread::sleep(settings.memory.2);
        let pss = gateway.process.pss()? as f64;
        let names = (1..count).map(idle_tenant).chain(["bench".to_owned()]);
        Ok(Self {
            gateway,
            names: names.collect(),
            start_millis,
            pss,
        })
    }

    /// Reloads under load; fails if a socket or an event is lost, or if the change has no effect.
    fn reload(mut self, world: &World, settings: Settings, run: usize) -> Result<Reload> {
        let mut swarm = Swarm::new(world.redis_port)?;
        let port = self.gateway.port;
        let ticket = |name| Ticket {
            tenant: name,
            route: "ws",
            n: 1,
            user: 1,
            token: 1,
        };
        let requests = self
            .names
            .iter()
            .map(|name| Ok((port, ticket(name).request()?)));
        swarm.open_all(Side::Apart, requests)?;
        let request = world.request_for("small", 1, 2)?;
        swarm.open_all(Side::Gateway, [Ok((port, request))])?;
        let groups = vec![(small_channel(1), 1)];
        let mut load = Load::start(&swarm, groups, STREAM_PER_SECOND);
        let window = settings.reload_window;
        load.run_until(&mut swarm, Instant::now() + window)?;
        swarm.begin_latencies();
        load.run_until(&mut swarm, Instant::now() + window)?;
        let pause_before = swarm.end_latencies().longest_pause as f64 / 1e6;

        // The tenant has one socket and `bench` has two, so both reach the second limit.
        let tenant = self.names[0].clone();
        let connections = LIMITS[(run + 1) % LIMITS.len()];
        let limit = Limit {
            tenant: tenant.clone(),
            line: format!("connections = {connections}"),
        };
        world.limit(&mut self.gateway, limit)?;
        swarm.begin_latencies();
        let cpu = self.gateway.process.cpu()?;
        let began = SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
        self.gateway.process.signal(Signal::HUP)?;
        let start = Instant::now();
        load.run_until(&mut swarm, start + window)?;
        let mut reloaded = self.gateway.metric(RELOADED, "")?;
        while reloaded < began {
            ensure!(start.elapsed() < PATIENCE, "the reload does not end");
            load.run_until(&mut swarm, Instant::now() + LOOK)?;
            reloaded = self.gateway.metric(RELOADED, "")?;
        }
        let pause = swarm.end_latencies().longest_pause as f64 / 1e6;
        let waited = self.gateway.process.cpu()?.waited_since(&cpu);
        load.finish(&mut swarm, settings)?;

        self.check_limit(&ticket(&tenant).request()?, connections)?;
        self.reach_all(&mut swarm)?;
        swarm.close_from(0);
        Ok(Reload {
            millis: (reloaded - began) * 1e3,
            pause,
            pause_before,
            waited: waited.as_secs_f64() * 1e3,
        })
    }

    /// Fails unless the reload was applied, and one more socket of the changed tenant is admitted as its limit says.
    fn check_limit(&self, request: &[u8], connections: u64) -> Result<()> {
        let successful = "lockgate_config_reload_successful";
        ensure!(
            self.gateway.metric(successful, "")? == 1.0,
            "the configuration was not applied"
        );
        let status = http::status_of(self.gateway.port, request)?;
        let expected = if connections == 1 { TOO_MANY } else { 101 };
        ensure!(
            status == expected,
            "the changed tenant answers {status}, not {expected}"
        );
        Ok(())
    }

    /// Sends one event to each tenant; fails unless each socket gets the event of its tenant.
    fn reach_all(&self, swarm: &mut Swarm) -> Result<()> {
        let due = swarm.tally(Side::Apart).frames + self.names.len() as u64;
        let channels = self
            .names
            .iter()
            .map(|name| format!("{name}__group__bench"));
        let channels: Vec<String> = channels.collect();
        swarm
            .publisher
            .publish(channels.iter().map(String::as_str))?;
        swarm.pump_frames(Side::Apart, due)?;
        ensure!(
            swarm.tally(Side::Apart).frames == due,
            "an event reached more than its tenant"
        );
        Ok(())
    }
}
