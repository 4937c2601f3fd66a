//! A Redis that starts again: the epoch ends, the offsets go on, and positions tell lost events from those of the same offsets.

use std::time::{Duration, Instant};

use lockgate::channel_layer::{ChannelLayer as _, HistoryFrom, LayerError};
use lockgate::position::{PlaceInHistory, Position};
use tokio::time::sleep;

use super::recorded::{ask, notices, position, read, record, stream, tenant};
use super::support::*;

/// Asks until the tenant's own link has come back.
async fn once_back<T>(mut attempt: impl AsyncFnMut() -> Result<T, LayerError>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A call of the function that back ends record by.
fn call(group: &str) -> String {
    format!(
        "FCALL lockgate_record 2 {} {} called{group} 100 600000 {} {} x",
        stream(group),
        position(group),
        notices(group),
        channel("acme", group),
    )
}

async fn wait_for_function(link: &mut Link) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found: redis::Value = ask(link, "FUNCTION LIST LIBRARYNAME lockgate").await;
        if format!("{found:?}").contains("lockgate_record") {
            return;
        }
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(20)).await;
    }
}

/// The first one to record or to read ends the epoch, whoever it is.
#[tokio::test]
async fn each_way_to_record_sees_another_process() {
    let mut redis = Redis::start().await;
    let tenant = tenant(&redis);
    let mut link = redis.link().await;
    wait_for_function(&mut link).await;
    for (group, records) in [("called", 1), ("published", 1), ("read", 0)] {
        record(&tenant, group, 1).await;
        let kept = record(&tenant, group, 2).await;
        let _: String = ask(&mut link, "SAVE").await;
        let lost = record(&tenant, group, 3).await;
        redis.kill();
        redis.start_again().await;
        link = redis.link().await;
        match group {
            "called" => {
                let at: String = ask(&mut link, &call(group)).await;
                assert_eq!(at, "calledcalled 3");
            }
            "published" => {
                let group = group.into();
                let publish = async || tenant.layer.publish(&group, &event(4), None).await;
                let at = once_back(publish).await.unwrap();
                assert!(at.offset == 3 && at.epoch != kept.epoch, "{at:?}");
            }
            _ => {}
        }
        let group = group.into();
        let end = HistoryFrom::from(&lost);
        let again = async || tenant.layer.history(&group, end.clone()).await;
        let page = once_back(again).await.unwrap();
        assert_ne!(page.end.epoch, kept.epoch);
        assert_eq!(page.end.offset, 2 + records, "{group}");
        // The events after the place where both are the same.
        assert_eq!(page.entries.len() as u64, records, "{group}");
        let place = |position: &Position| page.past.find(&page.end.epoch, position);
        assert_eq!(place(&kept), PlaceInHistory::Kept(2));
        assert_eq!(place(&lost), PlaceInHistory::Broken(kept.clone()));
        // It is noted by one that had it, and not by one that had less.
        for (had, expected) in [
            (&kept, PlaceInHistory::Kept(2)),
            (&lost, PlaceInHistory::Broken(kept.clone())),
        ] {
            let renewed = tenant.layer.renew_history(&group, had).await;
            assert_eq!(renewed.unwrap(), Some(page.end.clone()));
            let page = read(&tenant, group.as_str(), HistoryFrom::END).await;
            assert_eq!(page.past.find(&page.end.epoch, &kept), expected);
        }
    }
}

#[tokio::test]
async fn positions_of_four_processes_before_stay_valid() {
    let mut redis = Redis::start().await;
    let tenant = tenant(&redis);
    let mut known = vec![record(&tenant, "g", 0).await];
    for number in 1..6 {
        let _: String = ask(&mut redis.link().await, "SAVE").await;
        redis.kill();
        redis.start_again().await;
        let group = "g".into();
        let publish = async || tenant.layer.publish(&group, &event(number), None).await;
        known.push(once_back(publish).await.unwrap());
    }
    let offsets: Vec<u64> = known.iter().map(|at| at.offset).collect();
    assert_eq!(offsets, [1, 2, 3, 4, 5, 6]);
    let page = read(&tenant, "g", HistoryFrom::END).await;
    for (index, at) in known.iter().enumerate() {
        let expected = match index {
            0 => PlaceInHistory::Foreign,
            _ => PlaceInHistory::Kept(at.offset),
        };
        assert_eq!(page.past.find(&page.end.epoch, at), expected, "{index}");
    }
}

/// The question costs a third of a record.
#[tokio::test]
async fn a_busy_group_asks_for_no_process() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    let events: Vec<_> = (0..200).map(|n| ("g".into(), event(n))).collect();
    let asked = async |link: &mut Link| {
        let stats: String = ask(link, "INFO commandstats").await;
        let line = stats.lines().find(|line| line.starts_with("cmdstat_info:"));
        let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next());
        calls.map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    let before = asked(&mut link).await;
    for recorded in tenant.layer.publish_each(&events).await {
        recorded.unwrap();
    }
    let calls = asked(&mut link).await - before;
    assert!(calls < 100, "{calls} of 200");
}

/// Its records are as ever, and no refusal stands in the server's log.
#[tokio::test]
async fn a_user_that_may_not_ask_for_the_process_records() {
    let redis = Redis::start().await;
    let (tenant, mut link) = (tenant(&redis), redis.link().await);
    wait_for_function(&mut link).await;
    let _: String = ask(&mut link, "ACL SETUSER u on >p ~* &* +@all -info").await;
    let client = redis::Client::open(redis.url().replace("//", "//u:p@")).unwrap();
    let mut user = client.get_multiplexed_async_connection().await.unwrap();
    for offset in 1..=2 {
        let at: String = ask(&mut user, &call("g")).await;
        assert_eq!(at, format!("calledg {offset}"));
    }
    let log: Vec<redis::Value> = ask(&mut link, "ACL LOG").await;
    assert!(log.is_empty(), "{log:?}");
    // Another one's record names the process, and ends no epoch.
    assert_eq!(record(&tenant, "g", 1).await.epoch.to_string(), "calledg");
    let run: Option<String> = ask(&mut link, &format!("HGET {} run", position("g"))).await;
    assert_eq!(run.map(|run| run.len()), Some(16));
}
