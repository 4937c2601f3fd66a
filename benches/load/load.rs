//! An open loop: events at a fixed rate, whatever comes back; every delivery is accounted for.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::settings::Settings;
use crate::swarm::{Side, Swarm};

/// Events under way in one write: a late loop catches up without blocking on Redis.
const AT_ONCE: u64 = 256;

/// Publishes round robin to groups.
pub(crate) struct Load {
    /// Channels, and how many sockets of [`Side::Gateway`] are in each.
    groups: Vec<(String, u64)>,
    per_second: f64,
    start: Instant,
    pub(crate) published: u64,
    /// Frames on the side of the gateway, once all has arrived.
    expected: u64,
    before: u64,
}

impl Load {
    /// Starts now.
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

    /// Publishes what is due and reads what is there; waits at most until `until` or the next event.
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

    /// Goes on until `until`.
    pub(crate) fn run_until(&mut self, swarm: &mut Swarm, until: Instant) -> Result<()> {
        while Instant::now() < until {
            self.step(swarm, until)?;
        }
        Ok(())
    }

    /// Waits for everything that was published; answers deliveries per second. Fails if a frame is missing, if one came
    /// twice, or if the events did not keep their pace where times are worth anything.
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
