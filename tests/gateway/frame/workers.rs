//! `kind = "worker"`: sockets, and the Channels worker of a real Django project (`manage.py runworker`) behind them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::database::{ALICE, BOB};
use crate::support::django::{Django, Setup};
use crate::support::process::Process;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway, unique};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

/// The kinds of layers that reach a worker.
const LAYERS: [&str; 2] = ["pubsub", "core"];

/// Two replicas and a worker on one Redis of their own.
struct House {
    gateway: Gateway,
    redis: RedisServer,
    layer: &'static str,
    channel: String,
}

impl House {
    /// `consumer`: more of the consumer's table; `settings`: more of the tenant's.
    async fn build(layer: &'static str, consumer: &str, settings: &str) -> Self {
        let redis = RedisServer::start().await;
        let prefix = format!("acme-{}", unique());
        let channel = format!("{prefix}.chat");
        let route = format!(
            "path = 'ws/<slug:room>/<int:floor>/'\ndeliver = 'event'\n\
             consumer = {{ kind = 'worker', channel = '{channel}'{consumer} }}"
        );
        let gateway = gateway()
            .redis(&redis.url())
            .replicas(2)
            .tenant("acme")
            .with("layer.kind", layer)
            .with("layer.prefix", prefix)
            .with_toml(settings)
            .route(&route)
            .start()
            .await;
        Self {
            gateway,
            redis,
            layer,
            channel,
        }
    }

    fn setup(&self) -> Setup {
        let tenant = self.gateway.tenant();
        let setup = Django::at(tenant.database.url()).layer(&tenant.redis, &tenant.prefix);
        match self.layer {
            "core" => setup.core(&json!({})),
            _ => setup,
        }
    }

    /// A worker that listens to these channels now.
    async fn worker(&self, channels: &[&str]) -> Process {
        let worker = self.setup().worker(channels);
        for channel in channels {
            self.heard(channel).await;
        }
        worker
    }

    /// Waits until a worker hears the channel; on a core layer messages wait for it.
    async fn heard(&self, channel: &str) {
        if self.layer == "pubsub" {
            eventually(PATIENCE, "a worker listens", async || {
                let heard: (String, u32) = self
                    .redis
                    .ask(&["PUBSUB", "NUMSUB", channel])
                    .await
                    .unwrap_or_default();
                if heard.1 > 0 { Ok(()) } else { Err(heard) }
            })
            .await;
        }
    }

    async fn open(&self, replica: usize, user: &str, room: &str) -> Socket {
        self.dial(replica, user, room).open().await
    }

    fn dial(&self, replica: usize, user: &str, room: &str) -> crate::support::socket::Dial {
        let tenant = self.gateway.tenant();
        let path = format!("/ws/{room}/7/");
        let dial = self.gateway.replicas[replica].dial(tenant, &path);
        dial.token(&tenant.token(user))
    }

    async fn dropped(&self, cause: &str, count: f64) {
        let labels = [("cause", cause)];
        self.gateway
            .replica()
            .metric("lockgate_events_dropped_total", &labels, |n| n == count)
            .await;
    }
}

async fn ask(socket: &mut Socket, command: &Value) {
    socket.send_text(&command.to_string()).await;
}

/// The worker has done all that it was told before.
async fn done(socket: &mut Socket) {
    let mark = json!({"do": "echo", "mark": unique()});
    ask(socket, &mark).await;
    assert_eq!(socket.next_json().await, mark);
}

#[tokio::test]
async fn frames_go_to_a_worker_and_its_answers_come_back() {
    for layer in LAYERS {
        let house = House::build(layer, "", "").await;
        let worker = house.worker(&[&house.channel]).await;
        let mut alice = house.open(0, ALICE, "hall").await;
        let mut bob = house.open(1, BOB, "hall").await;

        // The worker's knowledge of a socket.
        ask(&mut alice, &json!({"do": "scope"})).await;
        let told = alice.next_json().await;
        assert_eq!(told["type"], "websocket.receive", "{layer}: {told}");
        assert_eq!(told["path"], "/ws/hall/7/");
        assert_eq!(told["kwargs"], json!({"room": "hall", "floor": 7}));
        assert_eq!(told["user"]["username"], "alice");
        assert_eq!(told["user"].get("password"), None);
        assert_eq!(told["tenant"], house.gateway.tenant().name.as_str());
        assert_eq!(told["text"], r#"{"do":"scope"}"#);
        assert_eq!(told.get("bytes"), None);
        let channel = told["reply_channel"].as_str().unwrap().to_owned();

        // Text, bytes, and an order of many.
        alice.send(Message::binary(vec![0, 255, 7])).await;
        assert_eq!(alice.next().await, Message::binary(vec![0, 255, 7]));
        for n in 0..50 {
            ask(&mut alice, &json!({"do": "echo", "n": n})).await;
        }
        for n in 0..50 {
            assert_eq!(alice.next_json().await["n"], n, "{layer}");
        }
        ask(&mut alice, &json!({"do": "twice"})).await;
        assert_eq!(alice.next_text().await, "1");
        assert_eq!(alice.next_text().await, "2");

        // The worker has put both into the room, and lets one hear more and the other less.
        done(&mut bob).await;
        let said = |text: &str| json!({"do": "group", "text": text});
        ask(&mut bob, &said("to all")).await;
        for socket in [&mut alice, &mut bob] {
            let heard = socket.next_json().await;
            assert_eq!(
                (&heard["text"], &heard["user"]["username"]),
                (&json!("to all"), &json!("bob"))
            );
        }
        ask(&mut bob, &json!({"do": "discard", "group": "chat_hall"})).await;
        done(&mut bob).await;
        ask(&mut alice, &said("without bob")).await;
        assert_eq!(alice.next_json().await["text"], "without bob");
        assert!(bob.ping().await.is_empty(), "{layer}");

        // A message that is not valid harms no socket.
        ask(&mut bob, &json!({"do": "nonsense"})).await;
        let (mut last, mut count) = (String::new(), 0);
        while last != "after nonsense" && count < 20 {
            (last, count) = (bob.next_text().await, count + 1);
        }
        assert_eq!(last, "after nonsense", "{layer}");
        assert!(alice.ping().await.is_empty());

        // The worker's close, and what it hears of an end.
        let django = house.setup().start().await;
        let left = django.listen("left_hall").await;
        ask(&mut alice, &json!({"do": "close", "code": 4321})).await;
        assert_eq!(alice.closed().await.0, 4321);
        drop(alice);
        let gone = django.receive(&left).await;
        assert_eq!(
            (&gone["code"], &gone["channel"]),
            (&json!(4321), &json!(channel))
        );
        bob.close(3210, "enough").await;
        drop(bob);
        let gone = django.receive(&left).await;
        assert_eq!(
            (&gone["code"], &gone["user"]["username"]),
            (&json!(3210), &json!("bob"))
        );

        // To a socket that is gone: nothing.
        django
            .send(
                &channel,
                &json!({"type": "websocket.send", "text": "too late"}),
            )
            .await;
        assert!(worker.is_running(), "{layer}");
    }
}

#[tokio::test]
async fn a_worker_decides_the_handshake() {
    for layer in LAYERS {
        let consumer = ", accept = 'worker', worker_timeout = '2s'";
        let house = House::build(layer, consumer, "").await;
        let worker = house.worker(&[&house.channel]).await;
        let django = house.setup().start().await;
        let end_of = async |room: &str| django.listen(&format!("left_{room}")).await;

        // A worker of a core layer takes a while to come, and nothing outside tells when it is there.
        let opened = async || house.dial(0, ALICE, "hall").attempt().await;
        let mut open = eventually(PATIENCE, "the worker accepts", opened).await;
        done(&mut open).await;

        let ends = end_of("closed").await;
        let refused = house.dial(0, ALICE, "closed").refused().await;
        assert_eq!(
            (refused.status, refused.json()["code"].as_str()),
            (403, Some("refused")),
            "{layer}"
        );
        assert_eq!(django.receive(&ends).await["code"], 1006);

        let ends = end_of("silent").await;
        let refused = house.dial(1, ALICE, "silent").refused().await;
        assert_eq!(
            (refused.status, refused.json()["code"].as_str()),
            (503, Some("unavailable"))
        );
        assert!(refused.header("retry-after").is_some());
        assert_eq!(django.receive(&ends).await["code"], 1006);
        assert!(worker.is_running());

        // A message through a group accepts nothing, and an open socket does not mind.
        django
            .group_send("chat_hall", &[json!({"type": "websocket.accept"})])
            .await;
        done(&mut open).await;
        house.dropped("not_valid", 1.0).await;
    }
}

/// Before: `subprotocol` and `headers` were ignored.
#[tokio::test]
async fn a_worker_chooses_the_subprotocol_and_headers_of_the_101() {
    for layer in LAYERS {
        let consumer = ", accept = 'worker', worker_timeout = '10s'";
        let house = House::build(layer, consumer, "").await;
        let _worker = house.worker(&[&house.channel]).await;
        let dial = |room: &str| house.dial(0, ALICE, room).subprotocols("v1, v2");
        let opened = async || dial("chosen").attempt().await;
        let mut open = eventually(PATIENCE, "the worker accepts", opened).await;
        let answer = |name: &str| open.handshake.header(name).map(str::to_owned);
        assert_eq!(answer("sec-websocket-protocol").as_deref(), Some("v2"));
        assert_eq!(answer("x-worker").as_deref(), Some("1"), "{layer}");
        assert_eq!(answer("set-cookie").as_deref(), Some("a=1"));
        done(&mut open).await;

        let wrong = ["unoffered", "reserved", "split"];
        for room in wrong {
            let refused = dial(room).refused().await;
            assert_eq!(refused.status, 503, "{layer}: {room}");
            assert_eq!(refused.header("x-b"), None);
        }
        house.dropped("not_valid", wrong.len() as f64).await;
        let replica = house.gateway.replica();
        replica
            .logged("A worker's websocket.accept is not valid")
            .await;
        done(&mut open).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_verdict_is_told_to_the_worker() {
    for layer in LAYERS {
        let house = House::build(layer, ", accept = 'worker', worker_timeout = '20s'", "").await;
        let _worker = house.worker(&[&house.channel]).await;
        let django = house.setup().start().await;
        let ends = django.listen("left_silent").await;
        let waiting = tokio::spawn(house.dial(0, ALICE, "silent").attempt());
        let replica = house.gateway.replica();
        replica
            .metric("lockgate_events_total", &[("source", "socket")], |n| {
                n >= 1.0
            })
            .await;
        waiting.abort();
        assert_eq!(django.receive(&ends).await["code"], 1006, "{layer}");
        replica
            .metric("lockgate_connections", &[], |n| n == 0.0)
            .await;
    }
}

#[tokio::test]
async fn where_refusals_are_closes_the_worker_chooses_the_code() {
    let settings = "refusal = 'close'";
    let house = House::build(
        "pubsub",
        ", accept = 'worker', worker_timeout = '500ms'",
        settings,
    )
    .await;
    let _worker = house.worker(&[&house.channel]).await;
    let mut closed = house.open(0, ALICE, "closed").await;
    assert_eq!(closed.closed().await, (4403, "closed".to_owned()));
    let mut silent = house.open(0, ALICE, "silent").await;
    assert_eq!(silent.closed().await.0, 4014);
}

#[tokio::test]
async fn without_a_worker_a_pubsub_layer_says_so_at_once() {
    let house = House::build("pubsub", "", "").await;
    let refused = house.dial(0, ALICE, "hall").refused().await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (503, Some("unavailable"))
    );
    house.dropped("no_consumer", 1.0).await;
    let mut worker = house.worker(&[&house.channel]).await;
    let mut socket = house.open(0, ALICE, "hall").await;
    done(&mut socket).await;
    worker.kill();
    eventually(PATIENCE, "Redis knows that it is gone", async || {
        let heard: (String, u32) = house
            .redis
            .command(&["PUBSUB", "NUMSUB", &house.channel])
            .await;
        if heard.1 == 0 { Ok(()) } else { Err(heard) }
    })
    .await;
    socket.send_text("{}").await;
    let (code, reason) = socket.closed().await;
    assert_eq!(
        (code, reason.starts_with("unavailable retry_after_ms=")),
        (4014, true)
    );
    // The frame, and the goodbye.
    house.dropped("no_consumer", 3.0).await;
    house
        .gateway
        .replica()
        .logged("A worker did not get an event of a socket")
        .await;
}

#[tokio::test]
async fn without_a_worker_frames_may_be_dropped_instead() {
    let house = House::build("pubsub", ", on_worker_full = 'drop'", "").await;
    let mut socket = house.open(0, ALICE, "hall").await;
    socket.send_text("{}").await;
    assert!(socket.ping().await.is_empty());
    // The connect and the frame.
    house.dropped("no_consumer", 2.0).await;
    let _worker = house.worker(&[&house.channel]).await;
    done(&mut socket).await;
}

#[tokio::test]
async fn a_full_channel_of_a_core_layer_closes_or_drops() {
    for (consumer, drops) in [("", false), (", on_worker_full = 'drop'", true)] {
        let house = House::build("core", consumer, "layer.capacity = 5").await;
        let mut socket = house.open(0, ALICE, "hall").await;
        for _ in 0..7 {
            socket.try_send(Message::text(r#"{"do":"twice"}"#)).await;
        }
        if drops {
            assert!(socket.ping().await.is_empty());
            // After the connect four frames have room.
            house.dropped("worker_full", 3.0).await;
        } else {
            assert_eq!(socket.closed().await.0, 4014);
        }
        let key = format!("{}{}", house.gateway.tenant().prefix, house.channel);
        let waiting: u32 = house.redis.command(&["ZCARD", &key]).await;
        assert_eq!(waiting, 5);
        // A worker that comes takes what waits.
        let _worker = house.worker(&[&house.channel]).await;
        eventually(PATIENCE, "the channel is empty", async || {
            match house.redis.command::<u32>(&["ZCARD", &key]).await {
                0 => Ok(()),
                left => Err(left),
            }
        })
        .await;
        let mut socket = house.open(0, ALICE, "hall").await;
        done(&mut socket).await;
    }
}

#[tokio::test]
async fn partitions_keep_the_frames_of_a_socket_in_order() {
    for layer in LAYERS {
        // All of them fit into one channel of a core layer.
        const FRAMES: u32 = 3;
        let house = House::build(layer, ", partitions = 2", "").await;
        let channels: Vec<String> = (0..2).map(|n| format!("{}.{n}", house.channel)).collect();
        let mut workers = Vec::new();
        for channel in &channels {
            workers.push(house.worker(&[channel]).await);
        }
        let mut sockets = Vec::new();
        for n in 0..24 {
            sockets.push(house.open(n % 2, ALICE, "hall").await);
        }
        for n in 0..FRAMES {
            for socket in &mut sockets {
                ask(socket, &json!({"do": "echo", "n": n})).await;
            }
        }
        for socket in &mut sockets {
            for n in 0..FRAMES {
                assert_eq!(socket.next_json().await["n"], n, "{layer}");
            }
        }
        if layer == "pubsub" {
            // Each socket has one of the two, and keeps it.
            workers.remove(0);
            let unheard = ["PUBSUB", "NUMSUB", &channels[0]];
            eventually(PATIENCE, "Redis knows that it is gone", async || {
                let heard: (String, u32) = house.redis.command(&unheard).await;
                if heard.1 == 0 { Ok(()) } else { Err(heard) }
            })
            .await;
            let mut closed = 0;
            for socket in &mut sockets {
                socket.send(Message::binary(vec![7])).await;
                match socket.next().await {
                    Message::Close(frame) => {
                        closed += 1;
                        assert_eq!(frame.map(|frame| frame.code.into()), Some(4014));
                    }
                    answer => assert_eq!(answer, Message::binary(vec![7])),
                }
            }
            assert!((1..24).contains(&closed), "{closed} of 24");
        }
    }
}

#[tokio::test]
async fn a_json_layer_carries_text_and_drops_bytes() {
    let house = House::build("pubsub", "", "layer.serializer_format = 'json'").await;
    let _worker = house
        .setup()
        .layer_config(&json!({"serializer_format": "json"}))
        .worker(&[&house.channel]);
    house.heard(&house.channel).await;
    let mut socket = house.open(0, ALICE, "hall").await;
    socket.send(Message::binary(vec![1])).await;
    done(&mut socket).await;
    house.dropped("not_valid", 1.0).await;
}

/// A worker of a core layer ends with its Redis, as in Channels; its supervisor starts it again.
#[tokio::test]
async fn workers_and_sockets_find_each_other_after_a_restart_of_redis() {
    for layer in LAYERS {
        let house = House::build(layer, ", on_worker_full = 'drop'", "").await;
        let mut worker = house.worker(&[&house.channel]).await;
        let mut socket = house.open(0, ALICE, "hall").await;
        done(&mut socket).await;
        house.redis.restart().await;
        eventually(
            Duration::from_secs(30),
            "the worker answers again",
            async || {
                if !worker.is_running() {
                    worker = house.setup().worker(&[&house.channel]);
                }
                let Ok(mut probe) = house.dial(1, BOB, "hall").attempt().await else {
                    return Err("refused");
                };
                if !probe
                    .try_send(Message::text(r#"{"do":"group","text":"back"}"#))
                    .await
                {
                    return Err("closed");
                }
                let heard = tokio::time::timeout(Duration::from_secs(2), socket.next_json());
                match heard.await {
                    Ok(heard) if heard["text"] == "back" => Ok(()),
                    Ok(_) => Err("something else"),
                    Err(_) => Err("nothing yet"),
                }
            },
        )
        .await;
    }
}

/// Before: the close frame left when Redis' time was up, a second later.
#[tokio::test]
async fn a_socket_whose_frame_waits_for_a_frozen_redis_is_revoked_at_once() {
    let layer = RedisServer::start().await;
    let prefix = format!("acme-{}", unique());
    let route = format!(
        "path = 'ws/'\nconsumer = {{ kind = 'worker', channel = '{prefix}.chat', on_worker_full = 'drop' }}"
    );
    let gateway = gateway()
        .tenant("acme")
        .with("layer.prefix", prefix)
        .with_toml(&format!("layer.hosts = ['{}']", layer.url()))
        .route(&route)
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let open = |user| {
        replica
            .dial(tenant, "/ws/")
            .token(&tenant.token(user))
            .open()
    };
    let (mut revoked, mut waits) = (open(ALICE).await, open(BOB).await);
    layer.freeze();
    for socket in [&mut revoked, &mut waits] {
        socket.send_text("{}").await;
    }
    let text = [("kind", "text")];
    replica
        .metric("lockgate_frames_received_total", &text, |frames| {
            frames == 2.0
        })
        .await;
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let body = json!({ "user_id": ALICE }).to_string();
    let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // The other's frame waits as long as Redis may take.
    tokio::select! {
        closed = revoked.closed() => assert_eq!(closed.0, 4501),
        closed = waits.closed() => panic!("{closed:?} came first"),
    }
    assert_eq!(waits.closed().await.0, 4014);
    layer.thaw();
}

#[tokio::test]
async fn what_waits_for_a_worker_is_measured() {
    let house = House::build("core", "", "").await;
    let tenant = house.gateway.tenant();
    let labels = [("tenant", tenant.name.as_str())];
    let measured = async |replica: usize, name: &str, enough: fn(f64) -> bool| {
        let replica = &house.gateway.replicas[replica];
        replica.metric(name, &labels, enough).await
    };
    let (depth, lag) = ("lockgate_worker_depth", "lockgate_worker_lag_seconds");

    // Without a worker, a connect and a frame wait. The replica without a socket sees them too.
    let mut alice = house.open(0, ALICE, "hall").await;
    ask(&mut alice, &json!({"do": "echo"})).await;
    for replica in [0, 1] {
        measured(replica, depth, |count| count == 2.0).await;
        measured(replica, lag, |seconds| seconds >= 1.0).await;
    }

    // A replica whose routes have no worker any more looks no more.
    change(&house.gateway, |table| {
        let route = &mut tenant_table(table, tenant)["routes"]
            .as_array_mut()
            .unwrap()[0];
        let listening = "groups = ['hall']\n consumer = { kind = 'listen' }";
        let listening: toml::Table = listening.parse().unwrap();
        route.as_table_mut().unwrap().extend(listening);
    });
    hang_up(&house.gateway, APPLIED).await;
    measured(0, depth, |count| count == 0.0).await;
    measured(0, lag, |seconds| seconds == 0.0).await;
    measured(1, depth, |count| count >= 2.0).await;

    // Taken, as a worker does it, however slowly one starts on this machine. The reload tells of alice's end meanwhile.
    let key = format!("{}{}", tenant.prefix, house.channel);
    let take = ["ZREMRANGEBYRANK", &key, "0", "-1"];
    let taken: u32 = house.redis.ask(&take).await.unwrap();
    assert!(taken >= 2, "{taken}");
    eventually(PATIENCE, "nothing waits", async || {
        let _: u32 = house.redis.ask(&take).await.unwrap();
        let metrics = house.gateway.replicas[1].metrics().await;
        match [depth, lag].map(|name| metrics.value(name, &labels)) {
            [0.0, 0.0] => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
