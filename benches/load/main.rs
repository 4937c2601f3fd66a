//! The load program: measures the costs of Lockgate, each beside its floor in the same run.
//!
//! `cargo bench --bench load [-- --quick | --brief] [--markdown] [--runs N] [--rows a,b] [--beside NOISE] [--gateway PATH] [--self-test]`
//!
//! It measures the CPU time of the server process per unit of work (user, system and the network stack that runs in its
//! name), its memory (PSS), and the time from PUBLISH to the socket. The server, gateway or floor, has a core of its own,
//! and the gateway has one worker (`TOKIO_WORKER_THREADS=1`). This program and Redis share the other core. Loopback
//! delivers in the sender's context, so a delivery here contains the receiver's part of TCP; with a network card that
//! part runs elsewhere. TLS, MySQL and several workers are not measured.
//!
//! The rows of whole deployments (`revocation`, `noisy`, `tenants`, `storm`, `history`, `resume`, `presence`, `shards`)
//! measure at the sockets. All replicas share the server's core, and the storm's PostgreSQL runs on the other. A row fails if
//! its number of frames, sockets or statements is wrong.
//!
//! `cargo test --bench load -- --brief` (`tests/run load`) runs each row for a moment with a debug build of the gateway.
//! It shows that the program works; its figures mean nothing.
//!
//! `--beside` runs only that row of `noisy`: `--rows noisy --beside slow-readers`.
//!
//! `--self-test` puts a bare relay in the gateway's place, to show the figures of a server that does almost nothing.

mod arrivals;
#[allow(dead_code, reason = "benches/scale needs the rest")]
mod cluster;
mod configuration;
mod connect_floor;
mod connects;
mod costs;
mod flood;
mod floor;
mod frames;
mod history;
mod http;
mod included;
mod latency;
mod load;
mod noisy;
mod nuisance;
#[path = "../../tests/gateway/support/ports.rs"]
mod ports;
mod postgres;
mod presence;
#[allow(dead_code, reason = "benches/scale needs the rest")]
mod process;
mod quiet;
#[allow(dead_code, reason = "benches/scale needs the rest")]
mod redis;
mod registered;
mod report;
mod resume;
mod revocation;
mod rows;
mod settings;
mod shards;
mod stamp;
mod storm;
#[allow(dead_code, reason = "benches/scale needs the rest")]
mod swarm;
mod tenants;
mod world;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::noisy::Noise;
use crate::report::{Report, Row};
use crate::rows::Stage;
use crate::settings::Settings;
use crate::world::World;

const ROWS: [&str; 15] = [
    "memory",
    "paced",
    "bursts",
    "saturated",
    "connects",
    "latency",
    "costs",
    "revocation",
    "noisy",
    "tenants",
    "storm",
    "history",
    "resume",
    "presence",
    "shards",
];
/// The gateway's allocator, so that the floors have no other costs of allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The rows that share one gateway and one floor.
const STAGED: [&str; 5] = ["paced", "bursts", "saturated", "connects", "latency"];
/// The rows that the stand-in for the gateway cannot run.
const WHOLE: [&str; 8] = [
    "revocation",
    "noisy",
    "tenants",
    "storm",
    "history",
    "resume",
    "presence",
    "shards",
];

struct Options {
    settings: Settings,
    rows: Vec<String>,
    markdown: bool,
    self_test: bool,
    gateway: PathBuf,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [process::PIN, ..] => process::become_pinned(&arguments[1..]),
        [floor::FLOOR] => floor::serve(),
        [flood::FLOOD, redis_port, port, timed] => {
            flood::run(redis_port.parse()?, port.parse()?, timed.parse()?)
        }
        [nuisance::NUISANCE, kind, redis, port, api] => {
            nuisance::run(kind, [redis.parse()?, port.parse()?, api.parse()?])
        }
        [connect_floor::CONNECT_FLOOR, port] => connect_floor::run(port.parse()?, None),
        [connect_floor::CONNECT_FLOOR, port, database] => {
            connect_floor::run(port.parse()?, Some(database.to_string()))
        }
        [floor::RELAY, port] => floor::relay(port.parse()?),
        // `cargo test` runs this program without `--bench`. Measuring takes minutes and a quiet machine.
        [] => {
            println!("measures only under `cargo bench --bench load`");
            Ok(())
        }
        _ => {
            let options = Options::parse(&arguments)?;
            let report = measure(&options)?;
            print!("{}", report.render(options.markdown));
            Ok(())
        }
    }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            settings: Settings::FULL,
            rows: ROWS.map(str::to_owned).into(),
            markdown: false,
            self_test: false,
            gateway: env!("CARGO_BIN_EXE_lockgate").into(),
        };
        let (mut runs, mut beside) = (None, None);
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || {
                rest.next()
                    .with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--bench" => {}
                "--quick" => options.settings = Settings::QUICK,
                "--brief" => options.settings = Settings::BRIEF,
                "--markdown" => options.markdown = true,
                "--self-test" => options.self_test = true,
                "--runs" => runs = Some(value()?.parse()?),
                "--gateway" => options.gateway = value()?.into(),
                "--beside" => beside = Some(Noise::named(value()?)?),
                "--rows" => options.rows = value()?.split(',').map(str::to_owned).collect(),
                other => bail!("no such option: {other}"),
            }
        }
        if let Some(unknown) = options
            .rows
            .iter()
            .find(|row| !ROWS.contains(&row.as_str()))
        {
            bail!("no such row: {unknown}; there are {}", ROWS.join(", "));
        }
        if options.self_test {
            options.rows.retain(|row| !WHOLE.contains(&row.as_str()));
        }
        options.settings.beside = beside;
        if let Some(runs) = runs {
            options.settings.runs = runs;
            options.settings.long_runs = runs;
        }
        Ok(options)
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.iter().any(|wanted| wanted == row)
    }
}

fn measure(options: &Options) -> Result<Report> {
    frames::check();
    progress("nothing yet: setting up");
    let limit = process::raise_descriptor_limit()?;
    let wanted = options.settings.memory.1 + 1_000;
    if limit < wanted {
        bail!("{wanted} descriptors are needed, the hard limit is {limit}");
    }
    process::pin_self(process::LOAD_CORE)?;
    let precedence = match options.settings.timed {
        true => process::take_precedence(),
        false => "",
    };
    let mut world = World::create(&options.gateway, options.self_test)?;
    let mut report = Report {
        runs: [options.settings.runs, options.settings.long_runs],
        load_before: report::load_average(),
        precedence,
        ..Report::default()
    };
    if options.wants("memory") {
        progress("memory");
        report
            .rows
            .push(rows::memory(&mut world, options.settings)?);
    }
    if STAGED.iter().any(|row| options.wants(row)) {
        on_stage(&mut world, options, &mut report)?;
    }
    if options.wants("costs") {
        progress("costs");
        report.costs = costs::measure(&mut world, options.settings)?;
    }
    type Measure = fn(&mut World, Settings) -> Result<Vec<Row>>;
    let whole: [(&str, Measure); 8] = [
        ("revocation", |world, settings| {
            revocation::measure(world, settings).map(Vec::from)
        }),
        ("noisy", noisy::measure),
        ("tenants", |world, settings| {
            let mut rows = Vec::from(tenants::measure(world, settings)?);
            rows.extend(included::measure(world, settings)?);
            rows.extend(registered::measure(world, settings)?);
            Ok(rows)
        }),
        ("storm", |world, settings| {
            storm::measure(world, settings).map(Vec::from)
        }),
        ("history", |world, settings| {
            let mut rows = history::measure(world, settings)?;
            rows.extend(quiet::measure(world, settings)?);
            Ok(rows)
        }),
        ("resume", resume::measure),
        ("presence", presence::measure),
        ("shards", shards::measure),
    ];
    for (name, row) in whole {
        if options.wants(name) {
            progress(name);
            let rows = row(&mut world, options.settings).with_context(|| name)?;
            report.rows.extend(rows);
        }
    }
    Ok(report)
}

/// Measures [`STAGED`].
fn on_stage<'a>(world: &'a mut World, options: &Options, report: &mut Report) -> Result<()> {
    let mut stage = Stage::set(world, options.settings)?;
    type Measure<'a> = fn(&mut Stage<'a>) -> Result<Row>;
    let single: [(&str, Measure<'a>); 3] = [
        ("paced", Stage::paced),
        ("bursts", Stage::bursts),
        ("saturated", Stage::saturated),
    ];
    for (name, row) in single {
        if options.wants(name) {
            progress(name);
            report.rows.push(row(&mut stage).with_context(|| name)?);
        }
    }
    if options.wants("connects") {
        progress("connects");
        report.rows.extend(stage.connects().context("connects")?);
    }
    if options.wants("latency") {
        progress("latency");
        report.rows.extend(stage.latency().context("latency")?);
    }
    Ok(())
}

fn progress(row: &str) {
    let seconds = stamp::now() / 1_000_000_000;
    eprintln!("{seconds:4} s: measuring {row}");
}
