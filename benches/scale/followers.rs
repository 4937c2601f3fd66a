//! The replicas of a trial's Redis. They share the load core; their own CPU is not measured.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::ports::free_port;
use crate::process::{LOAD_CORE, Process};
use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts so many replicas of the world's Redis, and waits until each follows it.
pub(crate) fn start(world: &mut World, count: usize) -> Result<Vec<Process>> {
    // By default a server waits five seconds for more replicas.
    let at_once: [&[u8]; 4] = [b"CONFIG", b"SET", b"repl-diskless-sync-delay", b"0"];
    world.link.call(&at_once)?;
    let started = (0..count).map(|_| spawn(world.dir.path(), world.redis_port));
    let mut followers = started.collect::<Result<Vec<_>>>()?;
    let deadline = Instant::now() + PATIENCE;
    while world.link.replicas_online()? < count {
        for follower in &mut followers {
            follower.check_alive().context("a replica of Redis")?;
        }
        ensure!(
            Instant::now() < deadline,
            "a replica of Redis does not follow"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(followers)
}

fn spawn(folder: &Path, master: u16) -> Result<Process> {
    let port = free_port();
    let own = folder.join(format!("follower-{port}"));
    fs::create_dir(&own)?;
    let log = File::create(own.join("redis.log"))?;
    Process::spawn(LOAD_CORE, Path::new("redis-server"), |command| {
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--replicaof", "127.0.0.1", &master.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&own)
            .stdout(log)
    })
}
