//! Clients that come back on the layer `core`, whose events Django's own `group_send` has sent: those that Channels took away
//! before a replica came are a gap.

use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::resume::{events, position, position_of, returning, with_history};
use super::resume_replicas::told;
use crate::support::django::Django;
use crate::support::replica::Replica;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway};

/// Seconds for which Channels lets an event wait where a test waits for the end of them.
const EXPIRY: u64 = 2;
/// So many that a busy machine is in time.
const LONG: u64 = 60;

/// Batches of events while a replica is frozen again and again.
const BATCHES: u64 = 200;

struct House {
    redis: RedisServer,
    gateway: Gateway,
    django: Django,
}

/// One replica, and Django on the same layer, where an event waits for `expiry` seconds.
async fn house(expiry: u64) -> House {
    let (redis, database) = (RedisServer::start().await, Database::postgres().await);
    let builder = gateway().redis(&redis.url());
    let builder = with_history(builder, "{ size = 500, ttl = '10m' }").await;
    // Clients that read nothing while others send answer no ping.
    let builder = builder
        .set("server.heartbeat.interval", "10m")
        .with("layer.kind", "core")
        .with("layer.expiry", format!("{expiry}s"));
    let gateway = builder.start().await;
    let django = Django::at(database.url())
        .layer(&redis.url(), &gateway.tenant().prefix)
        .core(&json!({"expiry": expiry}));
    House {
        redis,
        django: django.start().await,
        gateway,
    }
}

impl House {
    async fn send(&self, numbers: Range<u64>) {
        let event = |n| json!({"type": "t", "n": n});
        let events: Vec<_> = numbers.map(event).collect();
        self.django.group_send("chat_a", &events).await;
    }

    /// Kills the replica, and starts another one once `gone` holds for the keys of mailboxes.
    async fn replace(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        let last = self.gateway.replicas.len() - 1;
        self.gateway.replicas[last].process.kill();
        meanwhile(self).await;
        self.gateway.add_replica().await;
        self.replica().ready().await;
    }

    fn replica(&self) -> &Replica {
        self.gateway.replicas.last().expect("one runs")
    }

    /// Events in the mailbox of the group, and the mark that it has not expired.
    async fn waiting(&self) -> u64 {
        let pattern = format!("{}lockgate.history.*", self.gateway.tenant().prefix);
        let keys: Vec<String> = self.redis.command(&["KEYS", &pattern]).await;
        match keys.as_slice() {
            [] => 0,
            [key] => self.redis.command(&["ZCARD", key]).await,
            more => panic!("{more:?}"),
        }
    }

    async fn returned(&self, since: &[&str]) -> Socket {
        let dial = returning(self.replica(), self.gateway.tenant(), "/ws/a/", since);
        dial.open().await
    }

    /// A new client that has had these events, and its last position.
    async fn live(&self, numbers: Range<u64>) -> (Socket, String) {
        let mut socket = self.returned(&[]).await;
        position(&mut socket).await;
        self.send(numbers.clone()).await;
        let last = events(&mut socket, numbers).await;
        (socket, last)
    }
}

/// Before: the client that came back was told that it had everything.
#[tokio::test]
async fn events_that_expired_before_a_replica_came_are_a_gap() {
    let mut house = house(EXPIRY).await;
    let (_live, kept) = house.live(0..3).await;
    house
        .replace(async |house| {
            house.send(3..6).await;
            eventually(
                PATIENCE,
                "Channels lets the events expire",
                async || match house.waiting().await {
                    0 => Ok(()),
                    waiting => Err(waiting),
                },
            )
            .await;
        })
        .await;
    let mut back = house.returned(&[&kept]).await;
    told(&mut back).await;
    house.send(6..9).await;
    events(&mut back, 6..9).await;
    assert_eq!(back.ping().await, [], "no second gap");
}

/// The only replica is killed, and a quiet group has clients that come back to the next one.
#[tokio::test]
async fn events_that_still_wait_are_no_gap() {
    let mut house = house(LONG).await;
    let (_live, kept) = house.live(0..3).await;
    house.replace(async |house| house.send(3..6).await).await;
    let mut back = house.returned(&[&kept]).await;
    events(&mut back, 3..6).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

/// Before: live sockets alone were told.
#[tokio::test]
async fn events_that_found_the_mailbox_full_are_a_gap_for_those_who_come_back_later() {
    let mut house = house(LONG).await;
    let (_live, kept) = house.live(0..1).await;
    house.replace(async |house| house.send(1..150).await).await;
    // Long after the mailbox was emptied, and from a place before the hole and from one behind it.
    let mut first = house.returned(&[&kept]).await;
    let gap = first.next_json().await;
    assert_eq!(gap, json!({"type": "lockgate.gap", "group": "chat_a"}));
    let end = position(&mut first).await;
    assert_eq!(end["recovered"], false);
    let at = position_of(&end);
    house.send(150..153).await;
    events(&mut first, 150..153).await;
    told(&mut house.returned(&[&kept]).await).await;
    let mut back = house.returned(&[&at]).await;
    events(&mut back, 150..153).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

/// Before: what was sent more than `expiry` before the client came back was lost, though a replica was there.
#[tokio::test]
async fn a_client_that_was_away_for_longer_than_events_wait_gets_all_of_them() {
    let house = house(EXPIRY).await;
    let (mut live, kept) = house.live(0..1).await;
    live.close(1000, "").await;
    let away = Instant::now();
    let mut sent = 1;
    while away.elapsed() < Duration::from_secs(2 * EXPIRY) {
        house.send(sent..sent + 1).await;
        sent += 1;
        eventually(PATIENCE, "the event is moved", async || {
            match house.waiting().await {
                1 => Ok(()),
                waiting => Err(waiting),
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let group = format!("{}:group:chat_a", house.gateway.tenant().prefix);
    let members: u64 = house.redis.command(&["ZCARD", &group]).await;
    assert_eq!(members, 2, "the replica stays in the group");
    let mut back = house.returned(&[&kept]).await;
    events(&mut back, 1..sent).await;
    assert_eq!(position(&mut back).await["recovered"], true);
}

/// Reads frames up to the event `last`. Returns the numbers of the events, and true if a gap came first.
async fn after_a_stop(socket: &mut Socket, last: u64) -> (Vec<u64>, bool) {
    let (mut numbers, mut gap) = (Vec::new(), false);
    while numbers.last() != Some(&last) {
        let frame = socket.next_json_within(2 * PATIENCE).await;
        match frame["type"].as_str() {
            Some("lockgate.gap") => gap |= numbers.is_empty(),
            Some("lockgate.position") => {}
            _ => numbers.push(frame["n"].as_u64().expect("an event")),
        }
    }
    (numbers, gap)
}

/// The only replica is frozen until Channels has let events expire, and its tasks go on in any order: each client is told once, and
/// no event comes twice. The deterministic cases are those of `tests/parts/channel_layer/recorded_losses.rs`.
#[tokio::test]
async fn a_replica_that_was_frozen_says_what_expired_meanwhile() {
    let house = house(EXPIRY).await;
    let (mut live, mut kept) = house.live(0..3).await;
    let mut sent = 3;
    for round in 0..4 {
        let (begin, process) = (sent, &house.replica().process);
        process.freeze().await;
        let frozen = Instant::now();
        while frozen.elapsed() < Duration::from_secs(2 * EXPIRY) {
            house.send(sent..sent + 1).await;
            sent += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        process.signal(Signal::CONT);
        let mut back = house.returned(&[&kept]).await;
        told(&mut back).await;
        let (numbers, gap) = after_a_stop(&mut live, sent - 1).await;
        let rising = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
        assert!(rising, "round {round}: {numbers:?}");
        assert!(numbers[0] > begin, "round {round}: none has expired");
        assert!(gap, "round {round}: {numbers:?} without a word");
        house.send(sent..sent + 1).await;
        sent += 1;
        kept = events(&mut live, sent - 1..sent).await;
        assert_eq!(live.ping().await, [], "round {round}: no second gap");
    }
}

/// One of two replicas is frozen again and again while both move what Django sends: between a move on Redis and its answer, and
/// between the answer and the event's delivery.
#[tokio::test]
async fn a_replica_that_is_frozen_while_it_moves_events_loses_and_doubles_none() {
    let mut house = house(LONG).await;
    house.gateway.add_replica().await;
    house.replica().ready().await;
    let replicas = &house.gateway.replicas;
    let open = |replica| returning(replica, house.gateway.tenant(), "/ws/a/", &[]).open();
    let mut sockets = [open(&replicas[0]).await, open(&replicas[1]).await];
    for socket in &mut sockets {
        position(socket).await;
    }
    let sending = async {
        for batch in 0..BATCHES {
            house.send(batch * 5..batch * 5 + 5).await;
        }
    };
    let freezing = async {
        loop {
            // Of other lengths each time, so that it meets each step of a move.
            for micros in (0..40).map(|step| 500 + 700 * step) {
                replicas[0].process.freeze().await;
                tokio::time::sleep(Duration::from_micros(10 * micros)).await;
                replicas[0].process.signal(Signal::CONT);
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = freezing => {}
    }
    replicas[0].process.signal(Signal::CONT);
    for socket in &mut sockets {
        events(socket, 0..5 * BATCHES).await;
        assert_eq!(socket.ping().await, []);
    }
}
