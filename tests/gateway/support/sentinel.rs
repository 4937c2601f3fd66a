//! A Redis master with two replicas, and three Sentinels that watch it.

use std::time::Duration;

use super::ports::free_port;
use super::process::{Process, Program, find_program};
use super::{PATIENCE, RedisServer, eventually, scratch};

/// The Sentinels' name of the master.
const NAME: &str = "the-master";
/// Sentinels of a new deployment find each other within some seconds.
const AGREED: Duration = Duration::from_secs(30);

/// All six processes.
pub(crate) struct Deployment {
    /// The first is the master at the start.
    pub(crate) servers: Vec<RedisServer>,
    /// Their ports and processes.
    pub(crate) sentinels: Vec<(u16, Process)>,
    _dir: tempfile::TempDir,
}

impl Deployment {
    /// Starts it and waits until every Sentinel knows the others and both replicas have their data.
    pub(crate) async fn start() -> Self {
        // With the default delay a replica has no data yet when the master dies early, and is never elected.
        // Beside the default user, who may do everything, there is one with a password, on servers and Sentinels each.
        let options = ["--repl-diskless-sync-delay", "0"];
        let user = ["--user", "gate", "on", ">the-servers", "~*", "&*", "+@all"];
        let options = [&options[..], &user].concat();
        let mut servers = vec![RedisServer::with(&options).await];
        let port = servers[0].port().to_string();
        for _ in 0..2 {
            let replica = [&options[..], &["--replicaof", "127.0.0.1", &port]].concat();
            servers.push(RedisServer::with(&replica).await);
        }
        let dir = scratch("sentinel");
        let sentinel = |_| {
            let own = free_port();
            let file = dir.path().join(format!("{own}.conf"));
            let text = format!(
                "port {own}\nbind 127.0.0.1\ndir {}\nsentinel monitor {NAME} 127.0.0.1 {port} 2\n\
                 user watcher on >watch ~* &* +@all\n\
                 sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 5000\n",
                dir.path().display()
            );
            std::fs::write(&file, text).expect("a file can be written");
            let process = Program::new("redis-sentinel", find_program("redis-server"))
                .args([file.as_os_str(), "--sentinel".as_ref()])
                .start();
            (own, process)
        };
        let deployment = Self {
            sentinels: (0..3).map(sentinel).collect(),
            servers,
            _dir: dir,
        };
        for replica in &deployment.servers[1..] {
            eventually(PATIENCE, "a replica has its data", async || {
                let info: String = replica.command(&["INFO", "replication"]).await;
                match info.contains("master_link_status:up") {
                    true => Ok(()),
                    false => Err(info),
                }
            })
            .await;
        }
        for (port, _) in &deployment.sentinels {
            eventually(AGREED, "the Sentinels agree", async || {
                let known: Result<redis::Value, _> =
                    ask(*port, &["SENTINEL", "CKQUORUM", NAME]).await;
                let info: Result<String, _> = ask(*port, &["INFO", "sentinel"]).await;
                let info = info.unwrap_or_default();
                match known.is_ok() && info.contains("slaves=2,sentinels=3") {
                    true => Ok(()),
                    false => Err(info),
                }
            })
            .await;
        }
        deployment
    }

    /// The URL of the master, by its Sentinels.
    pub(crate) fn url(&self) -> String {
        let nodes = self.sentinels.iter();
        let nodes: Vec<_> = nodes.map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{NAME}/0", nodes.join(","))
    }

    /// The same with logins: the servers' as `user:password@`, the Sentinels' as a query.
    pub(crate) fn url_with(&self, servers: &str, sentinels: &str) -> String {
        let url = self.url().replacen("://", &format!("://{servers}"), 1);
        format!("{url}{sentinels}")
    }

    /// The index of the server that the Sentinels call the master.
    pub(crate) async fn master(&self) -> usize {
        let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
        let (_, port): (String, u16) = ask(self.sentinels[0].0, &command)
            .await
            .expect("a Sentinel answers");
        let found = self.servers.iter().position(|server| server.port() == port);
        found.expect("one of the three")
    }

    /// `kill -9` of a server.
    pub(crate) fn kill(&mut self, server: usize) {
        self.servers[server].kill();
    }

    /// An operator's failover.
    pub(crate) async fn fail_over(&self) {
        let port = self.sentinels[0].0;
        let command = ["SENTINEL", "FAILOVER", NAME];
        let _: String = ask(port, &command).await.expect("a Sentinel obeys");
    }
}

async fn ask<T: redis::FromRedisValue>(port: u16, command: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut cmd = redis::cmd(command[0]);
    for argument in &command[1..] {
        cmd.arg(*argument);
    }
    cmd.query_async(&mut connection).await
}
