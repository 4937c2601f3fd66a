//! Which server a Redis URL leads to, whatever the URL calls it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::redis::RedisStore;
use crate::error::ErrorKind;

/// The system's name look-up may take this long; what it would have said is unknown then.
const LOOKUP_LIMIT: Duration = Duration::from_secs(1);

/// What two servers never have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// The `run_id` of `INFO server`.
    Run(String),
    /// An address that it listens on, as this machine resolves it.
    Address(SocketAddr),
}

/// What tells one server from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    endpoint: String,
    marks: BTreeSet<Mark>,
}

impl ServerIdentity {
    /// Asks the server for its `run_id`, and resolves its address: a login may not ask, and a server may not answer. Also
    /// says whether asking again on the same link would tell nothing new.
    pub async fn of(store: &RedisStore) -> (Self, bool) {
        let mut marks = BTreeSet::new();
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let (info, address) = tokio::join!(store.query::<String>("info", &info), store.address());
        let is_final = match &info {
            Ok(_) => true,
            Err(error) => error.kind == ErrorKind::Permission,
        };
        let run = info.ok().and_then(|info| run_id(&info));
        marks.extend(run.map(Mark::Run));
        if let Ok((host, port)) = address
            && let Ok(Ok(found)) = timeout(LOOKUP_LIMIT, lookup_host((host.as_str(), port))).await
        {
            marks.extend(found.map(|found| {
                let ip = found.ip().to_canonical();
                Mark::Address(SocketAddr::new(ip, found.port()))
            }));
        }
        let endpoint = store.endpoint().to_owned();
        (Self { endpoint, marks }, is_final)
    }

    /// Whether both are one server.
    pub fn is_same(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint || !self.marks.is_disjoint(&other.marks)
    }

    /// `host:port` of the URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

fn run_id(info: &str) -> Option<String> {
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:"))?;
    Some(run.trim_end().to_owned()).filter(|run| !run.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(endpoint: &str, run: Option<&str>, addresses: &[&str]) -> ServerIdentity {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        let marks = addresses.map(Mark::Address);
        ServerIdentity {
            endpoint: endpoint.to_owned(),
            marks: marks
                .chain(run.map(|run| Mark::Run(run.to_owned())))
                .collect(),
        }
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
        assert_eq!(run_id(info).as_deref(), Some("0123abcd"));
        assert_eq!(run_id("# Server\r\n"), None);
    }
}
