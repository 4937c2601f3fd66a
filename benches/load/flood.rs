//! The noisy neighbour: a separate process with the sockets of one tenant and a publisher that does not wait.
//!
//! The program that takes the times has precedence over it, so that reading the flood delays no measurement. It obeys
//! commands on standard input: `open N`, `flood EVENTS_PER_SECOND MILLISECONDS`.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::arrivals::Side;
use crate::process::{LOAD_CORE, Process, give_precedence};
use crate::swarm::Swarm;
use crate::world::{Ticket, idle_tenant};

/// The first argument of this program when it is the neighbour.
pub(crate) const FLOOD: &str = "__flood";
/// Events in one write to Redis.
const BATCH: u64 = 128;
/// The time between answers to pings while no event is due.
const IDLE: Duration = Duration::from_millis(100);

/// The tenant of the neighbour.
pub(crate) fn tenant() -> String {
    idle_tenant(1)
}

/// A handle of the load program to the neighbour.
pub(crate) struct Flood {
    _process: Process,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// The result of a flood.
pub(crate) struct Flooded {
    pub(crate) published: u64,
    /// The number of frames that arrived at its sockets.
    pub(crate) frames: u64,
    /// The number of its sockets that the gateway has closed so far.
    pub(crate) closed: u64,
}

impl Flood {
    /// Starts the neighbour with `sockets` sockets of [`tenant`] on the gateway at `port`. In a run without times it has as much of
    /// its core as all others.
    pub(crate) fn start(redis_port: u16, port: u16, sockets: u64, timed: bool) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Process::spawn(LOAD_CORE, &program, |command| {
            command
                .args([
                    FLOOD,
                    &redis_port.to_string(),
                    &port.to_string(),
                    &timed.to_string(),
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
        })?;
        let commands = process.child().stdin.take().context("no stdin")?;
        let stdout = process.child().stdout.take().context("no stdout")?;
        let mut this = Self {
            _process: process,
            commands,
            answers: BufReader::new(stdout),
        };
        this.command(&format!("open {sockets}"))?;
        this.done()?;
        Ok(this)
    }

    /// Begins to publish for `lasting` and returns at once; [`Flood::done`] waits for the end.
    pub(crate) fn begin(&mut self, per_second: f64, lasting: Duration) -> Result<()> {
        self.command(&format!("flood {per_second:.0} {}", lasting.as_millis()))
    }

    fn command(&mut self, text: &str) -> Result<()> {
        writeln!(self.commands, "{text}")?;
        Ok(self.commands.flush()?)
    }

    /// Waits for the end of the flood that was begun.
    pub(crate) fn done(&mut self) -> Result<Flooded> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the flood ended");
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("the flood says {line:?}"))?;
        let [published, frames, closed] = numbers[..] else {
            bail!("the flood says {line:?}");
        };
        Ok(Flooded {
            published,
            frames,
            closed,
        })
    }
}

/// The main function of the neighbour.
pub(crate) fn run(redis_port: u16, port: u16, timed: bool) -> Result<()> {
    if timed {
        give_precedence()?;
    }
    let mut swarm = Swarm::new(redis_port)?;
    let (sender, commands) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    loop {
        let line = match commands.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => {
                swarm.turn(Instant::now())?;
                match commands.recv_timeout(IDLE) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        };
        let words: Vec<&str> = line.split(' ').collect();
        let before = swarm.tally(Side::Gateway).frames;
        let published = match words[..] {
            ["open", count] => {
                let tenant = tenant();
                let requests = (1..=count.parse::<u64>()?).map(|user| {
                    let ticket = Ticket {
                        tenant: &tenant,
                        route: "ws",
                        n: user,
                        user,
                        token: user,
                    };
                    Ok((port, ticket.request()?))
                });
                swarm.open_all(Side::Gateway, requests)?;
                0
            }
            ["flood", per_second, millis] => {
                let lasting = Duration::from_millis(millis.parse()?);
                publish(&mut swarm, per_second.parse()?, lasting)?
            }
            _ => bail!("no such command: {line}"),
        };
        let tally = swarm.tally(Side::Gateway);
        println!("{published} {} {}", tally.frames - before, tally.closed);
    }
}

/// Publishes the events that are due and reads. Sockets that the gateway closes are counted and do not fail the run.
fn publish(swarm: &mut Swarm, per_second: f64, lasting: Duration) -> Result<u64> {
    let channel = format!("{}__group__bench", tenant());
    let start = Instant::now();
    let mut published = 0;
    while start.elapsed() < lasting {
        let due = (start.elapsed().as_secs_f64() * per_second) as u64 + 1;
        let count = (due - published).min(BATCH);
        let batch = std::iter::repeat_n(channel.as_str(), count as usize);
        swarm.publisher.publish(batch)?;
        published += count;
        let next = start + Duration::from_secs_f64(published as f64 / per_second);
        swarm.turn(next)?;
    }
    Ok(published)
}
