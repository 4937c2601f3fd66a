//! A Redis server of its own for each test, and layers on it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::channel_layer::pubsub::{PubSubEndpoints, PubSubLayer};
use lockgate::channel_layer::{
    ChannelLayer, Codec, GroupHistories, Inbox, LayerError, Signal, Target,
};
use lockgate::config::{GroupConfig, SerializerFormat};
use lockgate::error::{Dependency, ErrorKind};
use lockgate::event::Event;
use lockgate::group_rules::GroupRules;
use lockgate::ids::ReplicaId;
use lockgate::metrics::{GapCause, TenantMetrics};
use lockgate::stores::redis::{RedisStore, RedisUrl};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{RedisFuture, Value};
use rustix::process::{Pid, Signal as Kill, kill_process};
use tempfile::TempDir;

use crate::ports::free_port;

/// A connection of a test's own.
#[derive(Clone)]
pub(crate) struct Link {
    connection: MultiplexedConnection,
    server: Server,
}

impl Link {
    /// The command that publishes where the layer listens.
    pub(crate) fn publishing(&self) -> redis::Cmd {
        match self.server {
            Server::One => redis::cmd("PUBLISH"),
            Server::Cluster => redis::cmd("SPUBLISH"),
        }
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a redis::Cmd) -> RedisFuture<'a, Value> {
        self.connection.req_packed_command(cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

/// The kind of a test's server, and with it the layer: `pubsub` on one server, `sharded` on a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    One,
    /// A cluster of one node, which has all slots.
    Cluster,
}

impl Server {
    /// The signal of a lost link: one for the tenant, or one for each group of the shard.
    pub(crate) fn gap(self, group: &str) -> Heard {
        match self {
            Self::One => Heard::Gap(GapCause::Link),
            Self::Cluster => Heard::Missed(group.to_owned()),
        }
    }
}

/// Runs each of these functions as two tests.
macro_rules! on_each_server {
    ($($test:ident),+ $(,)?) => {
        $(
            mod $test {
                use crate::channel_layer::support::Server;

                #[tokio::test]
                async fn on_one_server() {
                    super::$test(Server::One).await;
                }

                #[tokio::test]
                async fn on_a_cluster() {
                    super::$test(Server::Cluster).await;
                }
            }
        )+
    };
}
pub(crate) use on_each_server;

/// Joins a group; asks again where busy cores let the five seconds of a join pass.
pub(crate) async fn join(layer: &dyn ChannelLayer, group: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match layer.subscribe(&group.into()).await {
            Err(LayerError::Unavailable(ErrorKind::Timeout)) if Instant::now() < deadline => {}
            joined => return joined.unwrap(),
        }
    }
}

/// A redis-server on a free loopback port; killed when dropped.
pub(crate) struct Redis {
    child: Child,
    pub(crate) port: u16,
    server: Server,
    options: Vec<String>,
    dir: TempDir,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::of(Server::One).await
    }

    pub(crate) async fn of(server: Server) -> Self {
        let (port, bus) = (free_port(), free_port().to_string());
        let options = match server {
            Server::One => Vec::new(),
            Server::Cluster => ["--cluster-enabled", "yes", "--cluster-port", &bus]
                .map(str::to_owned)
                .to_vec(),
        };
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(port, &dir, &options);
        let redis = Self {
            child,
            port,
            server,
            options,
            dir,
        };
        redis.wait_for(&["PING"], "PONG").await;
        if server == Server::Cluster {
            let mut all = redis::cmd("CLUSTER");
            all.arg("ADDSLOTSRANGE").arg(0).arg(16383);
            let () = all.query_async(&mut redis.link().await).await.unwrap();
        }
        redis.wait_until_it_serves().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        match self.server {
            Server::One => self.url_of("redis", ""),
            Server::Cluster => self.url_of("redis+cluster", ""),
        }
    }

    /// The URL for a login, `user:password`.
    pub(crate) fn url_for(&self, login: &str) -> String {
        let login = format!("{login}@");
        match self.server {
            Server::One => self.url_of("redis", &login),
            Server::Cluster => self.url_of("redis+cluster", &login),
        }
    }

    fn url_of(&self, scheme: &str, login: &str) -> String {
        // A cluster has no numbered databases.
        let database = if scheme == "redis" { "/0" } else { "" };
        format!("{scheme}://{login}127.0.0.1:{}{database}", self.port)
    }

    /// A connection of the test's own.
    pub(crate) async fn link(&self) -> Link {
        let client = redis::Client::open(self.url_of("redis", "")).unwrap();
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(Duration::from_secs(10)))
            .set_pipeline_buffer_size(4096);
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        Link {
            connection: connection.await.unwrap(),
            server: self.server,
        }
    }

    /// Waits until it answers, and a node of a cluster until it serves its slots.
    async fn wait_until_it_serves(&self) {
        self.wait_for(&["PING"], "PONG").await;
        if self.server == Server::Cluster {
            self.wait_for(&["CLUSTER", "INFO"], "cluster_state:ok")
                .await;
        }
    }

    async fn wait_for(&self, command: &[&str], answer: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let client = redis::Client::open(self.url_of("redis", "")).unwrap();
        let mut asks = redis::cmd(command[0]);
        asks.arg(&command[1..]);
        loop {
            if let Ok(mut link) = client.get_multiplexed_async_connection().await
                && let Ok(text) = asks.query_async::<String>(&mut link).await
                && text.contains(answer)
            {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on its port after a kill; returns when it answers.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.port, &self.dir, &self.options);
        self.wait_until_it_serves().await;
    }

    pub(crate) fn stop(&self) {
        self.signal(Kill::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Kill::CONT);
    }

    fn signal(&self, signal: Kill) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _killed = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}

pub(crate) fn spawn<T: AsRef<OsStr>>(port: u16, dir: &TempDir, more: &[T]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--port", &port.to_string()])
        .arg("--dir")
        .arg(dir.path())
        .args(more)
        .stdout(Stdio::null())
        .spawn()
        .expect("these tests need redis-server on the path")
}

/// A replica: its links, on one login.
pub(crate) struct Replica {
    pub(crate) endpoints: PubSubEndpoints,
    pub(crate) store: Arc<RedisStore>,
}

/// A tenant's layer with its inbox.
pub(crate) struct Tenant {
    pub(crate) layer: Arc<PubSubLayer>,
    pub(crate) inbox: Arc<Inbox>,
}

pub(crate) fn replica(url: &str) -> Replica {
    let url = RedisUrl::parse(&url.into()).unwrap();
    Replica {
        endpoints: PubSubEndpoints::new(ReplicaId::random()),
        store: RedisStore::new(&url, Dependency::Redis).unwrap(),
    }
}

impl Replica {
    pub(crate) fn tenant(&self, prefix: &str) -> Tenant {
        self.tenant_with(prefix, 0, Codec::new(SerializerFormat::MsgPack, &[]))
    }

    /// A tenant `acme` on several hosts.
    pub(crate) fn tenant_on(&self, stores: &[Arc<RedisStore>]) -> Tenant {
        let codec = Codec::new(SerializerFormat::MsgPack, &[]);
        self.attached(stores, "acme", 0, codec)
    }

    pub(crate) fn tenant_with(&self, prefix: &str, limit: u64, codec: Codec) -> Tenant {
        self.attached(std::slice::from_ref(&self.store), prefix, limit, codec)
    }

    /// A tenant `acme` on several hosts, with these rules for its groups.
    pub(crate) fn recording_on(
        &self,
        stores: &[Arc<RedisStore>],
        codec: Codec,
        rules: &[GroupConfig],
    ) -> Tenant {
        self.attached_with(stores, "acme", 0, codec, rules)
    }

    fn attached(
        &self,
        stores: &[Arc<RedisStore>],
        prefix: &str,
        limit: u64,
        codec: Codec,
    ) -> Tenant {
        self.attached_with(stores, prefix, limit, codec, &[])
    }

    fn attached_with(
        &self,
        stores: &[Arc<RedisStore>],
        prefix: &str,
        limit: u64,
        codec: Codec,
        rules: &[GroupConfig],
    ) -> Tenant {
        let metrics = TenantMetrics::new(&"acme".parse().unwrap());
        let inbox = Inbox::new(limit, Arc::new(metrics));
        let rules = Arc::new(GroupRules::new(rules).unwrap());
        let histories = GroupHistories::new(&"acme".parse().unwrap(), rules);
        let endpoints = &self.endpoints;
        let layer = endpoints.attach(stores, prefix, codec, histories, inbox.clone());
        Tenant {
            layer: Arc::new(layer),
            inbox,
        }
    }
}

/// A signal that a tenant received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Number(String, i64),
    /// An event of a group with history, with its offset.
    Recorded(String, i64, u64),
    /// The offset of an event that was recorded and did not come.
    Unheard(String, u64),
    NotDecoded,
    Gap(GapCause),
    /// Events of one group may be missing.
    Missed(String),
}

impl Tenant {
    pub(crate) async fn join(&self, group: &str) {
        self.layer.subscribe(&group.into()).await.unwrap();
    }

    pub(crate) async fn send(&self, group: &str, number: i64) {
        self.layer
            .publish(&group.into(), &event(number), None)
            .await
            .unwrap();
    }

    /// The next signal within five seconds.
    pub(crate) async fn heard(&self) -> Heard {
        let next = tokio::time::timeout(Duration::from_secs(5), self.inbox.next());
        self.read(next.await.expect("a signal within five seconds"))
    }

    /// Returns the signals that are there, without waiting.
    pub(crate) fn heard_so_far(&self) -> Vec<Heard> {
        let mut signals = Vec::new();
        self.inbox.drain_into(&mut signals, usize::MAX, u64::MAX);
        signals
            .into_iter()
            .map(|signal| self.read(signal))
            .collect()
    }

    /// Numbers only, until `count` have come.
    pub(crate) async fn numbers(&self, count: usize) -> Vec<i64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            match self.heard().await {
                Heard::Number(_, number) => numbers.push(number),
                other => panic!("{other:?} after {} numbers", numbers.len()),
            }
        }
        numbers
    }

    fn read(&self, signal: Signal) -> Heard {
        match signal {
            Signal::Gap(cause) => Heard::Gap(cause),
            Signal::Unheard(group, position) => Heard::Unheard(group.to_string(), position.offset),
            Signal::Missed(Target::Group(group)) => Heard::Missed(group.to_string()),
            other @ (Signal::Presence(..) | Signal::Missed(_)) => panic!("{other:?}"),
            Signal::Event(incoming) => {
                let Target::Group(group) = incoming.target else {
                    panic!("{incoming:?} is for no group");
                };
                let group = group.to_string();
                match incoming.payload.decode(self.layer.codec()) {
                    Ok(event) => {
                        let number = event.get("n").and_then(|n| n.as_i64()).unwrap_or(-1);
                        match incoming.recorded {
                            Some(position) => Heard::Recorded(group, number, position.offset),
                            None => Heard::Number(group, number),
                        }
                    }
                    Err(_) => Heard::NotDecoded,
                }
            }
        }
    }
}

pub(crate) fn event(number: i64) -> Event {
    Event::from_json(format!(r#"{{"type":"t","n":{number}}}"#)).unwrap()
}

/// The payload of [`event`] in MessagePack.
pub(crate) fn payload(number: i64) -> Vec<u8> {
    Codec::new(SerializerFormat::MsgPack, &[])
        .encode(&event(number))
        .unwrap()
}

pub(crate) fn channel(prefix: &str, group: &str) -> String {
    format!("{prefix}__group__{group}")
}

/// Publishes from outside, as Django does; returns how many subscribers Redis reached.
pub(crate) async fn publish(link: &mut Link, channel: &str, payload: &[u8]) -> u64 {
    let mut command = link.publishing();
    command
        .arg(channel)
        .arg(payload)
        .query_async(link)
        .await
        .unwrap()
}

/// Returns the number of `channels` with exactly one subscriber.
pub(crate) async fn subscribed_once(link: &mut Link, channels: &[String]) -> usize {
    let mut command = redis::cmd("PUBSUB");
    let count = match link.server {
        Server::One => "NUMSUB",
        Server::Cluster => "SHARDNUMSUB",
    };
    let counts: Vec<(String, u64)> = command
        .arg(count)
        .arg(channels)
        .query_async(link)
        .await
        .unwrap();
    counts.iter().filter(|(_, count)| *count == 1).count()
}

/// Waits until `channels` have one subscriber each (or, with `expected` 0, none).
pub(crate) async fn wait_for_subscribers(link: &mut Link, channels: &[String], expected: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while subscribed_once(link, channels).await != expected {
        assert!(Instant::now() < deadline, "subscriptions do not settle");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Cuts every subscriber's connection.
pub(crate) async fn kill_subscribers(link: &mut Link) {
    let mut command = redis::cmd("CLIENT");
    let command = command.arg("KILL").arg("TYPE").arg("pubsub");
    let killed: u64 = command.query_async(link).await.unwrap();
    assert!(killed > 0);
}

pub(crate) fn all_differ(numbers: &[i64]) -> bool {
    numbers.iter().collect::<HashSet<_>>().len() == numbers.len()
}
