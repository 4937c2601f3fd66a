//! The layer `core`: Django's own `channels_redis.core` on the other side, on one host and on several.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate::channel_layer::core::CoreEndpoints;
use lockgate::channel_layer::{ChannelLayer, Inbox, NoticeLines};
use lockgate::config::LayerConfig;
use lockgate::error::Dependency;
use lockgate::event::Event;
use lockgate::ids::ReplicaId;
use lockgate::metrics::TenantMetrics;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use serde_json::{Value, json};

use crate::support::database::{ALICE, BOB};
use crate::support::django::Django;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway};

/// A broadcast that shows the whole event.
const ROUTE: &str = r#"path     = "ws/chat/<slug:room>/"
    groups   = ["chat_{room}"]
    deliver  = "event"
    consumer = { kind = "broadcast", to = "chat_{room}", type = "chat.message" }"#;
const CHAT: &str = "/ws/chat/lobby/";

async fn servers(count: usize) -> Vec<RedisServer> {
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(RedisServer::start().await);
    }
    servers
}

fn urls(servers: &[RedisServer]) -> Vec<String> {
    servers.iter().map(RedisServer::url).collect()
}

/// The layer options of a project, beside hosts and prefix.
fn configurations() -> Vec<Value> {
    let keys = json!(["first-key", "old-key"]);
    vec![
        json!({}),
        json!({"serializer_format": "json", "symmetric_encryption_keys": keys, "random_prefix_length": 4}),
        json!({"symmetric_encryption_keys": keys, "capacity": 500, "expiry": 30, "group_expiry": 3600}),
        json!({"serializer_format": "json", "channel_capacity": {"specific.*": 400}}),
    ]
}

/// The same in the gateway's configuration.
fn as_toml(config: &Value) -> String {
    let mut text = String::new();
    for (key, value) in config.as_object().unwrap() {
        let value = match (key.as_str(), value) {
            ("expiry" | "group_expiry", seconds) => format!("\"{seconds}s\""),
            (_, Value::Object(fields)) => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| format!("{name:?} = {value}"));
                format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
            }
            (_, value) => value.to_string(),
        };
        text.push_str(&format!("layer.{key} = {value}\n"));
    }
    text
}

async fn both_directions(hosts: usize, kind: &str, config: &Value) {
    let servers = servers(hosts).await;
    let database = Database::postgres().await;
    let gateway = gateway()
        .redis(&servers[0].url())
        .replicas(2)
        .tenant("acme")
        .users(&database)
        .with("layer.kind", kind)
        .with("layer.hosts", urls(&servers))
        .with_toml(&as_toml(config))
        .route(ROUTE)
        .start()
        .await;
    let tenant = gateway.tenant();
    let django = Django::at(database.url()).layer(&urls(&servers).join(","), &tenant.prefix);
    let django = match kind {
        "core" => django.core(config).start().await,
        _ => django.layer_config(config).start().await,
    };
    for room in ["lobby", "r1", "r2", "r3", "r4"] {
        let (group, path) = (format!("chat_{room}"), format!("/ws/chat/{room}/"));
        let channel = django.listen(&group).await;
        let dial = |n: usize, user| {
            let dial = gateway.replicas[n].dial(tenant, &path);
            dial.token(&tenant.token(user)).open()
        };
        let mut sockets = [dial(0, ALICE).await, dial(0, BOB).await, dial(1, BOB).await];
        let event = |n: u32| json!({"type": "chat.message", "n": n, "text": "grüß dich"});
        let events: Vec<_> = (0..30).map(event).collect();
        django.group_send(&group, &events).await;
        for socket in &mut sockets {
            for event in &events {
                assert_eq!(socket.next_json().await, *event, "{kind} {config} {room}");
            }
        }
        for event in &events {
            assert_eq!(django.receive(&channel).await, *event);
        }
        for n in 0..20 {
            sockets[0].send_text(&json!({"n": n}).to_string()).await;
        }
        for n in 0..20 {
            let event = json!({"type": "chat.message", "n": n});
            for socket in &mut sockets {
                assert_eq!(socket.next_json().await, event, "{kind} {config} {room}");
            }
            assert_eq!(django.receive(&channel).await, event);
        }
        for socket in &mut sockets {
            assert!(socket.ping().await.is_empty(), "nothing came twice");
        }
    }
}

#[tokio::test]
async fn django_and_the_gateway_share_groups_on_one_host_of_a_core_layer() {
    for config in configurations() {
        both_directions(1, "core", &config).await;
    }
}

#[tokio::test]
async fn django_and_the_gateway_share_groups_on_three_hosts_of_a_core_layer() {
    for config in configurations() {
        both_directions(3, "core", &config).await;
    }
}

#[tokio::test]
async fn django_and_the_gateway_share_groups_on_three_hosts_of_a_pubsub_layer() {
    for config in configurations().into_iter().take(2) {
        both_directions(3, "pubsub", &config).await;
    }
}

/// Direct sends, as a consumer of the kind `worker` and the answers of its workers need them.
#[tokio::test]
async fn what_is_sent_to_a_channel_of_django_is_read_there() {
    for hosts in [1, 3] {
        let servers = servers(hosts).await;
        let database = Database::postgres().await;
        let django = Django::at(database.url())
            .layer(&urls(&servers).join(","), "acme")
            .core(&json!({}))
            .start()
            .await;
        let stores = urls(&servers).into_iter().map(|url| {
            let url = RedisUrl::parse(&url.as_str().into()).unwrap();
            RedisStore::new(&url, Dependency::Redis).unwrap()
        });
        let config = LayerConfig {
            prefix: "acme".to_owned(),
            ..LayerConfig::default()
        };
        let metrics = Arc::new(TenantMetrics::new(&"acme".parse().unwrap()));
        let endpoints = CoreEndpoints::new(ReplicaId::random());
        let stores: Vec<_> = stores.collect();
        let layer = endpoints.attach(
            &stores,
            &config,
            NoticeLines::default(),
            Inbox::new(0, metrics),
        );
        let layer = layer.unwrap();
        for n in 0..10 {
            // On three hosts, two of three of Channels' own direct sends are lost (channels#1492).
            let channel = django.listen("somebody").await;
            let event = json!({"type": "t", "n": n});
            let sent = Event::from_json(event.to_string()).unwrap();
            layer.send(&channel.as_str().into(), &sent).await.unwrap();
            assert_eq!(django.receive(&channel).await, event);
        }
        if hosts == 1 {
            // Round and round the hosts go senders and workers; with one there is nothing to wait for.
            let event = json!({"type": "job", "n": 1});
            let sent = Event::from_json(event.to_string()).unwrap();
            layer.send(&"work".into(), &sent).await.unwrap();
            assert_eq!(django.receive("work").await, event);
        }
    }
}

async fn core(redis: &RedisServer, database: &Database) -> Gateway {
    gateway()
        .redis(&redis.url())
        .replicas(2)
        .tenant("acme")
        .users(database)
        .with("layer.kind", "core")
        .with("on_gap", "notify")
        .route(ROUTE)
        .start()
        .await
}

#[tokio::test]
async fn a_restarted_redis_costs_a_core_layer_a_counted_gap_and_no_socket() {
    let redis = RedisServer::start().await;
    let database = Database::postgres().await;
    let gateway = core(&redis, &database).await;
    let tenant = gateway.tenant();
    let mut sockets = Vec::new();
    for n in 0..10 {
        let path = format!("/ws/chat/room-{}/", n % 3);
        let dial = gateway.replicas[n % 2].dial(tenant, &path);
        sockets.push((n % 3, dial.token(&tenant.token(ALICE)).open().await));
    }
    let django = Django::at(database.url())
        .layer(&redis.url(), &tenant.prefix)
        .core(&json!({}))
        .start()
        .await;
    for round in 0..2 {
        redis.kill();
        redis.restart().await;
        let back = Instant::now();
        for (_, socket) in &mut sockets {
            assert_eq!(socket.next_json().await, json!({"type": "lockgate.gap"}));
        }
        assert!(
            back.elapsed() < Duration::from_secs(5),
            "{:?}",
            back.elapsed()
        );
        django.forget_connections().await;
        for room in 0..3 {
            let event = json!({"type": "x", "round": round, "room": room});
            django
                .group_send(&format!("chat_room-{room}"), &[event])
                .await;
        }
        for (room, socket) in &mut sockets {
            let event = json!({"type": "x", "round": round, "room": room});
            assert_eq!(socket.next_json().await, event);
            assert!(socket.ping().await.is_empty());
        }
        // Gaps within a second are told as one.
        let since = back.elapsed();
        tokio::time::sleep(Duration::from_millis(1200).saturating_sub(since)).await;
    }
    let labels = [("tenant", tenant.name.as_str()), ("cause", "link")];
    for replica in &gateway.replicas {
        let metrics = replica.metrics().await;
        assert!(metrics.value("lockgate_gaps_total", &labels) >= 2.0);
        assert_eq!(replica.readyz().await.status, 200);
    }
    gateway.open(CHAT).await;
}

#[tokio::test]
async fn a_replica_that_drains_leaves_nothing_in_redis() {
    let redis = RedisServer::start().await;
    let database = Database::postgres().await;
    let gateway = gateway()
        .redis(&redis.url())
        .set("server.drain.delay", "0s")
        .set("server.drain.window", "1s")
        .tenant("acme")
        .users(&database)
        .with("layer.kind", "core")
        .route(ROUTE)
        .start()
        .await;
    let pattern = format!("{}*", gateway.tenant().prefix);
    let mut socket = gateway.open(CHAT).await;
    let group = format!("{}:group:chat_lobby", gateway.tenant().prefix);
    let members: Vec<String> = redis.command(&["ZRANGE", &group, "0", "-1"]).await;
    assert_eq!(members.len(), 1);
    gateway.replica().terminate();
    let close = socket.closed().await;
    assert_eq!(close.0, 1012);
    let status = gateway.replica().exited(PATIENCE).await;
    assert!(status.success());
    let keys: Vec<String> = redis.command(&["KEYS", &pattern]).await;
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_left_group_is_left_in_redis_after_a_second() {
    let redis = RedisServer::start().await;
    let database = Database::postgres().await;
    let gateway = core(&redis, &database).await;
    let group = format!("{}:group:chat_lobby", gateway.tenant().prefix);
    let members = async || {
        redis
            .command::<Vec<String>>(&["ZRANGE", &group, "0", "-1"])
            .await
    };
    // However many sockets there are.
    let sockets = [
        gateway.open(CHAT).await,
        gateway.open(CHAT).await,
        gateway.open(CHAT).await,
    ];
    assert_eq!(members().await.len(), 1);
    drop(sockets);
    eventually(PATIENCE, "the group is left", async || {
        match members().await.len() {
            0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
