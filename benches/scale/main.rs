//! Capacity on paper: the fleet that a described deployment needs, out of unit costs that were measured.
//!
//! `cargo bench --bench scale -- FILE…` answers for the deployments of each file: replicas, shards, memory, the bottleneck, what breaks first
//! at ten times, and the storm after a zone's loss. It measures nothing and reads `benches/scale/units.toml`.
//!
//! `-- --calibrate` plays the deployments of `calibration.toml` with real replicas and a real Redis, and writes the unit
//! costs. `-- --check` plays those of `checks.toml`, which are others, and fails if a prediction is wrong by more than a quarter.
//! `--write` puts the tables into `docs/scale.md`. `--runs N`, `--gateway PATH`.
//!
//! All replicas share a core, Redis and this program the other, as in the load program, whose parts these are.
//!
//! `cargo test --bench scale -- --brief` (`tests/run load`) does all of it for a moment and writes nothing.

mod answer;
mod calibrate;
mod check;
mod deployment;
mod fit;
mod followers;
mod model;
mod plan;
mod positions;
mod proofs;
mod rhythm;
mod storm;
mod tables;
mod trial;
mod units;

// The parts of the load program that start servers and clients.
#[path = "../load/arrivals.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod arrivals;
#[path = "../load/cluster.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod cluster;
#[path = "../load/configuration.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod configuration;
#[path = "../load/floor.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod floor;
#[path = "../load/frames.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod frames;
#[path = "../load/http.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod http;
#[path = "../../tests/gateway/support/ports.rs"]
mod ports;
#[path = "../load/process.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod process;
#[path = "../load/redis.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod redis;
#[path = "../load/report.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod report;
#[path = "../load/stamp.rs"]
mod stamp;
#[path = "../load/swarm.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod swarm;
#[path = "../load/world.rs"]
#[allow(dead_code, reason = "the load program needs the rest")]
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::deployment::Deployment;
use crate::trial::{Lengths, Measured};
use crate::units::Units;

const FULL: Lengths = Lengths {
    settle: Duration::from_secs(1),
    warm: Duration::from_secs(1),
    measured: Duration::from_secs(6),
};
const BRIEF: Lengths = Lengths {
    settle: Duration::from_millis(100),
    warm: Duration::from_millis(100),
    measured: Duration::from_millis(600),
};

struct Options {
    calibrate: bool,
    check: bool,
    brief: bool,
    write: bool,
    runs: usize,
    gateway: PathBuf,
    files: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == process::PIN) {
        return process::become_pinned(&arguments[1..]);
    }
    if arguments == [floor::FLOOR] {
        return floor::serve();
    }
    let options = Options::parse(&arguments)?;
    if options.brief {
        return in_brief(&options);
    }
    // A prediction that is wrong fails the program, after the answers are written: they belong to the same units.
    let checked = measure(&options)?;
    if !options.files.is_empty() || options.write {
        answer(&options)?;
    }
    ensure!(
        checked.is_empty(),
        "predictions that are wrong by more than a quarter: {}",
        checked.join("; ")
    );
    Ok(())
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            calibrate: false,
            check: false,
            brief: false,
            write: false,
            runs: 3,
            gateway: env!("CARGO_BIN_EXE_lockgate").into(),
            files: Vec::new(),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || {
                rest.next()
                    .with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--bench" => {}
                "--calibrate" => options.calibrate = true,
                "--check" => options.check = true,
                "--brief" => options.brief = true,
                "--write" => options.write = true,
                "--runs" => options.runs = value()?.parse()?,
                "--gateway" => options.gateway = value()?.into(),
                other if other.starts_with('-') => bail!("no such option: {other}"),
                file => options.files.push(file.into()),
            }
        }
        ensure!(options.runs > 0, "--runs 0: at least 1");
        let asked = options.calibrate || options.check || options.brief || options.write;
        if !asked && options.files.is_empty() {
            println!(
                "needs a file of deployments, such as benches/scale/answers.toml, or --calibrate, --check or --brief"
            );
        }
        Ok(options)
    }
}

/// Returns the path of a file beside this one.
fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("benches/scale")
        .join(name)
}

/// Takes the load program's core, and the descriptors of a trial.
fn prepare() -> Result<()> {
    frames::check();
    let limit = process::raise_descriptor_limit()?;
    ensure!(
        limit >= 8_000,
        "8000 descriptors are needed, the hard limit is {limit}"
    );
    process::pin_self(process::LOAD_CORE)?;
    process::take_precedence();
    Ok(())
}

/// Calibrates and checks as the options say. Returns the predictions that are wrong by more than the tolerance.
fn measure(options: &Options) -> Result<Vec<String>> {
    if !options.calibrate && !options.check {
        return Ok(Vec::new());
    }
    let read = |is_wanted: bool, file: &str| match is_wanted {
        true => deployment::read(&own(file)),
        false => Ok(Vec::new()),
    };
    let calibration = read(options.calibrate, "calibration.toml")?;
    let checks = read(options.check, "checks.toml")?;
    prepare()?;
    let load = report::load_average();
    let lists = [&calibration[..], &checks];
    let [calibrated, checked] = trial::play_all(&options.gateway, lists, FULL, options.runs)?;
    let units = match options.calibrate {
        true => {
            let units = calibrate::calibrate(&calibration, &calibrated, (FULL, &load))?;
            units.save(&own("units.toml"))?;
            units
        }
        false => Units::load(&own("units.toml"))?,
    };
    match options.check {
        true => judge(options, &units, (&checks, &checked), &load),
        false => Ok(Vec::new()),
    }
}

fn judge(
    options: &Options,
    units: &Units,
    (deployments, tally): (&[Deployment], &[Vec<Measured>]),
    load: &str,
) -> Result<Vec<String>> {
    let outcome = check::check(units, deployments, tally)?;
    let table = format!(
        "{}; commit {}; load average {load} before; median, runs of each deployment: {}. A cell is predicted / measured = ratio. A bare `write()` took {:.2} of that of the calibration, and predicted CPU is so much of its costs.\n\n{}",
        report::machine(),
        report::commit(),
        options.runs,
        outcome.speed,
        outcome.table
    );
    print!("{table}");
    if options.write {
        write("check", &table)?;
    }
    Ok(outcome.wrong)
}

fn answer(options: &Options) -> Result<()> {
    let units = Units::load(&own("units.toml"))?;
    for file in &options.files {
        print!("{}", answer::answers(&units, &deployment::read(file)?)?);
    }
    if options.write {
        let deployments = deployment::read(&own("answers.toml"))?;
        write("units", &units.table()?)?;
        write("answers", &answer::answers(&units, &deployments)?)?;
    }
    Ok(())
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scale.md")
}

/// Puts a text between its marks in the page.
fn write(mark: &str, text: &str) -> Result<()> {
    let page = page();
    let old = fs::read_to_string(&page)?;
    let [begin, end] = ["begin", "end"].map(|edge| format!("<!-- {mark}: {edge} -->\n"));
    let (before, rest) = old.split_once(&begin).context(begin.clone())?;
    let (_, after) = rest.split_once(&end).context(end.clone())?;
    Ok(fs::write(
        &page,
        format!("{before}{begin}{text}{end}{after}"),
    )?)
}

/// Shows that all of it works, also on a busy machine and with a debug build of the gateway.
fn in_brief(options: &Options) -> Result<()> {
    proofs::run()?;
    prepare()?;
    let small = |file: &str| -> Result<Vec<Deployment>> {
        let deployments = deployment::read(&own(file))?;
        Ok(deployments.iter().map(Deployment::in_brief).collect())
    };
    calibrate::verify(
        &deployment::read(&own("calibration.toml"))?,
        &Units::load(&own("units.toml"))?,
    )?;
    let (calibration, checks) = (small("calibration.toml")?, small("checks.toml")?);
    let lists = [&calibration[..], &checks];
    let [calibrated, checked] = trial::play_all(&options.gateway, lists, BRIEF, 1)?;
    let units = calibrate::calibrate(&calibration, &calibrated, (BRIEF, "-"))?;
    let outcome = check::check(&units, &checks, &checked)?;
    print!("{}", outcome.table);
    // The figures of the moment mean nothing; those of the file must be complete, and the answers those of the page.
    let units = Units::load(&own("units.toml"))?;
    let answers = answer::answers(&units, &deployment::read(&own("answers.toml"))?)?;
    print!("{answers}");
    ensure!(
        fs::read_to_string(page())?.contains(&answers),
        "docs/scale.md has other answers: `cargo bench --bench scale -- --write` puts these there"
    );
    Ok(())
}
