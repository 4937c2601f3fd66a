//! Joins, leaves, order and bounds on a healthy Redis.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lockgate::channel_layer::shards::shard_of;
use lockgate::channel_layer::{ChannelLayer, Codec, Signal, SocketChannel, Target};
use lockgate::config::SerializerFormat;
use lockgate::metrics::GapCause;

use tokio::time::timeout;

use super::support::*;

on_each_server!(
    a_join_returns_after_redis_confirmed_it,
    a_socket_hears_its_own_channel_from_opening_to_closing,
    five_hundred_publishes_right_after_a_join_all_arrive_in_order,
    what_one_publisher_sends_arrives_in_its_order_at_every_replica,
    tenants_on_one_link_hear_only_their_own,
    many_joins_of_one_group_are_one_subscription_and_the_last_leaving_ends_it,
    a_join_that_crosses_a_leave_ends_subscribed,
    a_dropped_layer_leaves_nothing_behind,
    a_full_inbox_loses_only_its_own_tenants_events_and_says_where,
);

async fn a_join_returns_after_redis_confirmed_it(server: Server) {
    let redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    let mut link = redis.link().await;
    for number in 0..100 {
        let group = format!("g{number}");
        tenant.join(&group).await;
        let reached = publish(&mut link, &channel("acme", &group), &payload(number)).await;
        assert_eq!(reached, 1);
        assert_eq!(tenant.heard().await, Heard::Number(group, number));
    }
}

#[tokio::test]
async fn on_several_hosts_names_belong_to_the_host_of_their_checksum() {
    let servers = [
        Redis::start().await,
        Redis::start().await,
        Redis::start().await,
    ];
    let (here, there) = (on_hosts(&servers), on_hosts(&servers));
    let mut links = Vec::new();
    for redis in &servers {
        links.push(redis.link().await);
    }
    let mut used = [0; 3];
    for number in 0..30 {
        let group = format!("g{number}");
        let name = channel("acme", &group);
        here.join(&group).await;
        let host = shard_of(name.as_bytes(), 3);
        for (at, link) in links.iter_mut().enumerate() {
            let expected = u64::from(at == host);
            assert_eq!(publish(link, &name, &payload(number)).await, expected);
        }
        assert_eq!(here.heard().await, Heard::Number(group.clone(), number));
        there.send(&group, number).await;
        assert_eq!(here.heard().await, Heard::Number(group, number));
        used[host] += 1;
    }
    assert!(used.iter().all(|count| *count > 0), "{used:?}");
    assert!(here.layer.ready().await);
}

async fn a_socket_hears_its_own_channel_from_opening_to_closing(server: Server) {
    let servers = [Redis::of(server).await, Redis::of(server).await];
    let (here, there) = (on_hosts(&servers), on_hosts(&servers));
    for bits in 0..20u8 {
        let socket = SocketChannel([bits; 16]);
        let name = socket.name(here.layer.channel_prefix());
        assert!(name.starts_with("acmespecific."), "{name}");
        here.layer.open_channel(socket).await.unwrap();
        let channel = name.as_str().into();
        there.layer.send(&channel, &event(7)).await.unwrap();
        let signal = timeout(Duration::from_secs(5), here.inbox.next()).await;
        let Ok(Signal::Event(incoming)) = signal else {
            panic!("{signal:?}");
        };
        assert_eq!(incoming.target, Target::Socket(socket));
        here.layer.close_channel(socket);
        let mut link = servers[shard_of(name.as_bytes(), 2)].link().await;
        wait_for_subscribers(&mut link, &[name], 0).await;
    }
}

fn on_hosts(servers: &[Redis]) -> Tenant {
    let replicas: Vec<_> = servers.iter().map(|redis| replica(&redis.url())).collect();
    let stores: Vec<_> = replicas.iter().map(|one| one.store.clone()).collect();
    replicas[0].tenant_on(&stores)
}

async fn five_hundred_publishes_right_after_a_join_all_arrive_in_order(server: Server) {
    let redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    let mut link = redis.link().await;
    tenant.join("g").await;
    let mut pipe = redis::pipe();
    for number in 0..500 {
        let mut publish = link.publishing();
        publish.arg(channel("acme", "g")).arg(payload(number));
        pipe.add_command(publish).ignore();
    }
    pipe.exec_async(&mut link).await.unwrap();
    assert_eq!(tenant.numbers(500).await, (0..500).collect::<Vec<_>>());
}

async fn what_one_publisher_sends_arrives_in_its_order_at_every_replica(server: Server) {
    let redis = Redis::of(server).await;
    let listeners = [replica(&redis.url()), replica(&redis.url())].map(|r| r.tenant("acme"));
    for listener in &listeners {
        listener.join("g").await;
    }
    let publisher = Arc::new(replica(&redis.url()).tenant("acme"));
    let publishers = [0, 1000].map(|base| {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            for number in base..base + 300 {
                publisher.send("g", number).await;
            }
        })
    });
    for task in publishers {
        task.await.unwrap();
    }
    for listener in &listeners {
        let numbers = listener.numbers(600).await;
        for base in [0, 1000] {
            let own = numbers
                .iter()
                .copied()
                .filter(|n| (base..base + 300).contains(n));
            assert!(own.eq(base..base + 300));
        }
    }
}

async fn tenants_on_one_link_hear_only_their_own(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let (acme, other) = (replica.tenant("acme"), replica.tenant("other"));
    acme.join("g").await;
    other.join("g").await;
    other.join("h").await;
    acme.send("g", 1).await;
    acme.send("h", 2).await;
    other.send("h", 3).await;
    assert_eq!(other.heard().await, Heard::Number("h".into(), 3));
    assert_eq!(acme.heard().await, Heard::Number("g".into(), 1));
    assert_eq!(
        (acme.heard_so_far(), other.heard_so_far()),
        (vec![], vec![])
    );
    let mut link = redis.link().await;
    let clients: String = redis::cmd("CLIENT")
        .arg("LIST")
        .arg("TYPE")
        .arg("pubsub")
        .query_async(&mut link)
        .await
        .unwrap();
    assert_eq!(clients.lines().count(), 1, "{clients}");
    assert!(clients.contains("name=lockgate-subscriber-"), "{clients}");
}

async fn many_joins_of_one_group_are_one_subscription_and_the_last_leaving_ends_it(server: Server) {
    let redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    let mut link = redis.link().await;
    join_all((0..50).map(|_| tenant.join("g"))).await;
    let channels = [channel("acme", "g")];
    assert_eq!(subscribed_once(&mut link, &channels).await, 1);
    tenant.send("g", 1).await;
    assert_eq!(tenant.numbers(1).await, [1]);
    assert_eq!(tenant.heard_so_far(), []);
    tenant.layer.unsubscribe(&"g".into());
    tenant.layer.unsubscribe(&"never joined".into());
    wait_for_subscribers(&mut link, &channels, 0).await;
}

async fn a_join_that_crosses_a_leave_ends_subscribed(server: Server) {
    let redis = Redis::of(server).await;
    let tenant = replica(&redis.url()).tenant("acme");
    let mut link = redis.link().await;
    for number in 0..2000 {
        tenant.join("g").await;
        if number % 100 == 0 {
            let reached = publish(&mut link, &channel("acme", "g"), &payload(number)).await;
            assert_eq!(reached, 1, "{number}");
            assert_eq!(tenant.numbers(1).await, [number]);
        }
        tenant.layer.unsubscribe(&"g".into());
    }
    wait_for_subscribers(&mut link, &[channel("acme", "g")], 0).await;
}

async fn a_dropped_layer_leaves_nothing_behind(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let (stays, goes) = (replica.tenant("stays"), replica.tenant("goes"));
    let mut link = redis.link().await;
    stays.join("g").await;
    goes.join("g").await;
    drop(goes);
    wait_for_subscribers(&mut link, &[channel("goes", "g")], 0).await;
    assert_eq!(
        subscribed_once(&mut link, &[channel("stays", "g")]).await,
        1
    );
    drop(stays);
    wait_for_subscribers(&mut link, &[channel("stays", "g")], 0).await;
}

#[tokio::test]
async fn ten_thousand_joins_at_once_go_as_few_commands() {
    let redis = Redis::start().await;
    let tenant = replica(&redis.url()).tenant("acme");
    let groups: Vec<String> = (0..10_000).map(|n| format!("g{n}")).collect();
    join_all(groups.iter().map(|group| tenant.join(group))).await;
    let mut link = redis.link().await;
    let channels: Vec<String> = groups.iter().map(|group| channel("acme", group)).collect();
    assert_eq!(subscribed_once(&mut link, &channels).await, 10_000);
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut link)
        .await
        .unwrap();
    let line = stats
        .lines()
        .find(|line| line.starts_with("cmdstat_subscribe:"))
        .unwrap();
    let calls = line
        .split("calls=")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    assert!(
        calls.parse::<u32>().unwrap() < 200,
        "{calls} SUBSCRIBE commands"
    );
}

async fn a_full_inbox_loses_only_its_own_tenants_events_and_says_where(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let codec = Codec::new(SerializerFormat::MsgPack, &[]);
    let (full, free) = (
        replica.tenant_with("full", 2000, codec),
        replica.tenant("free"),
    );
    full.join("g").await;
    free.join("g").await;
    for number in 0..100 {
        full.send("g", number).await;
        free.send("g", number).await;
    }
    assert_eq!(free.numbers(100).await.len(), 100);
    let heard = full.heard_so_far();
    let kept = heard.len() - 1;
    assert!((1..100).contains(&kept), "{kept}");
    assert_eq!(heard[kept], Heard::Gap(GapCause::LayerQueue));
    let in_order = (0..kept).map(|n| Heard::Number("g".into(), n as i64));
    assert!(heard[..kept].iter().cloned().eq(in_order));
    full.send("g", 100).await;
    assert_eq!(full.numbers(1).await, [100]);
}
