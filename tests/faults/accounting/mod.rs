//! The account of groups with history: clients that come back through every fault, and each event at each of them.
//!
//! Clients with `resume` keep the position of the last event that they have, and name it when they come back. Beside them
//! others do without, which shows what the faults cost. At the end each group's whole history is the truth: it has every event
//! whose publisher was answered, and a client must have all of it from its first position on, each event once, in order.

mod client;
mod ground;
mod javascript;
mod report;
mod scene;
mod tally;
mod world;

use std::time::{Duration, Instant};

use scene::{Fault, Scene, Sums};
use world::{Hosts, Run};

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Clients that come back with a position, and those of them that are of `clients/js`.
    pub(crate) clients: usize,
    pub(crate) javascript: usize,
    /// Clients that come back without one.
    pub(crate) without: usize,
    pub(crate) groups: usize,
    /// The time between two events of a publisher to a group.
    pub(crate) pace: Duration,
    /// The time before each fault, and after the last one.
    pub(crate) calm: Duration,
    /// `server.max_age`. A client that stands still must be able to be behind for 5 s before its age closes the socket.
    pub(crate) max_age: Duration,
    long: bool,
}

impl Size {
    pub(crate) const SHORT: Self = Self {
        clients: 36,
        javascript: 8,
        without: 24,
        groups: 4,
        pace: Duration::from_millis(100),
        calm: Duration::from_secs(1),
        max_age: Duration::from_secs(16),
        long: false,
    };
    pub(crate) const LONG: Self = Self {
        clients: 960,
        javascript: 40,
        without: 200,
        groups: 20,
        pace: Duration::from_millis(500),
        calm: Duration::from_secs(3),
        max_age: Duration::from_secs(20),
        long: true,
    };

    /// The same with so many clients that come back with a position, and the others in proportion.
    pub(crate) fn with_clients(self, clients: usize) -> Self {
        let all = self.clients + self.javascript;
        let part = |count: usize| (count * clients / all).max(1);
        Self {
            clients: clients.saturating_sub(part(self.javascript)).max(1),
            javascript: part(self.javascript),
            without: part(self.without),
            ..self
        }
    }

    /// The runs: in the long form every layer on one host and on three, plain and encrypted, behind Sentinels, and on a cluster.
    fn runs(self) -> Vec<Run> {
        let run = |layer, hosts, encrypted, django| Run {
            layer,
            hosts,
            encrypted,
            django,
        };
        let memory = run("memory", Hosts::None, false, false);
        let cluster = run("sharded", Hosts::Cluster, false, false);
        if !self.long {
            return vec![
                run("pubsub", Hosts::One, false, false),
                run("core", Hosts::Three, true, true),
                run("pubsub", Hosts::Sentinel, false, true),
                cluster,
                memory,
            ];
        }
        let mut runs = Vec::new();
        for layer in ["pubsub", "core"] {
            runs.push(run(layer, Hosts::One, false, false));
            runs.push(run(layer, Hosts::One, true, true));
            runs.push(run(layer, Hosts::Three, false, true));
            runs.push(run(layer, Hosts::Three, true, false));
            runs.push(run(layer, Hosts::Sentinel, false, layer == "core"));
        }
        runs.extend([cluster, memory]);
        runs
    }
}

/// A run with its sums.
struct Account {
    run: Run,
    faults: usize,
    sums: Sums,
    took: Duration,
}

impl Account {
    /// Returns what was wrong: lost events of clients with `resume` or of publishers, and a fault that was none.
    fn breaches(&self) -> Vec<&'static str> {
        let [with, _] = &self.sums.tallies;
        let breaches = [
            (!with.is_clean(), "clients with `resume`"),
            (self.sums.unrecorded > 0, "answered and not recorded"),
            (self.sums.again > 0, "recorded again for a repeated call"),
            (self.sums.too_slow == 0.0, "no client was closed as slow"),
        ];
        let breaches = breaches.into_iter().filter(|(is_so, _)| *is_so);
        breaches.map(|(_, what)| what).collect()
    }
}

/// Plays all runs, or those with these numbers. Returns true if all are clean.
pub(crate) async fn run(size: Size, numbers: &[u8], write: bool) -> bool {
    let mut accounts = Vec::new();
    for (number, run) in (1..).zip(size.runs()) {
        if !numbers.is_empty() && !numbers.contains(&number) {
            continue;
        }
        let account = play(run, size).await;
        println!("{number} {}", report::line(&account));
        accounts.push(account);
    }
    if write {
        report::publish(&accounts, size);
    }
    accounts.iter().all(|account| account.breaches().is_empty())
}

async fn play(run: Run, size: Size) -> Account {
    let started = Instant::now();
    let mut scene = Scene::set(run, size).await;
    scene.begin().await;
    let faults = Fault::of(run);
    for fault in &faults {
        tokio::time::sleep(size.calm).await;
        scene.play(*fault).await;
    }
    tokio::time::sleep(size.calm).await;
    let sums = scene.end().await;
    Account {
        run,
        faults: faults.len(),
        sums,
        took: started.elapsed(),
    }
}
