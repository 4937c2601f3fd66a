//! Commands: the values that have no meaning, and the cost of a lost link.

use std::time::{Duration, Instant};

use lockgate::error::ErrorKind;
use lockgate::stores::key_read::{KeyRead, Unreadable};

use super::support::*;

#[tokio::test]
async fn a_key_of_another_type_is_never_taken_for_an_absent_one() {
    let redis = Redis::start().await;
    let store = replica(&redis.url()).store;
    let mut link = redis.link().await;
    redis::cmd("RPUSH")
        .arg("list")
        .arg("x")
        .query_async::<()>(&mut link)
        .await
        .unwrap();
    store
        .set_ex("text", b"\x00v", Duration::from_millis(60_500))
        .await
        .unwrap();
    let ttl: i64 = redis::cmd("PTTL")
        .arg("text")
        .query_async(&mut link)
        .await
        .unwrap();
    assert!((59_000..=60_500).contains(&ttl), "{ttl}");
    store
        .set_ex("empty", b"", Duration::from_secs(60))
        .await
        .unwrap();
    let (read, key) = (KeyRead::certain, String::from);
    let reads = ["text", "absent", "list"].map(|name| read(key(name), 2));
    assert_eq!(
        store.get_each(reads).await.unwrap(),
        [
            Ok(Some(b"\x00v".to_vec())),
            Ok(None),
            Err(Unreadable::WrongType)
        ]
    );
    // The presence of a key of any type parts the empty one from the absent one, which would count as one otherwise.
    let reads = [
        read(key("text"), 1),
        KeyRead::presence(key("list")),
        read(key("absent"), 1),
        KeyRead::presence(key("absent")),
        read(key("empty"), 1),
        KeyRead::text(key("empty"), 1),
    ];
    assert_eq!(
        store.get_each(reads).await.unwrap(),
        [
            Err(Unreadable::TooLong),
            Ok(Some(Vec::new())),
            Ok(None),
            Ok(None),
            Err(Unreadable::Empty),
            Ok(None)
        ]
    );
    assert_eq!(store.get_each([]).await.unwrap(), []);
}

#[tokio::test]
async fn reads_survive_a_lost_link() {
    let redis = Redis::start().await;
    let store = replica(&redis.url()).store;
    let mut link = redis.link().await;
    store
        .set_ex("k", b"v", Duration::from_secs(60))
        .await
        .unwrap();
    for _ in 0..5 {
        let mut kill = redis::cmd("CLIENT");
        let kill = kill
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes");
        kill.query_async::<()>(&mut link).await.unwrap();
        let read = KeyRead::text("k".into(), 1);
        let values = store.get_each([read]).await.unwrap();
        assert_eq!(values, [Ok(Some(b"v".to_vec()))]);
    }
}

#[tokio::test]
async fn an_outage_is_answered_quickly_and_ends_by_itself() {
    let mut redis = Redis::start().await;
    let store = replica(&redis.url()).store;
    store.ping().await.unwrap();
    redis.kill();
    // The first ones may connect until their time is over; those after them are answered from the pause that follows.
    for limit in [2500, 2500, 1000, 1000] {
        let started = Instant::now();
        let error = store.ping().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "{error}");
        assert!(
            started.elapsed() < Duration::from_millis(limit),
            "{:?}",
            started.elapsed()
        );
    }
    redis.start_again().await;
    let back = Instant::now();
    while store.ping().await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_pool_gives_connections_that_may_block() {
    let redis = Redis::start().await;
    let store = replica(&redis.url()).store;
    let mut own = store.pool().unwrap().get().await.unwrap();
    let mut pop = redis::cmd("BLPOP");
    let popped: Option<(String, String)> = pop
        .arg("empty")
        .arg("1.2")
        .query_async(&mut own)
        .await
        .unwrap();
    assert_eq!(popped, None);
}
