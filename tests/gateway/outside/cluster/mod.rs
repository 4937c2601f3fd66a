//! A Redis Cluster: events, histories and revocations on all shards, while slots move and a master dies.

use std::time::{Duration, Instant};

use lockgate::stores::redis::cluster::slot_of;
use serde_json::json;

use crate::operations::doctor::findings;
use crate::support::cluster::{Cluster, FAILOVER};
use crate::support::database::ALICE;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway, token};

mod changes;
mod moving;
mod refused;
mod secured;

async fn on_cluster(cluster: &Cluster) -> Gateway {
    gateway()
        .redis(&cluster.url())
        .replicas(2)
        // Sockets that wait for the cluster do not read, and answer no ping.
        .set("server.heartbeat.interval", "10m")
        .tenant("acme")
        .without_layer_kind()
        .users(&Database::sqlite().await)
        .with("on_gap", "notify")
        // While a master is down, the other shards are used as fast as they answer.
        .with("limits.messages_per_second", 0)
        .with_toml("[[groups]]\nname = 'kept_<slug:room>'\nhistory = { size = 1000, ttl = '10m' }")
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n consumer = { kind = 'broadcast', type = 'x' }")
        .route("path = 'ws/kept/<slug:room>/'\n groups = ['kept_{room}']")
        .start()
        .await
}

/// The sockets of two groups whose channels one master has: a plain one, and one with a history.
struct Shard {
    chat_room: String,
    kept_room: String,
    chat_slot: u16,
    kept_slot: u16,
    /// On both replicas.
    chat: [Socket; 2],
    kept: Socket,
}

impl Shard {
    /// Those of each master.
    async fn open_all(gateway: &Gateway, cluster: &Cluster) -> Vec<Self> {
        let mut shards = Vec::new();
        for master in 0..3 {
            shards.push(Self::open(gateway, cluster, master).await);
        }
        shards
    }

    async fn open(gateway: &Gateway, cluster: &Cluster, master: usize) -> Self {
        let tenant = gateway.tenant();
        let slot = |group: &str| slot_of(format!("{}__group__{group}", tenant.prefix).as_bytes());
        let room_of = async |kind: &str| {
            let mut number = 0;
            loop {
                let room = format!("r{number}");
                let slot = slot(&format!("{kind}_{room}"));
                if cluster.owner(slot).await == master {
                    break (room, slot);
                }
                number += 1;
            }
        };
        // Each has a room of its own: names that differ in one place alone may never share a master.
        let (chat_room, chat_slot) = room_of("chat").await;
        let (kept_room, kept_slot) = room_of("kept").await;
        let dial = |replica: usize, path: &str| {
            let dial = gateway.replicas[replica].dial(tenant, path);
            dial.token(&tenant.token(ALICE))
        };
        let chat = format!("/ws/chat/{chat_room}/");
        let kept = format!("/ws/kept/{kept_room}/");
        Self {
            chat: [dial(0, &chat).open().await, dial(1, &chat).open().await],
            kept: dial(1, &kept).open().await,
            chat_slot,
            kept_slot,
            chat_room,
            kept_room,
        }
    }

    /// Sends an event from one socket, which both get next.
    async fn talks(&mut self, n: u32) {
        self.chat[0].send_text(&json!({ "n": n }).to_string()).await;
        for socket in &mut self.chat {
            assert_eq!(
                socket.next_json().await,
                json!({ "n": n }),
                "{}",
                self.chat_room
            );
        }
    }

    /// Every socket of the plain group is told of a gap next.
    async fn is_told_of_a_gap(&mut self, deadline: Duration) {
        for socket in &mut self.chat {
            let notice = socket.next_json_within(deadline).await;
            assert_eq!(notice, json!({"type": "lockgate.gap"}));
        }
    }

    /// Waits until no more notices of gaps come. While nodes learn of a change, a group may move more than once: a master that
    /// has lost its last slot becomes a replica, which serves the channels as well.
    async fn settles(&mut self) {
        for text in self.is_quiet().await {
            assert!(text.contains("lockgate.gap"), "{text}");
        }
    }

    /// Waits until nothing comes to the plain group any more; returns what came.
    async fn is_quiet(&mut self) -> Vec<String> {
        let (mut came, mut quiet) = (Vec::new(), 0);
        while quiet < 4 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            quiet += 1;
            for socket in &mut self.chat {
                for frame in socket.ping().await {
                    came.push(frame.to_text().unwrap().to_owned());
                    quiet = 0;
                }
            }
        }
        came
    }

    /// The group with a history gets these events next, and nothing else.
    async fn hears(&mut self, events: std::ops::Range<u32>) {
        for n in events {
            let event = self.kept.next_json().await;
            assert_eq!(event, json!({ "n": n }), "{}", self.kept_room);
        }
        assert!(self.kept.ping().await.is_empty());
    }

    async fn record(&self, gateway: &Gateway, events: std::ops::Range<u32>) {
        let group = format!("kept_{}", self.kept_room);
        for n in events {
            gateway.send(&group, &json!({"type": "x", "n": n})).await;
        }
    }

    /// Nothing has come but what was read.
    async fn has_noticed_nothing(&mut self) {
        for socket in self.chat.iter_mut().chain([&mut self.kept]) {
            let came = socket.ping().await;
            assert!(came.is_empty(), "{came:?}");
        }
    }
}

async fn revokes_on_both_replicas(gateway: &Gateway, path: &str) {
    let tenant = gateway.tenant();
    let mut claims = token::access(ALICE);
    claims["jti"] = "the-one".into();
    let token = tenant.sign(&claims);
    let mut sockets = Vec::new();
    for replica in &gateway.replicas {
        sockets.push(replica.dial(tenant, path).token(&token).open().await);
    }
    let calls = format!("/v1/tenants/{}/revocations", tenant.name);
    let body = json!({"jti": "the-one", "exp": claims["exp"]}).to_string();
    eventually(PATIENCE, "both replicas confirm", async || {
        let api = gateway.replica();
        let answer = api.api(&gateway.api_key, "POST", &calls, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        match answer["replicas"] == json!({"expected": 2, "confirmed": 2, "missing": []}) {
            true => Ok(()),
            false => Err(answer),
        }
    })
    .await;
    for mut socket in sockets {
        assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
    }
    for replica in &gateway.replicas {
        let refusal = replica.dial(tenant, path).token(&token).refused().await;
        assert_eq!(refusal.status, 401, "{refusal:?}");
    }
}

/// One test, because a cluster takes seconds to form.
#[tokio::test]
async fn a_cluster_loses_nothing_unsaid_while_slots_move_and_a_master_dies() {
    let mut cluster = Cluster::start().await;
    let gateway = on_cluster(&cluster).await;
    let mut shards = Shard::open_all(&gateway, &cluster).await;
    for shard in &mut shards {
        shard.talks(1).await;
        shard.record(&gateway, 0..5).await;
        shard.hears(0..5).await;
    }
    let path = format!("/ws/chat/{}/", shards[1].chat_room);
    revokes_on_both_replicas(&gateway, &path).await;
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], true, "{found}");
    let text = found.to_string();
    for node in &cluster.nodes[..3] {
        assert!(
            text.contains(&node.endpoint()),
            "{} {text}",
            node.endpoint()
        );
    }

    moves_slots(&gateway, &cluster, &mut shards).await;
    kills_a_master(&gateway, &mut cluster, &mut shards).await;
    revokes_again(&gateway, &path).await;
    assert_eq!(gateway.replica().readyz().await.status, 200);
}

/// Moves both groups of the first master to the second, while events are recorded in one of them.
async fn moves_slots(gateway: &Gateway, cluster: &Cluster, shards: &mut [Shard]) {
    let (first, others) = shards.split_first_mut().unwrap();
    let moving = async {
        cluster.move_slot(first.kept_slot, 0, 1).await;
        cluster.move_slot(first.chat_slot, 0, 1).await;
    };
    tokio::join!(moving, first.record(gateway, 5..45));
    first.record(gateway, 45..50).await;
    first.is_told_of_a_gap(PATIENCE).await;
    first.talks(2).await;
    first.hears(5..50).await;
    for shard in others {
        shard.has_noticed_nothing().await;
        shard.talks(2).await;
    }
}

async fn kills_a_master(gateway: &Gateway, cluster: &mut Cluster, shards: &mut [Shard]) {
    let (last, others) = shards.split_last_mut().unwrap();
    let slot = last.chat_slot;
    cluster.nodes[2].kill();
    // The other shards are served meanwhile.
    let mut n = 3;
    let recovered = loop {
        for shard in &mut *others {
            shard.talks(n).await;
        }
        n += 1;
        match cluster.owner_as(0, slot).await {
            Some(owner) if owner != 2 => break Instant::now(),
            _ => assert!(n < 100_000, "no replica takes over"),
        }
    };
    last.is_told_of_a_gap(FAILOVER).await;
    println!(
        "told of the gap {:?} after the cluster recovered; {n} rounds on the other shards meanwhile",
        recovered.elapsed()
    );
    // Not the last one again: it would be passed over, as a message that the dead master has still passed on.
    last.talks(n).await;
    last.record(gateway, 5..10).await;
    last.hears(5..10).await;
    for shard in others {
        shard.talks(n).await;
        shard.has_noticed_nothing().await;
    }
}

/// A handshake that needs the promoted node, and a revocation through it.
async fn revokes_again(gateway: &Gateway, path: &str) {
    let tenant = gateway.tenant();
    let calls = format!("/v1/tenants/{}/revocations", tenant.name);
    for number in 0..20 {
        let mut claims = token::access(ALICE);
        claims["jti"] = format!("late-{number}").into();
        let dial = gateway.replicas[1].dial(tenant, path);
        let mut socket = dial.token(&tenant.sign(&claims)).open().await;
        let body = json!({"jti": claims["jti"], "exp": claims["exp"]}).to_string();
        let api = gateway.replica();
        let answer = api.api(&gateway.api_key, "POST", &calls, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
    }
}
