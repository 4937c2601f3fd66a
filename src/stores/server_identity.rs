//! The identity of the server that a Redis URL leads to. Two URLs may name one server in different ways.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// A property that two servers never share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// The `run_id` of `INFO server`.
    Run(String),
    /// An address on which the server listens, as this machine resolves it.
    Address(SocketAddr),
}

/// The properties that tell one server from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    endpoint: String,
    marks: BTreeSet<Mark>,
    is_cluster_node: bool,
    version: Option<String>,
}

impl ServerIdentity {
    /// Makes the identity of the server at `endpoint`. `info` is its answer to `INFO server`, if there is one; it listens on
    /// `addresses`.
    pub fn new(
        endpoint: &str,
        info: Option<&str>,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let addresses = addresses.into_iter().map(|address| {
            let ip = address.ip().to_canonical();
            Mark::Address(SocketAddr::new(ip, address.port()))
        });
        let run = info.and_then(|info| field(info, "run_id:")).map(Mark::Run);
        Self {
            endpoint: endpoint.to_owned(),
            marks: addresses.chain(run).collect(),
            is_cluster_node: info.is_some_and(has_cluster_mode),
            version: info.and_then(|info| field(info, "redis_version:")),
        }
    }

    /// Makes the identity of a cluster: it is the same server as each of its nodes.
    pub fn of_nodes<'a>(endpoint: &str, nodes: impl IntoIterator<Item = &'a Self>) -> Self {
        let marks = nodes
            .into_iter()
            .flat_map(|node| node.marks.iter().cloned());
        Self {
            endpoint: endpoint.to_owned(),
            marks: marks.collect(),
            is_cluster_node: true,
            version: None,
        }
    }

    /// Notes that the server is a node of a cluster, if its login may not ask for it.
    pub fn set_cluster_node(&mut self) {
        self.is_cluster_node = true;
    }

    /// Returns true if the server is known to be a node of a cluster.
    pub fn is_cluster_node(&self) -> bool {
        self.is_cluster_node
    }

    /// Returns the version that the server states.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Returns true if both are one server.
    pub fn is_same(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint || !self.marks.is_disjoint(&other.marks)
    }

    /// Returns `host:port` of the URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// Returns the value of a field, whose name ends with a colon, in an answer to `INFO server`.
fn field(info: &str, name: &str) -> Option<String> {
    let value = info.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim_end().to_owned()).filter(|value| !value.is_empty())
}

/// Returns true if an answer to `INFO server` is that of a node of a cluster. Valkey has another name for the mode.
fn has_cluster_mode(info: &str) -> bool {
    let mut lines = info.lines().map(str::trim_end);
    lines.any(|line| matches!(line, "redis_mode:cluster" | "server_mode:cluster"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(endpoint: &str, run: Option<&str>, addresses: &[&str]) -> ServerIdentity {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        let info = run.map(|run| format!("# Server\r\nrun_id:{run}\r\n"));
        ServerIdentity::new(endpoint, info.as_deref(), addresses)
    }

    #[test]
    fn one_run_or_one_address_is_one_server() {
        let name = identity("localhost:1", Some("a"), &["127.0.0.1:1", "[::1]:1"]);
        for (other, same) in [
            (identity("localhost:1", None, &[]), true),
            (identity("10.0.0.1:1", Some("a"), &["10.0.0.1:1"]), true),
            // INFO is forbidden to this login.
            (identity("127.0.0.1:1", None, &["127.0.0.1:1"]), true),
            (identity("127.0.0.1:2", Some("b"), &["127.0.0.1:2"]), false),
            (identity("10.0.0.1:1", None, &["10.0.0.1:1"]), false),
            (identity("unknown:1", None, &[]), false),
        ] {
            assert_eq!(name.is_same(&other), same, "{other:?}");
            assert_eq!(other.is_same(&name), same, "{other:?}");
        }
    }

    #[test]
    fn the_run_id_is_read_from_info() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:0123abcd\r\ntcp_port:6379\r\n";
        assert_eq!(field(info, "run_id:").as_deref(), Some("0123abcd"));
        assert_eq!(field("# Server\r\n", "run_id:"), None);
        let identity = ServerIdentity::new("h:1", Some(info), []);
        assert_eq!(identity.version(), Some("7.0.15"));
    }

    #[test]
    fn a_node_of_a_cluster_is_known_by_its_mode() {
        for (mode, is_node) in [
            ("redis_mode:cluster", true),
            ("server_mode:cluster", true),
            ("redis_mode:standalone", false),
            ("redis_mode:sentinel", false),
        ] {
            let info = format!("# Server\r\nredis_version:7.0.15\r\n{mode}\r\nos:Linux\r\n");
            let identity = ServerIdentity::new("h:1", Some(&info), []);
            assert_eq!(identity.is_cluster_node(), is_node, "{mode}");
        }
    }
}
