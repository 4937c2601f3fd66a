//! Values of 200 MB under the keys that a tenant's back end may write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::support::database::ALICE;
use crate::support::http::Response;
use crate::support::{Gateway, PATIENCE, RedisServer, Tenant, eventually, gateway, token};

const CHAT: &str = "/ws/chat/lobby/";
/// The last byte of a value of 200 MB.
const LAST: &str = "209715199";
/// Memory that the replica may take for other reasons, such as the sockets and handshakes of the test.
const NOISE: u64 = 24 * 1024 * 1024;
const UNREADABLE: &str = "lockgate_unreadable_values_total";

async fn deployment(redis: &RedisServer, recheck: &str) -> Gateway {
    gateway()
        .set("denylist.recheck", recheck)
        .redis(&redis.url())
        .tenant("acme")
        .tenant("other")
        .start()
        .await
}

/// Writes a value of 200 MB. Redis takes a while to clear so much memory.
async fn fill(server: &RedisServer, key: &str) {
    patiently(server, &["SETRANGE", key, LAST, "x"]).await;
}

/// Runs a command that takes a while.
async fn patiently(server: &RedisServer, command: &[&str]) {
    let client = redis::Client::open(server.url()).unwrap();
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let connection = client.get_multiplexed_async_connection_with_config(&patient);
    let mut connection = connection.await.unwrap();
    let mut write = redis::cmd(command[0]);
    write.arg(&command[1..]);
    let _: redis::Value = write.query_async(&mut connection).await.unwrap();
}

/// Returns the refusal of a connect; `None` if the socket opened.
async fn refusal(gateway: &Gateway, tenant: &Tenant, token: &str) -> Option<Response> {
    let dial = gateway.replica().dial(tenant, CHAT);
    dial.token(token).attempt().await.err()
}

/// Every connect of the tenant read the value over the link that it shares. Before: 100 of 100 connects of the other tenant
/// were refused with 503, and a release build grew by 533 MiB.
#[tokio::test]
async fn a_cut_off_of_200_mb_costs_no_neighbour_its_redis() {
    let redis = RedisServer::start().await;
    let gateway = Arc::new(deployment(&redis, "60s").await);
    let (acme, other) = (
        gateway.named("acme").clone(),
        gateway.named("other").clone(),
    );
    for tenant in [&acme, &other] {
        let refused = refusal(&gateway, tenant, &tenant.token(ALICE)).await;
        assert!(refused.is_none(), "{refused:?}");
    }
    let before = gateway.replica().process.peak_memory();
    fill(&redis, &acme.redis_key("deny:all")).await;
    fill(&redis, &acme.redis_key("deny:user:1")).await;

    let (stop, refused) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let (stop, refused) = (stop.clone(), refused.clone());
            let (gateway, acme) = (gateway.clone(), acme.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let refusal = refusal(&gateway, &acme, &acme.token(ALICE)).await;
                    let refusal = refusal.expect("no token passes an unreadable cut-off");
                    assert_eq!(refusal.status, 503, "{refusal:?}");
                    refused.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let (started, mut lost) = (Instant::now(), 0);
    for _ in 0..100 {
        let refused = refusal(&gateway, &other, &other.token(ALICE)).await;
        lost += usize::from(refused.is_some());
    }
    eventually(PATIENCE, "the flood was judged", async || {
        match refused.load(Ordering::SeqCst) {
            0..50 => Err("too few"),
            _ => Ok(()),
        }
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for task in flood {
        task.await.unwrap();
    }
    let grown = gateway.replica().process.peak_memory();
    let grown = grown.saturating_sub(before);
    println!(
        "{lost} of 100 connects lost in {:?}; {} MiB more memory",
        started.elapsed(),
        grown >> 20
    );
    assert_eq!(lost, 0);
    assert!(grown < NOISE, "{} MiB", grown >> 20);

    let metrics = gateway.replica().metrics().await;
    assert!(metrics.value(UNREADABLE, &[("tenant", &acme.name)]) >= 50.0);
    assert_eq!(metrics.value(UNREADABLE, &[("tenant", &other.name)]), 0.0);
    let output = gateway.output();
    let told = output.lines().filter(|line| {
        line.contains("A cut-off in the denylist cannot be read") && line.contains(&acme.name)
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("too long"), "{told:?}");

    let _: u64 = redis
        .command(&[
            "DEL",
            &acme.redis_key("deny:all"),
            &acme.redis_key("deny:user:1"),
        ])
        .await;
    let refused = refusal(&gateway, &acme, &acme.token(ALICE)).await;
    assert!(refused.is_none(), "{refused:?}");
}

/// The other keys, each with its own consequence. Before: each read brought all of the value into the process, and a connect
/// with the denied token got 503, since the answer did not come within a second.
#[tokio::test]
async fn no_other_key_of_200_mb_is_fetched_either() {
    let redis = RedisServer::start().await;
    let gateway = deployment(&redis, "1s").await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    let before = replica.process.peak_memory();
    let mut claims = token::access(ALICE);
    claims["jti"] = json!("long");
    let long = acme.sign(&claims);
    let open = async |token: &str| refusal(&gateway, acme, token).await.map(|no| no.status);
    let path = format!("/v1/tenants/{}/groups/chat_lobby/send", acme.name);
    let bearer = format!("Bearer {}", gateway.api_key);
    let once = [("Authorization", bearer.as_str()), ("Idempotency-Key", "k")];
    for (key, own, fresh) in [
        // A token is denied whatever the value of its key.
        ("deny:jti:long", Some(401), None),
        ("user:1", None, None),
        ("usergen:1", None, None),
        ("state", None, None),
        ("idem:k", None, None),
    ] {
        let key = acme.redis_key(key);
        fill(&redis, &key).await;
        assert_eq!(open(&long).await, own, "{key}");
        assert_eq!(open(&acme.token(ALICE)).await, fresh, "{key}");
        let event = r#"{"type": "x"}"#;
        let sent = crate::support::http::request(replica.api, "POST", &path, &once, event).await;
        let expected = if key.ends_with("idem:k") { 409 } else { 200 };
        assert_eq!(sent.status, expected, "{key}: {sent:?}");
        let refused = refusal(&gateway, other, &other.token(ALICE)).await;
        assert!(refused.is_none(), "{key}: {refused:?}");
        let _: u64 = redis
            .command(&["DEL", &key, &acme.redis_key("idem:k")])
            .await;
    }
    // A new link reads the mark of the denylist. A recheck reads the state of its tenant, and the cut-offs of all sockets.
    let mut socket = gateway.open(CHAT).await;
    for key in [
        &acme.redis_key("state"),
        &acme.redis_key("deny:all"),
        "lockgate::epoch",
    ] {
        fill(&redis, key).await;
        let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        eventually(PATIENCE, "the neighbour connects", async || match refusal(
            &gateway,
            other,
            &other.token(ALICE),
        )
        .await
        {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        })
        .await;
        if key.ends_with("deny:all") {
            replica
                .logged("A cut-off in the denylist cannot be read")
                .await;
        }
        let _: u64 = redis.command(&["DEL", key]).await;
    }
    assert!(socket.ping().await.is_empty());
    let grown = replica.process.peak_memory().saturating_sub(before);
    assert!(grown < NOISE, "{} MiB", grown >> 20);
}

/// A message of 48 MB in the mailbox of one tenant of a `core` layer: twice what may be noise. It is sent as back ends send one,
/// since a script that makes it stops Redis for seconds on a busy machine. Before: the process held it whole.
#[tokio::test]
async fn a_message_of_48_mb_on_core_takes_no_memory_and_no_event_of_a_neighbour() {
    let message = "x".repeat(48 << 20);
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        // The sockets do not answer pings meanwhile.
        .set("server.heartbeat.interval", "24h")
        .set("server.heartbeat.timeout", "1h")
        .tenant("acme")
        .with("layer.kind", "core")
        .tenant("other")
        .with("layer.kind", "core")
        .start()
        .await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    let open = async |tenant: &Tenant| {
        let dial = replica.dial(tenant, CHAT);
        dial.token(&tenant.token(ALICE)).open().await
    };
    let mut sockets = [(acme, open(acme).await), (other, open(other).await)];
    let group = format!("{}:group:chat_lobby", acme.prefix);
    let members: Vec<String> = redis.command(&["ZRANGE", &group, "0", "-1"]).await;
    let (process, _) = members[0].split_once('!').unwrap();
    let mailbox = format!("{}{process}!", acme.prefix);
    let before = replica.process.peak_memory();
    patiently(&redis, &["ZADD", &mailbox, "1", &message]).await;
    let labels = [("tenant", &*acme.name), ("cause", "not_decoded")];
    replica
        .metric("lockgate_events_dropped_total", &labels, |n| n == 1.0)
        .await;
    for (tenant, socket) in &mut sockets {
        let path = format!("/v1/tenants/{}/groups/chat_lobby/send", tenant.name);
        let event = json!({"type": "x", "n": 1}).to_string();
        let sent = replica.api(&gateway.api_key, "POST", &path, &event).await;
        assert_eq!(sent.status, 200, "{sent:?}");
        assert_eq!(socket.next_json().await["n"], 1);
    }
    let grown = replica.process.peak_memory().saturating_sub(before);
    println!("{} MiB more memory", grown >> 20);
    assert!(grown < NOISE, "{} MiB", grown >> 20);
    let gaps = replica.metrics().await;
    let gaps = gaps.value("lockgate_gaps_total", &[("tenant", &other.name)]);
    assert_eq!(gaps, 0.0, "the link was never cut");
}

const GROUP: &str = "__group__chat_lobby";
const HISTORY: &str = "groups = [{ name = 'chat_<slug:room>', history = {} }]";
/// The bytes of a value in a history. Four readers at once took longer for it than a handshake waits for Redis.
const HISTORY_VALUE: usize = 96 << 20;
/// The bytes of an entry of a history: no event has as many.
const ENTRY: usize = 12 << 20;

/// Each field of a position, and an entry of a history, which a back end with its own Redis user may write as well. Before: each
/// read of the past brought all of it over the link that tenants share, Redis copied an entry for each read, and the process
/// grew by the value and more.
#[tokio::test]
async fn no_value_of_a_history_is_fetched_twice() {
    let redis = RedisServer::start().await;
    let gateway = Arc::new(
        gateway()
            .redis(&redis.url())
            .tenant("acme")
            .with_toml(HISTORY)
            .tenant("other")
            .with_toml(HISTORY)
            .start()
            .await,
    );
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let key = |kind| acme.redis_key(&format!("{kind}:{{{}{GROUP}}}", acme.prefix));
    let (history, position) = (key("history"), key("position"));
    let long = "x".repeat(HISTORY_VALUE);
    let before = gateway.replica().process.peak_memory();
    let mut unreadable = 0.0;
    for field in [
        "entry", "epoch", "offset", "t", "run", "past1", "past2", "past3", "past4",
    ] {
        let own = recorded(&gateway, acme, 1).await;
        let theirs = recorded(&gateway, other, 1).await;
        match field {
            "entry" => {
                let epoch: String = redis.command(&["HGET", &position, "epoch"]).await;
                assert_eq!(own, format!("chat_lobby~{epoch}~1"));
                for id in ["2-0", "3-0"] {
                    xadd(&redis, &history, id, &long[..ENTRY]).await;
                }
                let _: u64 = redis.command(&["HSET", &position, "offset", "3"]).await;
                // The first read costs what Redis needs to copy them. No other one does.
                history_of(&gateway, acme).await;
                let kept: u64 = redis.command(&["XLEN", &history]).await;
                assert_eq!(kept, 1);
            }
            _ => {
                patiently(&redis, &["HSET", &position, field, &long]).await;
            }
        }
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (gateway, acme) = (gateway.clone(), acme.clone());
                tokio::spawn(async move { history_of(&gateway, &acme).await })
            })
            .collect();
        for _ in 0..5 {
            let refused = refusal(&gateway, other, &other.token(ALICE)).await;
            assert!(refused.is_none(), "{field}: {refused:?}");
        }
        let mut answers = Vec::new();
        for reader in readers {
            answers.push(reader.await.unwrap());
        }
        for answer in &answers {
            assert_eq!(answer, &answers[0], "{field}: it is told once");
            match field {
                "entry" => {
                    assert_eq!(answer["complete"], false, "{answer}");
                    assert_eq!(answer["events"][0]["event"]["n"], 1, "{answer}");
                }
                _ => {
                    assert_eq!(answer["events"], json!([]), "{field}: {answer}");
                    assert_ne!(answer["position"], own, "{field}");
                }
            }
        }
        assert_eq!(
            history_of(&gateway, other).await["position"],
            theirs,
            "{field}"
        );
        // Before, no metric said that a back end had written what no history has.
        let name = [("tenant", &*acme.name)];
        let counted = { gateway.replica() }.metric(UNREADABLE, &name, |now| now > unreadable);
        unreadable = counted.await;
        let _: u64 = redis.command(&["DEL", &history, &position]).await;
    }
    let told = gateway.output();
    assert_eq!(
        told.matches("has values that are none").count(),
        1,
        "{told}"
    );
    let grown = gateway.replica().process.peak_memory();
    let grown = grown.saturating_sub(before);
    println!("{} MiB more memory", grown >> 20);
    assert!(grown < NOISE, "{} MiB", grown >> 20);
}

/// Records an event in the lobby, and returns its position.
async fn recorded(gateway: &Gateway, tenant: &Tenant, number: u64) -> String {
    let path = format!("/v1/tenants/{}/groups/chat_lobby/send", tenant.name);
    let event = json!({"type": "x", "n": number}).to_string();
    let replica = gateway.replica();
    let sent = replica.api(&gateway.api_key, "POST", &path, &event).await;
    assert_eq!(sent.status, 200, "{sent:?}");
    let position = history_of(gateway, tenant).await["position"].clone();
    position.as_str().unwrap().to_owned()
}

/// Returns what the API answers about the history of the lobby.
async fn history_of(gateway: &Gateway, tenant: &Tenant) -> serde_json::Value {
    let path = format!("/v1/tenants/{}/groups/chat_lobby/history", tenant.name);
    let replica = gateway.replica();
    let found = replica.api(&gateway.api_key, "GET", &path, "").await;
    assert_eq!(found.status, 200, "{found:?}");
    found.json()
}

/// Adds an entry of a history, whatever its length.
async fn xadd(server: &RedisServer, history: &str, id: &str, event: &str) {
    let time = (token::now() * 1000).to_string();
    patiently(server, &["XADD", history, id, "e", event, "t", &time]).await;
}
