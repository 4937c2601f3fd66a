//! Groups with history on the core layer. What Channels sends is what a layer without rules sends: the same commands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockgate::channel_layer::core::{CoreEndpoints, CoreLayer};
use lockgate::channel_layer::pubsub::PubSubEndpoints;
use lockgate::channel_layer::{
    ChannelLayer, GroupHistories, HistoryFrom, Inbox, LayerError, NoticeLines, Payload, Signal,
    SocketChannel, Target,
};
use lockgate::config::{GroupConfig, HistoryConfig, LayerConfig, Secret, SerializerFormat};
use lockgate::error::Dependency;
use lockgate::group_rules::GroupRules;
use lockgate::ids::ReplicaId;
use lockgate::metrics::TenantMetrics;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use tokio::time::timeout;

use super::support::{Heard, Link, Redis, event, join};

/// A replica with a layer of its own.
pub(super) struct Core {
    pub(super) layer: Arc<CoreLayer>,
    inbox: Arc<Inbox>,
}

pub(super) fn config() -> LayerConfig {
    LayerConfig {
        prefix: "acme".to_owned(),
        ..LayerConfig::default()
    }
}

/// A replica for which every group has a history.
pub(super) fn replica(servers: &[Redis], config: &LayerConfig) -> Core {
    let history = HistoryConfig {
        size: 500,
        ttl: Duration::from_secs(600),
    };
    attach(
        servers,
        config,
        &[GroupConfig {
            name: "<str:name>".to_owned(),
            history: Some(history),
            ..GroupConfig::default()
        }],
    )
}

/// A sender and consumer without rules, as Channels is.
pub(super) fn channels(servers: &[Redis], config: &LayerConfig) -> Core {
    attach(servers, config, &[])
}

pub(super) fn attach(servers: &[Redis], config: &LayerConfig, rules: &[GroupConfig]) -> Core {
    let store = |server: &Redis| {
        let url = RedisUrl::parse(&server.url().as_str().into()).unwrap();
        RedisStore::new(&url, Dependency::Redis).unwrap()
    };
    let stores: Vec<_> = servers.iter().map(store).collect();
    let tenant = "acme".parse().unwrap();
    let inbox = Inbox::new(0, Arc::new(TenantMetrics::new(&tenant)));
    let histories = GroupHistories::new(&tenant, Arc::new(GroupRules::new(rules).unwrap()));
    let id = ReplicaId::random();
    let (core, pubsub) = (CoreEndpoints::new(id.clone()), PubSubEndpoints::new(id));
    let notices = NoticeLines::new(&pubsub, &stores, histories, &inbox);
    let layer = core.attach(&stores, config, notices, inbox.clone());
    Core {
        layer: Arc::new(layer.unwrap()),
        inbox,
    }
}

impl Core {
    pub(super) async fn join(&self, group: &str) {
        join(&*self.layer, group).await;
    }

    pub(super) async fn send(&self, group: &str, number: i64) -> Option<u64> {
        let sent = self
            .layer
            .publish(&group.into(), &event(number), None)
            .await;
        sent.unwrap().map(|position| position.offset)
    }

    /// The next signal within ten seconds; messages that are for others or only say that there is an event are none.
    pub(super) async fn heard(&self) -> Heard {
        let next = async {
            loop {
                if let Some(heard) = self.read(self.inbox.next().await) {
                    return heard;
                }
            }
        };
        let next = timeout(Duration::from_secs(10), next).await;
        next.expect("a signal within ten seconds")
    }

    fn read(&self, signal: Signal) -> Option<Heard> {
        let mut incoming = match signal {
            Signal::Gap(cause) => return Some(Heard::Gap(cause)),
            Signal::Unheard(group, position) => {
                return Some(Heard::Unheard(group.to_string(), position.offset));
            }
            Signal::Presence(..) | Signal::Missed(_) => panic!("{signal:?}"),
            Signal::Event(incoming) => incoming,
        };
        // A relay takes the position off before it opens the event.
        let recorded = incoming.recorded.take();
        let (target, event) = match self.layer.open(incoming) {
            Ok(opened) => opened?,
            Err(_) => return Some(Heard::NotDecoded),
        };
        assert!(event.get("__asgi_channel__").is_none());
        let number = event.get("n").and_then(|n| n.as_i64()).unwrap_or(-1);
        let group = match target {
            Target::Group(group) => group.to_string(),
            other => format!("{other:?}"),
        };
        Some(match recorded {
            Some(position) => Heard::Recorded(group, number, position.offset),
            None => Heard::Number(group, number),
        })
    }

    /// The next recorded events, as offset and number.
    pub(super) async fn recorded(&self, group: &str, count: usize) -> Vec<(u64, i64)> {
        let mut found = Vec::new();
        while found.len() < count {
            match self.heard().await {
                Heard::Recorded(of, number, offset) if of == group => found.push((offset, number)),
                other => panic!("{other:?} after {found:?}"),
            }
        }
        found
    }

    pub(super) async fn history(&self, group: &str) -> Vec<(u64, i64)> {
        let page = self
            .layer
            .history(&group.into(), HistoryFrom::default())
            .await;
        let entries = page.unwrap().unwrap().entries.into_iter();
        let entry = |entry: lockgate::channel_layer::RecordedEvent| {
            let Payload::Decoded(event) = entry.payload else {
                panic!("{entry:?}");
            };
            assert!(event.get("__asgi_channel__").is_none());
            (entry.offset, event.get("n").unwrap().as_i64().unwrap())
        };
        entries.map(entry).collect()
    }

    /// Hears an event and the replica's own copy of it. A copy is a reason to look into the mailbox, also after a flush: then that
    /// is a look before the group is joined again.
    pub(super) async fn heard_with_its_copy(&self) {
        let (mut recorded, mut copied) = (false, false);
        let both = async {
            while !(recorded && copied) {
                match self.read(self.inbox.next().await) {
                    Some(Heard::Recorded(..)) => recorded = true,
                    Some(other) => panic!("{other:?}"),
                    None => copied = true,
                }
            }
        };
        let both = timeout(Duration::from_secs(10), both).await;
        both.expect("an event and its copy within ten seconds");
    }

    /// The offsets of the group that are told to stay empty, up to the gap of the layer.
    pub(super) async fn told(&self, group: &str) -> Vec<u64> {
        let (mut offsets, mut is_whole) = (Vec::new(), false);
        while offsets.is_empty() || !is_whole {
            match self.heard().await {
                Heard::Unheard(of, offset) if of == group => offsets.push(offset),
                Heard::Gap(_) => is_whole = true,
                other => panic!("{other:?} after {offsets:?}"),
            }
        }
        offsets
    }

    /// Opens all that came: a relay does it, and so learns of events that wait.
    pub(super) async fn settle(&self) {
        while let Ok(signal) = timeout(Duration::from_millis(300), self.inbox.next()).await {
            assert!(self.read(signal).is_none());
        }
    }
}

pub(super) fn offsets(numbers: std::ops::Range<i64>) -> Vec<(u64, i64)> {
    numbers
        .zip(1..)
        .map(|(number, offset)| (offset, number))
        .collect()
}

pub(super) async fn query<T: redis::FromRedisValue>(link: &mut Link, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(link).await.unwrap()
}

/// The key of the messages for the history of a group.
pub(super) async fn mailbox(link: &mut Link, group: &str) -> String {
    let key = format!("acme:group:{group}");
    let members: Vec<String> = query(link, &["ZRANGE", &key, "0", "-1"]).await;
    let member = members
        .iter()
        .find(|name| name.starts_with("lockgate.history."));
    format!("acme{}", member.unwrap())
}

#[tokio::test]
async fn what_channels_and_gateways_send_comes_once_in_one_order_everywhere() {
    let servers = [
        Redis::start().await,
        Redis::start().await,
        Redis::start().await,
    ];
    for hosts in [1, 3] {
        for (format, keys) in [
            (SerializerFormat::MsgPack, vec![]),
            (
                SerializerFormat::Json,
                vec![Secret::from("a"), Secret::from("b")],
            ),
        ] {
            let config = LayerConfig {
                serializer_format: format,
                symmetric_encryption_keys: keys,
                ..config()
            };
            let servers = &servers[..hosts];
            let replicas = [0, 1, 2].map(|_| replica(servers, &config));
            let django = channels(servers, &config);
            for group in ["a", "b", "c", "d"] {
                for replica in &replicas {
                    replica.join(group).await;
                }
                django.join(group).await;
                for number in 0..10 {
                    assert_eq!(django.send(group, number).await, None);
                    // Recorded in this order: what a gateway sends stands behind what waits.
                    let sent = replicas[0].send(group, 100 + number).await;
                    assert_eq!(sent, Some(2 * number as u64 + 2));
                }
                let order = |number: i64| [number, 100 + number];
                let expected: Vec<_> = (0..10).flat_map(order).zip(1..).collect();
                let expected: Vec<(u64, i64)> = expected
                    .into_iter()
                    .map(|(number, offset)| (offset, number))
                    .collect();
                for replica in &replicas {
                    assert_eq!(
                        replica.recorded(group, 20).await,
                        expected,
                        "{group} {hosts}"
                    );
                    assert_eq!(replica.history(group).await, expected);
                }
                for (_, number) in expected {
                    let heard = django.heard().await;
                    assert_eq!(heard, Heard::Number(group.to_owned(), number));
                }
            }
            for replica in &replicas {
                replica.settle().await;
            }
            for one in replicas.iter().chain([&django]) {
                one.layer.close().await;
            }
            for server in servers {
                let _: () = query(&mut server.link().await, &["FLUSHALL"]).await;
            }
        }
    }
}

#[tokio::test]
async fn a_burst_of_several_senders_is_recorded_once_each() {
    let servers = [Redis::start().await];
    let replicas = [0, 1].map(|_| replica(&servers, &config()));
    let senders = [0, 1, 2].map(|_| channels(&servers, &config()));
    for replica in &replicas {
        replica.join("g").await;
    }
    let send = async |sender: &Core, of: i64| {
        for number in 0..60 {
            sender.send("g", of * 100 + number).await;
        }
    };
    let sent = join_all(senders.iter().zip(0..).map(|(sender, of)| send(sender, of)));
    let hear = async |replica: &Core| replica.recorded("g", 180).await;
    let (_, first, second) = tokio::join!(sent, hear(&replicas[0]), hear(&replicas[1]));
    assert_eq!(first, second);
    assert!(first.iter().map(|(offset, _)| *offset).eq(1..=180));
    for of in 0..3 {
        let own = first
            .iter()
            .map(|(_, number)| *number)
            .filter(|number| number / 100 == of);
        assert!(own.eq(of * 100..of * 100 + 60));
    }
}

#[tokio::test]
async fn what_is_sent_while_no_gateway_is_in_the_group_is_recorded_later() {
    let servers = [Redis::start().await];
    let (first, second) = (replica(&servers, &config()), replica(&servers, &config()));
    let django = channels(&servers, &config());
    let mut link = servers[0].link().await;
    first.join("g").await;
    first.layer.unsubscribe(&"g".into());
    first.layer.close().await;
    let members: Vec<String> = query(&mut link, &["ZRANGE", "acme:group:g", "0", "-1"]).await;
    assert_eq!(members.len(), 1, "{members:?}");
    for number in 0..5 {
        django.send("g", number).await;
    }
    // A read moves what waits.
    assert_eq!(second.history("g").await, offsets(0..5));
    for number in 5..10 {
        django.send("g", number).await;
    }
    second.join("g").await;
    assert_eq!(second.recorded("g", 5).await, offsets(0..10)[5..]);
}

#[tokio::test]
async fn a_full_mailbox_is_a_gap_of_the_group() {
    let servers = [Redis::start().await];
    let (first, second) = (replica(&servers, &config()), replica(&servers, &config()));
    let django = channels(&servers, &config());
    first.join("g").await;
    first.layer.close().await;
    for number in 0..120 {
        django.send("g", number).await;
    }
    second.join("g").await;
    assert_eq!(second.recorded("g", 100).await, offsets(0..100));
    assert_eq!(second.heard().await, Heard::Unheard("g".into(), 101));
    django.send("g", 200).await;
    assert_eq!(second.recorded("g", 1).await, [(102, 200)]);
    let read = [offsets(0..100), vec![(102, 200)]].concat();
    assert_eq!(first.history("g").await, read, "the hole stays");
}

/// A key that holds something else concerns its group alone, and heals.
#[tokio::test]
async fn a_mailbox_of_another_type_delays_no_other_group() {
    let servers = [Redis::start().await];
    let (replica, django) = (replica(&servers, &config()), channels(&servers, &config()));
    let mut link = servers[0].link().await;
    for group in ["bad", "good"] {
        replica.join(group).await;
    }
    let key = mailbox(&mut link, "bad").await;
    let _: () = query(&mut link, &["SET", &key, "text"]).await;
    let sent = replica.layer.publish(&"bad".into(), &event(1), None).await;
    assert!(matches!(sent, Err(LayerError::NotRecorded(_))), "{sent:?}");
    // What waited there may be gone, so that no page is complete.
    let page = replica.layer.history(&"bad".into(), HistoryFrom::END).await;
    assert!(matches!(page, Err(LayerError::Publish(_))), "{page:?}");
    for number in 0..20 {
        replica.layer.open(trigger(&replica)).unwrap();
        django.send("good", number).await;
    }
    assert_eq!(replica.recorded("good", 20).await, offsets(0..20));
    let _: u64 = query(&mut link, &["DEL", &key]).await;
    django.send("bad", 2).await;
    assert_eq!(replica.recorded("bad", 1).await, [(1, 2)]);
}

/// A message that says that there is an event of the first group which the replica joined.
fn trigger(replica: &Core) -> lockgate::channel_layer::Incoming {
    let name = format!("{}h1", replica.layer.channel_prefix());
    let mut event = event(0);
    event.set("__asgi_channel__", lockgate::event::Value::Str(name.into()));
    let body = replica.layer.codec().encode(&event).unwrap();
    lockgate::channel_layer::Incoming {
        target: Target::Inside,
        payload: Payload::Encoded([vec![0; 12], body].concat().into()),
        recorded: None,
        unrecorded: false,
        read_at: Instant::now(),
    }
}

#[tokio::test]
async fn single_sockets_in_the_group_get_their_copies_from_both() {
    let servers = [Redis::start().await];
    let [sender, other] = [0, 1].map(|_| replica(&servers, &config()));
    let django = channels(&servers, &config());
    sender.join("g").await;
    let socket = SocketChannel([7; 16]);
    let name = socket.name(other.layer.channel_prefix());
    let mut link = servers[0].link().await;
    let now = "9999999999";
    let _: u64 = query(&mut link, &["ZADD", "acme:group:g", now, &name]).await;
    django.send("g", 1).await;
    sender.send("g", 2).await;
    let to_socket = format!(
        "{:?}",
        Target::Members(Box::new(lockgate::channel_layer::Members {
            groups: vec![],
            sockets: vec![socket],
        }))
    );
    for number in [1, 2] {
        assert_eq!(
            other.heard().await,
            Heard::Number(to_socket.clone(), number)
        );
    }
    assert_eq!(sender.recorded("g", 2).await, [(1, 1), (2, 2)]);
}

/// Does what Channels' own `flush()` does: removes memberships and mailboxes, and with them what was sent. Returns once a replica
/// would notice it.
pub(super) async fn flush(replica: &Core, link: &mut Link) {
    // The mark of the layer is set with its first look.
    let alive = format!("acme{}$alive", replica.layer.channel_prefix());
    until(link, &alive).await;
    let keys: Vec<String> = query(link, &["KEYS", "acme*"]).await;
    let keys: Vec<&str> = std::iter::once("DEL")
        .chain(keys.iter().map(String::as_str))
        .collect();
    let _: u64 = query(link, &keys).await;
}

/// Waits until there is a key.
pub(super) async fn until(link: &mut Link, key: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while query::<u64>(link, &["EXISTS", key]).await == 0 {
        assert!(Instant::now() < deadline, "{key}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The group is told of a flush, and goes on.
#[tokio::test]
async fn a_flushed_layer_is_a_gap_of_its_groups_and_goes_on() {
    let servers = [Redis::start().await];
    let (replica, django) = (replica(&servers, &config()), channels(&servers, &config()));
    let mut link = servers[0].link().await;
    replica.join("g").await;
    django.send("g", 1).await;
    replica.heard_with_its_copy().await;
    flush(&replica, &mut link).await;
    django.send("g", 2).await;
    until(&mut link, "acme:group:g").await;
    django.send("g", 3).await;
    assert_eq!(replica.told("g").await, [2]);
    assert_eq!(replica.recorded("g", 1).await, [(3, 3)]);
}

#[tokio::test]
async fn an_epoch_is_renewed_on_this_layer_too() {
    let servers = [Redis::start().await];
    let replica = replica(&servers, &config());
    let old = replica
        .layer
        .publish(&"g".into(), &event(1), None)
        .await
        .unwrap()
        .unwrap();
    let renewed = replica.layer.renew_history(&"g".into(), &old).await;
    let renewed = renewed.unwrap().unwrap();
    assert_ne!(renewed.epoch, old.epoch);
    assert_eq!(replica.history("g").await, []);
    assert_eq!(replica.send("g", 2).await, Some(1));
}
