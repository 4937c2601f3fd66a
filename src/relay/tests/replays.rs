//! The cost of replays in events that are read: sockets with small queues behind a long history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::layer::ModelLayer;
use super::model::{RESUMING, relay};
use crate::budget::HeldKind;
use crate::channel_layer::Inbox;
use crate::error::ErrorKind;
use crate::event::Event;
use crate::frame::Frame;
use crate::hub::{Budget, Member, Next, Profile, Takes};
use crate::ids::GroupName;
use crate::metrics::TenantMetrics;
use crate::position::Position;
use crate::relay::{Relay, ResumeFrom};
use crate::tasks::{self, Task};

/// The queue of each socket.
const QUEUE: u64 = 16 * 1024;
/// The events of the history, and the bytes of the text in each.
const EVENTS: (u64, usize) = (1000, 1024);

struct Storm {
    group: GroupName,
    layer: Arc<ModelLayer>,
    relay: Arc<Relay>,
    clients: Vec<StormClient>,
    rng: StdRng,
    _task: Task,
}

struct StormClient {
    member: Arc<Member>,
    queue: usize,
    /// The offset of the last event that came.
    has: u64,
    recovered: bool,
    /// The gaps that it was told of.
    gaps: usize,
    /// A position has come without a word about a replay.
    joined: bool,
}

impl Storm {
    fn new() -> Self {
        let metrics = Arc::new(TenantMetrics::new(&"acme".parse().unwrap()));
        let (inbox, group) = (Inbox::new(0, metrics.clone()), GroupName::from("a"));
        let groups = std::slice::from_ref(&group);
        let layer = Arc::new(ModelLayer::new(1, 100_000, groups, inbox.clone()));
        layer.steady();
        let relay = relay(layer.clone(), inbox, metrics);
        let storm = Self {
            group,
            layer,
            _task: tasks::lasting("the relay of a test", relay.clone().run()),
            relay,
            clients: Vec::new(),
            rng: StdRng::seed_from_u64(1),
        };
        (0..EVENTS.0).for_each(|_| storm.record());
        storm
    }

    fn record(&self) {
        let event = Event::new("t", [("text", "x".repeat(EVENTS.1).as_str().into())]);
        self.layer.record(&self.group, event);
    }

    /// A socket comes back with all events up to `has`.
    async fn come_back(&mut self, has: u64) {
        self.come_back_with(has, QUEUE).await;
    }

    async fn come_back_with(&mut self, has: u64, send_queue: u64) {
        self.join(has, send_queue).await;
        self.resume(self.clients.len() - 1).await;
    }

    async fn join(&mut self, has: u64, send_queue: u64) {
        let member = Member::new(Profile {
            delivery: RESUMING,
            send_queue,
            ..Profile::default()
        });
        let hub = self.relay.hub();
        hub.admit(&member, None, &Budget::default()).unwrap();
        let groups = std::slice::from_ref(&self.group);
        self.relay.hold(&member, groups, |_| true);
        let joined = self.relay.add_to_group(&member, &self.group).await;
        joined.unwrap();
        self.clients.push(StormClient {
            member,
            queue: send_queue as usize,
            has,
            recovered: false,
            gaps: 0,
            joined: false,
        });
    }

    async fn resume(&self, index: usize) {
        let StormClient { member, has, .. } = &self.clients[index];
        let epoch = self.layer.epoch(&self.group);
        let since = ResumeFrom::Position(Position {
            epoch,
            offset: *has,
        });
        self.relay.resume(member, &self.group, Some(since)).await;
    }

    /// Lets the sockets read, each in one of `of` rounds, until all of them have `events` events and the word that they are
    /// complete.
    async fn finish(&mut self, of: u32, events: u64) {
        let all = async {
            while !(self.clients.iter()).all(|client| client.recovered && client.has == events) {
                for client in &mut self.clients {
                    if self.rng.random_ratio(1, of) {
                        client.read();
                    }
                }
                self.layer.carry(0, 1000);
                self.layer.carry(1, 1000);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(120), all).await;
        let left = self.clients.iter().map(|client| client.has).min();
        in_time.unwrap_or_else(|_| panic!("one has no more than {left:?}"));
        assert!(self.clients.iter().all(|client| client.gaps == 0));
    }
}

impl StormClient {
    fn read(&mut self) {
        let (mut batch, ping) = (Vec::new(), Frame::ping(b""));
        let outbound = self.member.outbound();
        let queued = outbound.queued_bytes();
        assert!(!outbound.holds_any() || queued <= self.queue + 2 * EVENTS.1);
        loop {
            let mut context = Context::from_waker(Waker::noop());
            batch.clear();
            let next = outbound.poll_next(&mut context, Takes::All, &ping, &mut batch);
            if next.is_pending() {
                return;
            }
            assert!(matches!(next, Poll::Ready(Next::Frames)));
            for frame in &batch {
                let header = if frame.as_bytes()[1] == 126 { 4 } else { 2 };
                let json: Value = serde_json::from_slice(&frame.as_bytes()[header..]).unwrap();
                match json["type"].as_str() {
                    Some("lockgate.position") if json.get("recovered").is_none() => {
                        let text = json["position"].as_str().unwrap();
                        (self.has, self.joined) = (Position::parse(text).unwrap().1.offset, true);
                    }
                    Some("lockgate.position") => self.recovered = json["recovered"] == true,
                    Some("lockgate.gap") => self.gaps += 1,
                    None => {
                        let text = json["lockgate.position"].as_str().unwrap();
                        let (_, at) = Position::parse(text).unwrap();
                        assert_eq!(at.offset, self.has + 1);
                        self.has = at.offset;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for client in &self.clients {
            client.member.outbound().finish();
            self.relay.unregister(&client.member);
        }
    }
}

/// It used to read up to 1,000 events for each seven that it took: 71,383 in 143 reads.
#[tokio::test]
async fn a_replay_reads_what_the_socket_can_take() {
    let mut storm = Storm::new();
    storm.come_back(0).await;
    storm.finish(1, EVENTS.0).await;
    let (reads, entries) = storm.layer.read_so_far();
    assert!(entries <= EVENTS.0 as usize + 20, "{entries} in {reads}");
}

/// They used to read 207,818 events.
#[tokio::test]
async fn sockets_that_come_back_together_share_their_reads() {
    let mut storm = Storm::new();
    for _ in 0..500 {
        storm.come_back(0).await;
    }
    storm.finish(3, EVENTS.0).await;
    let (reads, entries) = storm.layer.read_so_far();
    assert!(entries <= 3 * EVENTS.0 as usize, "{entries} in {reads}");
}

/// The slow one falls behind what the others need, and takes its own events again from the history alone. The clock is the
/// test's own, so that a busy machine does not change who reads when.
#[tokio::test(start_paused = true)]
async fn a_slow_socket_makes_no_other_read_again() {
    let mut storm = Storm::new();
    for has in [0, 0, 100, 500, 990] {
        storm.come_back(has).await;
    }
    let slow = storm.clients.swap_remove(0);
    for _ in 0..50 {
        (0..20).for_each(|_| storm.record());
        storm.layer.carry(0, 1000);
        storm.layer.carry(1, 1000);
        storm.clients.iter_mut().for_each(StormClient::read);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let events = EVENTS.0 + 50 * 20;
    storm.finish(2, events).await;
    storm.clients.push(slow);
    storm.finish(1, events).await;
    let (reads, entries) = storm.layer.read_so_far();
    // What each of them lacks, if they share nothing.
    let lacks = [0, 0, 100, 500, 990].map(|has| events - has);
    let most: u64 = lacks.iter().sum();
    assert!(entries as u64 <= most, "{entries} in {reads}, of {most}");
}

/// A socket that takes each page whole reads on at once. The events behind it used to stay in memory until its end: all
/// 6,000.
#[tokio::test]
async fn a_replay_without_a_pause_holds_no_more_than_it_reads() {
    let mut storm = Storm::new();
    let events = 6 * EVENTS.0;
    (EVENTS.0..events).for_each(|_| storm.record());
    let (relay, over) = (storm.relay.clone(), Arc::new(AtomicBool::new(false)));
    let ends = over.clone();
    let watch = std::thread::spawn(move || {
        let mut most = 0;
        while !ends.load(Ordering::Acquire) {
            most = most.max(relay.parts.budget.of(HeldKind::History));
            std::thread::sleep(Duration::from_micros(100));
        }
        most
    });
    storm.come_back_with(0, 64 * 1024 * 1024).await;
    storm.finish(1, events).await;
    over.store(true, Ordering::Release);
    let most = watch.join().unwrap();
    // The window, and a page on its way into it.
    let bound = 4 * EVENTS.0 * EVENTS.1 as u64;
    assert!(0 < most && most < bound, "{most} bytes");
}

/// Before, the live events behind the replay came at once, as if nothing were missing before them, and the replay went on behind
/// the next join.
#[tokio::test]
async fn a_socket_that_leaves_during_its_replay_gets_nothing_out_of_order() {
    let mut storm = Storm::new();
    storm.come_back(0).await;
    // It takes nothing, so that the replay waits for room.
    let member = storm.clients[0].member.clone();
    while member.outbound().has_replay_room() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (0..3).for_each(|_| storm.record());
    let live = storm.relay.hub().groups().get(&storm.group).unwrap();
    let passed = |offset| live.history().at().is_some_and(|at| at.offset == offset);
    while !passed(EVENTS.0 + 3) {
        storm.layer.carry(0, 1000);
        storm.layer.carry(1, 1000);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    storm.relay.leave(&member, &storm.group);
    storm.clients[0].read();
    let has = storm.clients[0].has;
    assert!(0 < has && has < EVENTS.0, "{has}");
    // Another socket keeps the reader at work, which finds room for the first replay.
    storm.come_back(0).await;
    let added = storm.relay.put_into(&[member], &storm.group);
    added.confirmed.expect("it is new").await.unwrap();
    storm.record();
    let all = async {
        while !(storm.clients[0].joined && storm.clients[0].has == EVENTS.0 + 4) {
            storm.layer.carry(0, 1000);
            storm.layer.carry(1, 1000);
            storm.clients.iter_mut().for_each(StormClient::read);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("the event after the second join");
    while !storm.clients[1].recovered {
        storm.clients.iter_mut().for_each(StormClient::read);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Before, it had to wait until no socket of the group had anything more to read.
#[tokio::test]
async fn a_socket_with_room_goes_on_beside_one_that_reads_on_and_on() {
    let mut storm = Storm::new();
    let events = 30 * EVENTS.0;
    (EVENTS.0..events).for_each(|_| storm.record());
    storm.come_back(0).await;
    storm.come_back_with(0, 256 * 1024 * 1024).await;
    let fast = storm.clients[1].member.clone();
    let mut steps = 0;
    while fast.outbound().holds(&storm.group) {
        let before = storm.clients[0].has;
        storm.clients[0].read();
        steps += u32::from(storm.clients[0].has > before);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The first step was made before the other one came.
    assert!(steps > 2, "{steps} steps");
}

/// Before, all sockets of a batch got their events in one turn, and the events of other tenants waited behind their writes.
#[tokio::test]
async fn other_work_has_its_turn_between_two_sockets_of_a_storm() {
    let mut storm = Storm::new();
    for _ in 0..50 {
        storm.join(0, QUEUE).await;
    }
    for index in 0..50 {
        storm.resume(index).await;
    }
    let queued = |client: &StormClient| client.member.outbound().queued_bytes();
    let all = || storm.clients.iter().map(queued).sum::<usize>();
    let has_room = |client: &StormClient| client.member.outbound().has_replay_room();
    let (mut before, mut turns) = (all(), Vec::new());
    while storm.clients.iter().any(has_room) {
        tokio::task::yield_now().await;
        let now = all();
        turns.push(now - before);
        before = now;
    }
    let (most, whole) = (turns.iter().max(), turns.iter().sum::<usize>());
    assert!(whole > 20 * QUEUE as usize, "{whole} bytes");
    assert!(most <= Some(&(QUEUE as usize)), "{most:?} of {whole} bytes");
}

/// A client that came back during a failover of more than 5 s used to be told of a gap, although the history had everything.
#[tokio::test(start_paused = true)]
async fn a_failover_costs_those_that_come_back_nothing() {
    let mut storm = Storm::new();
    storm.layer.fail_for(Duration::from_secs(50));
    storm.come_back(EVENTS.0 / 2).await;
    storm.finish(1, EVENTS.0).await;
}

/// The members that are there are told after 10 s no longer, either.
#[tokio::test(start_paused = true)]
async fn a_failover_costs_those_that_are_there_nothing() {
    let mut storm = Storm::new();
    storm.come_back(0).await;
    storm.finish(1, EVENTS.0).await;
    storm.layer.fail_for(Duration::from_secs(50));
    storm.record();
    storm.layer.lose(0, 1, true);
    storm.layer.lose(1, 1, true);
    storm.finish(1, EVENTS.0 + 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_history_that_stays_unread_is_a_gap_in_the_end() {
    for (error, least) in [
        (ErrorKind::Timeout, 60),
        (ErrorKind::Auth, 60),
        (ErrorKind::Permission, 5),
    ] {
        let mut storm = Storm::new();
        storm
            .layer
            .fail_with(error, Duration::from_secs(24 * 60 * 60));
        storm.come_back(0).await;
        let began = tokio::time::Instant::now();
        while storm.clients[0].gaps == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            storm.clients[0].read();
        }
        let told = began.elapsed().as_secs();
        assert!((least..least + 3).contains(&told), "{error:?}: {told} s");
        assert!(!storm.clients[0].recovered);
    }
}
