//! The core layer on real Redis servers: joins, shared keys, bounds, what is lost and what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use lockgate::channel_layer::core::{CoreEndpoints, CoreLayer};
use lockgate::channel_layer::{
    ChannelLayer, Inbox, LayerError, Members, NoticeLines, Signal, SocketChannel, Target,
};
use lockgate::config::LayerConfig;
use lockgate::error::{Dependency, ErrorKind};
use lockgate::event::Event;
use lockgate::ids::{ChannelName, ReplicaId};
use lockgate::metrics::{GapCause, TenantMetrics};
use lockgate::stores::redis::{RedisStore, RedisUrl};
use tokio::time::timeout;

use super::support::*;

/// One replica's layer with its inbox.
struct Core {
    layer: Arc<CoreLayer>,
    inbox: Arc<Inbox>,
}

/// The signals that it received.
#[derive(Clone, Debug, PartialEq)]
enum Heard {
    Number(Target, i64),
    NotDecoded,
    Gap(GapCause),
}

fn stores(urls: &[String]) -> Vec<Arc<RedisStore>> {
    let store = |url: &String| {
        let url = RedisUrl::parse(&url.as_str().into()).unwrap();
        RedisStore::new(&url, Dependency::Redis).unwrap()
    };
    urls.iter().map(store).collect()
}

fn on(urls: &[String], config: &LayerConfig) -> Core {
    let endpoints = CoreEndpoints::new(ReplicaId::random());
    attached(&endpoints, &stores(urls), config)
}

fn attached(endpoints: &CoreEndpoints, stores: &[Arc<RedisStore>], config: &LayerConfig) -> Core {
    let metrics = TenantMetrics::new(&"acme".parse().unwrap());
    let inbox = Inbox::new(0, Arc::new(metrics));
    let layer = endpoints
        .attach(stores, config, NoticeLines::default(), inbox.clone())
        .unwrap();
    Core {
        layer: Arc::new(layer),
        inbox,
    }
}

fn config() -> LayerConfig {
    LayerConfig {
        prefix: "acme".to_owned(),
        ..LayerConfig::default()
    }
}

fn group(name: &str) -> Target {
    Target::Group(name.into())
}

impl Core {
    async fn join(&self, group: &str) {
        join(&*self.layer, group).await;
    }

    async fn send(&self, group: &str, number: i64) {
        let sent = self
            .layer
            .publish(&group.into(), &event(number), None)
            .await;
        sent.unwrap();
    }

    /// Returns the next signal, within ten seconds.
    async fn heard(&self) -> Heard {
        let next = async {
            loop {
                if let Some(heard) = self.read(self.inbox.next().await) {
                    return heard;
                }
            }
        };
        timeout(Duration::from_secs(10), next)
            .await
            .expect("a signal within ten seconds")
    }

    fn read(&self, signal: Signal) -> Option<Heard> {
        let incoming = match signal {
            Signal::Gap(cause) => return Some(Heard::Gap(cause)),
            other @ (Signal::Unheard(..) | Signal::Presence(..) | Signal::Missed(_)) => {
                panic!("{other:?}")
            }
            Signal::Event(incoming) => incoming,
        };
        match self.layer.open(incoming) {
            Ok(None) => None,
            Ok(Some((target, event))) => {
                let number = event.get("n").and_then(|n| n.as_i64()).unwrap_or(-1);
                assert!(event.get("__asgi_channel__").is_none());
                Some(Heard::Number(target, number))
            }
            Err(_) => Some(Heard::NotDecoded),
        }
    }

    fn socket(&self, bits: u8) -> (SocketChannel, ChannelName) {
        let socket = SocketChannel([bits; 16]);
        let name = socket.name(self.layer.channel_prefix());
        (socket, ChannelName::from(name))
    }

    fn own_key(&self) -> String {
        format!("acme{}", self.layer.channel_prefix())
    }
}

async fn query<T: redis::FromRedisValue>(link: &mut Link, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(link).await.unwrap()
}

async fn eventually(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fact().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_group_is_joined_once_and_what_is_sent_to_it_arrives_in_order() {
    let redis = Redis::start().await;
    let (here, there) = (on(&[redis.url()], &config()), on(&[redis.url()], &config()));
    let mut link = redis.link().await;
    for _ in 0..3 {
        here.join("g").await;
    }
    let members: Vec<String> = query(&mut link, &["ZRANGE", "acme:group:g", "0", "-1"]).await;
    assert_eq!(members.len(), 1);
    assert!(members[0].starts_with(here.layer.channel_prefix()));
    let ttl: i64 = query(&mut link, &["TTL", "acme:group:g"]).await;
    assert!((86_390..=86_400).contains(&ttl), "{ttl}");

    there.join("other").await;
    for number in 0..500 {
        there.send("g", number).await;
        if number % 100 == 0 {
            // The queue on Redis holds a hundred.
            assert_eq!(here.heard().await, Heard::Number(group("g"), number));
        } else if number % 100 == 99 {
            for expected in number - 98..=number {
                assert_eq!(here.heard().await, Heard::Number(group("g"), expected));
            }
        }
    }
    assert!(there.inbox.try_next().is_none());
}

#[tokio::test]
async fn on_several_hosts_every_group_and_every_socket_is_reached() {
    let servers = [
        Redis::start().await,
        Redis::start().await,
        Redis::start().await,
    ];
    let urls = servers.each_ref().map(Redis::url);
    let (here, there) = (on(&urls, &config()), on(&urls, &config()));
    let mut used = 0;
    for number in 0..20 {
        let name = format!("g{number}");
        here.join(&name).await;
        there.send(&name, number).await;
        assert_eq!(here.heard().await, Heard::Number(group(&name), number));
        let (socket, channel) = here.socket(number as u8);
        there.layer.send(&channel, &event(number)).await.unwrap();
        let expected = Heard::Number(Target::Socket(socket), number);
        assert_eq!(here.heard().await, expected);
    }
    for redis in &servers {
        let mut link = redis.link().await;
        let groups: Vec<String> = query(&mut link, &["KEYS", "acme:group:*"]).await;
        used += usize::from(!groups.is_empty());
        // Keys to which the senders of Channels write direct messages; only one of them is read.
        let (socket, channel) = here.socket(77);
        let message = direct(channel.as_str(), 7);
        let key = here.own_key();
        let mut add = redis::cmd("ZADD");
        let add = add.arg(&key).arg(1).arg(message);
        let _: u64 = add.query_async(&mut link).await.unwrap();
        assert_eq!(here.heard().await, Heard::Number(Target::Socket(socket), 7));
    }
    assert_eq!(used, 3);
}

/// A message to one channel as Channels stores it.
fn direct(channel: &str, number: i64) -> Vec<u8> {
    let mut event = event(number);
    event.set("__asgi_channel__", channel.into());
    stored(&event)
}

fn stored(event: &Event) -> Vec<u8> {
    use lockgate::channel_layer::Codec;
    let codec = Codec::new(lockgate::config::SerializerFormat::MsgPack, &[]);
    let random: [u8; 12] = rand::random();
    [&random[..], &codec.encode(event).unwrap()].concat()
}

#[tokio::test]
async fn a_message_names_each_of_its_members_once() {
    let redis = Redis::start().await;
    let here = on(&[redis.url()], &config());
    let mut link = redis.link().await;
    here.join("g").await;
    // Django's own group_add of a socket's channel.
    let (socket, channel) = here.socket(1);
    let add = ["ZADD", "acme:group:g", "9999999999", channel.as_str()];
    let _: u64 = query(&mut link, &add).await;
    here.send("g", 1).await;
    let members = Members {
        groups: vec!["g".into()],
        sockets: vec![socket],
    };
    let both = Target::Members(Box::new(members));
    assert_eq!(here.heard().await, Heard::Number(both, 1));

    // A message that names a member twice, a stranger and one that was left.
    let members: Vec<String> = query(&mut link, &["ZRANGE", "acme:group:g", "0", "0"]).await;
    let names = [
        members[0].as_str(),
        "specific.0123!456",
        &members[0],
        &format!("{}gffff", here.layer.channel_prefix()),
    ];
    let mut message = event(2);
    let names = names.map(lockgate::event::Value::from);
    message.set(
        "__asgi_channel__",
        lockgate::event::Value::Array(names.into()),
    );
    let key = here.own_key();
    let mut add = redis::cmd("ZADD");
    let add = add.arg(&key).arg(1).arg(stored(&message));
    let _: u64 = add.query_async(&mut link).await.unwrap();
    assert_eq!(here.heard().await, Heard::Number(group("g"), 2));

    // A value that is not a message harms no reader.
    let _: u64 = query(&mut link, &["ZADD", &key, "1", "short"]).await;
    assert_eq!(here.heard().await, Heard::NotDecoded);
    here.send("g", 3).await;
    assert!(matches!(here.heard().await, Heard::Number(_, 3)));
}

#[tokio::test]
async fn over_capacity_is_no_error_of_a_group_send_and_one_of_a_send() {
    let redis = Redis::start().await;
    let mut small = config();
    small.capacity = 3;
    small.channel_capacity.push(("work*".to_owned(), 2));
    let sender = on(&[redis.url()], &small);
    let mut link = redis.link().await;
    // Nobody reads these.
    for member in ["specific.gone!a", "specific.gone!b", "worker"] {
        let _: u64 = query(&mut link, &["ZADD", "acme:group:g", "9999999999", member]).await;
    }
    for number in 0..5 {
        sender.send("g", number).await;
    }
    let waiting: u64 = query(&mut link, &["ZCARD", "acmespecific.gone!"]).await;
    assert_eq!(waiting, 3);
    let waiting: u64 = query(&mut link, &["ZCARD", "acmeworker"]).await;
    assert_eq!(waiting, 2);
    let full = sender.layer.send(&"worker".into(), &event(1)).await;
    assert!(matches!(full, Err(LayerError::ChannelFull)), "{full:?}");
    sender.layer.send(&"other".into(), &event(1)).await.unwrap();
    let ttl: i64 = query(&mut link, &["TTL", "acmeother"]).await;
    assert!((55..=60).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn what_expired_makes_room_and_lapsed_members_are_forgotten() {
    let redis = Redis::start().await;
    let mut small = config();
    small.capacity = 1;
    let sender = on(&[redis.url()], &small);
    let mut link = redis.link().await;
    let _: u64 = query(&mut link, &["ZADD", "acme:group:g", "1", "specific.old!a"]).await;
    let _: u64 = query(
        &mut link,
        &["ZADD", "acme:group:g", "9999999999", "specific.gone!a"],
    )
    .await;
    let _: u64 = query(&mut link, &["ZADD", "acmespecific.gone!", "1", "stale"]).await;
    sender.send("g", 1).await;
    let members: Vec<String> = query(&mut link, &["ZRANGE", "acme:group:g", "0", "-1"]).await;
    assert_eq!(members, ["specific.gone!a"]);
    let waiting: Vec<Vec<u8>> =
        query(&mut link, &["ZRANGE", "acmespecific.gone!", "0", "-1"]).await;
    assert!(waiting.len() == 1 && waiting[0] != b"stale");
}

#[tokio::test]
async fn a_full_key_of_our_own_is_a_gap() {
    let redis = Redis::start().await;
    let mut small = config();
    small.capacity = 3;
    let here = on(&[redis.url()], &small);
    here.join("g").await;
    let mut link = redis.link().await;
    let (_, channel) = here.socket(1);
    let mut add = redis::cmd("ZADD");
    add.arg(here.own_key());
    for number in 0..3 {
        add.arg(number).arg(direct(channel.as_str(), number));
    }
    let _: u64 = add.query_async(&mut link).await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 4 {
        heard.push(here.heard().await);
    }
    assert!(
        heard.contains(&Heard::Gap(GapCause::LayerQueue)),
        "{heard:?}"
    );
}

#[tokio::test]
async fn what_was_in_flight_when_a_link_was_lost_is_delivered_once() {
    let redis = Redis::start().await;
    let here = on(&[redis.url()], &config());
    here.join("g").await;
    here.send("g", 1).await;
    assert_eq!(here.heard().await, Heard::Number(group("g"), 1));
    let mut link = redis.link().await;
    let (socket, channel) = here.socket(1);
    // Read by an earlier link whose answer was lost on its way.
    let inflight = format!("{}$inflight", here.own_key());
    let mut add = redis::cmd("ZADD");
    let add = add.arg(&inflight).arg(5).arg(direct(channel.as_str(), 2));
    let _: u64 = add.query_async(&mut link).await.unwrap();
    kill_blocked(&mut link).await;
    let mut heard = vec![here.heard().await, here.heard().await];
    heard.sort_by_key(|heard| matches!(heard, Heard::Gap(_)));
    let expected = Heard::Number(Target::Socket(socket), 2);
    assert_eq!(heard, [expected, Heard::Gap(GapCause::Link)]);
    let left: u64 = query(&mut link, &["EXISTS", &inflight]).await;
    assert_eq!(left, 0);

    // A delivered message that comes back, as after a failover to a replica that lags, is not delivered again.
    let message = direct(channel.as_str(), 3);
    let mut add = redis::cmd("ZADD");
    let add = add.arg(here.own_key()).arg(7).arg(message);
    let _: u64 = add.query_async(&mut link).await.unwrap();
    assert_eq!(here.heard().await, Heard::Number(Target::Socket(socket), 3));
    redis.stop();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    redis.resume();
    let _: u64 = add.query_async(&mut link).await.unwrap();
    here.send("g", 4).await;
    let mut heard = vec![here.heard().await, here.heard().await];
    heard.sort_by_key(|heard| matches!(heard, Heard::Gap(_)));
    assert_eq!(
        heard,
        [Heard::Number(group("g"), 4), Heard::Gap(GapCause::Link)]
    );
}

/// Cuts the connections that wait for messages.
async fn kill_blocked(link: &mut Link) {
    let clients: String = query(link, &["CLIENT", "LIST"]).await;
    let blocked = clients.lines().filter(|line| line.contains("cmd=bzpopmin"));
    let mut killed = 0;
    for client in blocked {
        let id = client
            .split(' ')
            .next()
            .unwrap()
            .strip_prefix("id=")
            .unwrap();
        killed += query::<u64>(link, &["CLIENT", "KILL", "ID", id]).await;
    }
    assert!(killed > 0, "{clients}");
}

#[tokio::test]
async fn after_a_restart_of_redis_memberships_are_back_within_seconds() {
    let mut redis = Redis::start().await;
    let here = on(&[redis.url()], &config());
    for number in 0..1200 {
        drop(
            tokio::time::timeout(
                Duration::ZERO,
                here.layer.subscribe(&format!("g{number}").as_str().into()),
            )
            .await,
        );
    }
    for number in 0..1200 {
        here.join(&format!("g{number}")).await;
    }
    redis.kill();
    redis.start_again().await;
    let back = Instant::now();
    assert_eq!(here.heard().await, Heard::Gap(GapCause::Link));
    assert!(
        back.elapsed() < Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
    let mut link = redis.link().await;
    let groups: Vec<String> = query(&mut link, &["KEYS", "acme:group:*"]).await;
    assert_eq!(groups.len(), 1200);
    for number in [0, 600, 1199] {
        let name = format!("g{number}");
        here.send(&name, number).await;
        assert_eq!(here.heard().await, Heard::Number(group(&name), number));
    }
}

#[tokio::test]
async fn a_restart_under_load_heals_with_a_gap_and_no_duplicate() {
    let mut redis = Redis::start().await;
    let here = on(&[redis.url()], &config());
    here.join("g").await;
    let publisher = on(&[redis.url()], &config());
    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicI64::new(0)),
    );
    let load = tokio::spawn({
        let (stop, sent) = (stop.clone(), sent.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                // While Redis is away this fails, and is not repeated.
                drop(
                    publisher
                        .layer
                        .publish(&"g".into(), &event(number), None)
                        .await,
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let mut heard = Vec::new();
    let mut restarts = 0;
    while restarts < 3 {
        let until = heard.len() + 100;
        while heard.len() < until {
            heard.push(here.heard().await);
        }
        if restarts < 2 {
            redis.kill();
            redis.start_again().await;
        }
        restarts += 1;
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    let gap = Heard::Gap(GapCause::Link);
    let gaps = heard.iter().filter(|heard| **heard == gap).count();
    assert!(gaps >= 2, "{gaps} gaps");
    let numbers: Vec<i64> = heard
        .iter()
        .filter_map(|heard| match heard {
            Heard::Number(_, number) => Some(*number),
            _ => None,
        })
        .collect();
    assert!(numbers.is_sorted() && all_differ(&numbers), "{numbers:?}");
}

#[tokio::test]
async fn a_join_while_memberships_are_lost_waits_until_they_are_back() {
    let mut redis = Redis::start().await;
    let here = Arc::new(on(&[redis.url()], &config()));
    here.join("g").await;
    redis.kill();
    // Another socket of a group that the replica was in, once the reader knows that its link is gone.
    let group = "g".into();
    eventually("joins wait", async || {
        let joined = here.layer.subscribe(&group);
        timeout(Duration::from_millis(50), joined).await.is_err()
    })
    .await;
    let joining = tokio::spawn({
        let here = here.clone();
        async move { here.join("g").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!joining.is_finished());
    redis.start_again().await;
    timeout(Duration::from_secs(5), joining)
        .await
        .unwrap()
        .unwrap();
    let mut link = redis.link().await;
    let members: u64 = query(&mut link, &["ZCARD", "acme:group:g"]).await;
    assert_eq!(members, 1);
}

#[tokio::test]
async fn a_flush_of_the_layer_is_a_gap_and_heals() {
    let redis = Redis::start().await;
    let here = on(&[redis.url()], &config());
    here.join("g").await;
    let mut link = redis.link().await;
    // The mark follows the first join within five seconds.
    let mark = format!("{}$alive", here.own_key());
    eventually("the mark", async || {
        query::<u64>(&mut link, &["EXISTS", &mark]).await == 1
    })
    .await;
    let _: String = query(&mut link, &["FLUSHALL"]).await;
    assert_eq!(here.heard().await, Heard::Gap(GapCause::Link));
    here.send("g", 1).await;
    assert_eq!(here.heard().await, Heard::Number(group("g"), 1));
}

#[tokio::test]
async fn memberships_outlive_group_expiry() {
    let redis = Redis::start().await;
    let mut short = config();
    short.group_expiry = Duration::from_secs(2);
    let here = on(&[redis.url()], &short);
    here.join("g").await;
    let until = Instant::now() + Duration::from_secs(5);
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        here.send("g", number).await;
        assert_eq!(here.heard().await, Heard::Number(group("g"), number));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn nothing_is_left_behind_by_leaving_closing_and_dropping() {
    let redis = Redis::start().await;
    let mut link = redis.link().await;
    let here = on(&[redis.url()], &config());
    for name in ["a", "b"] {
        here.join(name).await;
    }
    here.layer.unsubscribe(&"a".into());
    eventually("the group is left", async || {
        query::<u64>(&mut link, &["EXISTS", "acme:group:a"]).await == 0
    })
    .await;
    here.layer.close().await;
    let keys: Vec<String> = query(&mut link, &["KEYS", "acme*"]).await;
    assert!(keys.is_empty(), "{keys:?}");

    let dropped = on(&[redis.url()], &config());
    dropped.join("a").await;
    drop(dropped);
    eventually("a dropped layer cleans up", async || {
        let keys: Vec<String> = query(&mut link, &["KEYS", "acme*"]).await;
        keys.is_empty()
    })
    .await;
}

#[tokio::test]
async fn tenants_share_one_reading_link_and_not_their_events() {
    let redis = Redis::start().await;
    let endpoints = CoreEndpoints::new(ReplicaId::random());
    let stores = stores(&[redis.url()]);
    let tenants: Vec<Core> = (0..20)
        .map(|number| {
            let mut config = config();
            config.prefix = format!("t{number}-");
            attached(&endpoints, &stores, &config)
        })
        .collect();
    for (number, tenant) in tenants.iter().enumerate() {
        tenant.join("g").await;
        tenant.send("g", number as i64).await;
    }
    for (number, tenant) in tenants.iter().enumerate() {
        assert_eq!(
            tenant.heard().await,
            Heard::Number(group("g"), number as i64)
        );
        assert!(tenant.inbox.try_next().is_none());
    }
    let mut link = redis.link().await;
    let clients: String = query(&mut link, &["CLIENT", "LIST"]).await;
    // The reading link, the commands' link, and the test's own.
    assert_eq!(clients.lines().count(), 3, "{clients}");
}

#[tokio::test]
async fn a_missing_permission_concerns_one_tenant_and_heals_when_granted() {
    let redis = Redis::start().await;
    let mut link = redis.link().await;
    let user = [
        "ACL",
        "SETUSER",
        "u",
        "on",
        ">pw",
        "+@all",
        "resetkeys",
        "~good*",
        "~lockgate::*",
    ];
    let _: String = query(&mut link, &user).await;
    let url = format!("redis://u:pw@127.0.0.1:{}/0", redis.port);
    let endpoints = CoreEndpoints::new(ReplicaId::random());
    let stores = stores(&[url]);
    let [good, bad] = ["good", "bad"].map(|prefix| {
        let mut config = config();
        config.prefix = prefix.to_owned();
        attached(&endpoints, &stores, &config)
    });
    good.join("g").await;
    let refused = bad.layer.subscribe(&"g".into()).await;
    assert!(
        matches!(refused, Err(LayerError::Unavailable(ErrorKind::Permission))),
        "{refused:?}"
    );
    good.send("g", 1).await;
    assert_eq!(good.heard().await, Heard::Number(group("g"), 1));
    let _: String = query(&mut link, &["ACL", "SETUSER", "u", "~bad*"]).await;
    bad.join("g").await;
    bad.send("g", 2).await;
    let mut heard = bad.heard().await;
    while matches!(heard, Heard::Gap(_)) {
        heard = bad.heard().await;
    }
    assert_eq!(heard, Heard::Number(group("g"), 2));
}

#[tokio::test]
async fn a_group_send_costs_the_same_however_many_sockets_wait_for_it() {
    let redis = Redis::start().await;
    let (here, sender) = (on(&[redis.url()], &config()), on(&[redis.url()], &config()));
    let mut link = redis.link().await;
    let mut costs = Vec::new();
    for sockets in [1, 1000] {
        // As many joins as sockets: the layer is asked for each.
        for _ in 0..sockets {
            here.join("g").await;
        }
        let before = calls(&mut link).await;
        for number in 0..100 {
            sender.send("g", number).await;
            assert_eq!(here.heard().await, Heard::Number(group("g"), number));
        }
        let after = calls(&mut link).await;
        costs.push((after.0 - before.0, after.1 - before.1));
    }
    // Each send: one look at the members, one round that adds one message.
    assert_eq!(costs, [(100, 100), (100, 100)]);
}

#[tokio::test]
async fn a_key_of_another_type_concerns_one_tenant_and_heals() {
    let redis = Redis::start().await;
    let endpoints = CoreEndpoints::new(ReplicaId::random());
    let stores = stores(&[redis.url()]);
    let [good, bad] = ["good", "bad"].map(|prefix| {
        let mut config = config();
        config.prefix = prefix.to_owned();
        attached(&endpoints, &stores, &config)
    });
    for (number, tenant) in [&good, &bad].into_iter().enumerate() {
        tenant.join("g").await;
        tenant.send("g", number as i64).await;
        assert_eq!(
            tenant.heard().await,
            Heard::Number(group("g"), number as i64)
        );
    }
    let mut link = redis.link().await;
    let key = format!("bad{}", bad.layer.channel_prefix());
    let _: String = query(&mut link, &["SET", &key, "no messages"]).await;
    for number in 0..20 {
        good.send("g", number).await;
        assert_eq!(good.heard().await, Heard::Number(group("g"), number));
    }
    let _: u64 = query(&mut link, &["DEL", &key]).await;
    assert_eq!(bad.heard().await, Heard::Gap(GapCause::Link));
    bad.send("g", 7).await;
    assert_eq!(bad.heard().await, Heard::Number(group("g"), 7));
    assert!(good.inbox.try_next().is_none());
}

/// The number of times that members were listed and that messages were offered to a process's key.
async fn calls(link: &mut Link) -> (u64, u64) {
    let info: String = query(link, &["INFO", "commandstats"]).await;
    let count = |name: &str| {
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    (count("zrange"), count("zcount"))
}
