//! Clients that come back to groups with history while replicas, links and Redis fail.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::resume::{events, position, position_of, publish, returning, with_history};
use crate::support::database::ALICE;
use crate::support::proxy::{Line, Proxy};
use crate::support::replica::Replica;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, Publisher, RedisServer, gateway};

const HISTORY: &str = "{ size = 5000, ttl = '10m' }";

/// Two replicas: the first one reaches Redis by way of a proxy.
pub(crate) async fn behind_proxy(
    redis: &RedisServer,
    settings: &[(&str, toml::Value)],
) -> (Gateway, Proxy) {
    let proxy = Proxy::to(&redis.endpoint()).await;
    let url = redis.url().replace(&redis.endpoint(), &proxy.endpoint());
    let mut builder = with_history(gateway().redis(&url), HISTORY).await;
    for (key, value) in settings {
        builder = builder.with(key, value.clone());
    }
    let mut gateway = builder.with("on_gap", "notify").write().await;
    gateway.add_replica().await;
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    let direct = gateway.config.with_file_name("direct.toml");
    std::fs::write(&direct, text.replace(&proxy.endpoint(), &redis.endpoint())).unwrap();
    gateway.replicas.push(Replica::start(&direct).await);
    for replica in &gateway.replicas {
        replica.ready().await;
    }
    (gateway, proxy)
}

async fn plain(gateway: &Gateway, replica: &Replica) -> Socket {
    let tenant = gateway.tenant();
    let dial = replica.dial(tenant, "/plain/a/");
    dial.token(&tenant.token(ALICE)).open().await
}

/// Reads the events with these numbers as a socket without positions sees them.
async fn numbers(socket: &mut Socket, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let frame = socket.next_json_within(2 * PATIENCE).await;
        assert_eq!(frame, json!({"n": n}));
    }
}

/// Reads the word that the history of `chat_a` began again.
pub(crate) async fn told(socket: &mut Socket) {
    let gap = socket.next_json().await;
    assert_eq!(gap, json!({"type": "lockgate.gap", "group": "chat_a"}));
    assert_eq!(position(socket).await["recovered"], false);
}

fn key(gateway: &Gateway, what: &str) -> String {
    let tenant = gateway.tenant();
    tenant.redis_key(&format!("{what}:{{{}__group__chat_a}}", tenant.prefix))
}

#[tokio::test]
async fn a_client_of_a_replica_that_was_killed_or_drained_comes_back_to_another() {
    let redis = RedisServer::shared().await;
    let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
    let mut gateway = builder
        .set("server.drain.delay", "0s")
        .replicas(3)
        .start()
        .await;
    let mut known: Vec<String> = Vec::new();
    let mut next = 0;
    for index in 0..3 {
        let since: Vec<&str> = known.iter().map(String::as_str).collect();
        let replica = &gateway.replicas[index];
        let mut socket = returning(replica, gateway.tenant(), "/ws/a/", &since)
            .open()
            .await;
        if index > 0 {
            // What was sent while no replica had the client.
            events(&mut socket, next - 20..next).await;
            assert_eq!(position(&mut socket).await["recovered"], true);
        } else {
            position(&mut socket).await;
        }
        publish(&gateway, &gateway.replicas[2], next..next + 30).await;
        let has = events(&mut socket, next..next + 30).await;
        next += 30;
        match index {
            0 => gateway.replicas[0].process.kill(),
            1 => {
                gateway.replicas[1].terminate();
                assert_eq!(socket.closed().await.0, 1012);
            }
            _ => assert_eq!(socket.ping().await, []),
        }
        publish(&gateway, &gateway.replicas[2], next..next + 20).await;
        next += 20;
        drop(socket);
        known = vec![has];
    }
}

#[tokio::test]
async fn events_of_a_time_without_a_link_come_once_it_is_back_and_no_client_is_told() {
    let redis = RedisServer::start().await;
    let (gateway, proxy) = behind_proxy(&redis, &[]).await;
    let (cut, other) = (&gateway.replicas[0], &gateway.replicas[1]);
    let mut resuming = returning(cut, gateway.tenant(), "/ws/a/", &[]).open().await;
    position(&mut resuming).await;
    let mut plain = plain(&gateway, cut).await;
    for round in 0..3 {
        let first = round * 60;
        publish(&gateway, other, first..first + 10).await;
        numbers(&mut plain, first..first + 10).await;
        proxy.set(Line::Reset);
        publish(&gateway, other, first + 10..first + 50).await;
        proxy.set(Line::Open);
        numbers(&mut plain, first + 10..first + 50).await;
        publish(&gateway, other, first + 50..first + 60).await;
        numbers(&mut plain, first + 50..first + 60).await;
    }
    events(&mut resuming, 0..180).await;
    assert_eq!(
        (resuming.ping().await, plain.ping().await),
        (vec![], vec![])
    );
    let metrics = cut.metrics().await;
    let healed = metrics.value("lockgate_healed_events_total", &[]);
    assert!((1.0..=120.0).contains(&healed), "{healed}");
    // Gaps that no client has to know are no reason for an alert.
    assert!(metrics.value("lockgate_gaps_total", &[]) >= 1.0);
    assert_eq!(metrics.value("lockgate_unhealed_gaps_total", &[]), 0.0);
}

#[tokio::test]
async fn a_full_queue_of_a_group_with_history_is_no_gap() {
    let redis = RedisServer::start().await;
    let (gateway, _proxy) = behind_proxy(&redis, &[("limits.layer_queue", "1KiB".into())]).await;
    let (small, other) = (&gateway.replicas[0], &gateway.replicas[1]);
    let mut resuming = returning(small, gateway.tenant(), "/ws/a/", &[])
        .open()
        .await;
    position(&mut resuming).await;
    let mut plain = plain(&gateway, small).await;
    publish(&gateway, other, 0..2000).await;
    numbers(&mut plain, 0..2000).await;
    events(&mut resuming, 0..2000).await;
    assert_eq!(
        (resuming.ping().await, plain.ping().await),
        (vec![], vec![])
    );
    let gaps = small.metrics().await;
    assert_eq!(
        gaps.value("lockgate_gaps_total", &[("cause", "history")]),
        0.0
    );
}

/// Each read takes a while, so that the sockets that come meanwhile wait for the next one.
#[tokio::test]
async fn five_hundred_sockets_that_come_back_at_once_share_reads() {
    const SOCKETS: usize = 500;
    const WAY: Duration = Duration::from_millis(200);
    let redis = RedisServer::start().await;
    let (gateway, proxy) = behind_proxy(&redis, &[]).await;
    let replica = gateway.replica();
    let mut first = returning(replica, gateway.tenant(), "/ws/a/", &[])
        .open()
        .await;
    let begin = position_of(&position(&mut first).await);
    publish(&gateway, &gateway.replicas[1], 0..50).await;
    events(&mut first, 0..50).await;
    proxy.set(Line::Slow(WAY));
    let reads = async || {
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let line = stats
            .lines()
            .find(|line| line.starts_with("cmdstat_evalsha:"));
        let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next());
        calls.map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    let (before, started) = (reads().await, Instant::now());
    let back = async |_| {
        let dial = returning(replica, gateway.tenant(), "/ws/a/", &[&begin]);
        let mut socket = dial.open().await;
        for n in 0..50 {
            let frame = socket.next_json_within(4 * PATIENCE).await;
            assert_eq!(frame["n"], n, "{frame}");
        }
        let end = socket.next_json_within(4 * PATIENCE).await;
        assert_eq!(end["recovered"], true, "{end}");
        socket
    };
    // All stay, and so many are under way at a time.
    let back = stream::iter(0..SOCKETS).map(back).buffer_unordered(200);
    let back: Vec<_> = back.collect().await;
    let (took, reads) = (started.elapsed(), reads().await - before);
    let most = took.as_millis() / WAY.as_millis() + 10;
    assert!(u128::from(reads) <= most, "{reads} reads in {took:?}");
    assert_eq!(back.len(), SOCKETS);
}

#[tokio::test]
async fn histories_that_are_deleted_trimmed_or_lost_are_told() {
    let redis = RedisServer::start().await;
    let (gateway, _proxy) = behind_proxy(&redis, &[]).await;
    let replica = gateway.replica();
    let mut socket = returning(replica, gateway.tenant(), "/ws/a/", &[])
        .open()
        .await;
    let begin = position_of(&position(&mut socket).await);
    publish(&gateway, replica, 0..10).await;
    let has = events(&mut socket, 0..10).await;
    let back = async |since: &str| {
        let dial = returning(replica, gateway.tenant(), "/ws/a/", &[since]);
        dial.open().await
    };
    let lost = async |since: &str| {
        let mut socket = back(since).await;
        assert_eq!(socket.next_json().await["type"], "lockgate.gap");
        let end = position(&mut socket).await;
        assert_eq!(end["recovered"], false);
        assert_eq!(socket.ping().await, []);
        position_of(&end)
    };
    let _: u64 = redis
        .command(&["XTRIM", &key(&gateway, "history"), "MAXLEN", "3"])
        .await;
    lost(&begin).await;
    let near = format!("{}~7", begin.rsplit_once('~').unwrap().0);
    let mut found = back(&near).await;
    events(&mut found, 7..10).await;
    let _: u64 = redis.command(&["DEL", &key(&gateway, "history")]).await;
    assert_eq!(lost(&near).await, has);
    // The position stands, and what comes is recorded behind it.
    publish(&gateway, replica, 10..12).await;
    events(&mut socket, 10..12).await;
    let mut found = back(&has).await;
    events(&mut found, 10..12).await;
    let keys = [key(&gateway, "history"), key(&gateway, "position")];
    let _: u64 = redis.command(&["DEL", &keys[0], &keys[1]]).await;
    let end = lost(&has).await;
    assert_ne!(
        end.rsplit_once('~').unwrap().0,
        has.rsplit_once('~').unwrap().0
    );
    publish(&gateway, replica, 12..15).await;
    told(&mut socket).await;
    events(&mut socket, 12..15).await;
    assert_eq!(socket.ping().await, []);
    // A stream of another kind, and entries of others in it.
    let _: u64 = redis.command(&["DEL", &keys[0]]).await;
    let _: () = redis.command(&["SET", &keys[0], "not a stream"]).await;
    lost(&end).await;
    publish(&gateway, replica, 15..17).await;
    told(&mut socket).await;
    events(&mut socket, 15..17).await;
}

#[tokio::test]
async fn a_reload_that_changes_the_history_sends_clients_back_and_loses_nothing() {
    let redis = RedisServer::shared().await;
    let builder = with_history(gateway().redis(&redis.url()), HISTORY).await;
    let gateway = builder.start().await;
    let replica = gateway.replica();
    let mut socket = returning(replica, gateway.tenant(), "/ws/a/", &[])
        .open()
        .await;
    position(&mut socket).await;
    publish(&gateway, replica, 0..10).await;
    let has = events(&mut socket, 0..10).await;
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    std::fs::write(&gateway.config, text.replace("size = 5000", "size = 6000")).unwrap();
    let answer = replica
        .api(&gateway.api_key, "POST", "/v1/reload", "")
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(socket.closed().await.0, 1012);
    publish(&gateway, replica, 10..20).await;
    let mut back = returning(replica, gateway.tenant(), "/ws/a/", &[&has])
        .open()
        .await;
    events(&mut back, 10..20).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

/// A client that got ten events, its position before them and the one behind them.
async fn with_ten_events(gateway: &Gateway) -> (Socket, String, String) {
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let mut socket = returning(replica, tenant, "/ws/a/", &[]).open().await;
    let begin = position_of(&position(&mut socket).await);
    publish(gateway, replica, 0..10).await;
    let has = events(&mut socket, 0..10).await;
    (socket, begin, has)
}

/// A Redis that refuses the gateway's scripts: sockets are served live, and those that come back are told.
#[tokio::test]
async fn a_history_that_cannot_be_read_is_told_and_live_events_go_on() {
    let redis = RedisServer::start().await;
    let (gateway, _proxy) = behind_proxy(&redis, &[]).await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let (mut socket, begin, has) = with_ten_events(&gateway).await;
    let _: () = redis
        .command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"])
        .await;
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    let publisher = Publisher::new(&redis, &tenant.prefix).await;
    publisher
        .send("chat_a", &json!({"type": "t", "n": 10}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 10}));
    assert_eq!(back.next_json().await, json!({"n": 10}));
    assert_eq!(
        back.next_json().await,
        json!({"type": "lockgate.gap", "group": "chat_a"})
    );
    let end = position(&mut back).await;
    assert_eq!((position_of(&end), &end["recovered"]), (has, &json!(false)));
    let failed = replica.metrics().await;
    assert_eq!(
        failed.value("lockgate_recoveries_total", &[("result", "error")]),
        1.0
    );
    let _: () = redis.command(&["ACL", "SETUSER", "default", "+@all"]).await;
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    events(&mut back, 0..10).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

/// As during a failover: Redis holds back writes, and with them the read of a history, which renews its life. A client that
/// came back then used to be told of a gap after 5 s.
#[tokio::test]
async fn a_history_that_cannot_be_read_for_a_while_is_no_gap() {
    let redis = RedisServer::start().await;
    let (gateway, _proxy) = behind_proxy(&redis, &[]).await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let (_socket, begin, _) = with_ten_events(&gateway).await;
    let paused = Instant::now();
    let _: () = redis.command(&["CLIENT", "PAUSE", "8000", "WRITE"]).await;
    let mut back = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
    events(&mut back, 0..10).await;
    assert!(paused.elapsed() > Duration::from_secs(7), "Redis paused");
    assert_eq!(position(&mut back).await["recovered"], true);
    publish(&gateway, replica, 10..11).await;
    events(&mut back, 10..11).await;
}
