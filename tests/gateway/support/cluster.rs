//! A Redis Cluster of three masters with a replica each.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use redis::FromRedisValue;

use super::ports::free_port;
use super::process::{Program, find_program};
use super::{PATIENCE, RedisServer, eventually};

/// Milliseconds after which a node that does not answer counts as failed. Shorter ones make live nodes fail on a busy machine.
const NODE_TIMEOUT: &str = "3000";

/// The nodes need their timeout and a vote, on a busy machine some seconds more.
pub(crate) const FAILOVER: Duration = Duration::from_secs(60);

/// Options of every node. A shard that is down leaves the others in service, and a replica takes over however old its data is.
const OPTIONS: [&str; 10] = [
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    NODE_TIMEOUT,
    "--cluster-require-full-coverage",
    "no",
    "--cluster-replica-validity-factor",
    "0",
    "--repl-diskless-sync-delay",
    "0",
];

/// All its processes.
pub(crate) struct Cluster {
    /// The first three are the masters at the start, the next three their replicas.
    pub(crate) nodes: Vec<RedisServer>,
    /// The ports for TLS of the nodes, if they have one.
    pub(crate) tls: Vec<u16>,
}

/// A node of this old version that belongs to no cluster yet.
pub(crate) async fn old_node(version: &str) -> RedisServer {
    RedisServer::old_with(version, &OPTIONS).await
}

/// A node that belongs to no cluster yet, with more options.
pub(crate) async fn node(more: &[&str]) -> RedisServer {
    let bus = free_port().to_string();
    RedisServer::with(&[&OPTIONS[..], &["--cluster-port", &bus], more].concat()).await
}

impl Cluster {
    /// Starts it, and waits until every node knows all and every replica has its data.
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            nodes.push(node(&[]).await);
        }
        let addresses: Vec<String> = nodes.iter().map(RedisServer::endpoint).collect();
        let cluster = Self {
            nodes,
            tls: Vec::new(),
        };
        cluster.form(&addresses, &[]).await
    }

    /// As [`Cluster::start`], with TLS between nodes and for clients by a certificate for `localhost`, the name that every node
    /// announces. The plain ports stay, for the tests.
    pub(crate) async fn secured(certificates: &Path) -> Self {
        let file = |name: &str| certificates.join(name).display().to_string();
        let (certificate, key, authority) =
            (file("server.pem"), file("server.key"), file("ca.pem"));
        let (mut nodes, mut tls) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            let port = free_port();
            let files = [
                "--tls-cert-file",
                &certificate,
                "--tls-key-file",
                &key,
                "--tls-ca-cert-file",
                &authority,
                "--tls-auth-clients",
                "no",
            ];
            let port_text = port.to_string();
            let links = [
                "--tls-port",
                &port_text,
                "--tls-cluster",
                "yes",
                "--tls-replication",
                "yes",
            ];
            let name = [
                "--cluster-announce-hostname",
                "localhost",
                "--cluster-preferred-endpoint-type",
                "hostname",
            ];
            nodes.push(node(&[&files[..], &links, &name].concat()).await);
            tls.push(port);
        }
        let addresses: Vec<String> = { tls.iter() }
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let cluster = Self { nodes, tls };
        cluster
            .form(&addresses, &["--tls", "--cacert", &authority])
            .await
    }

    /// Makes a cluster of at least three nodes, all of them masters, and waits until each knows the others.
    pub(crate) async fn of_masters(nodes: Vec<RedisServer>) -> Self {
        let addresses = nodes.iter().map(RedisServer::endpoint);
        let create = cli(&[]).args(["--cluster", "create"]).args(addresses);
        run(create.args(["--cluster-yes"])).await;
        for node in &nodes {
            eventually(PATIENCE, "the cluster is whole", async || {
                let state: String = node.command(&["CLUSTER", "INFO"]).await;
                let known = format!("cluster_known_nodes:{}", nodes.len());
                match state.contains("cluster_state:ok") && state.contains(&known) {
                    true => Ok(()),
                    false => Err(state),
                }
            })
            .await;
        }
        Self {
            nodes,
            tls: Vec::new(),
        }
    }

    async fn form(self, addresses: &[String], login: &[&str]) -> Self {
        let create = cli(login)
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"]);
        run(create).await;
        for node in &self.nodes {
            eventually(4 * PATIENCE, "the cluster is whole", async || {
                let state: String = node.command(&["CLUSTER", "INFO"]).await;
                let known: String = node.command(&["CLUSTER", "NODES"]).await;
                let info: String = node.command(&["INFO", "replication"]).await;
                let linked = info.contains("role:master\r\nconnected_slaves:1")
                    || info.contains("master_link_status:up");
                let whole = state.contains("cluster_state:ok")
                    && state.contains("cluster_known_nodes:6")
                    && known.matches("slave ").count() == 3
                    && linked;
                if whole { Ok(()) } else { Err((state, known)) }
            })
            .await;
        }
        self
    }

    /// Adds an empty master; returns its place among the nodes.
    pub(crate) async fn add_node(&mut self) -> usize {
        let new = node(&[]).await;
        let add = cli(&[]).args([
            "--cluster",
            "add-node",
            &new.endpoint(),
            &self.nodes[0].endpoint(),
        ]);
        run(add).await;
        self.nodes.push(new);
        for node in &self.nodes {
            eventually(PATIENCE, "every node knows the new one", async || {
                let state: String = node.command(&["CLUSTER", "INFO"]).await;
                let known = format!("cluster_known_nodes:{}", self.nodes.len());
                match state.contains(&known) && state.contains("cluster_state:ok") {
                    true => Ok(()),
                    false => Err(state),
                }
            })
            .await;
        }
        self.nodes.len() - 1
    }

    /// Removes the last node, which has no slots, and ends it.
    pub(crate) async fn remove_last(&mut self) {
        let last = self.nodes.pop().expect("a cluster has nodes");
        let id: String = last.command(&["CLUSTER", "MYID"]).await;
        let remove = cli(&[]).args(["--cluster", "del-node", &self.nodes[0].endpoint(), &id]);
        run(remove).await;
        last.kill();
    }

    /// Makes a replica of this master the master, by hand; returns its place among the nodes.
    pub(crate) async fn promote_replica_of(&self, master: usize) -> usize {
        let id: String = self.nodes[master].command(&["CLUSTER", "MYID"]).await;
        let replicas: Vec<String> = self.nodes[0].command(&["CLUSTER", "REPLICAS", &id]).await;
        let is_named = |node: &RedisServer| {
            let mut replicas = replicas.iter();
            replicas.any(|line| line.contains(&node.endpoint()))
        };
        let replica = self
            .nodes
            .iter()
            .position(is_named)
            .expect("it has a replica");
        said(
            &self.nodes[replica],
            &["CLUSTER", "FAILOVER"].map(str::to_owned),
        )
        .await;
        replica
    }

    /// Its URL, by the first and the last node.
    pub(crate) fn url(&self) -> String {
        let (first, last) = (&self.nodes[0], &self.nodes[5]);
        format!("redis+cluster://{},{}", first.endpoint(), last.endpoint())
    }

    /// The node that serves a slot, as `asked` knows it; `None` while there is none that lives.
    pub(crate) async fn owner_as(&self, asked: usize, slot: u16) -> Option<usize> {
        let nodes: String = self.nodes[asked].command(&["CLUSTER", "NODES"]).await;
        self.owner_in(&nodes, slot)
    }

    /// The node that serves a slot by this answer to CLUSTER NODES.
    fn owner_in(&self, nodes: &str, slot: u16) -> Option<usize> {
        let serves = |line: &&str| {
            let flags = line.split(' ').nth(2).unwrap_or_default();
            let is_master = flags.contains("master") && !flags.contains("fail");
            is_master && ranges_in(line).any(|range| range.contains(&slot))
        };
        let line = nodes.lines().find(serves)?;
        let address = line.split([' ', '@']).nth(1)?;
        self.nodes
            .iter()
            .position(|node| node.endpoint() == address)
    }

    /// Waits until all other nodes that run know that another node serves the slot.
    pub(crate) async fn taken_over(&self, slot: u16, old: usize) {
        for asked in (0..self.nodes.len()).filter(|node| *node != old && self.nodes[*node].runs()) {
            eventually(FAILOVER, "a replica takes over", async || {
                // A node that stands for election may be slow to answer.
                let nodes = self.nodes[asked].ask::<String>(&["CLUSTER", "NODES"]);
                match nodes.await.map(|nodes| self.owner_in(&nodes, slot)) {
                    Ok(Some(owner)) if owner != old => Ok(()),
                    other => Err(other),
                }
            })
            .await;
        }
    }

    /// The node that serves a slot.
    pub(crate) async fn owner(&self, slot: u16) -> usize {
        self.owner_as(0, slot)
            .await
            .expect("a node serves the slot")
    }

    /// Moves a slot and its keys to another master, as `redis-cli --cluster reshard` does.
    pub(crate) async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let source_id: String = source.command(&["CLUSTER", "MYID"]).await;
        let target_id: String = target.command(&["CLUSTER", "MYID"]).await;
        let number = slot.to_string();
        let set = |state: &'static str, id: &str| {
            let words = ["CLUSTER", "SETSLOT", &number, state, id];
            words.map(str::to_owned)
        };
        said(target, &set("IMPORTING", &source_id)).await;
        said(source, &set("MIGRATING", &target_id)).await;
        loop {
            let command = ["CLUSTER", "GETKEYSINSLOT", &number, "100"];
            let keys: Vec<String> = source.command(&command).await;
            if keys.is_empty() {
                break;
            }
            let port = target.port().to_string();
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            migrate.extend(keys.iter().map(String::as_str));
            let _: String = source.command(&migrate).await;
        }
        let given = set("NODE", &target_id);
        said(target, &given).await;
        // A master that has lost its last slot may have become a replica of the target by now.
        let words: Vec<&str> = given.iter().map(String::as_str).collect();
        if let Err(error) = source.ask::<redis::Value>(&words).await {
            let text = error.to_string();
            assert!(text.contains("only with masters"), "{text}");
        }
    }
}

/// The ranges of slots in a line of CLUSTER NODES.
pub(crate) fn ranges_in(line: &str) -> impl Iterator<Item = RangeInclusive<u16>> {
    let words = line.split(' ').skip(8);
    words.filter(|word| !word.starts_with('[')).map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap()..=last.parse().unwrap()
    })
}

/// `redis-cli`, with these options.
fn cli(login: &[&str]) -> Program {
    Program::new("redis-cli", find_program("redis-cli")).args(login)
}

/// Runs it to its end, which takes seconds, while others of the thread go on.
async fn run(program: Program) {
    let done = tokio::task::spawn_blocking(move || program.run());
    done.await.expect("redis-cli is run");
}

async fn said(node: &RedisServer, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer: redis::Value = node.command(&words).await;
    assert_eq!(String::from_redis_value(answer).as_deref(), Ok("OK"));
}
