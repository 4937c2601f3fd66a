//! Master and replica swap their roles behind one name, as managed Redis and Kubernetes services let them, while old links
//! stay open.

use std::time::{Duration, Instant};

use lockgate::error::Dependency;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use serde_json::json;

use crate::support::database::ALICE;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";

/// Two servers, and the name that leads to the master.
struct Pair {
    servers: [RedisServer; 2],
    name: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let first = RedisServer::start().await;
        let port = first.port().to_string();
        let second = RedisServer::with(&["--replicaof", "127.0.0.1", &port]).await;
        let pair = Self {
            name: Proxy::to(&first.endpoint()).await,
            servers: [first, second],
        };
        pair.in_sync(1).await;
        pair
    }

    fn url(&self) -> String {
        format!("redis://{}/0", self.name.endpoint())
    }

    /// Waits until this server has its master's data.
    async fn in_sync(&self, replica: usize) {
        eventually(PATIENCE, "a replica in sync", async || {
            let role: redis::Value = self.servers[replica].command(&["ROLE"]).await;
            match format!("{role:?}") {
                role if role.contains("connected") => Ok(()),
                role => Err(role),
            }
        })
        .await;
    }

    /// Makes the second server the master and the first its replica; the name still leads to the first.
    async fn swap_roles(&self) {
        let [first, second] = &self.servers;
        let port = second.port().to_string();
        let () = second.command(&["REPLICAOF", "NO", "ONE"]).await;
        let () = first.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    }

    /// Lets the name lead to the second server.
    fn swap_name(&self) {
        self.name.lead_to(&self.servers[1].endpoint());
    }
}

async fn on_pair(pair: &Pair, kind: &str) -> Gateway {
    gateway()
        .replicas(2)
        .redis(&pair.url())
        .tenant("acme")
        .with("on_gap", "notify")
        .with("layer.kind", kind)
        .start()
        .await
}

/// The status of a send of the number `n` on a replica.
async fn send(gateway: &Gateway, replica: usize, n: u64) -> u16 {
    let path = format!(
        "/v1/tenants/{}/groups/chat_lobby/send",
        gateway.tenant().name
    );
    let event = json!({"type": "x", "n": n}).to_string();
    let replica = &gateway.replicas[replica];
    let answer = replica.api(&gateway.api_key, "POST", &path, &event).await;
    answer.status
}

/// Revokes a token of its own; the status.
async fn revoke(gateway: &Gateway) -> u16 {
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let body = json!({"jti": crate::support::unique(), "exp": crate::support::token::now() + 60});
    let replica = gateway.replica();
    let answer = replica
        .api(&gateway.api_key, "POST", &path, &body.to_string())
        .await;
    answer.status
}

/// Reads a socket up to the event with the number `n`, which may be lost in a gap. Returns whether it came, and the number of
/// gaps that were told before.
async fn read_to(socket: &mut Socket, n: u64) -> (bool, u32) {
    let mut gaps = 0;
    let read = async {
        loop {
            let event = socket.next_json().await;
            gaps += u32::from(event == json!({"type": "lockgate.gap"}));
            if event["n"] == n {
                return;
            }
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(1), read).await;
    (came.is_ok(), gaps)
}

/// Swaps the roles under load, keeps the name behind for a while, and lets it follow. No answer may lie meanwhile.
async fn a_swap_is_noticed(kind: &str, hidden: &[&str]) {
    let pair = Pair::start().await;
    for server in &pair.servers {
        let hide = [&["ACL", "SETUSER", "default"], hidden].concat();
        let () = server.command(&hide).await;
    }
    let gateway = on_pair(&pair, kind).await;
    let mut sockets = Vec::new();
    for replica in &gateway.replicas {
        let dial = replica.dial(gateway.tenant(), CHAT);
        sockets.push(dial.token(&gateway.tenant().token(ALICE)).open().await);
    }
    let mut n = 0;
    for _ in 0..20 {
        assert_eq!(send(&gateway, n as usize % 2, n).await, 200);
        n += 1;
    }

    pair.swap_roles().await;
    let swapped = Instant::now();
    // While the name leads to a replica, nothing is sent, and no answer says so.
    while swapped.elapsed() < Duration::from_millis(1500) {
        for replica in 0..2 {
            assert_eq!(send(&gateway, replica, n).await, 503, "{kind} {hidden:?}");
            n += 1;
        }
    }
    assert_eq!(revoke(&gateway).await, 503, "{kind} {hidden:?}");

    pair.swap_name();
    let followed = Instant::now();
    eventually(PATIENCE, "revocations resume", async || {
        match revoke(&gateway).await {
            200 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    let revokes = followed.elapsed();
    // What is lost until an event reaches every socket was lost in a gap.
    let mut gaps = [0, 0];
    eventually(PATIENCE, "an event arrives everywhere", async || {
        n += 1;
        let others = send(&gateway, 1, n).await;
        n += 1;
        let mut came = [send(&gateway, 0, n).await, others] == [200, 200];
        for (socket, gaps) in sockets.iter_mut().zip(&mut gaps) {
            let read = read_to(socket, n).await;
            came &= read.0;
            *gaps += read.1;
        }
        came.then_some(()).ok_or(n)
    })
    .await;
    println!(
        "{kind} {hidden:?}: revocations after {revokes:?}, events after {:?}",
        followed.elapsed()
    );
    n += 1;
    let first = n;
    for _ in 0..20 {
        assert_eq!(send(&gateway, n as usize % 2, n).await, 200, "{kind}");
        n += 1;
    }
    for (socket, gaps) in sockets.iter_mut().zip(&mut gaps) {
        let mut expected = first;
        // On `core`, a replica tells of the gap when its groups are restored, which may be after the next event.
        while expected < n || *gaps == 0 {
            let event = socket.next_json().await;
            if event == json!({"type": "lockgate.gap"}) {
                *gaps += 1;
            } else {
                assert_eq!(event["n"], expected, "{kind}");
                expected += 1;
            }
        }
    }
    let output = gateway.output();
    assert!(!output.contains("grant"), "no advice on rights: {output}");
}

/// Sends went to the demoted server and were lost without a gap, while the API answered 200 for as long as one watched;
/// revocations stayed 503.
#[tokio::test]
async fn a_pubsub_layer_follows_its_master_and_says_what_it_missed() {
    a_swap_is_noticed("pubsub", &[]).await;
}

/// Sends stayed 503 for as long as one watched, with advice to change the ACL in the log.
#[tokio::test]
async fn a_core_layer_follows_its_master_and_says_what_it_missed() {
    a_swap_is_noticed("core", &[]).await;
}

/// INFO tells the role as well, and where a login may ask for neither, the first write that is refused.
#[tokio::test]
async fn a_login_that_may_not_ask_for_the_role_follows_too() {
    tokio::join!(
        a_swap_is_noticed("pubsub", &["-role"]),
        a_swap_is_noticed("pubsub", &["-role", "-info"]),
    );
}

/// A replica takes a publish and delivers it to its own subscribers alone. The answer used to be their number.
#[tokio::test]
async fn a_publish_to_a_replica_is_an_error() {
    let pair = Pair::start().await;
    let url = RedisUrl::parse(&pair.servers[1].url().as_str().into()).unwrap();
    let store = RedisStore::to_inspect(&url, Dependency::Redis).unwrap();
    store.ping().await.unwrap();
    let error = store.publish(b"c", b"x").await.unwrap_err();
    assert!(error.to_string().contains("read only replica"), "{error}");
    // A store for work does not even keep a link there.
    let store = RedisStore::new(&url, Dependency::Redis).unwrap();
    let error = store.publish(b"c", b"x").await.unwrap_err();
    assert!(error.to_string().contains("is a replica"), "{error}");
    let () = pair.servers[1].command(&["REPLICAOF", "NO", "ONE"]).await;
    eventually(PATIENCE, "the server is a master", async || {
        store.publish(b"c", b"x").await
    })
    .await;
}
