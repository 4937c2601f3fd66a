//! The rows of tenants in included files, one in each: the check of the configuration, the start, and one changed file while
//! `watch` is on, with the CPU time of its reload.
//!
//! The floor of check and start is a configuration with one such file. That of the reload's CPU time is as long a time in which
//! `watch` finds no change.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::configuration::file_tenant;
use crate::http;
use crate::report::{Row, Target};
use crate::settings::Settings;
use crate::world::{Gateway, Setup, Ticket, World, idle_tenant};

/// The longest time for a changed file to be live before the run fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks whether it is.
const LOOK: Duration = Duration::from_millis(5);

/// Measures check, start and one changed file.
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<[Row; 4]> {
    let count = settings.files;
    let row = |what: &str, target| Row::new(format!("{what}, {count} files"), "ms", target);
    let mut rows = [
        row("config check", Target::None),
        row("start with included files", Target::None),
        row("a changed file live by watch", Target::Value(2_000.0)),
        row("CPU of that reload", Target::None),
    ];
    for run in 0..settings.long_runs {
        let (one_start, one) = started(world, 1)?;
        let one_check = world.check(&one)?.as_secs_f64() * 1e3;
        drop(one);
        let (start, gateway) = started(world, count)?;
        rows[1].push(start, one_start);
        std::thread::sleep(settings.memory.2);
        let (live, cpu) = change(&gateway, count, run)?;
        // As long a time without a change.
        let before = gateway.process.cpu()?;
        std::thread::sleep(Duration::from_secs_f64(live / 1e3));
        let idle = gateway.process.cpu()?.since(&before).as_secs_f64() * 1e3;
        rows[2].gateway.0.push(live);
        rows[3].push(cpu, idle);
        // Not beside a replica that works.
        let check = world.check(&gateway)?;
        rows[0].push(check.as_secs_f64() * 1e3, one_check);
    }
    rows[0].note = "a tenant in each file; the floor is one file".to_owned();
    rows[1].note = "until /readyz answers 200; every tenant of a file is made at the start; the floor is one file".to_owned();
    rows[2].note =
        "from the renaming of a file with another host until that host opens a socket".to_owned();
    rows[3].note = "the floor is as long a time in which no file changes".to_owned();
    Ok(rows)
}

/// Starts a replica with so many files. Returns the milliseconds until it is ready.
fn started(world: &World, files: usize) -> Result<(f64, Gateway)> {
    let began = Instant::now();
    let gateway = world.start(Setup {
        files,
        ..Setup::default()
    })?;
    Ok((began.elapsed().as_secs_f64() * 1e3, gateway))
}

/// Gives the tenant of the last file another host. Returns the milliseconds until it is served, and those of CPU meanwhile.
fn change(gateway: &Gateway, count: usize, run: usize) -> Result<(f64, f64)> {
    let name = idle_tenant(count);
    let host = format!("{name}-{run}");
    let ticket = Ticket {
        tenant: &host,
        route: "ws",
        n: 1,
        user: 1,
        token: 1,
    };
    let request = ticket.request()?;
    ensure!(
        http::status_of(gateway.port, &request)? == 404,
        "the new host is there before the change"
    );
    let folder = gateway.folder();
    // In one step, as a careful writer does it; and not seen by `include` before.
    let written = folder.join("next");
    fs::write(&written, file_tenant(&name, &host))?;
    let before = gateway.process.cpu()?;
    let began = Instant::now();
    fs::rename(&written, folder.join(format!("{name}.toml")))?;
    while http::status_of(gateway.port, &request)? != 101 {
        ensure!(began.elapsed() < PATIENCE, "the changed file is not served");
        std::thread::sleep(LOOK);
    }
    let live = began.elapsed().as_secs_f64() * 1e3;
    let cpu = gateway.process.cpu()?.since(&before);
    Ok((live, cpu.as_secs_f64() * 1e3))
}
