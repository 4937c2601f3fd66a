//! A run as it is played: clients, publishers, and the faults that they meet.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Size;
use super::client::{Log, Phase};
use super::ground::{Addresses, Ground, begin_numbers, end_numbers, publishers};
use super::javascript::JsClients;
use super::tally::Tally;
use super::world::{Hosts, Run, World};
use crate::support::eventually;
use crate::support::proxy::{Line, Proxy};
use crate::support::replica::Replica;

/// The longest wait for the end of a replica that drains, and for all events at all clients.
const LONG: Duration = Duration::from_secs(90);
/// How long links are cut, and slow clients take nothing: longer than the 5 s in which a gateway wants progress.
const CUT: Duration = Duration::from_millis(1500);
const SLOW: Duration = Duration::from_secs(9);
/// How long a replica is stopped: longer than the 3 s after which it takes its own links for lost.
const FROZEN: Duration = Duration::from_secs(4);
/// The most bursts until a slow client is closed. `server.max_age` may close all of them before they count as slow.
const BURSTS: usize = 6;
/// The close code of a slow client.
const TOO_SLOW: (&str, &str) = ("code", "4008");
/// The time after which the door of the clients in Node leads to the other replica.
const TURN: Duration = Duration::from_millis(700);
/// The most events in a page of a history.
const PAGE: usize = 100;
/// The time in which an event that comes twice, or to others, would come.
const LATE: Duration = Duration::from_secs(1);

/// A fault of a run. `server.max_age` closes sockets all the time beside them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// `kill -9` of a replica, and another in its place.
    Killed(usize),
    /// The replicas are drained and replaced, one after the other.
    Rollout,
    /// The links of a replica to all hosts end and stay away for a while.
    Cut(usize),
    /// A replica is stopped (SIGSTOP) for a while, and goes on.
    Frozen(usize),
    /// Each host ends all links at once.
    LinksKilled,
    /// The connections of all clients are reset, and new ones for a while.
    ClientsCut,
    /// A changed setting is loaded, which closes all sockets.
    Reload,
    /// Some clients of a group stand still while more is sent to it than their queues hold.
    Slow,
    /// A master dies with its data at its replicas, and Sentinels name another, or the cluster does.
    FailOver,
    /// The slots of all groups go to other masters of the cluster.
    SlotsMove,
}

impl Fault {
    /// The faults of a run, in their order.
    pub(crate) fn of(run: Run) -> Vec<Self> {
        use Fault::{
            ClientsCut, Cut, FailOver, Frozen, Killed, LinksKilled, Reload, Rollout, SlotsMove,
            Slow,
        };
        match run.hosts {
            Hosts::None => vec![Reload, ClientsCut, Slow],
            Hosts::Sentinel => vec![Killed(0), FailOver, Rollout, Slow, LinksKilled, Killed(1)],
            Hosts::Cluster => vec![
                Killed(0),
                SlotsMove,
                Slow,
                FailOver,
                Rollout,
                LinksKilled,
                Killed(1),
            ],
            Hosts::One | Hosts::Three => vec![
                Killed(0),
                Cut(1),
                Slow,
                Rollout,
                LinksKilled,
                Reload,
                ClientsCut,
                Cut(0),
                Frozen(1),
                Killed(1),
            ],
        }
    }
}

/// The sums of a run.
pub(crate) struct Sums {
    pub(crate) events: usize,
    /// Events whose publisher was told that they are recorded, and that no history has.
    pub(crate) unrecorded: usize,
    /// Events that a history has again, because their publisher repeated its call.
    pub(crate) again: usize,
    /// Of clients with `resume`, and without.
    pub(crate) tallies: [Tally; 2],
    /// Sockets that were closed as too slow. Their clients see a cut.
    pub(crate) too_slow: f64,
}

/// All that runs.
pub(crate) struct Scene {
    size: Size,
    world: World,
    ground: Arc<Ground>,
    phase: watch::Sender<Phase>,
    publishing: watch::Sender<bool>,
    clients: JoinSet<Log>,
    /// The offset that each client with `resume` has reached, with its group.
    reached: Vec<(usize, Arc<AtomicU64>)>,
    javascript: Option<JsClients>,
    publishers: JoinSet<()>,
    /// Leads the clients in Node to one replica after the other.
    turning: JoinSet<()>,
    /// Counts the reloads.
    loaded: usize,
    too_slow: f64,
}

impl Scene {
    pub(crate) async fn set(run: Run, size: Size) -> Self {
        let world = World::set(run, size).await;
        let gateway = &world.gateway;
        let ground = Ground::new(
            world.fronts.iter().map(|front| front.address).collect(),
            ["acme", "other"].map(|word| gateway.named(word).clone()),
            gateway.api_key.clone(),
            size.groups,
        );
        let scene = Self {
            size,
            world,
            ground: Arc::new(ground),
            phase: watch::Sender::new(Phase::Running),
            publishing: watch::Sender::new(true),
            clients: JoinSet::new(),
            reached: Vec::new(),
            javascript: None,
            publishers: JoinSet::new(),
            turning: JoinSet::new(),
            loaded: 0,
            too_slow: 0.0,
        };
        scene.tell_addresses();
        scene
    }

    fn tell_addresses(&self) {
        let replicas = &self.world.gateway.replicas;
        *self.ground.addresses.lock() = Addresses {
            sockets: replicas.iter().map(|replica| replica.server).collect(),
            api: replicas.iter().map(|replica| replica.api).collect(),
        };
    }

    /// Starts clients and publishers.
    pub(crate) async fn begin(&mut self) {
        for place in 0..self.size.clients + self.size.without {
            let log = Log::new(place % self.size.groups, place < self.size.clients);
            if log.resumes {
                self.reached.push((log.group, log.reached()));
            }
            // One client of three in the group that gets bursts.
            let is_slow = log.group == 0 && place / self.size.groups % 3 == 1;
            let (ground, phase) = (self.ground.clone(), self.phase.subscribe());
            let place = place / self.size.groups + place;
            self.clients
                .spawn(log.live(ground, place, is_slow.then_some(SLOW), phase));
        }
        self.begin_javascript().await;
        if let Some(django) = &self.world.django {
            begin_numbers(django, &self.ground.tenant, self.size).await;
        }
        self.publishers = publishers(&self.ground, self.size, &self.publishing);
    }

    /// Starts the clients in Node, at a door that leads to one replica after the other.
    async fn begin_javascript(&mut self) {
        let fronts: Vec<String> = self.world.fronts.iter().map(Proxy::endpoint).collect();
        let door = Proxy::to(&fronts[0]).await;
        let doors = [door.endpoint()];
        let (groups, clients) = (self.size.groups, self.size.javascript);
        let javascript = JsClients::start(&self.ground, &doors, groups, clients).await;
        self.javascript = Some(javascript);
        self.turning.spawn(async move {
            for front in fronts.iter().cycle() {
                door.lead_to(front);
                tokio::time::sleep(TURN).await;
            }
        });
    }

    pub(crate) async fn play(&mut self, fault: Fault) {
        match fault {
            Fault::Killed(replica) => {
                self.world.gateway.replicas[replica].process.kill();
                tokio::time::sleep(CUT / 2).await;
                self.replace(replica).await;
            }
            Fault::Rollout => {
                for replica in 0..self.world.configs.len() {
                    self.world.gateway.replicas[replica].terminate();
                    let ended = self.world.gateway.replicas[replica].exited(LONG).await;
                    assert_eq!(ended.code(), Some(0), "a drain that was met");
                    self.replace(replica).await;
                }
            }
            Fault::Cut(replica) => cut(&self.world.stores.lines[replica], CUT).await,
            Fault::ClientsCut => cut(&self.world.fronts, CUT / 3).await,
            Fault::Frozen(replica) => {
                let process = &self.world.gateway.replicas[replica].process;
                process.freeze().await;
                tokio::time::sleep(FROZEN).await;
                process.signal(Signal::CONT);
            }
            Fault::LinksKilled => {
                for server in self.world.stores.linked().await {
                    for kind in ["pubsub", "normal"] {
                        let _: u64 = server.command(&["CLIENT", "KILL", "TYPE", kind]).await;
                    }
                }
            }
            Fault::Reload => self.reload().await,
            Fault::Slow => {
                for count in 0..BURSTS {
                    self.ground.burst(count).await;
                    tokio::time::sleep(SLOW).await;
                    self.too_slow = self.closed_as_slow().await;
                    if self.too_slow > 0.0 {
                        return;
                    }
                }
            }
            Fault::FailOver => {
                let channel = self.ground.channel(0);
                self.world.stores.fail_over(&channel).await;
            }
            Fault::SlotsMove => {
                let groups = 0..self.size.groups;
                let channels: Vec<_> = groups.map(|group| self.ground.channel(group)).collect();
                self.world.stores.move_channels(&channels).await;
            }
        }
    }

    /// The sockets that the replicas of now have closed as too slow.
    async fn closed_as_slow(&self) -> f64 {
        let mut closed = 0.0;
        for replica in &self.world.gateway.replicas {
            let metrics = replica.metrics().await;
            closed += metrics.value("lockgate_disconnects_total", &[TOO_SLOW]);
        }
        closed
    }

    async fn replace(&mut self, replica: usize) {
        self.world.replace(replica).await;
        self.tell_addresses();
    }

    /// Loads other subprotocols of all routes.
    async fn reload(&mut self) {
        self.loaded += 1;
        let new = format!("subprotocols = [\"v{}\"]\npath = ", self.loaded);
        for config in &self.world.configs {
            let text = std::fs::read_to_string(config).expect("it was written");
            let before = format!("subprotocols = [\"v{}\"]\npath = ", self.loaded - 1);
            let text = match self.loaded {
                1 => text.replace("path = ", &new),
                _ => text.replace(&before, &new),
            };
            std::fs::write(config, text).expect("a file can be written");
        }
        for replica in &self.world.gateway.replicas {
            let key = &self.world.gateway.api_key;
            // A link may still be on its way back from the fault before.
            eventually(LONG, "a reload", async || {
                let answer = replica.api(key, "POST", "/v1/reload", "").await;
                match answer.status {
                    200 => Ok(()),
                    _ => Err(format!("{answer:?}")),
                }
            })
            .await;
        }
    }

    /// Ends the publishers, waits until each client that resumes has all, and adds up.
    pub(crate) async fn end(mut self) -> Sums {
        self.publishing.send_replace(false);
        while let Some(ended) = self.publishers.join_next().await {
            ended.expect("a publisher does not panic");
        }
        let mut answered: Vec<Vec<u64>> = { self.ground.answered.iter() }
            .map(|numbers| numbers.lock().clone())
            .collect();
        if let Some(django) = &self.world.django {
            for (all, of_django) in answered.iter_mut().zip(end_numbers(django).await) {
                all.extend(of_django);
            }
        }
        let truths = self.truths().await;
        self.wait_for_all(&truths).await;
        let javascript = self.javascript.take().expect("they were started");
        let mut logs = javascript.end(&truths).await;
        self.phase.send_replace(Phase::Over);
        while let Some(log) = self.clients.join_next().await {
            logs.push(log.expect("a client does not panic"));
        }
        let mut tallies = [Tally::default(), Tally::default()];
        for log in &logs {
            tallies[usize::from(!log.resumes)].add(log, &truths[log.group]);
        }
        Sums {
            events: truths.iter().map(Vec::len).sum(),
            unrecorded: unrecorded(&answered, &truths),
            again: truths.iter().map(|truth| again(truth)).sum(),
            tallies,
            too_slow: self.too_slow,
        }
    }

    /// Waits until each client with `resume` has the last event. What has not come after the deadline is missing.
    async fn wait_for_all(&self, truths: &[Vec<u64>]) {
        let until = Instant::now() + LONG;
        let has_all = |(group, reached): &(usize, Arc<AtomicU64>)| {
            reached.load(Ordering::Relaxed) >= truths[*group].len() as u64
        };
        while Instant::now() < until && !self.reached.iter().all(has_all) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(LATE).await;
    }

    /// Returns the numbers of all events by group, from the histories.
    async fn truths(&self) -> Vec<Vec<u64>> {
        let mut truths = Vec::new();
        for group in 0..self.size.groups {
            let replica = &self.world.gateway.replicas[0];
            let truth = eventually(LONG, "a whole history", async || {
                read_all(replica, &self.ground, group).await
            });
            truths.push(truth.await);
        }
        truths
    }
}

async fn cut(lines: &[Proxy], time: Duration) {
    for line in lines {
        line.set(Line::Reset);
    }
    tokio::time::sleep(time).await;
    for line in lines {
        line.set(Line::Open);
    }
}

/// Counts the events of a history that it has before already.
fn again(truth: &[u64]) -> usize {
    let different: HashSet<&u64> = truth.iter().collect();
    truth.len() - different.len()
}

/// Counts the answered events that no history has.
fn unrecorded(answered: &[Vec<u64>], truths: &[Vec<u64>]) -> usize {
    let missing = |(answered, truth): (&Vec<u64>, &Vec<u64>)| {
        let truth: HashSet<u64> = truth.iter().copied().collect();
        let missing = answered.iter().filter(|number| !truth.contains(number));
        missing.count()
    };
    answered.iter().zip(truths).map(missing).sum()
}

/// Reads the numbers of a group's whole history, page by page. An error says what came instead.
async fn read_all(replica: &Replica, ground: &Ground, group: usize) -> Result<Vec<u64>, String> {
    let path = format!(
        "/v1/tenants/{}/groups/g_{group}/history",
        ground.tenant.name
    );
    let (mut numbers, mut since) = (Vec::new(), String::new());
    loop {
        let path = format!("{path}?limit={PAGE}{since}");
        let answer = replica.api(&ground.api_key, "GET", &path, "").await;
        if answer.status != 200 {
            return Err(format!("{answer:?}"));
        }
        let page = answer.json();
        if page["complete"] != true {
            return Err(format!("after {} events: a hole", numbers.len()));
        }
        for event in page["events"].as_array().into_iter().flatten() {
            let number = event["event"]["number"].as_u64();
            numbers.push(number.ok_or_else(|| event.to_string())?);
        }
        match page["next"].as_str() {
            Some(next) => since = format!("&since={next}"),
            None => return Ok(numbers),
        }
    }
}
