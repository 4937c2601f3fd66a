//! The rhythms of a trial: events, sockets that go and come back, revocations.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::http::Api;
use crate::redis::Record;
use crate::swarm::Swarm;
use crate::world::{Gateway, TOKEN_SECONDS, jti};

/// Calls of the API under way at once.
const CALLS: usize = 8;
/// The number of the first revoked token; no socket has one of these.
const FIRST_TOKEN: u64 = 1_000_000;

/// The events of one kind of groups, evenly in time and in turn over the groups.
pub(crate) struct Stream {
    pub(crate) groups: Vec<Busy>,
    pub(crate) next_group: usize,
    pub(crate) history: bool,
    pub(crate) burst: u64,
    pub(crate) beat: Beat,
}

/// A group of a stream.
pub(crate) struct Busy {
    pub(crate) channel: String,
    /// Its sockets that stay.
    pub(crate) sockets: u64,
    pub(crate) published: u64,
}

/// An even rhythm.
pub(crate) struct Beat {
    pub(crate) start: Instant,
    pub(crate) per_second: f64,
    pub(crate) done: u64,
}

impl Beat {
    pub(crate) fn new(per_second: f64) -> Self {
        Self {
            start: Instant::now(),
            per_second,
            done: 0,
        }
    }

    /// Returns the beats that are due and not yet done.
    pub(crate) fn due(&self) -> u64 {
        let due = (self.start.elapsed().as_secs_f64() * self.per_second) as u64;
        due.saturating_sub(self.done)
    }

    /// Returns the time of the next beat; none in silence.
    pub(crate) fn next(&self) -> Option<Instant> {
        let seconds = (self.done + 1) as f64 / self.per_second;
        (self.per_second > 0.0).then(|| self.start + Duration::from_secs_f64(seconds))
    }
}

/// Sockets that go and come back: the oldest goes, and its user comes back at once, to a replica by chance.
pub(crate) struct Churn {
    pub(crate) sockets: VecDeque<(usize, u64)>,
    /// Those that were not open again when they were to go.
    pub(crate) late: u64,
    pub(crate) beat: Beat,
}

/// Revocations of tokens without a socket, through the API of each replica in turn.
pub(crate) struct Revoking {
    pub(crate) apis: Vec<(Api, bool)>,
    pub(crate) next: u64,
    pub(crate) beat: Beat,
}

impl Stream {
    /// Publishes what is due; returns the frames that it makes at the sockets that stay.
    pub(crate) fn publish(&mut self, swarm: &mut Swarm) -> Result<u64> {
        let mut frames = 0;
        for _ in 0..self.beat.due() {
            self.beat.done += 1;
            let next = (self.next_group + 1) % self.groups.len();
            let group = &mut self.groups[self.next_group];
            self.next_group = next;
            frames += group.sockets * self.burst;
            group.published += self.burst;
            let channel = group.channel.as_str();
            match self.history {
                true => swarm.publisher.record(&Record::to(channel), self.burst)?,
                false => {
                    let channels = std::iter::repeat_n(channel, self.burst as usize);
                    swarm.publisher.publish(channels)?;
                }
            }
        }
        Ok(frames)
    }
}

impl Revoking {
    /// Connects to the API of each replica, if there is something to revoke.
    pub(crate) fn start(replicas: &[Gateway], per_second: f64) -> Result<Self> {
        let ports = replicas.iter().filter_map(|replica| replica.api);
        let ports: Vec<u16> = ports.collect();
        let apis = ports.iter().cycle().take(match ports.len() {
            0 => 0,
            _ => CALLS,
        });
        let apis = apis.map(|port| Ok((Api::connect(*port)?, false)));
        Ok(Self {
            apis: apis.collect::<Result<_>>()?,
            next: FIRST_TOKEN,
            beat: Beat::new(per_second),
        })
    }

    /// Begins the calls that are due, as far as a connection is free. Fails if the API does not keep up.
    pub(crate) fn step(&mut self) -> Result<()> {
        self.read()?;
        let due = self.beat.due();
        ensure!(
            due < 10 * CALLS as u64,
            "revocations_per_second: the API does not keep up with {}",
            self.beat.per_second
        );
        for _ in 0..due {
            let Some((api, asked)) = self.apis.iter_mut().find(|(_, asked)| !asked) else {
                break;
            };
            let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
            let body = json!({ "jti": jti(self.next), "exp": now + TOKEN_SECONDS });
            api.begin("POST", "/v1/tenants/bench/revocations", &body.to_string())?;
            (*asked, self.next) = (true, self.next + 1);
            self.beat.done += 1;
            // The next call goes to another replica.
            self.apis.rotate_left(1);
        }
        Ok(())
    }

    /// Takes the answers that have come; returns true if none is missing.
    pub(crate) fn read(&mut self) -> Result<bool> {
        for (api, asked) in self.apis.iter_mut().filter(|(_, asked)| *asked) {
            if let Some((status, body)) = api.poll()? {
                ensure!(status == 200, "the API answers {status}: {body}");
                *asked = false;
            }
        }
        Ok(self.apis.iter().all(|(_, asked)| !asked))
    }
}
