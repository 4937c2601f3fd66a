//! Servers that do not fit their URL: a node of a cluster behind the URL of one server, and nodes that are too old for a
//! cluster. An operator has to act on each.

use std::fmt;

use redis::{RedisError, ServerErrorKind};

/// The oldest version of a cluster's nodes. `CLUSTER SHARDS` and sharded channels came with it.
const CLUSTER_VERSION: (u32, u32) = (7, 0);

/// The action on a node of a cluster that is taken for one server.
const NAME_THE_CLUSTER: &str = "write redis+cluster:// (rediss+cluster:// with TLS) in its URL, and no other layer.kind than \"sharded\": a node \
     refuses the keys of the others";

/// The action on nodes that are too old for a cluster.
pub const UPGRADE_EACH: &str = "in a cluster every node needs Redis 7.0 or newer, for CLUSTER SHARDS and sharded channels: upgrade it";

/// The reason why a server cannot be used by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The URL names one server, and the server at `host:port` is a node of a cluster.
    ClusterNode(String),
    /// These nodes of the cluster are too old, each by its version and `host:port`.
    OldNodes(Vec<(String, String)>),
}

impl Misfit {
    /// Returns the action to take.
    pub fn remedy(&self) -> &'static str {
        match self {
            Misfit::ClusterNode(_) => NAME_THE_CLUSTER,
            Misfit::OldNodes(_) => UPGRADE_EACH,
        }
    }
}

impl fmt::Display for Misfit {
    /// Writes the reason without the action.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::ClusterNode(endpoint) => {
                write!(
                    f,
                    "Redis at {endpoint} is a node of a Redis Cluster, and its URL is that of one server"
                )
            }
            Misfit::OldNodes(nodes) => {
                let nodes = nodes.iter();
                let nodes: Vec<_> = nodes
                    .map(|(version, endpoint)| format!("Redis {version} at {endpoint}"))
                    .collect();
                write!(f, "too old for a Redis Cluster: {}", nodes.join(", "))
            }
        }
    }
}

/// Returns the major and minor number of a version.
pub fn version_numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Returns true if a node of this version is too old for a cluster.
pub fn is_too_old_for_cluster(version: &str) -> bool {
    version_numbers(version).is_some_and(|numbers| numbers < CLUSTER_VERSION)
}

/// Returns true if no server but a node of a cluster gives this error, also inside a pipeline or a transaction.
pub(super) fn is_of_cluster(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, CrossSlot, Moved};
    let Some(errors) = error.clone().into_server_errors() else {
        return false;
    };
    let given = [Moved, Ask, CrossSlot, ClusterDown];
    errors
        .iter()
        .any(|(_, error)| error.kind().is_some_and(|kind| given.contains(&kind)))
}

/// Returns the error of a cluster's node with the action to take, where the URL is that of one server.
pub(super) fn of_cluster_node(error: &RedisError) -> RedisError {
    let text = format!("it is a node of a Redis Cluster: {NAME_THE_CLUSTER} ({error})");
    let kind = redis::ErrorKind::UnexpectedReturnType;
    (kind, "the URL does not fit the server", text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_before_7_is_too_old() {
        for (version, is_old) in [
            ("6.0.9", true),
            ("6.2.14", true),
            ("7.0.0", false),
            ("7.0.15", false),
            ("10.1.2", false),
            ("unknown", false),
        ] {
            assert_eq!(is_too_old_for_cluster(version), is_old, "{version}");
        }
    }

    #[test]
    fn a_node_of_a_cluster_is_known_by_its_errors() {
        for (line, is_node) in [
            ("-MOVED 7537 127.0.0.1:27002", true),
            ("-ASK 7537 127.0.0.1:27002", true),
            (
                "-CROSSSLOT Keys in request don't hash to the same slot",
                true,
            ),
            ("-CLUSTERDOWN Hash slot not served", true),
            ("-NOPERM no", false),
            ("-ERR This instance has cluster support disabled", false),
            ("-MASTERDOWN Link with MASTER is down", false),
        ] {
            let reply = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap();
            let error = reply.extract_error().unwrap_err();
            assert_eq!(is_of_cluster(&error), is_node, "{line}");
        }
    }
}
