//! Events that Channels took away before they were recorded: each loss is an offset without an event, and nothing else is.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use lockgate::channel_layer::{ChannelLayer, HistoryFrom, LayerError};
use lockgate::config::{GroupConfig, HistoryConfig, LayerConfig};

use super::recorded_core::{
    Core, attach, channels, config, flush, mailbox, offsets, query, replica, until,
};
use super::support::{Heard, Link, Redis};

const POSITION: &str = "lockgate:acme:position:{acme:group:g}";
/// Long enough for a busy machine, short enough to wait for.
const EXPIRY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

fn short() -> LayerConfig {
    LayerConfig {
        expiry: EXPIRY,
        ..config()
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A group with one event, which every replica has left as a killed one does: its own copies go unread.
async fn left(servers: &[Redis], config: &LayerConfig) -> (Core, Core, Link) {
    let (first, django) = (replica(servers, config), channels(servers, config));
    first.join("g").await;
    django.send("g", 0).await;
    assert_eq!(first.recorded("g", 1).await, offsets(0..1));
    first.layer.close().await;
    let link = servers[0].link().await;
    (replica(servers, config), django, link)
}

/// The offset of the newest position.
async fn newest(replica: &Core) -> u64 {
    let page = replica.layer.history(&"g".into(), HistoryFrom::END).await;
    page.unwrap().unwrap().end.offset
}

/// The time at which the mailbox was last seen empty lies this far back.
async fn emptied_before(link: &mut Link, ago: Duration) {
    let now: (u64, u64) = query(link, &["TIME"]).await;
    let then = now.0 * 1000 - ago.as_millis() as u64;
    let _: u64 = query(link, &["HSET", POSITION, "m", &then.to_string()]).await;
}

/// Before: the position of the first event still counted as the newest one, and a client that came back had everything.
#[tokio::test]
async fn a_mailbox_that_expired_is_an_offset_without_an_event() {
    let servers = [Redis::start().await];
    let (second, django, mut link) = left(&servers, &short()).await;
    for number in 1..4 {
        django.send("g", number).await;
    }
    let key = mailbox(&mut link, "g").await;
    eventually("the mailbox expires", async || {
        query::<u64>(&mut link, &["EXISTS", &key]).await == 0
    })
    .await;
    for _ in 0..2 {
        assert_eq!(newest(&second).await, 2, "once");
        assert_eq!(second.history("g").await, offsets(0..1));
    }
    second.join("g").await;
    django.send("g", 5).await;
    assert_eq!(second.recorded("g", 1).await, [(3, 5)]);
}

/// Sends events from number 1 on, until Channels has removed the first of them; returns the number of the last one.
async fn outlast(django: &Core, link: &mut Link) -> i64 {
    let key = mailbox(link, "g").await;
    let first = async |link: &mut Link| {
        let first: Vec<Vec<u8>> = query(link, &["ZRANGE", &key, "0", "0"]).await;
        first
    };
    django.send("g", 1).await;
    let oldest = first(link).await;
    let mut number = 1;
    eventually("Channels removes the first one", async || {
        number += 1;
        django.send("g", number).await;
        first(link).await != oldest
    })
    .await;
    number
}

/// This thread, and with it each task of a replica, stands still while Channels sends as in [`outlast`].
fn stand_still(servers: &[Redis]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let send = || {
        runtime.unwrap().block_on(async {
            let mut link = servers[0].link().await;
            outlast(&channels(servers, &short()), &mut link).await
        })
    };
    std::thread::scope(|threads| threads.spawn(send).join().unwrap());
}

/// A replica in a group with one event, which has heard of each event so far.
async fn watching(servers: &[Redis]) -> Core {
    let (replica, django) = (replica(servers, &short()), channels(servers, &short()));
    replica.join("g").await;
    django.send("g", 0).await;
    replica.heard_with_its_copy().await;
    replica.settle().await;
    assert_eq!(replica.history("g").await, offsets(0..1));
    replica
}

/// The second offset is empty: it stands for the events that are gone.
async fn lacks_the_second(replica: &Core) {
    let read = replica.history("g").await;
    assert_eq!(read[0], (1, 0));
    assert_eq!(read[1].0, 3, "the loss has no offset: {read:?}");
    assert!(read[1].1 > 1);
}

/// Before: a read or a move that ran before the reading link had noticed said that the replica had heard of each event.
#[tokio::test]
async fn a_process_that_stood_still_does_not_claim_to_have_heard_meanwhile() {
    let servers = [Redis::start().await];
    let replica = watching(&servers).await;
    stand_still(&servers);
    // No other task has run since. This read may be too late for its time limit, and runs on Redis all the same.
    drop(replica.layer.history(&"g".into(), HistoryFrom::END).await);
    lacks_the_second(&replica).await;
}

/// Before: a call said how long ago it had heard, and was believed as of the time at which it came to Redis.
#[tokio::test]
async fn a_call_that_is_under_way_for_long_does_not_claim_to_have_heard_meanwhile() {
    let servers = [Redis::start().await];
    let replica = watching(&servers).await;
    let group = "g".into();
    let mut read = std::pin::pin!(replica.layer.history(&group, HistoryFrom::END));
    assert!(read.as_mut().now_or_never().is_none());
    stand_still(&servers);
    drop(read.await);
    lacks_the_second(&replica).await;
}

/// A mailbox that gets an event now and then does not expire, and Channels removes the oldest alone.
#[tokio::test]
async fn events_that_waited_too_long_are_an_offset_without_an_event() {
    let servers = [Redis::start().await];
    let (second, django, mut link) = left(&servers, &short()).await;
    let number = outlast(&django, &mut link).await;
    let read = second.history("g").await;
    assert_eq!(read[0], (1, 0));
    assert_eq!(read[1].0, 3, "the second offset is empty: {read:?}");
    assert!(read[1].1 > 1);
    assert_eq!(read.last(), Some(&(newest(&second).await, number)));
}

/// The bound is the time since the mailbox was empty, where this replica has not seen each event since.
#[tokio::test]
async fn what_waits_after_a_long_silence_is_complete() {
    let servers = [Redis::start().await];
    let (second, django, mut link) = left(&servers, &config()).await;
    let long = Duration::from_secs(100);
    emptied_before(&mut link, long).await;
    django.send("g", 1).await;
    assert_eq!(second.history("g").await, offsets(0..2), "one event");
    second.join("g").await;
    second.settle().await;
    emptied_before(&mut link, long).await;
    for number in 2..5 {
        django.send("g", number).await;
    }
    assert_eq!(second.recorded("g", 3).await, offsets(0..5)[2..], "seen");
    emptied_before(&mut link, long).await;
    second.layer.close().await;
    let third = replica(&servers, &config());
    for number in 5..7 {
        django.send("g", number).await;
    }
    assert_eq!(third.history("g").await, offsets(0..7), "noted at the end");
    emptied_before(&mut link, long).await;
    for number in 7..9 {
        django.send("g", number).await;
    }
    // Another one may have been before these.
    assert_eq!(third.history("g").await[7..], [(9, 7), (10, 8)]);
}

/// Before: where a replica was killed in a group that had been quiet for a while, what waited after that was taken for incomplete.
#[tokio::test]
async fn a_replica_notes_the_time_in_a_group_that_is_quiet() {
    let servers = [Redis::start().await];
    let (second, django, mut link) = left(&servers, &short()).await;
    second.join("g").await;
    second.settle().await;
    emptied_before(&mut link, Duration::from_secs(100)).await;
    eventually("the time is noted", async || {
        let now: (u64, u64) = query(&mut link, &["TIME"]).await;
        let noted: u64 = query(&mut link, &["HGET", POSITION, "m"]).await;
        noted + 2000 > now.0 * 1000
    })
    .await;
    assert_eq!(newest(&second).await, 1, "nothing is lost");
    django.send("g", 1).await;
    assert_eq!(second.recorded("g", 1).await, [(2, 1)]);
}

/// Before: the first replica that joined a group told its clients of a gap if the API had sent to it.
#[tokio::test]
async fn a_history_that_began_without_a_member_lacks_nothing() {
    let servers = [Redis::start().await];
    let (first, django) = (replica(&servers, &config()), channels(&servers, &config()));
    assert_eq!(first.send("g", 0).await, Some(1));
    assert_eq!(newest(&first).await, 1);
    first.join("g").await;
    first.settle().await;
    assert_eq!(newest(&first).await, 1);
    django.send("g", 1).await;
    assert_eq!(first.recorded("g", 1).await, [(2, 1)]);
    // From here on there is something to lose.
    let mut link = servers[0].link().await;
    let key = mailbox(&mut link, "g").await;
    let _: u64 = query(&mut link, &["DEL", &key]).await;
    assert_eq!(newest(&first).await, 3);
}

/// Others may write into the position. Before: the event of each publish was recorded and published, and refused all the same.
#[tokio::test]
async fn a_time_that_is_none_refuses_no_event() {
    let servers = [Redis::start().await];
    let (second, django, mut link) = left(&servers, &config()).await;
    let mut expected = 1;
    for forged in [
        "",
        "x",
        "nan",
        "-1",
        "1e9",
        "9999999999999999",
        "99999999999999999999",
    ] {
        for number in 1..3 {
            django.send("g", number).await;
        }
        let _: u64 = query(&mut link, &["HSET", POSITION, "m", forged]).await;
        // In doubt an offset is left empty.
        expected += 4;
        assert_eq!(second.send("g", 3).await, Some(expected), "{forged:?}");
        let noted: String = query(&mut link, &["HGET", POSITION, "m"]).await;
        let noted: u64 = noted.parse().expect("a time");
        let now: (u64, u64) = query(&mut link, &["TIME"]).await;
        assert!(noted.abs_diff(now.0 * 1000) < 20_000, "{forged:?}: {noted}");
    }
}

/// Before: each part of a long queue was taken for incomplete.
#[tokio::test]
async fn a_long_queue_is_an_empty_offset_once() {
    let servers = [Redis::start().await];
    let many = LayerConfig {
        capacity: 1000,
        ..config()
    };
    let (second, django, mut link) = left(&servers, &many).await;
    for number in 0..600 {
        django.send("g", number).await;
    }
    emptied_before(&mut link, Duration::from_secs(100)).await;
    // One call moves 256.
    for moved in [256, 512, 600] {
        assert_eq!(newest(&second).await, 2 + moved);
    }
}

/// A member that lapsed, or that others removed, gets no events.
#[tokio::test]
async fn a_member_that_was_gone_is_an_offset_without_an_event() {
    let servers = [Redis::start().await];
    let (second, django, mut link) = left(&servers, &config()).await;
    let group = "acme:group:g";
    let member: Vec<String> = query(&mut link, &["ZRANGE", group, "0", "-1"]).await;
    let _: u64 = query(&mut link, &["ZADD", group, "1000", &member[0]]).await;
    django.send("g", 1).await;
    second.join("g").await;
    assert_eq!(second.heard().await, Heard::Unheard("g".into(), 2));
    django.send("g", 2).await;
    assert_eq!(second.recorded("g", 1).await, [(3, 2)]);
    // A second replica finds the member there.
    let third = replica(&servers, &config());
    third.join("g").await;
    assert_eq!(newest(&third).await, 3);
}

/// As an eviction does it.
#[tokio::test]
async fn a_mailbox_that_was_deleted_is_an_offset_without_an_event() {
    let servers = [Redis::start().await];
    let (replica, django) = (replica(&servers, &config()), channels(&servers, &config()));
    let mut link = servers[0].link().await;
    replica.join("g").await;
    django.send("g", 1).await;
    assert_eq!(replica.recorded("g", 1).await, [(1, 1)]);
    let key = mailbox(&mut link, "g").await;
    let _: u64 = query(&mut link, &["DEL", &key]).await;
    assert_eq!(newest(&replica).await, 2);
    assert_eq!(replica.heard().await, Heard::Unheard("g".into(), 2));
    let ttl: i64 = query(&mut link, &["TTL", &key]).await;
    assert!(ttl > 3600, "as long as the position: {ttl}");
}

/// A loss that cannot be noted is no page, which would be taken for complete.
#[tokio::test]
async fn a_loss_that_cannot_be_noted_is_an_error_of_the_read() {
    let servers = [Redis::start().await];
    let (second, _, mut link) = left(&servers, &config()).await;
    let key = mailbox(&mut link, "g").await;
    let _: u64 = query(&mut link, &["DEL", &key]).await;
    let limit = async |link: &mut Link, bytes: &str| {
        let _: () = query(link, &["CONFIG", "SET", "maxmemory", bytes]).await;
    };
    limit(&mut link, "1").await;
    let page = second.layer.history(&"g".into(), HistoryFrom::END).await;
    assert!(matches!(page, Err(LayerError::Publish(_))), "{page:?}");
    limit(&mut link, "0").await;
    assert_eq!(newest(&second).await, 2);
    assert_eq!(second.history("g").await, offsets(0..1));
}

/// Before: events were lost once the last socket had been away for longer than Channels lets them wait.
#[tokio::test]
async fn a_group_without_sockets_is_recorded_as_long_as_its_history_lives() {
    let servers = [Redis::start().await];
    let mut link = servers[0].link().await;
    let ttl = 3 * EXPIRY;
    let rule = GroupConfig {
        name: "<str:name>".to_owned(),
        history: Some(HistoryConfig { size: 500, ttl }),
        ..GroupConfig::default()
    };
    let (first, django) = (
        attach(&servers, &short(), &[rule]),
        channels(&servers, &short()),
    );
    first.join("g").await;
    let key = mailbox(&mut link, "g").await;
    first.layer.unsubscribe(&"g".into());
    let left = Instant::now();
    let mut sent = 0;
    while left.elapsed() < EXPIRY + EXPIRY / 2 {
        django.send("g", sent).await;
        sent += 1;
        first.settle().await;
        eventually("the event is moved", async || {
            query::<u64>(&mut link, &["ZCARD", &key]).await == 1
        })
        .await;
    }
    assert_eq!(newest(&first).await, sent as u64, "nothing is lost");
    let members = async |link: &mut Link| -> u64 { query(link, &["ZCARD", "acme:group:g"]).await };
    assert_eq!(members(&mut link).await, 2);
    eventually("it leaves the group", async || {
        members(&mut link).await == 1
    })
    .await;
    assert!(left.elapsed() >= ttl);
    // A group that is joined again stays, also behind the end of the first time.
    first.join("g").await;
    first.layer.unsubscribe(&"g".into());
    first.join("g").await;
    tokio::time::sleep(ttl + Duration::from_millis(200)).await;
    assert_eq!(members(&mut link).await, 2);
}

/// A look before the group is joined again finds the flush first. What is sent from then until the join reaches no mailbox, and that
/// is a second loss: a client that had read up to the first one would miss it.
#[tokio::test]
async fn a_look_between_a_flush_and_the_next_join_leaves_two_offsets_empty() {
    let servers = [Redis::start().await];
    let (replica, django) = (replica(&servers, &config()), channels(&servers, &config()));
    let mut link = servers[0].link().await;
    replica.join("g").await;
    django.send("g", 1).await;
    replica.heard_with_its_copy().await;
    flush(&replica, &mut link).await;
    for _ in 0..3 {
        assert_eq!(newest(&replica).await, 2, "of several looks the first one");
    }
    assert_eq!(replica.heard().await, Heard::Unheard("g".into(), 2));
    django.send("g", 2).await;
    until(&mut link, "acme:group:g").await;
    django.send("g", 3).await;
    assert_eq!(replica.told("g").await, [3]);
    assert_eq!(replica.recorded("g", 1).await, [(4, 3)]);
    assert_eq!(replica.history("g").await, [(1, 1), (4, 3)]);
}
