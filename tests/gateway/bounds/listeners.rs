//! The listeners for operators: probes, scrapes and calls are answered whatever else is connected.

use std::net::SocketAddr;
use std::time::Duration;

use super::half_open;
use crate::support::database::ALICE;
use crate::support::process::Program;
use crate::support::replica::{LOCKGATE, Replica};
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway, http, within};

const CHAT: &str = "/ws/chat/lobby/";

/// The time for an answer beside so many connections. It is far above what it takes, since the machine may be busy, and
/// below what it took before.
const ANSWER: [(usize, Duration); 2] = [
    (300, Duration::from_secs(4)),
    (2000, Duration::from_secs(20)),
];

/// Connections that do not ask, or not to the end.
const WAITING: [&[u8]; 3] = [
    b"",
    b"GET /livez HTTP/1.1\r\nX: ",
    b"POST /v1/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nslow",
];

async fn replica() -> Gateway {
    let database = Database::sqlite().await;
    gateway().tenant("acme").users(&database).start().await
}

async fn answered(server: SocketAddr, path: &str, key: &str, deadline: Duration) {
    let bearer = format!("Bearer {key}");
    let headers = [("Authorization", &*bearer)];
    let answer = http::request(server, "GET", path, &headers, "");
    let answer = within(deadline, path, answer).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
}

/// Before: 300 silent connections delayed `/livez` by 5.0 s, and 2,000 by 34.7 s; slow heads did the same.
#[tokio::test]
async fn probes_and_scrapes_are_answered_beside_idle_connections() {
    let gateway = replica().await;
    let admin = gateway.replica().admin;
    for (count, deadline) in ANSWER {
        for bytes in WAITING {
            let waiting = half_open(admin, count, bytes).await;
            for path in ["/livez", "/readyz", "/metrics"] {
                answered(admin, path, "", deadline).await;
            }
            drop(waiting);
        }
    }
}

/// Before: as above, for each call.
#[tokio::test]
async fn calls_are_answered_beside_idle_connections() {
    let gateway = replica().await;
    let api = gateway.replica().api;
    for (count, deadline) in ANSWER {
        for bytes in WAITING {
            let waiting = half_open(api, count, bytes).await;
            answered(api, "/v1/tenants", &gateway.api_key, deadline).await;
            drop(waiting);
        }
    }
}

/// A replica with as many sockets as its descriptors allow, and a flood on both other listeners. Before, these could have 1,280
/// connections each while 128 descriptors were left: the socket listener could accept no further client.
#[tokio::test]
async fn a_flood_of_calls_takes_no_descriptor_from_sockets() {
    const LIMIT: usize = 400;
    const SOCKETS: usize = LIMIT - 256;
    let database = Database::sqlite().await;
    let mut gateway = gateway().tenant("acme").users(&database).write().await;
    let program = Program::new("lockgate serve", "prlimit").args([
        format!("--nofile={LIMIT}:{LIMIT}").as_ref(),
        LOCKGATE.as_ref(),
        "serve".as_ref(),
        "--config".as_ref(),
        gateway.config.as_os_str(),
    ]);
    gateway.replicas.push(Replica::run(program).await);
    let replica = gateway.replica();
    replica.ready().await;
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(gateway.open(CHAT).await);
    }
    let calls = half_open(replica.api, 500, WAITING[1]).await;
    let probes = half_open(replica.admin, 500, WAITING[1]).await;
    let token = gateway.tenant().token(ALICE);
    let dial = || replica.dial(gateway.tenant(), CHAT).token(&token);
    for _ in 0..5 {
        let refused = dial().refused().await;
        assert_eq!(refused.json()["code"], "overloaded", "{refused:?}");
        answered(replica.admin, "/livez", "", ANSWER[0].1).await;
        answered(replica.api, "/v1/tenants", &gateway.api_key, ANSWER[0].1).await;
    }
    sockets.pop().unwrap().close(1000, "").await;
    eventually(PATIENCE, "its place is free", async || {
        dial()
            .attempt()
            .await
            .map(drop)
            .map_err(|refusal| refusal.status)
    })
    .await;
    let output = gateway.output();
    assert!(!output.contains("Cannot accept connections"), "{output}");
    drop((calls, probes));
}

/// A body that does not come counts as silence, also from one who holds a key.
#[tokio::test]
async fn slow_bodies_of_a_key_keep_no_other_call_out() {
    let gateway = replica().await;
    let api = gateway.replica().api;
    let request = format!(
        "POST /v1/tenants/{}/groups/g/send HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{",
        gateway.tenant().name,
        gateway.api_key
    );
    let waiting = half_open(api, 600, request.leak().as_bytes()).await;
    answered(api, "/v1/tenants", &gateway.api_key, ANSWER[1].1).await;
    drop(waiting);
}
