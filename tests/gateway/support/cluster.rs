//! A Redis Cluster of three masters with a replica each.

use redis::FromRedisValue;

use super::ports::free_port;
use super::process::{Program, find_program};
use super::{PATIENCE, RedisServer, eventually};

/// Milliseconds after which a node that does not answer counts as failed. Shorter ones make live nodes fail on a busy machine.
const NODE_TIMEOUT: &str = "3000";

/// All six processes.
pub(crate) struct Cluster {
    /// The first three are the masters at the start.
    pub(crate) nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts it, and waits until every node knows all and every replica has its data.
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            let bus = free_port().to_string();
            let options = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            let times = ["--cluster-node-timeout", NODE_TIMEOUT];
            // A shard that is down leaves the others in service, and a replica takes over however old its data is.
            let service = [
                "--cluster-require-full-coverage",
                "no",
                "--cluster-replica-validity-factor",
                "0",
                "--repl-diskless-sync-delay",
                "0",
            ];
            nodes.push(RedisServer::with(&[&options[..], &times, &service].concat()).await);
        }
        let addresses: Vec<String> = nodes.iter().map(RedisServer::endpoint).collect();
        Program::new("redis-cli", find_program("redis-cli"))
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .run();
        let cluster = Self { nodes };
        for node in &cluster.nodes {
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
        cluster
    }

    /// Its URL, by the first and the last node.
    pub(crate) fn url(&self) -> String {
        let (first, last) = (&self.nodes[0], &self.nodes[5]);
        format!("redis+cluster://{},{}", first.endpoint(), last.endpoint())
    }

    /// The node that serves a slot, as `asked` knows it; `None` while there is none that lives.
    pub(crate) async fn owner_as(&self, asked: usize, slot: u16) -> Option<usize> {
        let nodes: String = self.nodes[asked].command(&["CLUSTER", "NODES"]).await;
        let serves = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            let is_master = words[2].contains("master") && !words[2].contains("fail");
            let mut ranges = words.iter().skip(8).filter(|word| !word.starts_with('['));
            is_master
                && ranges.any(|range| {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
                    (first..=last).contains(&slot)
                })
        };
        let line = nodes.lines().find(serves)?;
        let address = line.split([' ', '@']).nth(1)?;
        self.nodes
            .iter()
            .position(|node| node.endpoint() == address)
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
        for node in [target, source] {
            said(node, &set("NODE", &target_id)).await;
        }
    }
}

async fn said(node: &RedisServer, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer: redis::Value = node.command(&words).await;
    assert_eq!(String::from_redis_value(answer).as_deref(), Ok("OK"));
}
