//! Groups with history on a Redis whose clock steps.

use serde_json::Value;

use super::resume::{position, position_of, publish, returning, with_history};
use crate::support::socket::Socket;
use crate::support::{PATIENCE, RedisServer, gateway};

/// The seconds by which the clock of Redis is ahead of the machine's, one after the other. By half an hour the events expire, by two
/// hours all keys.
const STEPS: [i64; 6] = [-1800, 0, 1800, 0, 7200, 0];

/// Reads frames until the event `last`, and returns the numbers of the events with their positions, and whether there was a gap.
async fn until(socket: &mut Socket, last: u64) -> (Vec<(u64, String)>, bool) {
    let (mut events, mut gap) = (Vec::new(), false);
    while events.last().is_none_or(|&(n, _)| n != last) {
        let frame = socket.next_json_within(2 * PATIENCE).await;
        match frame["type"].as_str() {
            Some("lockgate.gap") => gap = true,
            Some("lockgate.position") => {}
            _ => events.push((number(&frame), position_of(&frame))),
        }
    }
    (events, gap)
}

/// Reads what a client gets that comes back, up to the notice of its position: the numbers of the events, and whether there was a gap.
async fn resumed(socket: &mut Socket) -> (Vec<u64>, bool) {
    let (mut events, mut gap) = (Vec::new(), false);
    loop {
        let frame = socket.next_json_within(2 * PATIENCE).await;
        match frame["type"].as_str() {
            Some("lockgate.gap") => gap = true,
            Some("lockgate.position") => {
                assert_eq!(frame["recovered"], !gap, "{frame}");
                return (events, gap);
            }
            _ => events.push(number(&frame)),
        }
    }
}

fn number(frame: &Value) -> u64 {
    let n = frame["n"].as_u64();
    n.unwrap_or_else(|| panic!("no number: {frame}"))
}

/// Open sockets have every event once, in order. A client that comes back has all, or is told that it has not: after a step back it has
/// all.
#[tokio::test]
async fn a_clock_that_steps_loses_nothing_in_silence() {
    for layer in ["pubsub", "core"] {
        let redis = RedisServer::with_clock().await;
        let builder = gateway().redis(&redis.url()).replicas(2);
        let builder = with_history(builder, "{ size = 100, ttl = '10m' }").await;
        let builder = builder.with("layer.kind", layer).with("on_gap", "notify");
        let gateway = builder.start().await;
        let open = |replica: usize, since: &[&str]| {
            returning(
                &gateway.replicas[replica],
                gateway.tenant(),
                "/ws/a/",
                since,
            )
            .open()
        };
        let mut live = [open(0, &[]).await, open(1, &[]).await];
        for socket in &mut live {
            position(socket).await;
        }
        let mut next = 0;
        for (at, step) in STEPS.into_iter().enumerate() {
            println!("{layer}: {step} s");
            let sender = &gateway.replicas[at % 2];
            publish(&gateway, sender, next..next + 5).await;
            let mut before = Vec::new();
            for socket in &mut live {
                let (events, _) = until(socket, next + 4).await;
                before = events;
                let numbers = before.iter().map(|&(n, _)| n);
                assert!(numbers.eq(next..next + 5), "{layer}, {step}: {before:?}");
            }
            redis.step_clock(step);
            publish(&gateway, sender, next + 5..next + 10).await;
            for socket in &mut live {
                let (events, _) = until(socket, next + 9).await;
                let numbers = events.iter().map(|&(n, _)| n);
                assert!(
                    numbers.eq(next + 5..next + 10),
                    "{layer}, {step}: {events:?}"
                );
            }
            // It stands at the second event before the step.
            let mut back = open(at % 2, &[&before[1].1]).await;
            let (events, gap) = resumed(&mut back).await;
            let is_whole = events.iter().copied().eq(next + 2..next + 10);
            assert!(
                is_whole || gap,
                "{layer}, {step}: {events:?} without a word"
            );
            let steps_back = step < at.checked_sub(1).map_or(0, |before| STEPS[before]);
            assert!(is_whole || !steps_back, "{layer}, {step}: {events:?}");
            publish(&gateway, sender, next + 10..next + 11).await;
            for socket in live.iter_mut().chain([&mut back]) {
                assert_eq!(until(socket, next + 10).await.0.len(), 1, "{layer}, {step}");
            }
            next += 11;
        }
    }
}
