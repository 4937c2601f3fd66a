//! A Redis Cluster of one, two or three masters without replicas, all on the load core.
//!
//! `redis-cli --cluster create` makes none of fewer than three masters; the commands here are those that it sends.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lockgate::stores::redis::cluster::slot_of;

use crate::ports::free_port;
use crate::process::{CpuReading, LOAD_CORE, Process};
use crate::redis::{Link, Publisher, Reply};
use crate::world::wait_for;

const SLOTS: usize = 16_384;
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the place of the master that has the channel's slot. Slots lie in equal ranges.
pub(crate) fn shard_of(channel: &str, shards: usize) -> usize {
    usize::from(slot_of(channel.as_bytes())) * shards / SLOTS
}

/// All its processes.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    process: Process,
    port: u16,
    /// The port for the other nodes.
    bus: u16,
    link: Link,
}

impl Cluster {
    /// Starts it, with its files in `folder`, and waits until each node serves.
    pub(crate) fn start(shards: usize, folder: &Path) -> Result<Self> {
        let nodes = (0..shards).map(|_| Node::start(folder));
        let mut nodes = nodes.collect::<Result<Vec<_>>>()?;
        let ports = ports_of(&nodes);
        let [first, bus] = [nodes[0].port, nodes[0].bus].map(|port| port.to_string());
        for (at, node) in nodes.iter_mut().enumerate() {
            let slot = |shard: usize| (shard * SLOTS).div_ceil(shards);
            let (low, high) = (slot(at).to_string(), (slot(at + 1) - 1).to_string());
            node.cluster(&["ADDSLOTSRANGE", &low, &high])?;
            node.cluster(&["SET-CONFIG-EPOCH", &(at + 1).to_string()])?;
            if at > 0 {
                node.cluster(&["MEET", "127.0.0.1", &first, &bus])?;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for node in &mut nodes {
            while !node.is_whole(&ports)? {
                ensure!(Instant::now() < deadline, "the cluster is not whole");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(Self { nodes })
    }

    /// Returns its URL, by all its nodes.
    pub(crate) fn url(&self) -> String {
        let nodes: Vec<String> = { self.nodes.iter() }
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// Returns a publisher to all its masters.
    pub(crate) fn publisher(&self) -> Result<Publisher> {
        Publisher::to_shards(&ports_of(&self.nodes))
    }

    /// Returns the CPU time of each node.
    pub(crate) fn cpu(&self) -> Result<Vec<CpuReading>> {
        self.nodes.iter().map(|node| node.process.cpu()).collect()
    }

    /// Returns the sum over all nodes of [`Link::command_counts`].
    pub(crate) fn command_counts(&mut self) -> Result<BTreeMap<String, u64>> {
        let mut sum = BTreeMap::new();
        for node in &mut self.nodes {
            for (name, count) in node.link.command_counts()? {
                *sum.entry(name).or_default() += count;
            }
        }
        Ok(sum)
    }

    /// Returns the sum over all nodes of [`Link::info`].
    pub(crate) fn info(&mut self, section: &str, field: &str) -> Result<f64> {
        let values = self.nodes.iter_mut();
        values.map(|node| node.link.info(section, field)).sum()
    }
}

fn ports_of(nodes: &[Node]) -> Vec<u16> {
    nodes.iter().map(|node| node.port).collect()
}

impl Node {
    fn start(folder: &Path) -> Result<Self> {
        let (port, bus) = (free_port(), free_port());
        let log = File::create(folder.join(format!("node-{port}.log")))?;
        let mut process = Process::spawn(LOAD_CORE, Path::new("redis-server"), |command| {
            command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--cluster-enabled", "yes", "--cluster-port"])
                .arg(bus.to_string())
                .arg("--cluster-config-file")
                .arg(format!("nodes-{port}.conf"))
                // A node that has met no other one does not know its own address.
                .args(["--cluster-announce-ip", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--dir"])
                .arg(folder)
                .stdout(log)
        })?;
        let link = wait_for("a node", &mut process, || Link::connect(port))?;
        Ok(Self {
            process,
            port,
            bus,
            link,
        })
    }

    fn cluster(&mut self, words: &[&str]) -> Result<String> {
        let words = std::iter::once("CLUSTER").chain(words.iter().copied());
        let words: Vec<&[u8]> = words.map(str::as_bytes).collect();
        match self.link.call(&words)? {
            Reply::Text(text) => Ok(String::from_utf8(text)?),
            other => bail!("CLUSTER answers {other:?}"),
        }
    }

    /// Returns true once the node serves and has a link to each other one, whose slots it knows.
    fn is_whole(&mut self, ports: &[u16]) -> Result<bool> {
        let state = self.cluster(&["INFO"])?;
        let nodes = self.cluster(&["NODES"])?;
        let serves = |port: &u16| {
            let address = format!(" 127.0.0.1:{port}@");
            let mut lines = nodes.lines().filter(|line| line.contains(&address));
            lines.any(|line| line.contains(" connected ") && !line.contains("handshake"))
        };
        Ok(state.contains("cluster_state:ok")
            && state.contains(&format!("cluster_slots_assigned:{SLOTS}"))
            && ports.iter().all(serves))
    }
}
