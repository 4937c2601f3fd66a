//! Groups with history on the pub/sub layer: recording, order, reading, lost and foreign data, refused writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lockgate::channel_layer::{CallId, ChannelLayer, Codec, HistoryFrom, HistoryPage, LayerError};
use lockgate::config::{GroupConfig, HistoryConfig, Secret, SerializerFormat};
use lockgate::error::{Dependency, ErrorKind};
use lockgate::ids::GroupName;
use lockgate::metrics::GapCause;
use lockgate::position::Position;
use lockgate::stores::redis::{RedisStore, RedisUrl};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::support::*;

const MINUTES: Duration = Duration::from_secs(600);

fn rule(name: &str, size: u32, ttl: Duration) -> GroupConfig {
    GroupConfig {
        name: name.to_owned(),
        history: (size > 0).then_some(HistoryConfig { size, ttl }),
        ..GroupConfig::default()
    }
}

/// Every group has a history of 100 events, but for those that begin with `plain`.
fn rules() -> Vec<GroupConfig> {
    vec![
        rule("plain<slug:rest>", 0, MINUTES),
        rule("<path:name>", 100, MINUTES),
    ]
}

fn msgpack() -> Codec {
    Codec::new(SerializerFormat::MsgPack, &[])
}

fn stores(servers: &[Redis]) -> Vec<Arc<RedisStore>> {
    let store = |server: &Redis| {
        let url = RedisUrl::parse(&server.url().as_str().into()).unwrap();
        RedisStore::new(&url, Dependency::Redis).unwrap()
    };
    servers.iter().map(store).collect()
}

/// A tenant of a replica of its own on one server, in which every group has a history.
pub(super) fn tenant(redis: &Redis) -> Tenant {
    tenant_with(redis, &rules())
}

fn tenant_with(redis: &Redis, rules: &[GroupConfig]) -> Tenant {
    let replica = replica(&redis.url());
    replica.recording_on(std::slice::from_ref(&replica.store), msgpack(), rules)
}

pub(super) async fn record(tenant: &Tenant, group: &str, number: i64) -> Position {
    let published = tenant
        .layer
        .publish(&group.into(), &event(number), None)
        .await;
    published.unwrap().expect("the group has a history")
}

pub(super) async fn read(tenant: &Tenant, group: &str, from: HistoryFrom) -> HistoryPage {
    let page = tenant.layer.history(&group.into(), from).await.unwrap();
    page.expect("the group has a history")
}

/// The offsets and numbers of a page.
fn entries(tenant: &Tenant, page: HistoryPage) -> Vec<(u64, i64)> {
    let entry = |entry: lockgate::channel_layer::RecordedEvent| {
        let event = entry.payload.decode(tenant.layer.codec()).unwrap();
        (entry.offset, event.get("n").unwrap().as_i64().unwrap())
    };
    page.entries.into_iter().map(entry).collect()
}

#[tokio::test]
async fn a_call_that_comes_again_is_recorded_once() {
    let redis = Redis::start().await;
    let tenant = tenant(&redis);
    let group = GroupName::from("g");
    let [one, other] = ["one", "other"].map(CallId::of);
    let publish = async |number: i64, id: &CallId| {
        let published = tenant.layer.publish(&group, &event(number), Some(id)).await;
        published.unwrap().expect("the group has a history").offset
    };
    let both = tokio::join!(publish(1, &one), publish(1, &one));
    assert_eq!(both, (1, 1), "also where both are under way at once");
    assert_eq!(publish(2, &other).await, 2);
    assert_eq!(publish(1, &one).await, 1);
    assert_eq!(record(&tenant, "g", 3).await.offset, 3);
    // What others have written there is no call.
    let mut link = redis.link().await;
    let keys: Vec<String> = ask(&mut link, "KEYS *:call:*").await;
    assert_eq!(keys.len(), 2);
    for key in &keys {
        let _: u64 = ask(&mut link, &format!("DEL {key}")).await;
        let _: u64 = ask(&mut link, &format!("RPUSH {key} x")).await;
    }
    assert_eq!(publish(4, &one).await, 4);
    assert_eq!(
        publish(5, &one).await,
        4,
        "the key is that of the call again"
    );
    let page = read(&tenant, "g", HistoryFrom::default()).await;
    assert_eq!(entries(&tenant, page), [(1, 1), (2, 2), (3, 3), (4, 4)]);
}

async fn all(tenant: &Tenant, group: &str) -> Vec<(u64, i64)> {
    let page = read(tenant, group, HistoryFrom::default()).await;
    entries(tenant, page)
}

pub(super) async fn ask<T: redis::FromRedisValue>(
    link: &mut impl redis::aio::ConnectionLike,
    command: &str,
) -> T {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(link).await.unwrap()
}

pub(super) fn stream(group: &str) -> String {
    format!("lockgate:acme:history:{{{}}}", channel("acme", group))
}

pub(super) fn position(group: &str) -> String {
    format!("lockgate:acme:position:{{{}}}", channel("acme", group))
}

pub(super) fn notices(group: &str) -> String {
    format!("lockgate:acme:group:{{{}}}", channel("acme", group))
}

/// Waits until the replica is subscribed to both channels of a group and to nothing in between.
async fn subscribed(link: &mut Link, group: &str) {
    wait_for_subscribers(link, &[channel("acme", group), notices(group)], 2).await;
}

#[tokio::test]
async fn each_event_comes_once_in_the_order_of_its_offset_and_stays_readable() {
    let servers = [
        Redis::start().await,
        Redis::start().await,
        Redis::start().await,
    ];
    for hosts in [1, 3] {
        for (format, keys) in [
            (SerializerFormat::MsgPack, vec![]),
            (SerializerFormat::Json, vec![]),
            (
                SerializerFormat::MsgPack,
                vec![Secret::from("a"), Secret::from("b")],
            ),
            (SerializerFormat::Json, vec![Secret::from("a")]),
        ] {
            let codec = Codec::new(format, &keys);
            let stores = stores(&servers[..hosts]);
            let attach = || {
                let replica = replica(&servers[0].url());
                let tenant = replica.recording_on(&stores, codec.clone(), &rules());
                (replica, tenant)
            };
            let [(_one, sender), (_other, hearer)] = [attach(), attach()];
            let groups: Vec<String> = (0..6).map(|n| format!("g{n}{}", keys.len())).collect();
            for group in groups.iter().map(String::as_str).chain(["plain1"]) {
                hearer.join(group).await;
            }
            for number in 0..10 {
                for group in &groups {
                    record(&sender, group, number).await;
                }
            }
            // The same as a batch, with events that have no history between.
            let batch: Vec<(GroupName, _)> = (10..20)
                .flat_map(|number| {
                    let groups = groups.iter().map(String::as_str).chain(["plain1"]);
                    groups.map(move |group| (GroupName::from(group), event(number)))
                })
                .collect();
            for (outcome, (group, _)) in sender.layer.publish_each(&batch).await.iter().zip(&batch)
            {
                let position = outcome.as_ref().unwrap();
                assert_eq!(position.is_some(), group.as_str() != "plain1");
            }
            let mut heard: BTreeMap<String, Vec<(u64, i64)>> = BTreeMap::new();
            for _ in 0..groups.len() * 20 + 10 {
                match hearer.heard().await {
                    Heard::Recorded(group, number, offset) => {
                        heard.entry(group).or_default().push((offset, number));
                    }
                    Heard::Number(group, number) => {
                        heard.entry(group).or_default().push((0, number));
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(hearer.heard_so_far(), []);
            for group in &groups {
                let expected: Vec<_> = (0..20).map(|n| (n as u64 + 1, n)).collect();
                assert_eq!(heard[group], expected, "{group}");
                assert_eq!(all(&hearer, group).await, expected, "{group}");
            }
            assert_eq!(
                heard["plain1"],
                (10..20).map(|n| (0, n)).collect::<Vec<_>>()
            );
            for server in &servers[..hosts] {
                let _: () = ask(&mut server.link().await, "FLUSHALL").await;
            }
        }
    }
}

#[tokio::test]
async fn consumers_of_channels_get_the_event_as_it_was_sent() {
    let redis = Redis::start().await;
    let tenant = tenant(&redis);
    let client = redis::Client::open(redis.url()).unwrap();
    let mut consumer = client.get_async_pubsub().await.unwrap();
    consumer.subscribe(channel("acme", "g")).await.unwrap();
    for number in 0..3 {
        record(&tenant, "g", number).await;
    }
    let mut messages = consumer.on_message();
    for number in 0..3 {
        let message = timeout(Duration::from_secs(5), messages.next()).await;
        assert_eq!(
            message.unwrap().unwrap().get_payload_bytes(),
            payload(number)
        );
    }
    assert!(
        timeout(Duration::from_millis(200), messages.next())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_history_keeps_its_newest_events_and_each_for_its_time() {
    let redis = Redis::start().await;
    let rules = [
        rule("short", 3, MINUTES),
        rule("brief", 100, Duration::from_millis(400)),
    ];
    let (tenant, mut link) = (tenant_with(&redis, &rules), redis.link().await);
    let other = GroupName::from("other");
    let other = tenant.layer.history(&other, HistoryFrom::default()).await;
    assert!(other.unwrap().is_none());
    for number in 1..=5 {
        record(&tenant, "short", number).await;
    }
    assert_eq!(all(&tenant, "short").await, [(3, 3), (4, 4), (5, 5)]);
    assert_eq!(
        ask::<u64>(&mut link, &format!("XLEN {}", stream("short"))).await,
        3
    );
    for key in [stream("short"), position("short")] {
        let ttl: i64 = ask(&mut link, &format!("PTTL {key}")).await;
        assert!((590_000..=3_600_000).contains(&ttl), "{key}: {ttl}");
    }
    // A read of nothing but the position renews its life: so groups that are silent for long keep their epoch.
    let place = position("short");
    let _: u64 = ask(&mut link, &format!("PEXPIRE {place} 5000")).await;
    read(&tenant, "short", HistoryFrom::END).await;
    let ttl: i64 = ask(&mut link, &format!("PTTL {place}")).await;
    assert!(ttl > 600_000, "{ttl}");

    for number in 1..=40 {
        record(&tenant, "brief", number).await;
    }
    sleep(Duration::from_millis(450)).await;
    // Nobody recorded since: the keys of the events are gone, and their place is known.
    let page = read(&tenant, "brief", HistoryFrom::default()).await;
    assert_eq!((page.end.offset, page.entries.len()), (40, 0));
    let first = record(&tenant, "brief", 41).await;
    assert_eq!((first.offset, &first.epoch), (41, &page.end.epoch));
    // Old events are trimmed by those that follow, some by each.
    for number in 42..=60 {
        sleep(Duration::from_millis(30)).await;
        record(&tenant, "brief", number).await;
    }
    let kept: u64 = ask(&mut link, &format!("XLEN {}", stream("brief"))).await;
    let readable = all(&tenant, "brief").await;
    assert!(
        kept < 20 && readable.len() as u64 <= kept,
        "{kept} {readable:?}"
    );
    assert_eq!(readable.last(), Some(&(60, 60)));
}

/// What others do to the keys of a history: it goes on in the same epoch, or begins again in another one from 1.
#[tokio::test]
async fn lost_and_foreign_data_begin_a_new_epoch() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    let (stream, position) = (stream("g"), position("g"));
    let new = [
        vec![format!("DEL {position}")],
        vec!["FLUSHALL".to_owned()],
        vec![format!("XADD {stream} 77-0 e x")],
        vec![format!("XADD {stream} * foreign entry")],
        vec![format!("DEL {stream}"), format!("SET {stream} text")],
        vec![format!("DEL {position}"), format!("SET {position} text")],
        vec![format!("DEL {position}"), format!("LPUSH {position} text")],
        vec![format!("HDEL {position} epoch")],
        vec![format!("HSET {position} epoch a~b")],
        vec![format!("HSET {position} epoch {}", "x".repeat(65))],
        vec![format!("HSET {position} t {}", "1".repeat(97))],
        vec![format!("HSET {position} run {}", "x".repeat(97))],
        vec![format!(
            "HSET {position} t 0 run other past1 {}",
            "x".repeat(97)
        )],
        vec![format!("HSET {position} offset -1")],
        vec![format!("HSET {position} offset 1e3")],
        vec![format!("HSET {position} offset 99999999999999999999")],
        vec![format!("HSET {position} offset")],
        vec![format!("HSET {position} offset 0")],
    ];
    let mut number = 0;
    for commands in new {
        number += 10;
        record(&tenant, "g", number).await;
        let before = record(&tenant, "g", number + 1).await;
        for command in &commands {
            // One has too few words, and changes nothing.
            let mut words = command.split(' ');
            let mut cmd = redis::cmd(words.next().unwrap());
            for word in words {
                cmd.arg(word);
            }
            let done: redis::RedisResult<redis::Value> = cmd.query_async(&mut link).await;
            assert_eq!(done.is_err(), command.ends_with("offset"), "{command}");
        }
        let after = record(&tenant, "g", number + 2).await;
        if commands[0].ends_with("offset") {
            assert_eq!(after.epoch, before.epoch);
            continue;
        }
        assert_eq!(after.offset, 1, "{commands:?}");
        assert_ne!(after.epoch, before.epoch, "{commands:?}");
        assert_eq!(all(&tenant, "g").await, [(1, number + 2)], "{commands:?}");
        // From the old epoch all of the new one is read.
        let page = read(&tenant, "g", (&before).into()).await;
        assert_eq!(entries(&tenant, page), [(1, number + 2)]);
    }
}

/// Before, a position that others had broken was replaced without a word, and entries that are none were passed over so.
#[tokio::test]
async fn values_that_are_none_are_counted_by_reads_and_told_by_records() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    let (stream, position) = (stream("g"), position("g"));
    let client = redis::Client::open(redis.url()).unwrap();
    let mut gateways = client.get_async_pubsub().await.unwrap();
    let notices = position.replace(":position:", ":group:");
    gateways.subscribe(&notices).await.unwrap();
    let mut told = gateways.on_message();
    let mut told = async || {
        let message = timeout(MINUTES, told.next()).await.unwrap();
        message.unwrap().get_payload::<String>().unwrap()
    };
    let unreadable = async || {
        let page = read(&tenant, "g", HistoryFrom::default()).await;
        page.unreadable
    };
    for broken in [
        "HDEL POSITION epoch",
        "HSET POSITION offset 1e3",
        &format!("HSET POSITION run {}", "x".repeat(97)),
        &format!("HSET POSITION t 0 run other past1 {}", "x".repeat(97)),
    ] {
        let broken = broken.replace("POSITION", &position);
        record(&tenant, "g", 1).await;
        assert!(told().await.starts_with("1 r "));
        assert_eq!(unreadable().await, 0, "{broken}");
        let _: u64 = ask(&mut link, &broken).await;
        assert_eq!(unreadable().await, 1, "{broken}");
        assert_eq!(unreadable().await, 0, "{broken}: it has begun again");
        record(&tenant, "g", 2).await;
        assert!(told().await.starts_with("1 r "));
        let _: u64 = ask(&mut link, &broken).await;
        record(&tenant, "g", 3).await;
        assert_eq!(told().await, "1 u", "{broken}");
        assert!(told().await.starts_with("1 r "));
    }
    // One that is away is none that is broken.
    let _: u64 = ask(&mut link, &format!("DEL {position}")).await;
    assert_eq!(unreadable().await, 0);
    record(&tenant, "g", 1).await;
    for entry in ["2-0 a b", "3-0 e x"] {
        let _: String = ask(&mut link, &format!("XADD {stream} {entry}")).await;
    }
    let _: u64 = ask(&mut link, &format!("HSET {position} offset 3")).await;
    assert_eq!(unreadable().await, 2);
}

#[tokio::test]
async fn a_deleted_stream_is_a_hole_and_foreign_entries_are_passed_over() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    for number in 1..=3 {
        record(&tenant, "g", number).await;
    }
    let before = record(&tenant, "g", 4).await;
    let _: u64 = ask(&mut link, &format!("DEL {}", stream("g"))).await;
    let page = read(&tenant, "g", HistoryFrom::default()).await;
    assert_eq!(
        (&page.end, page.entries.len(), page.more),
        (&before, 0, false)
    );
    let next = record(&tenant, "g", 5).await;
    assert_eq!((next.offset, &next.epoch), (5, &before.epoch));
    assert_eq!(all(&tenant, "g").await, [(5, 5)]);

    // Entries between the offsets, without a field, and of other forms.
    for entry in ["5-1 e x t 99999999999999", "5-2 a b", "5-3 e x"] {
        let _: String = ask(&mut link, &format!("XADD {} {entry}", stream("g"))).await;
    }
    record(&tenant, "g", 6).await;
    assert_eq!(all(&tenant, "g").await, [(5, 5), (6, 6)]);
    let _: String = ask(&mut link, &format!("XADD {} 7-0 x y", stream("g"))).await;
    let _: u64 = ask(&mut link, &format!("HSET {} offset 7", position("g"))).await;
    let page = read(&tenant, "g", HistoryFrom::default()).await;
    assert_eq!(page.end.offset, 7);
    assert_eq!(entries(&tenant, page), [(5, 5), (6, 6)]);
    let _: u64 = ask(&mut link, &format!("DEL {}", stream("g"))).await;
    let _: () = ask(&mut link, &format!("SET {} text", stream("g"))).await;
    assert_eq!(all(&tenant, "g").await, []);
}

#[tokio::test]
async fn long_histories_are_read_in_pages_that_are_bounded_in_bytes() {
    let redis = Redis::start().await;
    let rules = [rule("<str:name>", 5000, MINUTES)];
    let tenant = tenant_with(&redis, &rules);
    let batch: Vec<_> = (1..=1000).map(|n| ("many".into(), event(n))).collect();
    for _ in 0..2 {
        assert!(
            tenant
                .layer
                .publish_each(&batch)
                .await
                .iter()
                .all(Result::is_ok)
        );
    }
    let large = |n: i64| {
        let text = "x".repeat(300_000);
        lockgate::event::Event::from_json(format!(r#"{{"type":"t","n":{n},"text":"{text}"}}"#))
    };
    for number in 1..=12 {
        let group = GroupName::from("large");
        tenant
            .layer
            .publish(&group, &large(number).unwrap(), None)
            .await
            .unwrap();
    }
    for (group, count) in [("many", 2000), ("large", 12)] {
        let (mut from, mut found, mut pages) = (HistoryFrom::default(), Vec::new(), 0);
        loop {
            let page = read(&tenant, group, from).await;
            let (more, end) = (page.more, page.end.clone());
            found.extend(entries(&tenant, page).into_iter().map(|(offset, _)| offset));
            pages += 1;
            from = HistoryFrom {
                epoch: Some(end.epoch),
                after: *found.last().unwrap(),
                ..HistoryFrom::default()
            };
            if !more {
                break;
            }
        }
        assert_eq!(found, (1..=count).collect::<Vec<u64>>(), "{group}");
        assert!((2..=4).contains(&pages), "{group}: {pages}");
    }
    let mut from = HistoryFrom::from(&read(&tenant, "many", HistoryFrom::default()).await.end);
    from.after = u64::MAX;
    assert_eq!(read(&tenant, "many", from).await.entries.len(), 0);
}

/// The order of the offsets is the order in which everyone hears them, also between publishers.
#[tokio::test]
async fn ten_publishers_at_once_are_heard_in_the_order_of_the_offsets() {
    let redis = Redis::start().await;
    let [first, second] = [tenant(&redis), tenant(&redis)];
    for hearer in [&first, &second] {
        hearer.join("g").await;
        hearer.join("noise").await;
        hearer.join("plain1").await;
    }
    let publishers: Vec<Tenant> = (0..10).map(|_| tenant(&redis)).collect();
    let publish = async |publisher: &Tenant, of: i64| {
        for number in 0..30 {
            record(publisher, "g", of * 100 + number).await;
            record(publisher, "noise", number).await;
            publisher.send("plain1", number).await;
        }
    };
    join_all(
        publishers
            .iter()
            .zip(0..)
            .map(|(publisher, of)| publish(publisher, of)),
    )
    .await;
    let mut orders = Vec::new();
    for hearer in [&first, &second] {
        let (mut order, mut plain) = (Vec::new(), 0);
        while order.len() < 300 || plain < 300 {
            match hearer.heard().await {
                Heard::Recorded(group, number, offset) if group == "g" => {
                    order.push((offset, number));
                }
                Heard::Recorded(..) => {}
                Heard::Number(group, _) if group == "plain1" => plain += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(order.iter().map(|(offset, _)| *offset).eq(1..=300));
        for of in 0..10 {
            let own = order.iter().map(|(_, number)| *number);
            let own: Vec<i64> = own.filter(|number| number / 100 == of).collect();
            assert!(own.is_sorted(), "{own:?}");
        }
        orders.push(order);
    }
    assert_eq!(orders[0], orders[1]);
    assert_eq!(all(&first, "g").await, orders[0][200..]);
}

#[tokio::test]
async fn forged_positions_harm_no_event() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    tenant.join("g").await;
    tenant.join("other").await;
    let garbage: [&[u8]; 6] = [
        b"",
        b"1 r",
        b"1 r a b c",
        b"2 r a 1",
        b"1 P {}",
        b"\xff\x00",
    ];
    for message in garbage {
        publish(&mut link, &notices("g"), message).await;
    }
    // A position whose event does not come next: the history is where to look.
    publish(&mut link, &notices("g"), b"1 r forged 9").await;
    record(&tenant, "other", 1).await;
    publish(&mut link, &notices("g"), b"1 r forged 10").await;
    record(&tenant, "g", 2).await;
    // An event without a position.
    publish(&mut link, &channel("acme", "g"), &payload(3)).await;
    publish(&mut link, &notices("g"), b"1 h forged 11").await;
    record(&tenant, "g", 4).await;
    let mut heard = Vec::new();
    for _ in 0..7 {
        heard.push(tenant.heard().await);
    }
    assert_eq!(
        heard,
        [
            Heard::Unheard("g".into(), 9),
            Heard::Recorded("other".into(), 1, 1),
            Heard::Unheard("g".into(), 10),
            Heard::Recorded("g".into(), 2, 1),
            Heard::Number("g".into(), 3),
            Heard::Unheard("g".into(), 11),
            Heard::Recorded("g".into(), 4, 2),
        ]
    );
    assert_eq!(tenant.heard_so_far(), []);
}

/// After a lost link the channels of positions are subscribed before those of events, whatever their number.
#[tokio::test]
async fn no_event_comes_without_its_position_over_lost_links() {
    let redis = Redis::start().await;
    let (hearer, publisher) = (tenant(&redis), tenant(&redis));
    let groups: Vec<String> = (0..600).map(|n| format!("g{n}")).collect();
    join_all(groups.iter().map(|group| hearer.join(group))).await;
    let mut link = redis.link().await;
    for round in 0..4 {
        kill_subscribers(&mut link).await;
        let batch = groups
            .iter()
            .map(|group| (group.as_str().into(), event(round)));
        let batch: Vec<_> = batch.collect();
        for _ in 0..3 {
            let outcomes = publisher.layer.publish_each(&batch).await;
            assert!(outcomes.iter().all(Result::is_ok));
        }
        loop {
            match hearer.heard().await {
                Heard::Gap(GapCause::Link) => break,
                // A position is heard before its group's events are subscribed: the history has the event.
                Heard::Recorded(..) | Heard::Unheard(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    for (group, number) in [("g0", 10), ("g599", 11)] {
        let at = record(&publisher, group, number).await.offset;
        loop {
            match hearer.heard().await {
                Heard::Recorded(from, heard, offset) if from == group && heard == number => {
                    assert_eq!((offset, at), (13, 13));
                    break;
                }
                Heard::Recorded(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_group_that_was_left_is_subscribed_no_more() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    let channels = [channel("acme", "g"), notices("g")];
    for _ in 0..3 {
        tenant.join("g").await;
        subscribed(&mut link, "g").await;
        tenant.layer.unsubscribe(&"g".into());
        wait_for_subscribers(&mut link, &channels, 0).await;
    }
    // Joined again before Redis has heard of the end.
    for _ in 0..50 {
        tenant.join("g").await;
        tenant.layer.unsubscribe(&"g".into());
    }
    tenant.join("g").await;
    record(&tenant, "g", 7).await;
    assert_eq!(tenant.heard().await, Heard::Recorded("g".into(), 7, 1));
}

#[tokio::test]
async fn a_recorded_publish_is_one_command() {
    let redis = Redis::start().await;
    let tenant = tenant(&redis);
    record(&tenant, "g", 0).await;
    let monitor = TcpStream::connect(("127.0.0.1", redis.port)).await.unwrap();
    let mut monitor = BufReader::new(monitor);
    monitor.write_all(b"MONITOR\r\n").await.unwrap();
    let mut line = String::new();
    monitor.read_line(&mut line).await.unwrap();
    assert_eq!(line, "+OK\r\n");
    record(&tenant, "g", 1).await;
    let mut link = redis.link().await;
    let _: String = ask(&mut link, "ECHO done").await;
    let mut commands = Vec::new();
    loop {
        let mut line = String::new();
        monitor.read_line(&mut line).await.unwrap();
        if line.contains("\"done\"") {
            break;
        }
        // What a script runs is marked, and the links ask for the server's role now and then.
        let own = !line.contains(" lua]") && line.contains("acme");
        if own {
            commands.push(line);
        }
    }
    assert_eq!(commands.len(), 1, "{commands:?}");
    assert!(commands[0].contains("\"EVALSHA\""), "{commands:?}");
}

async fn refused(tenant: &Tenant, hearer: &Tenant, kind: ErrorKind) {
    match tenant.layer.publish(&"g".into(), &event(13), None).await {
        Err(LayerError::NotRecorded(error)) => assert_eq!(error.kind, kind, "{error}"),
        other => panic!("{other:?}"),
    }
    let batch = [("g".into(), event(13)), ("plain1".into(), event(14))];
    let outcomes = tenant.layer.publish_each(&batch).await;
    assert!(
        matches!(outcomes[0], Err(LayerError::NotRecorded(_))),
        "{outcomes:?}"
    );
    // Groups without a history go on.
    assert!(matches!(outcomes[1], Ok(None)), "{outcomes:?}");
    assert_eq!(hearer.heard().await, Heard::Number("plain1".into(), 14));
    assert_eq!(hearer.heard_so_far(), []);
}

#[tokio::test]
async fn a_write_that_redis_refuses_is_not_published_and_said() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    tenant.join("g").await;
    tenant.join("plain1").await;
    record(&tenant, "g", 1).await;
    assert_eq!(tenant.heard().await, Heard::Recorded("g".into(), 1, 1));

    let _: () = ask(&mut link, "CONFIG SET maxmemory 1").await;
    refused(&tenant, &tenant, ErrorKind::Other).await;
    // Reading goes on, also of a history that would be new.
    assert_eq!(all(&tenant, "g").await, [(1, 1)]);
    assert_eq!(all(&tenant, "new").await, []);
    let _: () = ask(&mut link, "CONFIG SET maxmemory 0").await;
    assert_eq!(record(&tenant, "g", 2).await.offset, 2);
    assert_eq!(tenant.heard().await, Heard::Recorded("g".into(), 2, 2));

    // A user who may publish, and may not write the history; and one who may run no script.
    for (user, rights) in [
        ("reader", "+@all -xadd"),
        ("writer", "+@all -hset"),
        ("publisher", "+@all -evalsha"),
    ] {
        let set = format!("ACL SETUSER {user} on >p allkeys allchannels {rights}");
        let _: () = ask(&mut link, &set).await;
        let url = format!("redis://{user}:p@127.0.0.1:{}/0", redis.port);
        let other = replica(&url);
        let other = other.recording_on(std::slice::from_ref(&other.store), msgpack(), &rules());
        refused(&other, &tenant, ErrorKind::Permission).await;
    }
    // What was half done is undone: the epoch may be another, and no offset is given twice in one.
    let after = record(&tenant, "g", 3).await;
    assert_eq!(
        tenant.heard().await,
        Heard::Recorded("g".into(), 3, after.offset)
    );
    assert_eq!(all(&tenant, "g").await.last(), Some(&(after.offset, 3)));
}

#[tokio::test]
async fn a_replica_takes_no_record() {
    let (master, redis) = (Redis::start().await, Redis::start().await);
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    record(&tenant, "g", 1).await;
    let _: () = ask(&mut link, &format!("REPLICAOF 127.0.0.1 {}", master.port)).await;
    // It says that the event was not delivered, and why.
    let refused = tenant.layer.publish(&"g".into(), &event(2), None).await;
    let told = match &refused {
        Err(error @ LayerError::NotRecorded(_)) => error.to_string(),
        _ => panic!("{refused:?}"),
    };
    assert!(
        told.contains("not delivered") && told.contains("read only replica"),
        "{told}"
    );
}

#[tokio::test]
async fn an_epoch_is_renewed_by_one_of_those_who_ask() {
    let redis = Redis::start().await;
    let (first, second) = (tenant(&redis), tenant(&redis));
    let (group, old) = (GroupName::from("g"), record(&first, "g", 1).await);
    let renew = |tenant: &Tenant, lost: &Position| {
        let (layer, group, lost) = (tenant.layer.clone(), group.clone(), lost.clone());
        async move { layer.renew_history(&group, &lost).await.unwrap().unwrap() }
    };
    let (one, other) = tokio::join!(renew(&first, &old), renew(&second, &old));
    assert_eq!(one, other);
    assert_ne!(one.epoch, old.epoch);
    assert_eq!(all(&first, "g").await, []);
    let next = record(&second, "g", 2).await;
    assert_eq!((&next.epoch, next.offset), (&one.epoch, 1));
    assert_eq!(renew(&first, &old).await, next);
    assert_eq!(all(&first, "g").await, [(1, 2)]);
}

/// Back ends find their rules on every host, and record by the function as the gateway does by its script.
#[tokio::test]
async fn back_ends_find_rules_and_function_on_every_host_and_again_after_a_loss() {
    let mut servers = [Redis::start().await, Redis::start().await];
    let stores = stores(&servers);
    let replica = replica(&servers[0].url());
    let rules = [
        rule("plain.<slug:rest>", 0, MINUTES),
        rule("chat_<int:n>", 7, Duration::from_secs(60)),
    ];
    let tenant = replica.recording_on(&stores, msgpack(), &rules);
    for round in 0..2 {
        for server in &servers {
            let mut link = server.link().await;
            let deadline = Instant::now() + Duration::from_secs(10);
            let (text, sha) = loop {
                let text: Option<String> = ask(&mut link, "GET lockgate:acme:groups").await;
                if let Some(text) = &text {
                    let rules: serde_json::Value = serde_json::from_str(text).unwrap();
                    let sha = rules["record"].as_str().unwrap().to_owned();
                    let known: Vec<u8> = ask(&mut link, &format!("SCRIPT EXISTS {sha}")).await;
                    let function: redis::Value =
                        ask(&mut link, "FUNCTION LIST LIBRARYNAME lockgate").await;
                    if known == [1] && format!("{function:?}").contains("lockgate_record") {
                        break (rules, sha);
                    }
                }
                assert!(Instant::now() < deadline, "{text:?}");
                sleep(Duration::from_millis(20)).await;
            };
            assert_eq!(text["v"], 1);
            assert_eq!(
                text["groups"],
                serde_json::json!([
                    {"regex": "plain\\.[-a-zA-Z0-9_]+", "size": 0, "ttl_ms": 0},
                    {"regex": "chat\\_[0-9]+", "size": 7, "ttl_ms": 60000},
                ])
            );
            let group = format!("chat_{round}");
            let arguments = format!(
                "2 {} {} fresh 7 60000 {} {}",
                stream(&group),
                position(&group),
                notices(&group),
                channel("acme", &group),
            );
            let at: String = ask(&mut link, &format!("FCALL lockgate_record {arguments} x")).await;
            assert_eq!(at, "fresh 1");
            let at: String = ask(&mut link, &format!("EVALSHA {sha} {arguments} y")).await;
            assert_eq!(at, "fresh 2");
        }
        for server in &mut servers {
            server.kill();
            server.start_again().await;
        }
    }
    drop(tenant);
}
