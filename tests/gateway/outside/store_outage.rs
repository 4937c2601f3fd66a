//! Redis and databases away, killed, frozen, and back: sockets stay, nothing is told twice, gaps are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::http::Response;
use crate::support::proxy::{Line, Proxy};
use crate::support::{
    Database, Gateway, PATIENCE, Publisher, RedisServer, Tenant, eventually, gateway,
};

const CHAT: &str = "/ws/chat/lobby/";

async fn refusal(gateway: &Gateway, user: &str) -> Option<Response> {
    let tenant = gateway.tenant();
    let dial = gateway
        .replica()
        .dial(tenant, CHAT)
        .token(&tenant.token(user));
    dial.attempt().await.err()
}

#[tokio::test]
async fn a_replica_waits_for_a_redis_that_is_absent_at_its_start() {
    let redis = RedisServer::absent();
    let gateway = gateway()
        .redis(&redis.url())
        .set("server.ready_wait", "3s")
        .tenant("acme")
        .spawn()
        .await;
    let replica = gateway.replica();
    let started = Instant::now();
    assert_eq!(replica.readyz().await.status, 503);
    let refused = refusal(&gateway, ALICE)
        .await
        .expect("nobody can be served");
    Problem::new(503, "unavailable").is(&refused, &gateway.tenant().name);
    replica.logged(&redis.endpoint()).await;
    let alive = crate::support::http::request(replica.admin, "GET", "/livez", &[], "").await;
    assert_eq!(alive.status, 200);
    // After `ready_wait` it is ready all the same: all replicas would be missing together.
    replica.ready().await;
    assert!(
        started.elapsed() > Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    let labels = [("dependency", "redis")];
    assert_eq!(
        replica
            .metrics()
            .await
            .value("lockgate_dependency_up", &labels),
        0.0
    );

    // It used to be told twice a second.
    let output = gateway.output();
    let told: Vec<_> = output
        .lines()
        .filter(|line| line.contains("Waiting for a dependency"))
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["error"].clone())
        .collect();
    let distinct: std::collections::BTreeSet<_> = told.iter().map(Value::to_string).collect();
    assert!(!told.is_empty() && told.len() == distinct.len(), "{told:?}");

    redis.restart().await;
    eventually(PATIENCE, "a socket opens", async || {
        match refusal(&gateway, ALICE).await {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    })
    .await;
    let mut socket = gateway.open(CHAT).await;
    let publisher = Publisher::new(&redis, &gateway.tenant().prefix).await;
    publisher
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
    replica
        .metric("lockgate_dependency_up", &labels, |up| up >= 1.0)
        .await;
}

/// Publishes numbers to the groups `chat_room-0` to `chat_room-4`, one to each every 5 ms, until it is stopped.
struct Load {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Load {
    fn start(redis: &RedisServer, prefix: &str) -> Self {
        let (sent, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let client = redis::Client::open(redis.url()).unwrap();
        let task = {
            let (sent, stop, prefix) = (sent.clone(), stop.clone(), prefix.to_owned());
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(Duration::from_millis(5));
                let mut publisher = None;
                for n in 0.. {
                    tick.tick().await;
                    if publisher.is_none() {
                        let connection = client.get_multiplexed_async_connection().await;
                        publisher = connection.ok().map(|c| Publisher::on(c, &prefix));
                    }
                    for room in 0..5 {
                        let Some(through) = &publisher else { break };
                        let event = json!({"type": "x", "n": n});
                        let sent = through.try_send(&format!("chat_room-{room}"), &event).await;
                        if sent.is_err() {
                            publisher = None;
                        }
                    }
                    sent.store(n, Ordering::SeqCst);
                    if publisher.is_some() && stop.load(Ordering::SeqCst) {
                        return n;
                    }
                }
                unreachable!("the numbers do not end")
            })
        };
        Self { sent, stop, task }
    }

    /// The number that was sent, or lost, last.
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Ends it; the number that was sent last.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

/// Returns the number of replicas that are subscribed to the five groups of [`Load`], added up.
async fn subscribers(redis: &RedisServer, prefix: &str) -> usize {
    let channels: Vec<_> = (0..5)
        .map(|room| format!("{prefix}__group__chat_room-{room}"))
        .collect();
    let mut command = vec!["PUBSUB", "NUMSUB"];
    command.extend(channels.iter().map(String::as_str));
    let counts: Vec<(String, usize)> = redis.command(&command).await;
    counts.iter().map(|(_, count)| count).sum()
}

#[tokio::test]
async fn a_killed_redis_costs_a_counted_gap_and_no_socket() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .replicas(2)
        .tenant("acme")
        .with("on_gap", "notify")
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut sockets = Vec::new();
    for n in 0..20 {
        let token = tenant.token(if n % 2 == 0 { ALICE } else { BOB });
        let path = format!("/ws/chat/room-{}/", n % 5);
        let dial = gateway.replicas[n % 2].dial(tenant, &path).token(&token);
        sockets.push((n % 5, dial.open().await));
    }

    // From now on one event every 5 ms into each of five rooms, whether or not there is a Redis.
    let load = Load::start(&redis, &tenant.prefix);
    for (_, socket) in &mut sockets {
        for n in 0..50 {
            assert_eq!(socket.next_json().await, json!({"n": n}));
        }
    }
    let killed = load.sent();
    redis.kill();
    eventually(PATIENCE, "the load goes on", async || match load.sent() {
        sent if sent > killed + 20 => Ok(()),
        sent => Err(sent),
    })
    .await;
    let returned = load.sent();
    redis.restart().await;
    eventually(
        Duration::from_secs(2),
        "both replicas subscribe again",
        async || match subscribers(&redis, &tenant.prefix).await {
            10 => Ok(()),
            other => Err(other),
        },
    )
    .await;
    // The next number may have been on its way before the last subscription.
    let recovered = load.sent() + 2;
    eventually(PATIENCE, "the load goes on", async || match load.sent() {
        sent if sent > recovered + 20 => Ok(()),
        sent => Err(sent),
    })
    .await;
    let last = load.stop().await;

    for (room, socket) in &mut sockets {
        let mut seen = Vec::new();
        let mut gaps = 0;
        while seen.last() != Some(&last) {
            let message = socket.next_json().await;
            if message["type"] == "lockgate.gap" {
                gaps += 1;
            } else {
                seen.push(message["n"].as_u64().unwrap());
            }
        }
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(seen, sorted, "room {room}: in order, nothing twice");
        assert!(
            (recovered..=last).all(|n| seen.contains(&n)),
            "room {room}: {seen:?}"
        );
        assert!(
            !seen.iter().any(|n| (killed + 2..returned).contains(n)),
            "room {room}: {seen:?}"
        );
        assert!(gaps >= 1, "room {room}: told of no gap");
        assert!(socket.ping().await.is_empty());
    }
    let labels = [("tenant", tenant.name.as_str()), ("cause", "link")];
    for replica in &gateway.replicas {
        let metrics = replica.metrics().await;
        assert!(metrics.value("lockgate_gaps_total", &labels) >= 1.0);
        assert!(metrics.value("lockgate_reconnects_total", &[("dependency", "redis")]) >= 1.0);
        assert_eq!(replica.readyz().await.status, 200);
    }
    // New sockets are served again as well.
    gateway.open(CHAT).await;
}

#[tokio::test]
async fn without_redis_new_sockets_get_503_and_the_replica_stays_ready() {
    let redis = RedisServer::start().await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let mut open = gateway.open(CHAT).await;
    redis.kill();
    let refused = refusal(&gateway, BOB)
        .await
        .expect("the denylist cannot be asked");
    Problem::new(503, "unavailable").is(&refused, &gateway.tenant().name);
    assert!(open.ping().await.is_empty());
    assert_eq!(gateway.replica().readyz().await.status, 200);
}

#[tokio::test]
async fn a_tenant_may_serve_without_its_denylist() {
    let denylist = RedisServer::start().await;
    let gateway = gateway()
        .set("denylist.redis", denylist.url())
        .set("denylist.on_outage", "allow")
        .tenant("acme")
        .start()
        .await;
    let tenant = gateway.tenant();
    let () = denylist
        .command(&[
            "SET",
            &tenant.redis_key(&format!("deny:user:{BOB}")),
            "99999999999",
        ])
        .await;
    let refused = refusal(&gateway, BOB).await.expect("bob is denied there");
    Problem::new(401, "token_revoked").is(&refused, &tenant.name);
    denylist.kill();
    gateway.open(CHAT).await;
}

#[tokio::test]
async fn a_frozen_redis_is_noticed_and_does_not_stop_the_replica() {
    let redis = RedisServer::start().await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let mut socket = gateway.open(CHAT).await;
    redis.freeze();
    let asked = Instant::now();
    let refused = refusal(&gateway, BOB).await.expect("nothing answers");
    Problem::new(503, "unavailable").is(&refused, &gateway.tenant().name);
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "{:?}",
        asked.elapsed()
    );
    assert!(socket.ping().await.is_empty());
    let labels = [("dependency", "redis")];
    gateway
        .replica()
        .metric("lockgate_dependency_errors_total", &labels, |n| n >= 1.0)
        .await;
    redis.thaw();
    eventually(PATIENCE, "a socket opens", async || {
        match refusal(&gateway, BOB).await {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    })
    .await;
    let publisher = Publisher::new(&redis, &gateway.tenant().prefix).await;
    eventually(
        PATIENCE,
        "the subscription is there",
        async || match publisher
            .send("chat_lobby", &json!({"type": "x", "n": 1}))
            .await
        {
            0 => Err(0),
            _ => Ok(()),
        },
    )
    .await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
}

#[tokio::test]
async fn a_gap_closes_where_the_tenant_wants_a_fresh_start() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .with("on_gap", "close")
        .start()
        .await;
    let mut socket = gateway.open(CHAT).await;
    redis.kill();
    redis.restart().await;
    let (code, reason) = socket.closed().await;
    assert_eq!((code, crate::problem::word(&reason)), (4004, "events_lost"));
}

#[tokio::test]
async fn a_subscribers_lost_link_heals_by_itself() {
    let redis = RedisServer::start().await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let mut socket = gateway.open(CHAT).await;
    let publisher = Publisher::new(&redis, &gateway.tenant().prefix).await;
    for n in 0..5 {
        let killed: u32 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert!(killed >= 1);
        let cut = Instant::now();
        let event = json!({"type": "x", "n": n});
        eventually(
            Duration::from_secs(2),
            "the subscription is back",
            async || match publisher.send("chat_lobby", &event).await {
                0 => Err(cut.elapsed()),
                _ => Ok(()),
            },
        )
        .await;
        assert_eq!(socket.next_json().await, json!({"n": n}));
    }
    assert!(socket.ping().await.is_empty());
}

#[tokio::test]
async fn cached_users_are_served_while_the_database_is_away() {
    let database = Database::postgres().await;
    let server = crate::support::postgres::PostgresServer::shared().await;
    let proxy = Proxy::to(&server.endpoint()).await;
    let through = database
        .url()
        .replace(&server.endpoint(), &proxy.endpoint());
    let gateway = gateway()
        .replicas(2)
        .tenant("acme")
        .users(&Database::at(through))
        // Every record is stale at once; what is in the process lives for a moment only.
        .with("users.cache_ttl", "1s")
        .with("users.local_ttl", "1s")
        .start()
        .await;
    let tenant = gateway.tenant();
    gateway.open(CHAT).await;
    for line in [Line::Cut, Line::Clogged] {
        proxy.set(line);
        let unknown = gateway
            .replica()
            .dial(tenant, CHAT)
            .token(&tenant.token(BOB));
        Problem::new(503, "unavailable").is(&unknown.refused().await, &tenant.name);
        let labels = [("tenant", tenant.name.as_str()), ("result", "stale")];
        let before = gateway.replicas[1]
            .metrics()
            .await
            .value("lockgate_user_lookups_total", &labels);
        eventually(PATIENCE, "a stale record is served", async || {
            let dial = gateway.replicas[1]
                .dial(tenant, CHAT)
                .token(&tenant.token(ALICE));
            drop(dial.open().await);
            let served = gateway.replicas[1]
                .metrics()
                .await
                .value("lockgate_user_lookups_total", &labels);
            if served > before { Ok(()) } else { Err(served) }
        })
        .await;
        assert_eq!(gateway.replica().readyz().await.status, 200);
        proxy.set(Line::Cut);
        proxy.set(Line::Open);
        eventually(PATIENCE, "the database is asked again", async || {
            let dial = gateway
                .replica()
                .dial(tenant, CHAT)
                .token(&tenant.token("77"));
            let refusal = dial.attempt().await.err().expect("no such user");
            if refusal.status == 401 {
                Ok(())
            } else {
                Err(refusal)
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_tenant_whose_table_lacks_a_column_is_degraded_and_says_which() {
    let database = Database::postgres().await;
    database
        .execute("ALTER TABLE auth_user DROP COLUMN is_active")
        .await;
    let gateway = gateway()
        .tenant("good")
        .tenant("broken")
        .users(&database)
        .start()
        .await;
    let (good, broken) = (gateway.named("good"), gateway.named("broken"));
    gateway
        .replica()
        .dial(good, CHAT)
        .token(&good.token(ALICE))
        .open()
        .await;
    let refused = gateway
        .replica()
        .dial(broken, CHAT)
        .token(&broken.token(ALICE))
        .refused()
        .await;
    Problem::new(503, "unavailable").is(&refused, &broken.name);
    let line = gateway.replica().logged("is_active").await;
    assert!(line.contains(&broken.name), "{line}");
    // Before, no metric told of it.
    let degraded = async |tenant: &Tenant, expected: f64| {
        let labels = [("tenant", tenant.name.as_str())];
        let replica = gateway.replica();
        let metric = replica.metric("lockgate_tenant_degraded", &labels, |n| n == expected);
        metric.await;
    };
    degraded(broken, 1.0).await;
    degraded(good, 0.0).await;
    // Only an operator is told names.
    let anyone = gateway.replica().readyz().await;
    assert_eq!(anyone.status, 200);
    assert!(!anyone.body.contains(&broken.name), "{anyone:?}");
    let bearer = format!("Bearer {}", gateway.api_key);
    let headers = [("Authorization", bearer.as_str())];
    let operator =
        crate::support::http::request(gateway.replica().admin, "GET", "/readyz", &headers, "")
            .await;
    assert!(operator.body.contains(&broken.name), "{operator:?}");
    assert!(operator.body.contains("is_active"), "{operator:?}");
    // Mended, it is served without a restart.
    database
        .execute("ALTER TABLE auth_user ADD COLUMN is_active boolean NOT NULL DEFAULT true")
        .await;
    eventually(
        Duration::from_secs(90),
        "the tenant is served",
        async || {
            let dial = gateway
                .replica()
                .dial(broken, CHAT)
                .token(&broken.token(ALICE));
            dial.attempt().await.map(drop)
        },
    )
    .await;
    degraded(broken, 0.0).await;
}

#[tokio::test]
async fn a_strict_replica_does_not_start_with_a_tenant_that_it_cannot_serve() {
    let database = Database::postgres().await;
    database
        .execute("ALTER TABLE auth_user DROP COLUMN is_active")
        .await;
    let gateway = gateway().tenant("broken").users(&database).write().await;
    let process =
        crate::support::process::Program::new("lockgate serve", crate::support::replica::LOCKGATE)
            .args([
                "serve",
                "--strict",
                "--config",
                gateway.config.to_str().unwrap(),
            ])
            .start();
    assert_eq!(process.exited(PATIENCE).await.code(), Some(1));
    assert!(
        process.output.text().contains("is_active"),
        "{}",
        process.output.text()
    );
}

#[tokio::test]
async fn a_full_layer_queue_is_a_gap_of_that_tenant_alone() {
    let gateway = gateway()
        .tenant("small")
        .with("limits.layer_queue", "4KiB")
        .with("on_gap", "notify")
        .tenant("other")
        .with("on_gap", "notify")
        .start()
        .await;
    let redis = RedisServer::shared().await;
    let (small, other) = (gateway.named("small"), gateway.named("other"));
    let open = async |tenant| {
        let token = crate::support::Tenant::token(tenant, ALICE);
        gateway
            .replica()
            .dial(tenant, CHAT)
            .token(&token)
            .open()
            .await
    };
    let (mut ours, mut theirs) = (open(small).await, open(other).await);
    // Far more at once than the queue takes.
    let text = "x".repeat(1024);
    let publisher = Publisher::new(redis, &small.prefix).await;
    let burst = (0..500).map(|n| {
        let event = json!({"type": "x", "n": n, "text": text});
        let publisher = &publisher;
        async move { publisher.send("chat_lobby", &event).await }
    });
    futures_util::future::join_all(burst).await;
    let mut seen = Vec::new();
    loop {
        let message = ours.next_json().await;
        if message["type"] == "lockgate.gap" {
            break;
        }
        seen.push(message["n"].as_u64().unwrap());
    }
    assert!(seen.is_sorted(), "{seen:?}");
    let publisher = Publisher::new(redis, &other.prefix).await;
    publisher
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(theirs.next_json().await, json!({"n": 1}));
    assert_eq!(theirs.ping().await, Vec::<Message>::new());
    let labels = [("tenant", small.name.as_str()), ("cause", "layer_queue")];
    gateway
        .replica()
        .metric("lockgate_unhealed_gaps_total", &labels, |n| n >= 1.0)
        .await;
    // Each such gap is a hit of the limit, which was not counted.
    let counted = gateway.replica().metrics().await;
    let gaps = counted.value("lockgate_gaps_total", &labels);
    let labels = [("tenant", small.name.as_str()), ("limit", "layer_queue")];
    let hits = counted.value("lockgate_rate_limited_total", &labels);
    assert!(hits >= 1.0);
    assert_eq!(hits, gaps);
    let of_other = ("tenant", &*other.name);
    let none = counted.of("lockgate_rate_limited_total", of_other);
    assert!(none.is_empty(), "{none:?}");
}

#[tokio::test]
async fn a_broadcast_that_cannot_be_published_closes_with_a_wait() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .route("path = 'say/'\n groups = ['g']\n consumer = { kind = 'broadcast', type = 'x' }")
        .start()
        .await;
    let mut socket = gateway.open("/say/").await;
    redis.kill();
    socket.send_text("{}").await;
    let expected = (4014, "unavailable retry_after_ms=1000".to_owned());
    assert_eq!(socket.closed().await, expected);
}
