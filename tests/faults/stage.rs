//! The servers of a row: two replicas, two tenants, and a proxy of ours on each of the ways between them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use crate::field::{Addresses, CALM, Field, HURT, Size};
use crate::row::{Clocks, Redis, Road, Users, World};
use crate::support::cluster::Cluster;
use crate::support::postgres::PostgresServer;
use crate::support::process::Program;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;
use crate::support::replica::Replica;
use crate::support::sentinel::Deployment;
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway};

/// The binary that replicas run. The command line sets it before the first stage.
pub(crate) static GATEWAY: OnceLock<PathBuf> = OnceLock::new();

/// The login of `hurt` at its Redis; it may do everything until a fault takes something away.
const LOGIN: &str = "gate:the-first-password";

/// The servers of `hurt`'s Redis.
pub(crate) struct Stores {
    /// One server, and as the case may be its partner.
    pub(crate) servers: Vec<RedisServer>,
    pub(crate) sentinels: Option<Deployment>,
    pub(crate) cluster: Option<Cluster>,
    /// The place of the master that a fault of the cluster concerns, from its beginning to its end.
    pub(crate) shard: Option<usize>,
    /// A replica of the Redis of `calm`. Where a failover may lose writes, revocations are to be acknowledged by a replica, and
    /// that holds for all tenants.
    acknowledging: Option<RedisServer>,
    /// The way of each replica to each of the servers.
    pub(crate) lines: Vec<[Proxy; 2]>,
}

impl Stores {
    async fn start(redis: Redis) -> Self {
        let mut servers = Vec::new();
        let (mut sentinels, mut cluster) = (None, None);
        match redis {
            Redis::Cluster => cluster = Some(Cluster::start().await),
            Redis::Sentinel => sentinels = Some(Deployment::start().await),
            Redis::One => servers.push(server(&[]).await),
            Redis::Loading => {
                let slow = ["--key-load-delay", "500", "--enable-debug-command", "yes"];
                servers.push(server(&slow).await);
            }
            Redis::Pair => {
                let first = server(&[]).await;
                let port = first.port().to_string();
                servers.push(first);
                servers.push(server(&["--replicaof", "127.0.0.1", &port]).await);
            }
            Redis::Hosts => {
                for _ in 0..2 {
                    servers.push(server(&[]).await);
                }
            }
        }
        let acknowledging = match redis {
            Redis::Sentinel | Redis::Pair | Redis::Cluster => Some(acknowledging().await),
            _ => None,
        };
        let mut lines = Vec::new();
        for server in &servers {
            let endpoint = server.endpoint();
            lines.push([Proxy::to(&endpoint).await, Proxy::to(&endpoint).await]);
        }
        Self {
            servers,
            sentinels,
            cluster,
            shard: None,
            acknowledging,
            lines,
        }
    }

    /// The URLs for a replica, by server.
    fn urls(&self, replica: usize) -> Vec<String> {
        if let Some(deployment) = &self.sentinels {
            return vec![deployment.url()];
        }
        if let Some(cluster) = &self.cluster {
            return vec![cluster.url()];
        }
        let url = |lines: &[Proxy; 2]| format!("redis://{LOGIN}@{}/0", lines[replica].endpoint());
        self.lines.iter().map(url).collect()
    }

    /// The URL of the first server or node, or of the Sentinels' master, without a proxy.
    pub(crate) async fn direct(&self) -> String {
        match (&self.sentinels, &self.cluster) {
            (Some(deployment), _) => deployment.servers[deployment.master().await].url(),
            (None, Some(cluster)) => cluster.nodes[0].url(),
            (None, None) => self.servers[0].url(),
        }
    }
}

/// A server that knows [`LOGIN`] after every start, with further options.
async fn server(options: &[&str]) -> RedisServer {
    let (name, password) = LOGIN.split_once(':').expect("it has both");
    let password = format!(">{password}");
    let login = ["--user", name, "on", &password, "~*", "&*", "+@all"];
    RedisServer::with(&[options, &login].concat()).await
}

/// `hurt`'s PostgreSQL database, and the way to it.
pub(crate) struct Sql {
    pub(crate) database: Database,
    pub(crate) line: Proxy,
}

/// All servers of a row, and its load.
pub(crate) struct Stage {
    pub(crate) field: Arc<Field>,
    pub(crate) gateway: Gateway,
    pub(crate) configs: [PathBuf; 2],
    pub(crate) stores: Stores,
    pub(crate) sql: Option<Sql>,
    /// The way of clients to each replica, by tenant.
    pub(crate) fronts: [[Proxy; 2]; 2],
    /// A link to the first server that is older than any fault.
    pub(crate) operator: Option<MultiplexedConnection>,
    world: World,
    /// What a fault keeps until its end.
    pub(crate) kept: JoinSet<()>,
    pub(crate) tasks: JoinSet<()>,
}

impl Stage {
    /// Starts everything but the load.
    pub(crate) async fn set(world: &World, size: Size) -> Self {
        let size = world.size(size);
        let stores = Stores::start(world.redis).await;
        let sql = match world.users {
            Users::Sqlite => None,
            Users::Postgres => Some(Sql::make().await),
        };
        let mut gateway = write(world, &stores, sql.as_ref()).await;
        let configs = [gateway.config.clone(), second_config(&gateway, &stores)];
        for (replica, config) in configs.iter().enumerate() {
            let program = clock(program(config), world.clocks, replica, &gateway);
            gateway.replicas.push(Replica::run(program).await);
        }
        for replica in &gateway.replicas {
            replica.ready().await;
        }
        let [first, second] = [0, 1].map(|n| gateway.replicas[n].server.to_string());
        let mut fronts = Vec::new();
        for _ in [HURT, CALM] {
            fronts.push([Proxy::to(&first).await, Proxy::to(&second).await]);
        }
        let fronts: [[Proxy; 2]; 2] = fronts.try_into().unwrap_or_else(|_| unreachable!("two"));
        let field = field(&gateway, &fronts, &stores, (size, world.road)).await;
        let operator = match stores.servers.first() {
            Some(server) => Some(server.connection().await.expect("it answers")),
            None => None,
        };
        Self {
            field,
            gateway,
            configs,
            stores,
            sql,
            fronts,
            operator,
            world: world.clone(),
            kept: JoinSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// A new log and new clients on the same servers.
    pub(crate) async fn renew(&mut self, size: Size) {
        let how = (size, self.world.road);
        self.field = field(&self.gateway, &self.fronts, &self.stores, how).await;
    }

    /// A command to the first server of `hurt`, on the old link.
    pub(crate) async fn order<T: redis::FromRedisValue>(
        &mut self,
        command: &[&str],
    ) -> redis::RedisResult<T> {
        let mut cmd = redis::cmd(command[0]);
        for argument in &command[1..] {
            cmd.arg(*argument);
        }
        let operator = self.operator.as_mut().expect("the row has one server");
        cmd.query_async(operator).await
    }

    /// Starts a replica again in the place of one that ended, and leads clients to it.
    pub(crate) async fn replace(&mut self, replica: usize) {
        let program = program(&self.configs[replica]);
        let program = clock(program, self.world.clocks, replica, &self.gateway);
        let new = Replica::run(program).await;
        new.ready().await;
        for tenant in &self.fronts {
            tenant[replica].lead_to(&new.server.to_string());
        }
        self.field.addresses.lock().api[replica] = new.api;
        self.gateway.replicas[replica] = new;
    }

    /// Leads the publishers of `hurt` to another Redis.
    pub(crate) fn publish_to(&self, url: String) {
        self.field.addresses.lock().redis[HURT] = url;
    }
}

/// The load that fits the servers.
async fn field(
    gateway: &Gateway,
    fronts: &[[Proxy; 2]; 2],
    stores: &Stores,
    (size, road): (Size, Road),
) -> Arc<Field> {
    let addresses = Addresses {
        api: gateway.replicas.iter().map(|r| r.api).collect(),
        redis: [stores.direct().await, RedisServer::shared().await.url()],
    };
    let tenants = ["hurt", "calm"].map(|word| gateway.named(word).clone());
    let entrances = [HURT, CALM].map(|tenant| [0, 1].map(|n| fronts[tenant][n].address));
    let key = gateway.api_key.clone();
    Field::new(
        tenants,
        entrances,
        addresses,
        key,
        (size, road == Road::Api),
    )
}

impl Sql {
    async fn make() -> Self {
        let server = PostgresServer::shared().await;
        let database = Database::postgres().await;
        let line = Proxy::to(&server.endpoint()).await;
        Self { database, line }
    }

    /// The URL by way of the proxy.
    fn url(&self, server: &PostgresServer) -> String {
        let direct = self.database.url();
        direct.replace(&server.endpoint(), &self.line.endpoint())
    }
}

/// Starts a replica of the Redis that `calm` uses, and waits until it follows.
async fn acknowledging() -> RedisServer {
    let master = RedisServer::shared().await;
    let replica =
        RedisServer::with(&["--replicaof", "127.0.0.1", &master.port().to_string()]).await;
    eventually(PATIENCE, "the replica follows", async || {
        let info: String = replica.command(&["INFO", "replication"]).await;
        match info.contains("master_link_status:up") {
            true => Ok(()),
            false => Err(info),
        }
    })
    .await;
    replica
}

/// Writes the configuration for the first replica.
async fn write(world: &World, stores: &Stores, sql: Option<&Sql>) -> Gateway {
    let urls = stores.urls(0);
    let more: String = (0..world.more_groups)
        .map(|n| format!(", 'm_{n}_{{group}}_{{user.id}}'"))
        .collect();
    let route = |more: &str| {
        format!("path = 'ws/<int:group>/'\n groups = ['g_{{group}}'{more}]\n events = ['n']")
    };
    let mut builder = gateway()
        .redis(&RedisServer::shared().await.url())
        .set("log.level", "info")
        .set("server.drain.delay", "1s")
        .set("denylist.recheck", "2s");
    if stores.acknowledging.is_some() {
        builder = builder.set("denylist.replicas", 1);
    }
    for (key, value) in world.settings {
        builder = builder.set(key, value_of(value));
    }
    builder = builder
        .tenant("hurt")
        .with("on_gap", "notify")
        .with("redis.url", urls[0].as_str())
        .with("layer.kind", world.layer)
        .route(&route(&more))
        // Sockets that get everything, also what is only there to be much.
        .route("path = 'all/<int:group>/'\n groups = ['g_{group}']");
    if world.redis == Redis::Hosts {
        builder = builder.with("layer.hosts", urls);
    }
    let database = match sql {
        Some(sql) => {
            builder = builder
                .with("users.cache_ttl", "1s")
                .with("users.local_ttl", "1s");
            Database::at(sql.url(PostgresServer::shared().await))
        }
        None => Database::sqlite().await,
    };
    builder = builder.users(&database);
    for (key, value) in world.of_hurt {
        builder = builder.with(key, value_of(value));
    }
    builder
        .tenant("calm")
        .with("on_gap", "notify")
        .users(&Database::sqlite().await)
        .route(&route(""))
        .write()
        .await
}

/// The program of a replica.
fn program(config: &Path) -> Program {
    match GATEWAY.get() {
        Some(binary) => Replica::program_of(binary, config),
        None => Replica::program(config),
    }
}

/// A value as it stands in a configuration file.
fn value_of(text: &str) -> toml::Value {
    let table: toml::Table = format!("value = {text}").parse().expect("valid TOML");
    table["value"].clone()
}

/// The configuration of the second replica: the same, by way of its own proxies.
fn second_config(gateway: &Gateway, stores: &Stores) -> PathBuf {
    let mut text = std::fs::read_to_string(&gateway.config).expect("it was written");
    for [first, second] in &stores.lines {
        text = text.replace(&first.endpoint(), &second.endpoint());
    }
    let path = gateway.config.with_file_name("second.toml");
    std::fs::write(&path, text).expect("a file can be written");
    path
}

/// Puts a clock of ours before the program, where the row wants one.
fn clock(program: Program, clocks: Clocks, replica: usize, gateway: &Gateway) -> Program {
    let offset = match clocks {
        Clocks::Real => return program,
        Clocks::Ahead(seconds) if replica == 1 => seconds,
        Clocks::Ahead(_) | Clocks::Settable => 0,
    };
    let file = clock_file(gateway);
    let own = match clocks {
        Clocks::Settable => file,
        _ => file.with_extension(replica.to_string()),
    };
    set_clock(&own, offset);
    program
        .env("LD_PRELOAD", faketime().expect("the row was not left out"))
        .env("FAKETIME_TIMESTAMP_FILE", own)
        .env("FAKETIME_NO_CACHE", "1")
        // Timeouts run on this clock, which no one steps.
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// The file that holds the clocks' offset.
pub(crate) fn clock_file(gateway: &Gateway) -> PathBuf {
    gateway.config.with_file_name("clock")
}

/// Sets clocks as many seconds ahead of the machine's.
pub(crate) fn set_clock(file: &std::path::Path, seconds: i64) {
    // A reader sees the old text or the new one.
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}s\n")).expect("a file can be written");
    std::fs::rename(&new, file).expect("a file can be renamed");
}

/// The library that steps clocks; `tests/run deps` installs it.
pub(crate) fn faketime() -> Option<PathBuf> {
    let found = glob::glob("/usr/lib/*/faketime/libfaketimeMT.so.1").expect("a valid pattern");
    found.filter_map(Result::ok).next()
}
