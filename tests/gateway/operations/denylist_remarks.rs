//! A Redis of a denylist that is not as it should be, although it forgets nothing now: the log and `/readyz` say so.
//!
//! Before: `lockgate doctor` alone did, and only to those who ran it.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::doctor::{findings, is};
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway};

const AT_RISK: &str = "lockgate_denylist_at_risk";

/// Waits until the log and an operator's `/readyz` say this. It is no risk that rings.
async fn told(gateway: &Gateway, text: &str) {
    let replica = gateway.replica();
    let line = replica.logged(text).await;
    assert!(line.contains("\"WARN\""), "{line}");
    eventually(PATIENCE, "the warning", async || {
        let seen = gateway.readyz().await;
        let warnings = seen.json()["warnings"].to_string();
        match seen.status == 200 && warnings.contains(text) {
            true => Ok(()),
            false => Err(seen),
        }
    })
    .await;
    let to_strangers = replica.readyz().await.body;
    assert!(!to_strangers.contains(text), "{to_strangers}");
    replica.metric(AT_RISK, &[], |value| value == 0.0).await;
}

/// Waits until the replicas have looked again, on new links, and find nothing to say.
async fn mended(gateway: &Gateway, redis: &RedisServer) {
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    let nothing = "Nothing is wrong with the denylist's Redis any more";
    gateway.replica().logged(nothing).await;
    eventually(PATIENCE, "no warning is left", async || {
        let seen = gateway.readyz().await;
        match seen.json()["warnings"] == json!({}) {
            true => Ok(()),
            false => Err(seen),
        }
    })
    .await;
}

/// Starts a replica of `redis`, and waits until it is connected.
async fn replica_of(redis: &RedisServer) -> RedisServer {
    let replica = RedisServer::start().await;
    let port = redis.port().to_string();
    let () = replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    eventually(PATIENCE, "a replica", async || {
        let info: String = redis.command(&["INFO", "replication"]).await;
        match info.contains("state=online") {
            true => Ok(()),
            false => Err(info),
        }
    })
    .await;
    replica
}

#[tokio::test]
async fn too_few_replicas_to_acknowledge_a_revocation_are_told() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .set("denylist.replicas", 1)
        .tenant("acme")
        .start()
        .await;
    told(
        &gateway,
        "has 0 replicas, and 1 must acknowledge a revocation",
    )
    .await;
    let tenant = gateway.tenant();
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let revoke = async || {
        let body = json!({"user_id": "1"}).to_string();
        let replica = gateway.replica();
        replica.api(&gateway.api_key, "POST", &path, &body).await
    };
    assert_eq!(revoke().await.status, 503);

    let _replica = replica_of(&redis).await;
    mended(&gateway, &redis).await;
    assert_eq!(revoke().await.status, 200);
}

#[tokio::test]
async fn replicas_that_acknowledge_no_revocation_are_told() {
    let redis = RedisServer::start().await;
    let replica = replica_of(&redis).await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    told(&gateway, "a failover to one may lose the last revocations").await;

    drop(replica);
    eventually(PATIENCE, "the replica is gone", async || {
        let info: String = redis.command(&["INFO", "replication"]).await;
        match info.contains("connected_slaves:0") {
            true => Ok(()),
            false => Err(info),
        }
    })
    .await;
    mended(&gateway, &redis).await;
}

/// Stands between the gateway and Redis, and answers TIME with a clock that is years behind.
async fn with_another_clock(redis: &RedisServer) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, target) = (listener.local_addr().unwrap(), redis.endpoint());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let Ok(mut server) = TcpStream::connect(&target).await else {
                return;
            };
            tokio::spawn(async move {
                let (mut asks, mut hears) = client.split();
                let (mut answers, mut commands) = server.split();
                let back = async {
                    let mut bytes = vec![0; 16 * 1024];
                    while let Ok(count @ 1..) = answers.read(&mut bytes).await {
                        set_back(&mut bytes[..count]);
                        if hears.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy(&mut asks, &mut commands) => {}
                    () = back => {}
                }
            });
        }
    });
    address
}

/// Sets the answers to TIME among these bytes back by 100 million seconds: two texts, the first with the ten digits of now. The
/// second digit becomes one less, until the year 2033.
fn set_back(bytes: &mut [u8]) {
    const TIME: &[u8] = b"*2\r\n$10\r\n1";
    let begins: Vec<_> = { bytes.windows(TIME.len()).enumerate() }
        .filter(|(_, window)| *window == TIME)
        .map(|(at, _)| at)
        .collect();
    for at in begins {
        if let Some(digit @ b'1'..=b'9') = bytes.get_mut(at + TIME.len()) {
            *digit -= 1;
        }
    }
}

/// Two threads, because the doctor's process is waited for while the server between passes bytes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_with_another_clock_is_told() {
    let redis = RedisServer::start().await;
    let address = with_another_clock(&redis).await;
    let url = format!("redis://{address}/0");
    let gateway = gateway().redis(&url).tenant("acme").start().await;
    told(&gateway, "more than a second off this machine's").await;
    is(
        &findings(&gateway.config),
        ("redis ", "clock"),
        "fail",
        " s against this machine",
    );
}
