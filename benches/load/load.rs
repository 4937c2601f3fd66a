//! An open loop: it publishes events at a fixed rate, without waiting for deliveries, and counts each delivery.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::arrivals::Side;
use crate::settings::Settings;
use crate::swarm::Swarm;

/// The most events in one write, so that a late loop catches up without blocking on Redis.
const AT_ONCE: u64 = 256;

/// Publishes to groups in turn.
pub(crate) struct Load {
    /// The channels, each with its number of sockets of [`Side::Gateway`].
    groups: Vec<(String, u64)>,
    per_second: f64,
    start: Instant,
    pub(crate) published: u64,
    /// The number of frames at the gateway's sockets when all have arrived.
    expected: u64,
    before: u64,
}

impl Load {
    /// Creates a load that starts now.
    pub(crate) fn start(swarm: &Swarm, groups: Vec<(String, u64)>, per_second: f64) -> Self {
        let before = swarm.tally(Side::Gateway).frames;
        Self {
            groups,
            per_second,
            start: Instant::now(),
            published: 0,
            expected: before,
            before,
        }
    }

    /// Publishes the events that are due and reads; waits until the next event, or until `until` if that is earlier.
    pub(crate) fn step(&mut self, swarm: &mut Swarm, until: Instant) -> Result<()> {
        let due = (self.start.elapsed().as_secs_f64() * self.per_second) as u64 + 1;
        let groups = self.groups.len() as u64;
        let count = (due - self.published).min(AT_ONCE);
        let batch = (self.published..self.published + count)
            .map(|event| &self.groups[(event % groups) as usize]);
        self.expected += batch.clone().map(|(_, sockets)| sockets).sum::<u64>();
        swarm
            .publisher
            .publish(batch.map(|(channel, _)| channel.as_str()))?;
        self.published += count;
        let next = self.start + Duration::from_secs_f64(self.published as f64 / self.per_second);
        swarm.turn(until.min(next))?;
        swarm.check_open()
    }

    /// Publishes and reads until `until`.
    pub(crate) fn run_until(&mut self, swarm: &mut Swarm, until: Instant) -> Result<()> {
        while Instant::now() < until {
            self.step(swarm, until)?;
        }
        Ok(())
    }

    /// Waits for all deliveries and returns their number per second. Fails if a frame is missing or came twice, or if
    /// the events did not keep their pace in a run whose times count.
    pub(crate) fn finish(self, swarm: &mut Swarm, settings: Settings) -> Result<f64> {
        let wall = self.start.elapsed().as_secs_f64();
        swarm.pump_frames(Side::Gateway, self.expected)?;
        let frames = swarm.tally(Side::Gateway).frames;
        ensure!(
            frames == self.expected,
            "{frames} frames arrived where {} were due",
            self.expected
        );
        let rate = self.published as f64 / wall;
        ensure!(
            !settings.timed || rate >= 0.95 * self.per_second,
            "{rate:.0} events/s were published, not {:.0}",
            self.per_second
        );
        Ok((frames - self.before) as f64 / wall)
    }
}
