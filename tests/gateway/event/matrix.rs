//! Every way to configure a layer on the Redis layers, against the newest and the oldest channels_redis that knows it:
//! Django to sockets, sockets to Django, and sockets to a Channels worker and back, over two replicas. Each on groups with
//! a memory and on groups without one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::database::{ALICE, BOB};
use crate::support::django::Django;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, RedisServer, Tenant, eventually, gateway};

/// Its pub/sub layer has no workers: it receives on channels of its own making only.
const NO_WORKERS: &str = "3.3.1";
/// The first with workers on that layer.
const FIRST_WORKERS: &str = "3.4.0";

/// A worker on several hosts of a core layer waits up to five seconds at each.
const LONG: Duration = Duration::from_secs(60);
/// Between messages that only keep a worker going from host to host: those of `LONG` fit into the channels of three hosts
/// (100 each), however slow the worker is. In a full channel what the test counts would be dropped.
const PACE: Duration = Duration::from_millis(250);

/// One configuration of a layer.
#[derive(Clone, Copy)]
struct Cell {
    kind: &'static str,
    json: bool,
    encrypted: bool,
    hosts: usize,
}

impl Cell {
    /// All of them.
    fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for (kind, hosts) in [
            ("pubsub", &[1, 3][..]),
            ("core", &[1, 3]),
            ("sharded", &[1]),
        ] {
            for json in [false, true] {
                for encrypted in [false, true] {
                    cells.extend(hosts.iter().map(|&hosts| Self {
                        kind,
                        json,
                        encrypted,
                        hosts,
                    }));
                }
            }
        }
        cells
    }

    /// The name of its tenant.
    fn word(self) -> String {
        let format = if self.json { "json" } else { "msgpack" };
        let keys = if self.encrypted { "keys" } else { "plain" };
        format!("{}-{format}-{keys}-{}", self.kind, self.hosts)
    }

    /// A cluster's layer class is that of deploy/django, which needs one of the newest.
    fn has_old_versions(self) -> bool {
        self.kind != "sharded"
    }

    /// The oldest channels_redis that has the option: keys as today (3.0.0), pub/sub with a host pick that others can
    /// follow (3.3.1), `serializer_format` and encrypted pub/sub (4.2.1).
    fn oldest(self) -> &'static str {
        match self {
            Self { json: true, .. } => "4.2.1",
            Self {
                kind: "pubsub",
                encrypted: true,
                ..
            } => "4.2.1",
            Self { kind: "pubsub", .. } => NO_WORKERS,
            _ => "3.0.0",
        }
    }

    /// The options as `CONFIG` has them.
    fn config(self) -> Value {
        let mut config = json!({});
        if self.json {
            config["serializer_format"] = json!("json");
        }
        if self.encrypted {
            config["symmetric_encryption_keys"] = json!(["a key", "the key before"]);
        }
        config
    }
}

/// The servers of the layers.
struct Servers {
    single: Vec<RedisServer>,
    cluster: Cluster,
}

impl Servers {
    async fn start() -> Self {
        let mut single = Vec::new();
        for _ in 0..3 {
            single.push(RedisServer::start().await);
        }
        let cluster = Cluster::start().await;
        Self { single, cluster }
    }

    /// Those of a cell's hosts; of a cluster its masters.
    fn of(&self, cell: Cell) -> &[RedisServer] {
        match cell.kind {
            "sharded" => &self.cluster.nodes[..3],
            _ => &self.single[..cell.hosts],
        }
    }

    fn urls(&self, cell: Cell) -> Vec<String> {
        match cell.kind {
            "sharded" => vec![format!(
                "redis+cluster://{}",
                self.cluster.nodes[0].endpoint()
            )],
            _ => self.of(cell).iter().map(RedisServer::url).collect(),
        }
    }
}

async fn deployment(servers: &Servers) -> Gateway {
    let database = Database::postgres().await;
    let mut builder = gateway().redis(&servers.single[0].url()).replicas(2);
    for cell in Cell::all() {
        let urls = servers.urls(cell);
        builder = builder
            .tenant(&cell.word())
            .users(&database)
            .with("layer.kind", cell.kind)
            .with("limits.messages_per_second", 0)
            .with("layer.hosts", urls)
            .with_toml("groups = [{ name = 'chat_m<slug:version>', history = { size = 1000, ttl = '1h' } }]")
            .route("path = 'chat/<slug:room>/'\ngroups = ['chat_{room}']\ndeliver = 'event'\nconsumer = { kind = 'broadcast', type = 'chat.message' }")
            .route("path = 'work/<slug:room>/'\ndeliver = 'event'\nconsumer = { kind = 'worker', channel = 'CHANNEL', on_worker_full = 'drop' }");
        for (key, value) in cell.config().as_object().unwrap() {
            builder = builder.with_toml(&format!("layer.{key} = {value}"));
        }
    }
    let mut gateway = builder.write().await;
    // A worker's channel begins with the prefix, which is made with the tenant.
    let mut text = std::fs::read_to_string(&gateway.config).unwrap();
    for cell in Cell::all() {
        let tenant = gateway.named(&cell.word());
        let (before, after) = text
            .split_once(&format!("[tenants.{}]", tenant.name))
            .unwrap();
        let after = after.replacen("\"CHANNEL\"", &format!("\"{}.work\"", tenant.prefix), 1);
        text = format!("{before}[tenants.{}]{after}", tenant.name);
    }
    std::fs::write(&gateway.config, text).unwrap();
    for n in 0..2 {
        gateway.add_replica().await;
        gateway.replicas[n].ready().await;
    }
    gateway
}

async fn open(gateway: &Gateway, tenant: &Tenant, path: &str) -> [Socket; 2] {
    let dial = |replica: usize, user: &str| {
        let dial = gateway.replicas[replica].dial(tenant, path);
        dial.token(&tenant.token(user)).open()
    };
    [dial(0, ALICE).await, dial(1, BOB).await]
}

/// A cell with a version of channels_redis, on groups with a memory or without one.
#[derive(Clone, Copy)]
struct Run {
    cell: Cell,
    version: Option<&'static str>,
    recorded: bool,
    /// Also with a Channels worker.
    worker: bool,
}

async fn serves(gateway: &Gateway, servers: &Servers, run: Run) {
    let Run {
        cell,
        version,
        recorded,
        worker,
    } = run;
    let tenant = gateway.named(&cell.word());
    let memory = if recorded { " with a memory" } else { "" };
    let what = format!("{} {version:?}{memory}", cell.word());
    println!("{what}");
    let channel = format!("{}.work", tenant.prefix);
    let django = Django::at(tenant.database.url())
        .layer(&servers.urls(cell).join(","), &tenant.prefix)
        .worker_channels(&[&channel]);
    let django = match cell.kind {
        "core" => django.core(&cell.config()),
        "sharded" => django
            .layer_config(&cell.config())
            .sharded_for(&tenant.name),
        _ if recorded => django
            .layer_config(&cell.config())
            .recording_for(&tenant.name),
        _ => django.layer_config(&cell.config()),
    };
    let django = match version {
        Some(version) => django.channels_redis(version),
        None => django,
    };
    let django = django.start().await;
    // Rooms of their own for each version, so that nothing of one is taken for the other's.
    let memory = if recorded { "m" } else { "r" };
    let room = format!("{memory}{}", version.unwrap_or("latest"));
    let room = room.replace('.', "-");

    // Django to sockets, and sockets to Django and each other.
    let heard = django.listen(&format!("chat_{room}")).await;
    let mut sockets = open(gateway, tenant, &format!("/chat/{room}/")).await;
    let event = |n: u32| json!({"type": "chat.message", "n": n, "text": "grüß dich"});
    let events: Vec<_> = (0..20).map(event).collect();
    let group = format!("chat_{room}");
    if recorded {
        // Half of them as code without async does, in event loops that end with each call.
        django.group_send(&group, &events[..10]).await;
        django.group_send_sync(&group, &events[10..]).await;
    } else {
        django.group_send(&group, &events).await;
    }
    for n in 20..30 {
        let said = json!({"n": n, "text": "grüß dich"});
        sockets[0].send_text(&said.to_string()).await;
    }
    for n in 0..30 {
        for socket in &mut sockets {
            assert_eq!(socket.next_json().await, event(n), "{what}");
        }
        assert_eq!(django.receive(&heard).await, event(n), "{what}");
    }
    for socket in &mut sockets {
        assert!(socket.ping().await.is_empty(), "{what}: nothing came twice");
    }
    if recorded {
        is_recorded(servers.of(cell), tenant, cell, &room, &what).await;
    }

    if !worker || version == Some(NO_WORKERS) {
        return;
    }
    // Sockets to a worker, and from it to the sockets of the room.
    if cell.kind == "core" {
        forget_in_flight(servers.of(cell), tenant).await;
    }
    django.work(&[&channel]).await;
    let count = match cell.kind {
        "pubsub" => Some("NUMSUB"),
        "sharded" => Some("SHARDNUMSUB"),
        _ => None,
    };
    if let Some(count) = count {
        eventually(LONG, &format!("{what}: the worker listens"), async || {
            for server in servers.of(cell) {
                let (_, count): (String, u32) = server.command(&["PUBSUB", count, &channel]).await;
                if count > 0 {
                    return Ok(());
                }
            }
            Err(())
        })
        .await;
    }
    let mut sockets = open(gateway, tenant, &format!("/work/{room}/")).await;
    for socket in &mut sockets {
        // Orders stand before this answer, and Redis confirms them in their order.
        settle(socket, cell, &what).await;
    }
    let mut in_room = [false; 2];
    eventually(LONG, "the worker has put both into the room", async || {
        sockets[0]
            .send_text(r#"{"do": "group", "probe": true}"#)
            .await;
        let sent = Instant::now();
        while sent.elapsed() < PACE {
            for (socket, in_room) in sockets.iter_mut().zip(&mut in_room) {
                *in_room |= !socket.ping().await.is_empty();
            }
            if in_room == [true; 2] {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(in_room)
    })
    .await;
    for n in 0..20 {
        sockets[0]
            .send_text(&json!({"do": "group", "n": n}).to_string())
            .await;
    }
    // On several hosts a worker of core waits at one until something comes there: more of the same gets all through.
    let mut filler = 1000;
    let mut orders = [Vec::new(), Vec::new()];
    eventually(
        LONG,
        &format!("{what}: all that the worker sent"),
        async || {
            if cell.kind == "core" && cell.hosts > 1 {
                sockets[0]
                    .send_text(&json!({"do": "group", "n": filler}).to_string())
                    .await;
                filler += 1;
            }
            let sent = Instant::now();
            while sent.elapsed() < PACE {
                for (socket, order) in sockets.iter_mut().zip(&mut orders) {
                    for message in socket.ping().await {
                        let event: Value =
                            serde_json::from_str(&message.into_text().unwrap()).unwrap();
                        order.extend(event["n"].as_u64().filter(|n| *n < 1000));
                    }
                }
                if orders.iter().all(|order| order.len() >= 20) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(orders.clone())
        },
    )
    .await;
    for order in orders {
        assert_eq!(order.len(), 20, "{what}: each once");
        if cell.kind == "core" && cell.hosts > 1 {
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 20, "{what}");
        } else {
            assert_eq!(order, (0..20).collect::<Vec<_>>(), "{what}");
        }
    }
}

/// All 30 events are in the history, in the epoch that it began with.
async fn is_recorded(servers: &[RedisServer], tenant: &Tenant, cell: Cell, room: &str, what: &str) {
    let channel = match cell.kind {
        "core" => format!("{}:group:chat_{room}", tenant.prefix),
        _ => format!("{}__group__chat_{room}", tenant.prefix),
    };
    let key = |kind: &str| tenant.redis_key(&format!("{kind}:{{{channel}}}"));
    let mut found = Vec::new();
    for server in servers {
        let entries: u64 = match server.ask(&["XLEN", &key("history")]).await {
            Ok(entries) => entries,
            // Another master of the cluster has it.
            Err(error) if error.redirect_node().is_some() => continue,
            Err(error) => panic!("{what}: {error}"),
        };
        let offset: Option<u64> = server.command(&["HGET", &key("position"), "offset"]).await;
        found.extend(offset.map(|offset| (entries, offset)));
    }
    assert_eq!(found, [(30, 30)], "{what}");
}

/// Takes away what the worker of another version had in its hands when it was killed. channels_redis keeps such a message
/// beside the channel and hands it to the next worker, but the script of 3.0.0 for that calls `ZADD` without a score: its
/// worker ends there and answers no socket.
async fn forget_in_flight(servers: &[RedisServer], tenant: &Tenant) {
    let in_flight = format!("{0}{0}.work$inflight", tenant.prefix);
    for server in servers {
        let _: u32 = server.command(&["DEL", &in_flight]).await;
    }
}

/// The worker has answered something that was sent now.
async fn settle(socket: &mut Socket, cell: Cell, what: &str) {
    let mark = json!({"do": "echo", "mark": crate::support::unique()}).to_string();
    let is_mark = |message: &tokio_tungstenite::tungstenite::Message| {
        message.to_text().is_ok_and(|text| text == mark)
    };
    // Once, but for a worker that waits at another host.
    let patience = if cell.kind == "core" && cell.hosts > 1 {
        PACE
    } else {
        LONG
    };
    eventually(LONG, &format!("{what}: the worker answers"), async || {
        socket.send_text(&mark).await;
        let sent = Instant::now();
        while sent.elapsed() < patience {
            if socket.ping().await.iter().any(is_mark) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(())
    })
    .await;
}

#[tokio::test]
async fn every_configuration_of_a_layer_works_with_every_version_that_has_it() {
    let servers = Servers::start().await;
    let gateway = deployment(&servers).await;
    let run = |cell: Cell, version, recorded| Run {
        cell,
        version,
        recorded,
        worker: true,
    };
    // The two versions of a cell far from each other: their workers listen to one channel. One of the two is on groups
    // with a memory: on one host the oldest, on three the newest. The other one is there once more, without a worker.
    let newest = Cell::all()
        .into_iter()
        .map(|cell| run(cell, None, cell.hosts > 1));
    let with_old = Cell::all()
        .into_iter()
        .filter(|cell| cell.has_old_versions());
    let oldest = with_old.map(|cell| run(cell, Some(cell.oldest()), cell.hosts == 1));
    let workers = Cell::all()
        .into_iter()
        .filter(|cell| cell.has_old_versions() && cell.oldest() == NO_WORKERS);
    let workers = workers.map(|cell| run(cell, Some(FIRST_WORKERS), true));
    let others = Cell::all().into_iter().map(|cell| Run {
        worker: false,
        ..run(cell, (cell.hosts > 1).then(|| cell.oldest()), true)
    });
    let runs = newest.chain(oldest).chain(workers).chain(others);
    // Several at a time: most of it is the start of Django.
    stream::iter(runs)
        .for_each_concurrent(3, |run| serves(&gateway, &servers, run))
        .await;
    for replica in &gateway.replicas {
        let metrics = replica.metrics().await;
        let unrecorded = metrics.value("lockgate_events_unrecorded_total", &[]);
        assert_eq!(unrecorded, 0.0, "{}", metrics.text());
    }
}
