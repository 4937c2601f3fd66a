//! The soak's look for leaks sees each kind: a look that sees nothing would pass every soak.

use std::time::Duration;

use tokio::net::TcpStream;

#[path = "../../faults/holdings.rs"]
mod holdings;

use holdings::{Holdings, first_calm, last_calm, lasting_keys, leaks_of};

use crate::support::database::ALICE;
use crate::support::{PATIENCE, RedisServer, eventually, gateway};

/// More than a replica may keep of anything but sockets.
const MANY: usize = 40;
const BRIEF: Duration = Duration::from_millis(300);

#[tokio::test]
async fn connections_tasks_and_sockets_that_stay_are_told() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let before = first_calm(&gateway.replicas, PATIENCE).await;
    let socket = gateway.replica().dial(tenant, "/ws/chat/lobby/");
    let socket = socket.token(&tenant.token(ALICE)).open().await;
    let mut silent = Vec::new();
    for _ in 0..MANY {
        silent.push(TcpStream::connect(gateway.replica().server).await.unwrap());
    }
    let now = eventually(PATIENCE, "all three are told", async || {
        let now = last_calm(&gateway.replicas, &before, Duration::ZERO).await[0];
        let told = now.leak(&before[0]).unwrap_or_default();
        let all = ["1 sockets", " descriptors", " tasks"];
        match all.iter().all(|what| told.contains(what)) {
            true => Ok(now),
            false => Err((told, now)),
        }
    })
    .await;
    assert!(now.descriptors >= before[0].descriptors + MANY as f64);
    drop((socket, silent));
    let after = last_calm(&gateway.replicas, &before, PATIENCE).await[0];
    assert_eq!(after.leak(&before[0]), None, "{after:?}");
}

/// The first look was taken as soon as no socket was counted. The tasks and descriptors of a crowd that had just left were in it,
/// and a leak of as many was none.
#[tokio::test]
async fn the_first_look_waits_until_the_crowd_is_gone() {
    let gateway = gateway().tenant("acme").start().await;
    let idle = first_calm(&gateway.replicas, PATIENCE).await[0];
    let mut crowd = Vec::new();
    for _ in 0..MANY {
        crowd.push(TcpStream::connect(gateway.replica().server).await.unwrap());
    }
    let full = |now: &Holdings| now.tasks >= idle.tasks + MANY as f64;
    eventually(PATIENCE, "the crowd is there", async || {
        let now = Holdings::of(gateway.replica()).await;
        if full(&now) { Ok(()) } else { Err(now) }
    })
    .await;
    let leaving = tokio::spawn(async move {
        // One after the other, so that the look meets them on their way.
        for stream in crowd {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(stream);
        }
    });
    let first = first_calm(&gateway.replicas, PATIENCE).await[0];
    leaving.await.unwrap();
    assert_eq!(first.leak(&idle), None, "{first:?}, idle {idle:?}");
}

#[test]
fn threads_and_memory_beyond_their_bounds_are_told() {
    let before = Holdings {
        connections: 0.0,
        descriptors: 30.0,
        threads: 5.0,
        tasks: 20.0,
        memory: 4e7,
    };
    assert_eq!(before.leak(&before), None);
    let threads = Holdings {
        threads: 22.0,
        ..before
    };
    let memory = Holdings {
        memory: 1.2e8,
        ..before
    };
    for (leak, what) in [(threads, "22 threads"), (memory, "120000000 bytes")] {
        let told = leak.leak(&before).unwrap();
        assert!(told.contains(what), "{told}");
    }
}

#[tokio::test]
async fn keys_without_an_end_and_subscriptions_without_a_socket_are_told() {
    let server = RedisServer::start().await;
    let mut link = server.connection().await.unwrap();
    let mut set = async |key: &str, bytes: usize, seconds: Option<u64>| {
        let mut set = redis::cmd("SET");
        set.arg(key).arg("x".repeat(bytes));
        if let Some(seconds) = seconds {
            set.arg("EX").arg(seconds);
        }
        set.query_async::<()>(&mut link).await.unwrap();
    };
    set("old", 10, None).await;
    set("grows", 10, None).await;
    let before = lasting_keys(&server).await;
    assert_eq!(before.len(), 2, "{before:?}");
    set("ends", 1_000_000, Some(60)).await;
    assert_eq!(leaks_of(&server, &before, BRIEF).await, [""; 0]);

    set("new", 1, None).await;
    set("grows", 10_000, None).await;
    let _subscribed = subscribed(&server, "t__group__g").await;
    let told = leaks_of(&server, &before, BRIEF).await.join("; ");
    for what in ["new without an end", "grows without an end", "t__group__g"] {
        assert!(told.contains(what), "{told}");
    }
    assert!(!told.contains("old") && !told.contains("ends "), "{told}");
}

/// A link that listens to a channel.
async fn subscribed(server: &RedisServer, channel: &str) -> redis::aio::PubSub {
    let client = redis::Client::open(server.url()).unwrap();
    let mut link = client.get_async_pubsub().await.unwrap();
    link.subscribe(channel).await.unwrap();
    link
}
