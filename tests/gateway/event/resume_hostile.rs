//! Clients that come back while the history is cut, with another tenant's position, or hundreds at once.

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use super::resume::{ROUTES, events, position, position_of, publish, returning, with_history};
use super::resume_replicas::told;
use crate::support::database::ALICE;
use crate::support::{Database, PATIENCE, RedisServer, Tenant, eventually, gateway};

const LAYERS: [&str; 2] = ["pubsub", "core"];

/// The key of the history or the position of `chat_a`.
fn key(tenant: &Tenant, layer: &str, what: &str) -> String {
    let group = match layer {
        "core" => ":group:",
        _ => "__group__",
    };
    tenant.redis_key(&format!("{what}:{{{}{group}chat_a}}", tenant.prefix))
}

/// Others cut the stream while a client takes its events in slowly: what it gets has no hole that is not told.
#[tokio::test]
async fn a_stream_that_is_cut_under_a_replay_is_told_where_it_was_cut() {
    const COUNT: u64 = 3000;
    for layer in LAYERS {
        let redis = RedisServer::shared().await;
        let builder = with_history(
            gateway().redis(&redis.url()),
            "{ size = 5000, ttl = '10m' }",
        );
        let builder = builder.await.with("layer.kind", layer);
        let gateway = builder.with("limits.send_queue", "64KiB").start().await;
        let (replica, tenant) = (gateway.replica(), gateway.tenant());
        let mut live = returning(replica, tenant, "/ws/a/", &[]).open().await;
        let begin = position_of(&position(&mut live).await);
        drop(live);
        let path = format!("/v1/tenants/{}/send", tenant.name);
        let padding = "x".repeat(1000);
        for batch in 0..COUNT / 500 {
            let numbers = batch * 500..(batch + 1) * 500;
            let event =
                |n| json!({"group": "chat_a", "event": {"type": "t", "n": n, "padding": padding}});
            let body = json!({"messages": numbers.map(event).collect::<Vec<_>>()}).to_string();
            let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let mut slow = returning(replica, tenant, "/ws/a/", &[&begin]).open().await;
        slow.keep_little(32 * 1024);
        events(&mut slow, 0..5).await;
        let stream = key(tenant, layer, "history");
        let _: u64 = redis.command(&["XTRIM", &stream, "MAXLEN", "=", "3"]).await;
        // What its queue and one page held comes still.
        let mut next = 5;
        let gap = loop {
            let frame = slow.next_json().await;
            match frame["type"].as_str() {
                None => {
                    assert_eq!(frame["n"], next, "{layer}");
                    next += 1;
                }
                _ => break frame,
            }
        };
        assert!(next < COUNT, "{layer}: it was cut before the end");
        assert_eq!(gap, json!({"type": "lockgate.gap", "group": "chat_a"}));
        let end = position(&mut slow).await;
        assert_eq!(end["recovered"], false);
        publish(&gateway, replica, COUNT..COUNT + 3).await;
        events(&mut slow, COUNT..COUNT + 3).await;
        let at = position_of(&end);
        let mut back = returning(replica, tenant, "/ws/a/", &[&at]).open().await;
        events(&mut back, COUNT..COUNT + 3).await;
        assert_eq!(position(&mut back).await["recovered"], true);
    }
}

#[tokio::test]
async fn a_position_of_another_tenant_is_of_no_use() {
    for layer in ["memory", "pubsub", "core"] {
        let redis = RedisServer::shared().await;
        let groups = "[[groups]]\nname = 'chat_<slug:room>'\nhistory = { size = 50 }";
        let mut builder = gateway().redis(&redis.url());
        for name in ["acme", "globex"] {
            builder = builder
                .tenant(name)
                .users(&Database::sqlite().await)
                .with("layer.kind", layer)
                .with_toml(groups)
                .route(ROUTES[0]);
        }
        let gateway = builder.start().await;
        let replica = gateway.replica();
        let [acme, globex] = ["acme", "globex"].map(|name| gateway.named(name));
        let send = async |tenant: &Tenant, n: u64| {
            let path = format!("/v1/tenants/{}/groups/chat_a/send", tenant.name);
            let event = json!({"type": "t", "n": n}).to_string();
            let answer = replica.api(&gateway.api_key, "POST", &path, &event).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        };
        let mut one = returning(replica, acme, "/ws/a/", &[]).open().await;
        let begin = position_of(&position(&mut one).await);
        for n in 0..5 {
            send(acme, n).await;
            send(globex, 100 + n).await;
        }
        let last = events(&mut one, 0..5).await;
        for place in [&begin, &last] {
            let mut other = returning(replica, globex, "/ws/a/", &[place]).open().await;
            told(&mut other).await;
            assert_eq!(other.ping().await, [], "{layer}: none of either tenant");
        }
        let mut back = returning(replica, acme, "/ws/a/", &[&begin]).open().await;
        events(&mut back, 0..5).await;
    }
}

/// Hundreds of sockets of one tenant that come back at once share the reads, and the events of another tenant come in time.
#[tokio::test]
async fn a_storm_of_returning_sockets_delays_no_other_tenant() {
    const SOCKETS: usize = 300;
    const MISSED: u64 = 200;
    for layer in LAYERS {
        let redis = RedisServer::start().await;
        let builder = with_history(gateway().redis(&redis.url()), "{ size = 500, ttl = '10m' }");
        let builder = builder.await.with("layer.kind", layer);
        let builder = builder
            .tenant("globex")
            .users(&Database::sqlite().await)
            .with("layer.kind", layer)
            .route("path = 'g/'\n groups = ['g']");
        let gateway = builder.start().await;
        let (replica, storm, calm) = (
            gateway.replica(),
            gateway.named("acme"),
            gateway.named("globex"),
        );
        let mut live = returning(replica, storm, "/ws/a/", &[]).open().await;
        let begin = position_of(&position(&mut live).await);
        publish(&gateway, replica, 0..MISSED).await;
        events(&mut live, 0..MISSED).await;
        let reads = async || {
            let stats: String = redis.command(&["INFO", "commandstats"]).await;
            let line = stats
                .lines()
                .find(|line| line.starts_with("cmdstat_evalsha:"));
            let calls =
                line.and_then(|line| line.split_once("calls=")?.1.split(',').next()?.parse().ok());
            calls.unwrap_or(0_u64)
        };
        let before = reads().await;
        let dial = replica.dial(calm, "/g/").token(&calm.token(ALICE));
        let mut other = dial.open().await;
        let storming = join_all((0..SOCKETS).map(async |_| {
            let mut back = returning(replica, storm, "/ws/a/", &[&begin]).open().await;
            events(&mut back, 0..MISSED).await;
            assert_eq!(position(&mut back).await["recovered"], true);
        }));
        let path = format!("/v1/tenants/{}/groups/g/send", calm.name);
        let mut times = Vec::new();
        let living = async {
            for n in 0..50 {
                let (event, sent) = (json!({"type": "t", "n": n}).to_string(), Instant::now());
                let answer = replica.api(&gateway.api_key, "POST", &path, &event).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                assert_eq!(other.next_json().await, json!({"n": n}));
                times.push(sent.elapsed());
            }
        };
        let began = Instant::now();
        let storming = async {
            storming.await;
            began.elapsed()
        };
        let (took, ()) = tokio::join!(storming, living);
        times.sort_unstable();
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{layer}: the storm took {took:?}, the slowest event of the other tenant {slowest:?}"
        );
        // It does not wait behind the storm, however busy the machine is.
        assert!(median < took / 4, "{layer}: {median:?} of {took:?}");
        let calls = reads().await - before;
        assert!(
            0 < calls && calls < SOCKETS as u64,
            "{layer}: {calls} calls for {SOCKETS} sockets"
        );
    }
}

/// The socket that sent an event is skipped while it is live; who comes back gets all.
#[tokio::test]
async fn an_event_that_skips_its_sender_has_a_position_for_all_others() {
    for layer in ["memory", "pubsub", "core"] {
        let redis = RedisServer::shared().await;
        let builder = with_history(gateway().redis(&redis.url()), "{ size = 50, ttl = '10m' }");
        let gateway = builder
            .await
            .with("layer.kind", layer)
            .route("path = 'say/<slug:room>/'\n groups = ['chat_{room}']\n resume = true\n consumer = { kind = 'broadcast', to = 'chat_{room}', type = 't', skip_sender = true }")
            .start()
            .await;
        let (replica, tenant) = (gateway.replica(), gateway.tenant());
        let mut sender = returning(replica, tenant, "/say/a/", &[]).open().await;
        let begin = position_of(&position(&mut sender).await);
        let mut other = returning(replica, tenant, "/say/a/", &[]).open().await;
        position(&mut other).await;
        for n in 0..3 {
            sender.send_text(&json!({"n": n}).to_string()).await;
        }
        for n in 0..3 {
            let at = events(&mut other, n..n + 1).await;
            // In the place of its event it learns the position.
            let skipped = position(&mut sender).await;
            assert_eq!(position_of(&skipped), at, "{layer}");
        }
        publish(&gateway, replica, 3..4).await;
        let last = events(&mut sender, 3..4).await;
        assert_eq!(
            events(&mut other, 3..4).await,
            last,
            "{layer}: one position"
        );
        drop(sender);
        let mut back = returning(replica, tenant, "/say/a/", &[&begin])
            .open()
            .await;
        events(&mut back, 0..4).await;
        assert_eq!(position(&mut back).await["recovered"], true);
        eventually(PATIENCE, "the events are counted once", async || {
            let metrics = replica.metrics().await;
            match metrics.value("lockgate_recorded_total", &[]) {
                4.0 => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}
