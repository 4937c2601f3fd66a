//! The latency row: the time from PUBLISH to the socket, beside a bare subscriber of the same events.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::arrivals::{Side, quantile};
use crate::report::{Row, Series, Target};
use crate::rows::{PACE, Stage};
use crate::world::{SMALL_GROUPS, small_channel};

/// The first rate of the search for half load; any gateway sustains it.
const FIRST_RATE: f64 = 2_000.0;

/// The result of publishing at a fixed rate: sorted latencies in nanoseconds, and the load of both cores in percent.
struct OpenLoop {
    sockets: Vec<u64>,
    subscriber: Vec<u64>,
    busy: [f64; 2],
}

impl Stage<'_> {
    /// Measures the latency from publish to arrival, p50 and p99, at the rate at which the busier core is half busy.
    ///
    /// The groups are small. With 1,000 sockets in one group the row would show only the time of 1,000 writes.
    pub(crate) fn latency(&mut self) -> Result<[Row; 2]> {
        let (members, probe, lasting) = self.settings.latency;
        let mark = self.swarm.mark();
        let (world, port) = (&*self.world, self.gateway.port);
        let requests = (1..=members * SMALL_GROUPS).map(|user| {
            let group = 1 + user % SMALL_GROUPS;
            Ok((port, world.request_for("small", group, user)?))
        });
        self.swarm.open_all(Side::Gateway, requests)?;
        let channels: Vec<String> = (1..=SMALL_GROUPS).map(small_channel).collect();
        self.swarm.subscribe(self.world.redis_port, &channels)?;
        let row = |what, target| Row::new(what, "µs", target);
        let mut rows = [
            row("latency Redis to socket at half load, p50", Target::None),
            row(
                "latency Redis to socket at half load, p99",
                Target::Ratio(2.0),
            ),
        ];
        let mut rates = Series::default();
        let mut busy = [Series::default(), Series::default()];
        for _ in 0..self.settings.runs {
            let mut rate = FIRST_RATE;
            for _ in 0..3 {
                let step = self.publish_at(rate, &channels, probe)?;
                rate *= 50.0 / step.busy[0].max(step.busy[1]);
            }
            let run = self.publish_at(rate, &channels, lasting)?;
            rates.0.push(rate);
            for (series, percent) in busy.iter_mut().zip(run.busy) {
                series.0.push(percent);
            }
            for (row, part) in rows.iter_mut().zip([0.5, 0.99]) {
                row.gateway.0.push(quantile(&run.sockets, part));
                row.floor.0.push(quantile(&run.subscriber, part));
            }
        }
        self.swarm.unsubscribe();
        self.swarm.close_from(mark);
        rows[1].note = format!(
            "{:.0} events/s, round robin over {SMALL_GROUPS} groups of {members} socket each, the gateway's core {:.0} % and the other \
             {:.0} % busy; the floor is a bare subscriber of all groups in the same loop",
            rates.median(),
            busy[0].median(),
            busy[1].median(),
        );
        Ok(rows)
    }

    /// Publishes at `rate` per second, without waiting for deliveries.
    fn publish_at(
        &mut self,
        rate: f64,
        channels: &[String],
        lasting: Duration,
    ) -> Result<OpenLoop> {
        let cpu = (self.gateway.process.cpu()?, self.world.load_cpu()?);
        let before = self.swarm.tally(Side::Gateway).frames;
        let mut names = channels.iter().map(String::as_str).cycle();
        self.swarm.begin_latencies();
        let start = Instant::now();
        let mut published = 0;
        while start.elapsed() < lasting {
            let due = (start.elapsed().as_secs_f64() * rate) as u64 + 1;
            let batch = names.by_ref().take((due - published) as usize);
            self.swarm.publisher.publish(batch)?;
            published = due;
            let next = start + Duration::from_secs_f64(due as f64 / rate);
            self.swarm.turn(next)?;
        }
        let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / start.elapsed().as_secs_f64();
        let after = (self.gateway.process.cpu()?, self.world.load_cpu()?);
        let load = after
            .1
            .iter()
            .zip(&cpu.1)
            .map(|(now, then)| now.since(then));
        let busy = [percent(after.0.since(&cpu.0)), percent(load.sum())];
        let deliveries = published * self.settings.latency.0;
        self.swarm.pump_frames(Side::Gateway, before + deliveries)?;
        self.swarm.pump_until(Instant::now() + PACE)?;
        let mut latencies = self.swarm.end_latencies();
        let seen = latencies.subscriber.len() as u64;
        ensure!(
            seen == published,
            "the bare subscriber saw {seen} of {published} events"
        );
        latencies.sockets.sort_unstable();
        latencies.subscriber.sort_unstable();
        Ok(OpenLoop {
            sockets: latencies.sockets,
            subscriber: latencies.subscriber,
            busy,
        })
    }
}
