//! The servers of the account: replicas, their links to Redis, publishers, and the faults that they meet.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Size;
use super::client::{Log, Pause, Phase, Tally};
use crate::support::database::ALICE;
use crate::support::http::try_request;
use crate::support::proxy::{Line, Proxy};
use crate::support::replica::Replica;
use crate::support::{Database, Gateway, RedisServer, Tenant, eventually, gateway, token, unique};

/// The longest wait for the end of a replica that drains, and for all events at all clients.
const LONG: Duration = Duration::from_secs(90);
/// How long links are cut, and slow clients take nothing.
const CUT: Duration = Duration::from_millis(1500);
const SLOW: Duration = Duration::from_secs(9);
/// A publisher's wait for an answer, and before it asks again.
const ANSWER: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);
/// A call whose replica was killed may hold its key for long. Its event is recorded or not, and the history knows.
const ATTEMPTS: usize = 40;
/// Bytes in each event, so that queues fill.
const PADDING: usize = 600;

/// The faults, in the order in which they are played.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// `kill -9` of a replica, and another in its place.
    Killed(usize),
    /// Both replicas are drained and replaced, one after the other.
    Rollout,
    /// The links of a replica to Redis end and stay away for a while.
    Cut(usize),
    /// A changed setting is loaded, which closes all sockets.
    Reload,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [
        Self::Killed(0),
        Self::Cut(1),
        Self::Rollout,
        Self::Reload,
        Self::Cut(0),
        Self::Killed(1),
    ];
    /// Beside `server.max_age` and slow clients, which are at work all the time.
    pub(crate) const OF_ONE_PROCESS: [Self; 1] = [Self::Reload];
}

/// The knowledge of all clients and publishers.
pub(crate) struct Ground {
    /// The addresses for sockets, by replica.
    pub(crate) fronts: Mutex<Vec<SocketAddr>>,
    /// The addresses of the API, by replica.
    api: Mutex<Vec<SocketAddr>>,
    pub(crate) host: String,
    tenant: Tenant,
    api_key: String,
}

impl Ground {
    /// Returns a token that outlives the run.
    pub(crate) fn token(&self) -> String {
        let mut claims = token::access(ALICE);
        claims["exp"] = (token::now() + 86_400).into();
        self.tenant.sign(&claims)
    }

    /// Publishes an event, and asks again until it is answered. The gateway carries out a repeated call once.
    async fn publish(&self, group: usize, number: u64, padding: &str) {
        let path = format!("/v1/tenants/{}/groups/g_{group}/send", self.tenant.name);
        let event = json!({"type": "n", "group": group, "number": number, "padding": padding});
        let (bearer, id) = (format!("Bearer {}", self.api_key), unique());
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Idempotency-Key", id.as_str()),
        ];
        for attempt in group..group + ATTEMPTS {
            let api = self.api.lock().clone();
            let at = api[attempt % api.len()];
            let body = event.to_string();
            let answer = try_request(at, "POST", &path, &headers, &body);
            match tokio::time::timeout(ANSWER, answer).await {
                Ok(Some(answer)) if answer.status == 200 => return,
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

/// All that runs.
pub(crate) struct Scene {
    size: Size,
    gateway: Gateway,
    configs: Vec<PathBuf>,
    lines: Vec<Proxy>,
    ground: Arc<Ground>,
    phase: watch::Sender<Phase>,
    publishing: watch::Sender<bool>,
    clients: JoinSet<Log>,
    publishers: JoinSet<()>,
    /// Counts the reloads.
    loaded: usize,
    _redis: Option<RedisServer>,
}

impl Scene {
    pub(crate) async fn set(layer: &'static str, size: Size) -> Self {
        let replicas = if layer == "memory" { 1 } else { 2 };
        let redis = match layer {
            "memory" => None,
            _ => Some(RedisServer::start().await),
        };
        let mut lines = Vec::new();
        if let Some(redis) = &redis {
            for _ in 0..replicas {
                lines.push(Proxy::to(&redis.endpoint()).await);
            }
        }
        let mut builder = match (&redis, lines.first()) {
            (Some(redis), Some(line)) => {
                gateway().redis(&redis.url().replace(&redis.endpoint(), &line.endpoint()))
            }
            _ => gateway().without_redis(),
        };
        builder = builder
            .set("server.drain.delay", "200ms")
            .set("server.drain.window", "2s")
            .set("server.max_age", "8s")
            .tenant("acme")
            .users(&Database::sqlite().await)
            .with("layer.kind", layer)
            .with("limits.send_queue", "32KiB")
            .with_toml(
                "[[groups]]\nname = 'g_<int:group>'\nhistory = { size = 1000000, ttl = '1h' }",
            );
        for (kind, resume) in [("back", true), ("plain", false)] {
            let route = format!(
                "path = '{kind}/<int:group>/'\n groups = ['g_{{group}}']\n resume = {resume}"
            );
            builder = builder.route(&route);
        }
        let mut gateway = builder.write().await;
        let configs = configs(&gateway, &lines);
        for config in &configs {
            gateway.replicas.push(Replica::start(config).await);
        }
        for replica in &gateway.replicas {
            replica.ready().await;
        }
        let ground = Ground {
            fronts: Mutex::default(),
            api: Mutex::default(),
            host: gateway.tenant().host.clone(),
            tenant: gateway.tenant().clone(),
            api_key: gateway.api_key.clone(),
        };
        let scene = Self {
            size,
            gateway,
            configs,
            lines,
            ground: Arc::new(ground),
            phase: watch::Sender::new(Phase::Running),
            publishing: watch::Sender::new(true),
            clients: JoinSet::new(),
            publishers: JoinSet::new(),
            loaded: 0,
            _redis: redis,
        };
        scene.tell_addresses();
        scene
    }

    fn tell_addresses(&self) {
        let replicas = &self.gateway.replicas;
        *self.ground.fronts.lock() = replicas.iter().map(|replica| replica.server).collect();
        *self.ground.api.lock() = replicas.iter().map(|replica| replica.api).collect();
    }

    /// Starts clients and publishers.
    pub(crate) fn begin(&mut self) {
        for place in 0..2 * self.size.clients {
            let log = Log::new(place / 2 % self.size.groups, place % 2 == 0);
            // One client of eight stands still for a while.
            let pause = (place / 2 % 8 == 3).then_some(Pause {
                after: 20 + place % 50,
                time: SLOW,
            });
            let (ground, phase) = (self.ground.clone(), self.phase.subscribe());
            self.clients
                .spawn(log.live(ground, place / 3, pause, phase));
        }
        for group in 0..self.size.groups {
            let (ground, pace) = (self.ground.clone(), self.size.pace);
            let publishing = self.publishing.subscribe();
            self.publishers.spawn(async move {
                let padding = "x".repeat(PADDING);
                let mut tick = tokio::time::interval(pace);
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                for number in 0.. {
                    tick.tick().await;
                    if !*publishing.borrow() {
                        return;
                    }
                    ground.publish(group, number, &padding).await;
                }
            });
        }
    }

    pub(crate) async fn play(&mut self, fault: Fault) {
        match fault {
            Fault::Killed(replica) => {
                self.gateway.replicas[replica].process.kill();
                tokio::time::sleep(CUT / 2).await;
                self.replace(replica).await;
            }
            Fault::Rollout => {
                for replica in 0..self.configs.len() {
                    self.gateway.replicas[replica].terminate();
                    let ended = self.gateway.replicas[replica].exited(LONG).await;
                    assert_eq!(ended.code(), Some(0), "a drain that was met");
                    self.replace(replica).await;
                }
            }
            Fault::Cut(replica) => {
                self.lines[replica].set(Line::Reset);
                tokio::time::sleep(CUT).await;
                self.lines[replica].set(Line::Open);
            }
            Fault::Reload => self.reload().await,
        }
    }

    /// Starts another replica in the place of one that has ended.
    async fn replace(&mut self, replica: usize) {
        self.gateway.replicas[replica] = Replica::start(&self.configs[replica]).await;
        self.gateway.replicas[replica].ready().await;
        self.tell_addresses();
    }

    /// Loads other subprotocols of all routes.
    async fn reload(&mut self) {
        self.loaded += 1;
        let new = format!("subprotocols = [\"v{}\"]\npath = ", self.loaded);
        for config in &self.configs {
            let text = std::fs::read_to_string(config).expect("it was written");
            let before = format!("subprotocols = [\"v{}\"]\npath = ", self.loaded - 1);
            let text = match self.loaded {
                1 => text.replace("path = ", &new),
                _ => text.replace(&before, &new),
            };
            std::fs::write(config, text).expect("a file can be written");
        }
        for replica in &self.gateway.replicas {
            let key = &self.gateway.api_key;
            let answer = replica.api(key, "POST", "/v1/reload", "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }

    /// Ends the publishers, waits until each client that resumes has all, and adds up. Returns the number of events too.
    pub(crate) async fn end(mut self) -> (usize, [Tally; 2]) {
        self.publishing.send_replace(false);
        while let Some(ended) = self.publishers.join_next().await {
            ended.expect("a publisher does not panic");
        }
        let truths = self.truths().await;
        // Time for what is under way, and for clients that stand still. What has not come then is missing.
        tokio::time::sleep(SLOW + CUT).await;
        self.phase.send_replace(Phase::Over);
        let mut tallies = [Tally::default(), Tally::default()];
        while let Some(log) = self.clients.join_next().await {
            let log = log.expect("a client does not panic");
            let tally = &mut tallies[usize::from(!log.resumes)];
            tally.add(&log, &truths[log.group]);
        }
        (truths.iter().map(Vec::len).sum(), tallies)
    }

    /// Returns the numbers of all events by group, from the histories: a client that comes back from their beginning gets them.
    async fn truths(&self) -> Vec<Vec<u64>> {
        let mut truths = Vec::new();
        for group in 0..self.size.groups {
            let truth = eventually(LONG, "a whole history", async || {
                let first = read_all(&self.ground, group, None)
                    .await
                    .ok_or("no position")?;
                let (_, begin) = first;
                let begin = begin.ok_or("no position")?;
                let begin = format!("{}~0", begin.rsplit_once('~').ok_or("no position")?.0);
                let whole = read_all(&self.ground, group, Some(begin)).await;
                whole.map(|(numbers, _)| numbers).ok_or("a cut")
            });
            truths.push(truth.await);
        }
        truths
    }
}

/// Reads from a position, or only one, to the notice behind the replay.
async fn read_all(
    ground: &Ground,
    group: usize,
    since: Option<String>,
) -> Option<(Vec<u64>, Option<String>)> {
    let front = ground.fronts.lock()[0];
    let mut query = format!("token={}", ground.token());
    if let Some(since) = since {
        query.push_str(&format!("&since={since}"));
    }
    let dial = crate::support::socket::Dial::new(front, &ground.host, &format!("/back/{group}/"));
    let mut socket = dial.query(&query).attempt_or_cut().await?.ok()?;
    let mut numbers = Vec::new();
    loop {
        let message = tokio::time::timeout(LONG, socket.read())
            .await
            .ok()??
            .ok()?;
        let tokio_tungstenite::tungstenite::Message::Text(text) = message else {
            continue;
        };
        let frame: serde_json::Value = serde_json::from_str(&text).ok()?;
        if frame["type"] == "lockgate.position" {
            let whole = frame["recovered"] != false;
            let position = frame["position"].as_str().map(str::to_owned);
            return whole.then_some((numbers, position));
        }
        numbers.push(frame["number"].as_u64()?);
    }
}

/// Writes the configuration of each replica, with its own way to Redis.
fn configs(gateway: &Gateway, lines: &[Proxy]) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(&gateway.config).expect("it was written");
    let mut configs = vec![gateway.config.clone()];
    for (index, line) in lines.iter().enumerate().skip(1) {
        let path = gateway.config.with_file_name(format!("{index}.toml"));
        let own = text.replace(&lines[0].endpoint(), &line.endpoint());
        std::fs::write(&path, own).expect("a file can be written");
        configs.push(path);
    }
    configs
}
