//! Lost links, stopped servers, missing rights: what is announced, how fast it heals, and that nothing comes twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockgate::channel_layer::{ChannelLayer, LayerError};
use lockgate::error::ErrorKind;
use lockgate::metrics::GapCause;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::support::*;

on_each_server!(
    a_killed_link_is_one_gap_for_every_tenant_and_everything_is_subscribed_again,
    a_restart_under_load_heals_within_two_seconds_with_one_gap_and_no_duplicate,
    a_join_while_redis_is_away_waits_for_it,
    a_join_gives_up_after_five_seconds,
    ten_thousand_groups_are_subscribed_again_within_two_seconds,
    a_stopped_redis_is_noticed_within_three_seconds_and_a_short_pause_is_none,
    a_missing_permission_concerns_one_tenant_and_heals_when_granted,
    a_right_that_is_taken_and_given_back_is_a_gap,
    a_wrong_password_is_told_apart_from_a_server_that_is_down,
    a_busy_script_fails_publishes_and_delays_joins,
    a_burst_beyond_redis_output_limit_does_not_cut_the_reader,
);

/// Faults 1 and 25.
async fn a_killed_link_is_one_gap_for_every_tenant_and_everything_is_subscribed_again(
    server: Server,
) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let tenants = [replica.tenant("a"), replica.tenant("b")];
    let mut link = redis.link().await;
    for tenant in &tenants {
        tenant.join("g").await;
    }
    for round in 0..3 {
        kill_subscribers(&mut link).await;
        for tenant in &tenants {
            assert_eq!(tenant.heard().await, server.gap("g"));
            tenant.send("g", round).await;
            assert_eq!(tenant.heard().await, Heard::Number("g".into(), round));
        }
    }
    assert!(
        tenants
            .iter()
            .all(|tenant| tenant.heard_so_far().is_empty())
    );
}

/// Faults 1 and 2.
async fn a_restart_under_load_heals_within_two_seconds_with_one_gap_and_no_duplicate(
    server: Server,
) {
    let mut redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    tenant.join("g").await;
    let publisher = replica(&redis.url()).tenant("acme");
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
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    sleep(Duration::from_millis(300)).await;
    redis.kill();
    sleep(Duration::from_millis(1500)).await;
    redis.start_again().await;
    let back = Instant::now();
    let mut heard = tenant.heard_so_far();
    let gap = server.gap("g");
    while !heard.contains(&gap) {
        heard.push(tenant.heard().await);
    }
    assert!(
        back.elapsed() < Duration::from_secs(2),
        "{:?}",
        back.elapsed()
    );
    let number = sent.load(Ordering::Relaxed) + 20;
    while !matches!(heard.last(), Some(Heard::Number(_, n)) if *n > number) {
        heard.push(tenant.heard().await);
    }
    assert!(
        back.elapsed() < Duration::from_secs(4),
        "{:?}",
        back.elapsed()
    );
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    assert_eq!(heard.iter().filter(|signal| **signal == gap).count(), 1);
    let numbers: Vec<i64> = heard
        .iter()
        .filter_map(|signal| match signal {
            Heard::Number(_, number) => Some(*number),
            _ => None,
        })
        .collect();
    assert!(numbers.is_sorted() && all_differ(&numbers));
}

async fn a_join_while_redis_is_away_waits_for_it(server: Server) {
    let mut redis = Redis::of(server).await;
    let tenant = Arc::new(replica(&redis.url()).tenant("acme"));
    tenant.join("first").await;
    redis.kill();
    let joining = tokio::spawn({
        let tenant = tenant.clone();
        async move { tenant.join("second").await }
    });
    sleep(Duration::from_millis(500)).await;
    assert!(!joining.is_finished());
    redis.start_again().await;
    timeout(Duration::from_secs(2), joining)
        .await
        .unwrap()
        .unwrap();
    let mut link = redis.link().await;
    let reached = publish(&mut link, &channel("acme", "second"), &payload(1)).await;
    assert_eq!(reached, 1);
}

async fn a_join_gives_up_after_five_seconds(server: Server) {
    let mut redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    tenant.join("first").await;
    redis.kill();
    let started = Instant::now();
    let joined = tenant.layer.subscribe(&"g".into()).await;
    assert!(
        matches!(joined, Err(LayerError::Unavailable(ErrorKind::Io))),
        "{joined:?}"
    );
    let took = started.elapsed();
    assert!((4900..6000).contains(&took.as_millis()), "{took:?}");
    assert!(!tenant.layer.ready().await);
}

/// Fault 3, with a fifth of the groups.
async fn ten_thousand_groups_are_subscribed_again_within_two_seconds(server: Server) {
    let redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    let groups: Vec<String> = (0..10_000).map(|n| format!("g{n}")).collect();
    join_all(groups.iter().map(|group| tenant.join(group))).await;
    let channels: Vec<String> = groups.iter().map(|group| channel("acme", group)).collect();
    let mut link = redis.link().await;
    let started = Instant::now();
    kill_subscribers(&mut link).await;
    let gap = tenant.heard().await;
    assert!(matches!(gap, Heard::Gap(GapCause::Link) | Heard::Missed(_)));
    if server == Server::Cluster {
        // Each group is told by itself.
        wait_for_subscribers(&mut link, &channels, 10_000).await;
    }
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(subscribed_once(&mut link, &channels).await, 10_000);
}

/// Faults 4 and 6.
async fn a_stopped_redis_is_noticed_within_three_seconds_and_a_short_pause_is_none(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let tenant = replica.tenant("acme");
    tenant.join("g").await;
    redis.stop();
    sleep(Duration::from_millis(600)).await;
    redis.resume();
    tenant.send("g", 1).await;
    assert_eq!(tenant.heard().await, Heard::Number("g".into(), 1));

    redis.stop();
    let started = Instant::now();
    let ping = replica.store.ping().await.unwrap_err();
    assert_eq!(ping.kind, ErrorKind::Timeout);
    assert!(started.elapsed() < Duration::from_millis(1500));
    sleep(Duration::from_millis(3200).saturating_sub(started.elapsed())).await;
    redis.resume();
    assert_eq!(tenant.heard().await, server.gap("g"));
    tenant.send("g", 2).await;
    assert_eq!(tenant.heard().await, Heard::Number("g".into(), 2));
    assert_eq!(tenant.heard_so_far(), []);
}

/// Fault 20: one tenant's missing right is that tenant's alone, also where its names go in one batch with others'.
async fn a_missing_permission_concerns_one_tenant_and_heals_when_granted(server: Server) {
    let redis = Redis::of(server).await;
    let mut link = redis.link().await;
    acl(
        &mut link,
        &[
            "u",
            "on",
            ">pw",
            "+@all",
            "resetchannels",
            "&good__group__*",
            "&lockgate::*",
        ],
    )
    .await;
    let replica = replica(&redis.url_for("u:pw"));
    let (good, bad) = (replica.tenant("good"), replica.tenant("bad"));
    let groups: Vec<String> = (0..20).map(|n| format!("g{n}")).collect();
    let (joined, refused) = tokio::join!(
        join_all(
            groups
                .iter()
                .map(async |group| good.layer.subscribe(&group.as_str().into()).await)
        ),
        join_all(
            groups
                .iter()
                .map(async |group| bad.layer.subscribe(&group.as_str().into()).await)
        ),
    );
    assert!(joined.iter().all(Result::is_ok), "{joined:?}");
    let denied = |outcome: &Result<(), LayerError>| {
        matches!(outcome, Err(LayerError::Unavailable(ErrorKind::Permission)))
    };
    assert!(refused.iter().all(denied), "{refused:?}");
    let publish = bad
        .layer
        .publish(&"g0".into(), &event(1), None)
        .await
        .unwrap_err();
    assert_eq!(publish.kind(), Some(ErrorKind::Permission));
    good.send("g0", 1).await;
    assert_eq!(good.heard().await, Heard::Number("g0".into(), 1));

    acl(&mut link, &["u", "&bad__group__*"]).await;
    bad.join("g0").await;
    bad.send("g0", 2).await;
    // The other groups are wanted still: they are asked for again, and nothing was ever missed there.
    assert_eq!(bad.heard().await, Heard::Number("g0".into(), 2));
    let channels: Vec<String> = groups.iter().map(|group| channel("bad", group)).collect();
    let started = Instant::now();
    while subscribed_once(&mut link, &channels).await < 20 {
        assert!(started.elapsed() < Duration::from_secs(8));
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bad.heard_so_far(), []);
}

/// Fault 21: Redis cuts the link when it takes the right away.
async fn a_right_that_is_taken_and_given_back_is_a_gap(server: Server) {
    let redis = Redis::of(server).await;
    let mut link = redis.link().await;
    acl(&mut link, &["u", "on", ">pw", "+@all", "allchannels"]).await;
    let replica = replica(&redis.url_for("u:pw"));
    let (good, bad) = (replica.tenant("good"), replica.tenant("bad"));
    good.join("g").await;
    bad.join("g").await;
    acl(
        &mut link,
        &["u", "resetchannels", "&good__group__*", "&lockgate::*"],
    )
    .await;
    assert_eq!(good.heard().await, server.gap("g"));
    // On a cluster a group is told once it is heard again.
    if server == Server::One {
        assert_eq!(bad.heard().await, server.gap("g"));
    }
    good.send("g", 1).await;
    assert_eq!(good.heard().await, Heard::Number("g".into(), 1));
    acl(&mut link, &["u", "&bad__group__*"]).await;
    // Its own gap lasted until now.
    let healed = timeout(Duration::from_secs(7), bad.inbox.filled()).await;
    assert!(healed.is_ok());
    assert_eq!(bad.heard().await, server.gap("g"));
    bad.send("g", 2).await;
    assert_eq!(bad.heard().await, Heard::Number("g".into(), 2));
    assert_eq!(good.heard_so_far(), []);
}

/// Fault 22.
async fn a_wrong_password_is_told_apart_from_a_server_that_is_down(server: Server) {
    let redis = Redis::of(server).await;
    let mut link = redis.link().await;
    acl(
        &mut link,
        &["u", "on", ">right", "+@all", "~*", "allchannels"],
    )
    .await;
    let replica = replica(&redis.url_for("u:wrong"));
    let tenant = replica.tenant("acme");
    let group = "g".into();
    let (joined, pinged) = tokio::join!(tenant.layer.subscribe(&group), replica.store.ping());
    assert!(
        matches!(joined, Err(LayerError::Unavailable(ErrorKind::Auth))),
        "{joined:?}"
    );
    let pinged = pinged.unwrap_err();
    assert_eq!(pinged.kind, ErrorKind::Auth);
    assert!(!pinged.to_string().contains("wrong"), "{pinged}");
    acl(&mut link, &["u", ">wrong"]).await;
    tenant.join("g").await;
}

/// Fault 7.
async fn a_busy_script_fails_publishes_and_delays_joins(server: Server) {
    let redis = Redis::of(server).await;
    let mut link = redis.link().await;
    let replica = replica(&redis.url());
    let tenant = replica.tenant("acme");
    tenant.join("g").await;
    redis::cmd("CONFIG")
        .arg("SET")
        .arg("busy-reply-threshold")
        .arg(100)
        .query_async::<()>(&mut link)
        .await
        .unwrap();
    let mut script = redis.link().await;
    let busy = tokio::spawn(async move {
        let lua = "local t = redis.call('TIME') local s = t[1] + t[2] / 1000000 while true do local n = redis.call('TIME') if n[1] + n[2] / 1000000 > s + 1.2 then return 1 end end";
        redis::cmd("EVAL")
            .arg(lua)
            .arg(0)
            .query_async::<()>(&mut script)
            .await
            .unwrap();
    });
    sleep(Duration::from_millis(400)).await;
    let error = tenant
        .layer
        .publish(&"g".into(), &event(1), None)
        .await
        .unwrap_err();
    assert!(error.kind().is_some(), "{error}");
    timeout(Duration::from_secs(5), tenant.join("late"))
        .await
        .unwrap();
    busy.await.unwrap();
    tenant.send("late", 2).await;
    assert_eq!(tenant.heard().await, Heard::Number("late".into(), 2));
}

/// Fault 24: Redis cuts a subscriber that does not read; ours always reads, so the limit never hits it.
async fn a_burst_beyond_redis_output_limit_does_not_cut_the_reader(server: Server) {
    let redis = Redis::of(server).await;
    let mut link = redis.link().await;
    redis::cmd("CONFIG")
        .arg("SET")
        .arg("client-output-buffer-limit")
        .arg("pubsub 1mb 1mb 60")
        .query_async::<()>(&mut link)
        .await
        .unwrap();
    let tenant = replica(&redis.url()).tenant("acme");
    tenant.join("g").await;
    // 20 MB in pieces of 200 KB: twenty times the limit in all, never the limit at once.
    for _ in 0..100 {
        let mut pipe = redis::pipe();
        for number in 0..10 {
            let mut event = event(number);
            event.set("pad", "x".repeat(20_000).into());
            let payload = tenant.layer.codec().encode(&event).unwrap();
            let mut publish = link.publishing();
            publish.arg(channel("acme", "g")).arg(payload);
            pipe.add_command(publish).ignore();
        }
        pipe.exec_async(&mut link).await.unwrap();
    }
    assert_eq!(tenant.numbers(1000).await.len(), 1000);
}

/// Fault 13: the far side of a split brain takes everything and delivers nothing. It used to take up to 4.25 s to notice.
#[tokio::test]
async fn a_link_that_hears_nothing_is_replaced_and_announced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let links = Arc::new(AtomicI64::new(0));
    let deaf = tokio::spawn({
        let links = links.clone();
        async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer_without_delivering(stream, links.clone()));
            }
        }
    });
    let tenant = replica(&format!("redis://127.0.0.1:{port}")).tenant("acme");
    tenant.join("g").await;
    let started = Instant::now();
    assert!(
        timeout(Duration::from_secs(7), tenant.inbox.filled())
            .await
            .is_ok()
    );
    assert_eq!(tenant.heard().await, Heard::Gap(GapCause::Canary));
    // The first canary may have left before; the second one leaves when the first is missed.
    let took = started.elapsed();
    println!("noticed after {took:?}");
    assert!(took > Duration::from_millis(500), "{took:?}");
    assert!(links.load(Ordering::Relaxed) >= 2);
    deaf.abort();
}

/// A master that confirms subscriptions, answers PING and takes publishes, and delivers none.
async fn answer_without_delivering(mut stream: tokio::net::TcpStream, links: Arc<AtomicI64>) {
    let mut input = String::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        input.push_str(str::from_utf8(&buffer[..count]).unwrap());
        let mut words = input
            .split("\r\n")
            .filter(|word| !word.starts_with(['*', '$']));
        let mut out = String::new();
        while let Some(word) = words.next() {
            match word {
                "PING" => out.push_str("+PONG\r\n"),
                "ROLE" => out.push_str("*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
                "DEL" => {
                    out.push_str(":0\r\n");
                    words.next();
                }
                "PUBLISH" => {
                    out.push_str(":1\r\n");
                    words.nth(1);
                }
                "CLIENT" => {
                    out.push_str("+OK\r\n");
                    links.fetch_add(1, Ordering::Relaxed);
                    words.nth(1);
                }
                "" | "SUBSCRIBE" => {}
                name => {
                    let len = name.len();
                    out.push_str(&format!(
                        "*3\r\n$9\r\nsubscribe\r\n${len}\r\n{name}\r\n:1\r\n"
                    ));
                }
            }
        }
        input.clear();
        stream.write_all(out.as_bytes()).await.unwrap();
    }
}

async fn acl(link: &mut Link, rules: &[&str]) {
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg(rules)
        .query_async::<()>(link)
        .await
        .unwrap();
}
