//! Faults of `hurt`'s Redis: its process, its memory, its role, its rights, its limits.

use std::time::Duration;

use serde_json::json;

use crate::stage::Stage;
use crate::support::proxy::Line;
use crate::support::publisher::msgpack;
use crate::support::{Publisher, eventually};

/// The longest wait for a server to come back, or for Sentinels to agree.
const BACK: Duration = Duration::from_secs(30);
/// The keys that a server loads which takes half a millisecond for each.
const KEYS: &str = "4000";

/// What goes wrong with a Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedisFault {
    /// `kill -9`; it comes back empty at the end.
    Killed,
    /// `kill -9`; at the end it comes back with its data, and is busy loading for a while.
    KilledWithData,
    /// SIGSTOP.
    Frozen,
    /// `CLIENT PAUSE`.
    Paused,
    /// A script without an end.
    Busy,
    /// `maxmemory` is reached and nothing may be evicted.
    Full,
    /// It may evict any key.
    Evicts,
    /// `FLUSHALL`.
    Flushed,
    /// Master and replica swap their roles behind one name; links stay.
    Swapped,
    /// The master dies, and Sentinels name another.
    MasterKilled,
    /// An operator's failover: the old master lives on as a replica.
    FailedOver,
    /// No Sentinel answers.
    SentinelsKilled,
    /// The gateway's login may no longer subscribe to groups.
    RightTaken,
    /// The gateway's password is another, and its links end.
    PasswordChanged,
    /// No further client is taken, and the subscribers' links end.
    NoMoreClients,
    /// The subscribers do not read, and Redis cuts them for it.
    OutputLimit,
    /// `CLIENT KILL TYPE pubsub`.
    SubscribersKilled,
    /// The second host of the layer is killed.
    HostKilled,
    /// What no back end should send.
    Poisoned,
}

impl RedisFault {
    pub(super) async fn begin(self, stage: &mut Stage, lasts: Duration) {
        let millis = lasts.as_millis().to_string();
        match self {
            Self::Killed => stage.stores.servers[0].kill(),
            Self::HostKilled => stage.stores.servers[1].kill(),
            Self::KilledWithData => {
                order(stage, &["DEBUG", "POPULATE", KEYS, "ballast"]).await;
                order(stage, &["SAVE"]).await;
                stage.stores.servers[0].kill();
            }
            Self::Frozen => stage.stores.servers[0].freeze(),
            Self::Paused => order(stage, &["CLIENT", "PAUSE", &millis, "ALL"]).await,
            Self::Busy => run_without_end(stage).await,
            Self::Full => order(stage, &["CONFIG", "SET", "maxmemory", "1"]).await,
            Self::Evicts => {
                // Without a limit no policy evicts.
                order(stage, &["CONFIG", "SET", "maxmemory", "1gb"]).await;
                let policy = ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"];
                order(stage, &policy).await;
                end_links(stage).await;
            }
            Self::Flushed => {
                order(stage, &["FLUSHALL"]).await;
                end_links(stage).await;
            }
            Self::Swapped => swap_roles(stage).await,
            Self::MasterKilled | Self::FailedOver => {}
            Self::SentinelsKilled => {
                let deployment = stage.stores.sentinels.as_mut();
                let deployment = deployment.expect("the row has them");
                for (_, process) in &mut deployment.sentinels {
                    process.kill();
                }
            }
            Self::RightTaken => {
                let taken = ["ACL", "SETUSER", "gate", "resetchannels", "&lockgate*"];
                order(stage, &taken).await;
            }
            Self::PasswordChanged => {
                order(stage, &["ACL", "SETUSER", "gate", "resetpass", ">another"]).await;
                order(stage, &["CLIENT", "KILL", "USER", "gate"]).await;
            }
            Self::NoMoreClients => {
                order(stage, &["CONFIG", "SET", "maxclients", "1"]).await;
                order(stage, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            }
            Self::OutputLimit => overflow(stage).await,
            Self::SubscribersKilled => order(stage, &["CLIENT", "KILL", "TYPE", "pubsub"]).await,
            Self::Poisoned => poison(stage).await,
        }
    }

    pub(super) async fn end(self, stage: &mut Stage) {
        match self {
            Self::Killed | Self::KilledWithData => {
                stage.stores.servers[0].restart().await;
                let link = stage.stores.servers[0].connection().await;
                stage.operator = Some(link.expect("it answers"));
            }
            Self::HostKilled => stage.stores.servers[1].restart().await,
            Self::Frozen => stage.stores.servers[0].thaw(),
            Self::Paused => {
                eventually(BACK, "Redis answers", async || {
                    stage.stores.servers[0].ask::<String>(&["PING"]).await
                })
                .await;
            }
            Self::Busy => order(stage, &["SCRIPT", "KILL"]).await,
            Self::Full => order(stage, &["CONFIG", "SET", "maxmemory", "0"]).await,
            Self::MasterKilled | Self::FailedOver => fail_over(stage, self).await,
            Self::RightTaken => order(stage, &["ACL", "SETUSER", "gate", "allchannels"]).await,
            Self::PasswordChanged => {
                let back = ["ACL", "SETUSER", "gate", ">the-first-password"];
                order(stage, &back).await;
            }
            Self::NoMoreClients => order(stage, &["CONFIG", "SET", "maxclients", "10000"]).await,
            Self::OutputLimit => {
                for line in stage.stores.lines.iter().flatten() {
                    line.set(Line::Open);
                }
            }
            Self::Evicts
            | Self::Flushed
            | Self::Swapped
            | Self::SentinelsKilled
            | Self::SubscribersKilled
            | Self::Poisoned => {}
        }
    }
}

/// A command that has to work.
async fn order(stage: &mut Stage, command: &[&str]) {
    let done: redis::RedisResult<redis::Value> = stage.order(command).await;
    done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

/// Ends the links for commands, so that the gateway looks at the server again.
async fn end_links(stage: &mut Stage) {
    let links = ["CLIENT", "KILL", "TYPE", "normal", "USER", "gate"];
    order(stage, &links).await;
}

async fn run_without_end(stage: &mut Stage) {
    order(stage, &["CONFIG", "SET", "busy-reply-threshold", "100"]).await;
    let link = stage.stores.servers[0].connection().await;
    let mut link = link.expect("it answers");
    stage.kept.spawn(async move {
        let mut script = redis::cmd("EVAL");
        script.arg("while true do end").arg(0);
        // No answer is due; the link stays until the fault ends.
        drop(script.query_async::<redis::Value>(&mut link).await);
        std::future::pending::<()>().await;
    });
    let server = &stage.stores.servers[0];
    eventually(BACK, "Redis is busy", async || {
        match server.ask::<String>(&["PING"]).await {
            Err(error) if error.code() == Some("BUSY") => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// The replica becomes the master, the master its replica; the name leads to the new master, old links stay where they are.
async fn swap_roles(stage: &mut Stage) {
    let (old, new) = (&stage.stores.servers[0], &stage.stores.servers[1]);
    eventually(BACK, "the replica has its data", async || {
        let info: String = new.command(&["INFO", "replication"]).await;
        match info.contains("master_link_status:up") {
            true => Ok(()),
            false => Err(info),
        }
    })
    .await;
    let _: String = new.command(&["REPLICAOF", "NO", "ONE"]).await;
    let port = new.port().to_string();
    let _: String = old.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    for line in &stage.stores.lines[0] {
        line.lead_to(&new.endpoint());
    }
    let url = new.url();
    stage.publish_to(url);
}

/// Lets Sentinels name another master, and leads publishers to it.
async fn fail_over(stage: &mut Stage, how: RedisFault) {
    let deployment = stage.stores.sentinels.as_mut().expect("the row has them");
    let old = deployment.master().await;
    match how {
        RedisFault::MasterKilled => deployment.kill(old),
        _ => deployment.fail_over().await,
    }
    let new = eventually(BACK, "another master", async || {
        match deployment.master().await {
            other if other != old => Ok(other),
            same => Err(same),
        }
    })
    .await;
    let url = deployment.servers[new].url();
    stage.publish_to(url);
}

/// Fills the output buffers of subscribers that do not read, until Redis cuts them.
async fn overflow(stage: &mut Stage) {
    let limit = "pubsub 256kb 128kb 1";
    order(
        stage,
        &["CONFIG", "SET", "client-output-buffer-limit", limit],
    )
    .await;
    for line in stage.stores.lines.iter().flatten() {
        line.set(Line::Clogged);
    }
    let tenant = &stage.gateway.named("hurt").prefix;
    let publisher = Publisher::new(&stage.stores.servers[0], tenant).await;
    let pad = json!({"type": "pad", "pad": "x".repeat(256 * 1024)});
    eventually(
        BACK,
        "Redis cuts its subscribers",
        async || match publisher.send("g_0", &pad).await {
            0 => Ok(()),
            subscribed => Err(subscribed),
        },
    )
    .await;
}

/// Payloads that are no events, to the groups of the load.
async fn poison(stage: &mut Stage) {
    let prefix = stage.gateway.named("hurt").prefix.clone();
    let publisher = Publisher::new(&stage.stores.servers[0], &prefix).await;
    let deep = [vec![0x91; 100_000], vec![0xc0]].concat();
    let payloads: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0xc1],
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0xdf, 0xff, 0xff, 0xff, 0xff],
        deep,
        vec![0xa5; 1 << 20],
        msgpack(&json!(["no", "map"])),
        msgpack(&json!({"no": "type"})),
        msgpack(&json!({"type": "_n", "group": 0, "number": 0})),
        br#"{"type":"n","group":0,"number":0}"#.to_vec(),
    ];
    let groups = stage.field.size.groups;
    stage.kept.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for payload in payloads.iter().cycle() {
            for group in 0..groups {
                tick.tick().await;
                publisher.send_bytes(&format!("g_{group}"), payload).await;
            }
        }
    });
}
