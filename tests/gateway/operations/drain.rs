//! The goodbye of a replica, in the order of SPEC's section 12.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::problem::{Problem, retry_after_ms, word};
use crate::support::database::ALICE;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, Publisher, RedisServer, eventually, gateway, within};
use crate::tenants::reload;

const CHAT: &str = "/ws/chat/lobby/";

async fn open_many(gateway: &Gateway, count: usize) -> Vec<Socket> {
    futures_util::future::join_all((0..count).map(|_| gateway.open(CHAT))).await
}

#[tokio::test]
async fn a_drain_is_unready_at_once_serves_through_its_delay_then_refuses_and_closes() {
    let gateway = gateway()
        .set("server.drain.delay", "3s")
        .set("server.drain.rate", 10)
        .set("server.drain.window", "60s")
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    let mut sockets = open_many(&gateway, 20).await;
    let started = Instant::now();
    replica.terminate();
    eventually(PATIENCE, "/readyz turns 503", async || {
        match replica.readyz().await.status {
            503 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(replica.metrics().await.value("lockgate_draining", &[]), 1.0);
    assert_eq!(replica.metrics().await.value("lockgate_ready", &[]), 0.0);
    // The load balancer has not noticed yet.
    sockets.push(gateway.open(CHAT).await);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "the delay is over too early to tell"
    );

    let token = gateway.tenant().token(ALICE);
    let dial = || replica.dial(gateway.tenant(), CHAT).token(&token);
    let refusal = eventually(PATIENCE, "an upgrade is refused", async || {
        match dial().attempt().await {
            Err(refusal) => Ok(refusal),
            Ok(_) => Err("served"),
        }
    })
    .await;
    assert!(
        started.elapsed() >= Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    Problem::new(503, "draining").is(&refusal, &gateway.tenant().name);

    let mut waits = Vec::new();
    for socket in &mut sockets {
        // Those opened in vain while waiting for the refusal are closed among them.
        let (code, reason) = socket.closed().await;
        assert_eq!((code, word(&reason)), (1012, "draining"));
        waits.push(retry_after_ms(&reason).expect("advice on when to come back"));
    }
    let took = started.elapsed();
    assert!(
        took > Duration::from_secs(4),
        "20 sockets at 10 per second, after {took:?}"
    );
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 5, "the advice is spread: {waits:?}");
    assert_eq!(replica.exited(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_hurries_where_its_window_would_not_suffice() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .set("server.drain.rate", 1)
        .set("server.drain.window", "2s")
        .tenant("acme")
        .start()
        .await;
    let mut sockets = open_many(&gateway, 30).await;
    let started = Instant::now();
    gateway.replica().terminate();
    for socket in &mut sockets {
        assert_eq!(socket.closed().await.0, 1012);
    }
    assert_eq!(gateway.replica().exited(PATIENCE).await.code(), Some(0));
    // 30 at one per second would be half a minute.
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn queued_events_go_out_before_the_close_frame() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .tenant("acme")
        .start()
        .await;
    let publisher = Publisher::new(RedisServer::shared().await, &gateway.tenant().prefix).await;
    let mut socket = gateway.open(CHAT).await;
    let mut watcher = gateway.open(CHAT).await;
    for n in 0..100 {
        publisher
            .send("chat_lobby", &json!({"type": "x", "n": n}))
            .await;
    }
    // All of them are in the gateway once one socket has the last.
    for n in 0..100 {
        assert_eq!(watcher.next_json().await["n"], n);
    }
    gateway.replica().terminate();
    let (before, (code, _)) = socket.drained().await;
    assert_eq!((before.len(), code), (100, 1012));
}

#[tokio::test]
async fn sockets_that_do_not_answer_do_not_hold_a_drain_up() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .set("server.drain.window", "1s")
        .tenant("acme")
        .start()
        .await;
    let _silent = gateway.open(CHAT).await.into_stream();
    let started = Instant::now();
    gateway.replica().terminate();
    assert_eq!(gateway.replica().exited(PATIENCE).await.code(), Some(0));
    // Window, and five seconds until what is left is cut.
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_replica_without_sockets_leaves_after_its_delay() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .tenant("acme")
        .start()
        .await;
    let started = Instant::now();
    gateway
        .replica()
        .process
        .signal(rustix::process::Signal::INT);
    assert_eq!(gateway.replica().exited(PATIENCE).await.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_second_signal_closes_at_once_and_exits_1() {
    let gateway = gateway()
        .set("server.drain.delay", "50s")
        .tenant("acme")
        .start()
        .await;
    let mut socket = gateway.open(CHAT).await;
    let replica = gateway.replica();
    replica.terminate();
    eventually(PATIENCE, "/readyz turns 503", async || {
        match replica.readyz().await.status {
            503 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    replica.terminate();
    let (code, reason) = socket.closed().await;
    assert_eq!((code, word(&reason)), (1012, "draining"));
    assert_eq!(replica.exited(PATIENCE).await.code(), Some(1));
}

/// SIGHUP once ended the process, because no task took the signal.
#[tokio::test]
async fn a_hangup_reads_the_configuration_again_and_harms_nobody() {
    let gateway = gateway().tenant("acme").start().await;
    let replica = gateway.replica();
    let mut socket = gateway.open(CHAT).await;
    for _ in 0..2 {
        replica.process.signal(Signal::HUP);
        replica.logged("Applied the configuration").await;
    }
    assert!(socket.ping().await.is_empty());
    assert_eq!(replica.readyz().await.status, 200);
    replica.terminate();
    let (code, reason) = socket.closed().await;
    assert_eq!((code, word(&reason)), (1012, "draining"));
    assert_eq!(replica.exited(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn sockets_that_reach_their_age_close_as_in_a_drain_and_make_room() {
    let gateway = gateway()
        .set("server.max_age", "2s")
        .set("server.drain.rate", 10)
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    let began = Instant::now();
    let mut old = open_many(&gateway, 30).await;
    // Each task notes when its socket ended: in one row, a late one would hide an early one.
    let ends = old.iter_mut().map(async |socket| {
        let (code, reason) = socket.closed().await;
        assert_eq!((code, word(&reason)), (1012, "max_age"));
        assert!(retry_after_ms(&reason).is_some(), "{reason}");
        began.elapsed()
    });
    let mut ends = futures_util::future::join_all(ends).await;
    ends.sort_unstable();
    assert!(ends[0] >= Duration::from_millis(1800), "{:?}", ends[0]);
    // 30 at 10 per second; their own jitter would have them all gone within 200 ms.
    let took = ends[29] - ends[0];
    assert!(took > Duration::from_secs(2), "all within {took:?}");

    let labels = [("code", "1012"), ("reason", "max_age")];
    replica
        .metric("lockgate_disconnects_total", &labels, |n| n == 30.0)
        .await;
    assert_eq!(replica.readyz().await.status, 200);
    // The replica goes on: a new socket has its whole age before it.
    assert!(gateway.open(CHAT).await.ping().await.is_empty());
}

/// Before, the rate of the start held until the restart: these forty would have taken as many seconds.
#[tokio::test]
async fn a_reloaded_rate_holds_for_old_sockets_too() {
    let gateway = gateway()
        .set("server.max_age", "1s")
        .set("server.drain.rate", 1)
        .tenant("acme")
        .start()
        .await;
    let mut old = open_many(&gateway, 40).await;
    reload::change(&gateway, |table| {
        let drain = &mut table["server"]["drain"];
        drain["rate"] = 1000.into();
    });
    reload::hang_up(&gateway, reload::APPLIED).await;
    let ends = old.iter_mut().map(async |socket| {
        let (code, reason) = socket.closed().await;
        assert_eq!((code, word(&reason)), (1012, "max_age"));
    });
    let all = futures_util::future::join_all(ends);
    within(PATIENCE, "the end of the old sockets", all).await;
}
