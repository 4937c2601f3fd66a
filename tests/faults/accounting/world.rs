//! The servers of a run: hosts of the layer, replicas with their own ways to them, Django, and doors for clients.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lockgate::stores::redis::cluster::slot_of;
use serde_json::{Value, json};

use super::Size;
use crate::support::cluster::Cluster;
use crate::support::django::Django;
use crate::support::proxy::Proxy;
use crate::support::replica::Replica;
use crate::support::sentinel::Deployment;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway};

const REPLICAS: usize = 2;
/// What each tenant's groups keep: all, so that the histories at the end are the truth.
const GROUPS: &str = "[[groups]]\nname = 'g_<int:group>'\nhistory = { size = 1000000, ttl = '1h' }";
/// Channels drops what a full channel would get; a replica that is away leaves its own to fill.
const CAPACITY: u32 = 5000;

/// The Redis of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// No Redis: the layer `memory`.
    None,
    One,
    Three,
    /// A master, two replicas of it, and three Sentinels.
    Sentinel,
    /// A Redis Cluster of three masters, each with a replica.
    Cluster,
}

/// One run of the account.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) layer: &'static str,
    pub(crate) hosts: Hosts,
    pub(crate) encrypted: bool,
    /// Django publishes beside the API, to the same groups.
    pub(crate) django: bool,
}

/// Redis servers, and the ways to them.
pub(crate) struct Stores {
    pub(crate) servers: Vec<RedisServer>,
    pub(crate) sentinels: Option<Deployment>,
    cluster: Option<Cluster>,
    /// The ways of each replica, by host.
    pub(crate) lines: Vec<Vec<Proxy>>,
    /// The ways of Django, by host. They lead to another master after a failover.
    pub(crate) roads: Vec<Proxy>,
}

/// All servers of a run.
pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) configs: Vec<PathBuf>,
    pub(crate) stores: Stores,
    pub(crate) django: Option<Django>,
    /// The doors for sockets, by replica.
    pub(crate) fronts: Vec<Proxy>,
}

impl Stores {
    async fn start(hosts: Hosts) -> Self {
        let (mut servers, mut sentinels, mut cluster) = (Vec::new(), None, None);
        let count = match hosts {
            Hosts::None => 0,
            Hosts::One => 1,
            Hosts::Three => 3,
            Hosts::Sentinel => {
                sentinels = Some(Deployment::start().await);
                0
            }
            Hosts::Cluster => {
                cluster = Some(Cluster::start().await);
                0
            }
        };
        for _ in 0..count {
            servers.push(RedisServer::start().await);
        }
        let masters = servers
            .iter()
            .chain(sentinels.iter().map(|deployment| &deployment.servers[0]));
        let mut roads = Vec::new();
        for master in masters {
            roads.push(Proxy::to(&master.endpoint()).await);
        }
        let mut lines = Vec::new();
        for _ in 0..REPLICAS {
            let mut ways = Vec::new();
            for server in &servers {
                ways.push(Proxy::to(&server.endpoint()).await);
            }
            lines.push(ways);
        }
        Self {
            servers,
            sentinels,
            cluster,
            lines,
            roads,
        }
    }

    /// The URLs for the first replica.
    fn urls(&self) -> Vec<String> {
        let of_line = |line: &Proxy| format!("redis://{}/0", line.endpoint());
        match (&self.sentinels, &self.cluster) {
            (Some(deployment), _) => vec![deployment.url()],
            (None, Some(cluster)) => vec![cluster.url()],
            (None, None) => self.lines[0].iter().map(of_line).collect(),
        }
    }

    /// Those that have links of the gateway now.
    pub(crate) async fn linked(&self) -> Vec<&RedisServer> {
        match (&self.sentinels, &self.cluster) {
            (Some(deployment), _) => vec![&deployment.servers[deployment.master().await]],
            (None, Some(cluster)) => cluster.nodes.iter().filter(|node| node.runs()).collect(),
            (None, None) => self.servers.iter().collect(),
        }
    }

    /// Gives the slots of these channels, with the histories of their groups, to other masters of the cluster.
    pub(crate) async fn move_channels(&self, channels: &[String]) {
        let cluster = self.cluster.as_ref().expect("the run has one");
        let slots: BTreeSet<u16> = channels
            .iter()
            .map(|name| slot_of(name.as_bytes()))
            .collect();
        for slot in slots {
            let owner = cluster.owner(slot).await;
            cluster.move_slot(slot, owner, (owner + 1) % 3).await;
        }
    }

    /// Kills a master once its replicas have all that it has, and waits until another one has its place. In a cluster it is the
    /// master of this channel.
    pub(crate) async fn fail_over(&mut self, channel: &str) {
        if let Some(cluster) = &self.cluster {
            let slot = slot_of(channel.as_bytes());
            let old = cluster.owner(slot).await;
            level(&cluster.nodes[old], 1).await;
            cluster.nodes[old].kill();
            cluster.taken_over(slot, old).await;
            return;
        }
        let deployment = self.sentinels.as_mut().expect("the run has them");
        let old = deployment.master().await;
        level(&deployment.servers[old], 2).await;
        deployment.kill(old);
        let new = eventually(4 * PATIENCE, "another master", async || {
            match deployment.master().await {
                other if other != old => Ok(other),
                same => Err(same),
            }
        })
        .await;
        self.roads[0].lead_to(&deployment.servers[new].endpoint());
    }
}

/// Stops writes, and waits until as many replicas have all.
async fn level(master: &RedisServer, replicas: usize) {
    let _: String = master.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    eventually(PATIENCE, "the replicas have all", async || {
        let info: String = master.command(&["INFO", "replication"]).await;
        match are_level(&info, replicas) {
            true => Ok(()),
            false => Err(info),
        }
    })
    .await;
}

/// True if as many replicas have read as much as the master has written.
fn are_level(info: &str, count: usize) -> bool {
    let offset = info
        .lines()
        .find_map(|line| line.strip_prefix("master_repl_offset:"));
    let Some(offset) = offset else {
        return false;
    };
    let own = format!("offset={},", offset.trim());
    let replicas = info.lines().filter(|line| line.starts_with("slave"));
    replicas.filter(|line| line.contains(&own)).count() == count
}

impl World {
    /// Starts everything but clients and publishers.
    pub(crate) async fn set(run: Run, size: Size) -> Self {
        let stores = Stores::start(run.hosts).await;
        let database = Database::sqlite().await;
        let mut gateway = write(run, size, &stores, &database).await;
        let configs = configs(&gateway, run, &stores);
        for config in &configs {
            gateway.replicas.push(Replica::start(config).await);
        }
        let mut fronts = Vec::new();
        for replica in &gateway.replicas {
            replica.ready().await;
            fronts.push(Proxy::to(&replica.server.to_string()).await);
        }
        let django = match run.django {
            true => Some(django(run, &gateway, &stores, &database).await),
            false => None,
        };
        Self {
            gateway,
            configs,
            stores,
            django,
            fronts,
        }
    }

    /// Starts another replica in the place of one that has ended, and leads clients to it.
    pub(crate) async fn replace(&mut self, replica: usize) {
        let new = Replica::start(&self.configs[replica]).await;
        new.ready().await;
        self.fronts[replica].lead_to(&new.server.to_string());
        self.gateway.replicas[replica] = new;
    }
}

/// Options of the layer as Channels' `CONFIG` has them; the gateway's have the same names.
fn options(run: Run) -> Value {
    let mut options = json!({});
    if run.encrypted {
        options["symmetric_encryption_keys"] = json!(["a key", "the key before"]);
    }
    if run.layer == "core" {
        options["capacity"] = json!(CAPACITY);
    }
    options
}

async fn write(run: Run, size: Size, stores: &Stores, database: &Database) -> Gateway {
    let urls = stores.urls();
    let mut builder = match urls.first() {
        Some(url) => gateway().redis(url),
        None => gateway().without_redis(),
    };
    let age = format!("{}s", size.max_age.as_secs());
    builder = builder
        .set("server.drain.delay", "200ms")
        .set("server.drain.window", "2s")
        .set("server.max_age", age);
    for word in ["acme", "other"] {
        builder = builder
            .tenant(word)
            .users(database)
            .with("layer.kind", run.layer)
            .with("limits.send_queue", "256KiB")
            .with_toml(GROUPS);
        if run.hosts == Hosts::Three {
            builder = builder.with("layer.hosts", urls.clone());
        }
        for (name, value) in options(run).as_object().into_iter().flatten() {
            builder = builder.with_toml(&format!("layer.{name} = {value}"));
        }
        for (kind, resume) in [("back", true), ("plain", false)] {
            let route = format!(
                "path = '{kind}/<int:group>/'\n groups = ['g_{{group}}']\n resume = {resume}"
            );
            builder = builder.route(&route);
        }
    }
    builder.write().await
}

/// Writes the configuration of each replica, with its own ways to Redis.
fn configs(gateway: &Gateway, run: Run, stores: &Stores) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(&gateway.config).expect("it was written");
    let mut configs = vec![gateway.config.clone()];
    // One process's memory is one replica's.
    let more = if run.hosts == Hosts::None {
        1
    } else {
        REPLICAS
    };
    for replica in 1..more {
        let mut own = text.clone();
        for (first, line) in stores.lines[0].iter().zip(&stores.lines[replica]) {
            own = own.replace(&first.endpoint(), &line.endpoint());
        }
        let path = gateway.config.with_file_name(format!("{replica}.toml"));
        std::fs::write(&path, own).expect("a file can be written");
        configs.push(path);
    }
    configs
}

/// A project that sends by the layer class of deploy/django on `pubsub`, and by Channels' own on `core`.
async fn django(run: Run, gateway: &Gateway, stores: &Stores, database: &Database) -> Django {
    let tenant = gateway.tenant();
    let roads = stores.roads.iter();
    let urls: Vec<_> = roads
        .map(|road| format!("redis://{}/0", road.endpoint()))
        .collect();
    let setup = Django::at(database.url()).layer(&urls.join(","), &tenant.prefix);
    let setup = match run.layer {
        "core" => setup.core(&options(run)),
        _ => setup
            .recording_for(&tenant.name)
            .layer_config(&options(run)),
    };
    setup.start().await
}
