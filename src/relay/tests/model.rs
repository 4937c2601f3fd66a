//! Clients, and what each of them must get.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hashbrown::HashMap;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::Instant;

use super::layer::ModelLayer;
use crate::channel_layer::Inbox;
use crate::config::{Deliver, GroupConfig, GroupNames, HistoryConfig, LimitsConfig, OnGap};
use crate::event::Event;
use crate::frame::Frame;
use crate::group_rules::GroupRules;
use crate::hub::{Budget, Hub, Member, Profile, Takes};
use crate::ids::GroupName;
use crate::metrics::TenantMetrics;
use crate::position::Position;
use crate::relay::{Parts, Relay, ResumeFrom, RouteDelivery, Settings};
use crate::render::Delivery;
use crate::tasks::{self, Task};

const GROUPS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: usize = 6;
/// The deliveries of a route without and of one with `resume`.
const PLAIN: u16 = 0;
pub(super) const RESUMING: u16 = 1;

/// The faults of a run beside those that a history heals.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    /// Histories are short, and begin again.
    pub(super) forgets: bool,
    /// Servers start again without their newest events.
    pub(super) cuts: bool,
}

impl Faults {
    fn tells_gaps(self) -> bool {
        self.forgets || self.cuts
    }
}

/// The knowledge of a client about one group.
#[derive(Clone, Debug, Default)]
struct View {
    /// The last position that it was told.
    position: Option<String>,
    /// The number of the next event.
    next: Option<u64>,
    /// The number of the newest event when it came first.
    came_at: u64,
    /// True if it was told that events are missing before the next one.
    gap: bool,
}

struct Client {
    views: HashMap<GroupName, View>,
    resumes: bool,
    open: Option<Arc<Member>>,
}

pub(super) struct Model {
    rng: StdRng,
    seed: u64,
    faults: Faults,
    relay: Arc<Relay>,
    layer: Arc<ModelLayer>,
    clients: Vec<Client>,
    published: HashMap<GroupName, u64>,
    _task: Task,
}

fn groups() -> Vec<GroupName> {
    GROUPS.map(GroupName::from).into()
}

pub(super) fn relay(
    layer: Arc<ModelLayer>,
    inbox: Arc<Inbox>,
    metrics: Arc<TenantMetrics>,
) -> Arc<Relay> {
    let rule = GroupConfig {
        name: "<slug:name>".to_owned(),
        history: Some(HistoryConfig::default()),
        ..GroupConfig::default()
    };
    let route = |resume| {
        let delivery = Delivery::new(Deliver::Body, &[]).unwrap();
        Some(Arc::new(RouteDelivery {
            delivery: delivery.with_resume(resume),
            through_consumer: false,
            tells_channel: false,
            answers_pings: false,
        }))
    };
    let parts = Parts {
        tenant: "acme".parse().unwrap(),
        hub: Arc::new(Hub::default()),
        layer,
        inbox,
        group_names: GroupNames::Channels,
        rules: Arc::new(GroupRules::new(&[rule]).unwrap()),
        budget: Arc::default(),
        metrics,
    };
    let settings = Settings {
        deliveries: vec![route(false), route(true)],
        on_gap: OnGap::Notify,
        limits: LimitsConfig::default(),
        refreshes_tokens: false,
    };
    Relay::new(parts, settings)
}

impl Model {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let metrics = Arc::new(TenantMetrics::new(&"acme".parse().unwrap()));
        let inbox = Inbox::new(0, metrics.clone());
        let size = if faults.forgets { 12 } else { 100_000 };
        let layer = Arc::new(ModelLayer::new(seed, size, &groups(), inbox.clone()));
        let relay = relay(layer.clone(), inbox, metrics);
        let client = |index| Client {
            views: HashMap::new(),
            resumes: index % 3 > 0,
            open: None,
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            seed,
            faults,
            _task: tasks::lasting("the relay of a test", relay.clone().run()),
            relay,
            layer,
            clients: (0..CLIENTS).map(client).collect(),
            published: groups().into_iter().map(|group| (group, 0)).collect(),
        }
    }

    fn any_group(&mut self) -> GroupName {
        groups()[self.rng.random_range(0..GROUPS.len())].clone()
    }

    /// Opens the client that keeps the groups where Redis loses events: a replica whose last member of a group has left knows of
    /// no loss.
    pub(super) async fn begin(&mut self) {
        if self.faults.cuts {
            self.open(0).await;
        }
    }

    pub(super) async fn step(&mut self) {
        let (host, count) = (self.rng.random_range(0..2), self.rng.random_range(1..6));
        match self.rng.random_range(0..100) {
            0..35 => {
                let group = self.any_group();
                (0..count).for_each(|_| self.publish(&group));
            }
            35..65 => self.layer.carry(host, count),
            65 => self.layer.mute(host, count),
            66..70 => {
                // A silent loss shows with the next event of the same epoch only.
                let told = self.faults.forgets || self.rng.random_ratio(1, 2);
                self.layer.lose(host, count, told);
            }
            70..82 => {
                let client = self.rng.random_range(0..CLIENTS);
                match self.clients[client].open {
                    Some(_) if self.faults.cuts && client == 0 => {}
                    Some(_) => self.close(client),
                    None => self.open(client).await,
                }
            }
            82..92 => {
                let client = self.rng.random_range(0..CLIENTS);
                self.read(client);
            }
            92 => self.layer.fail_for(Duration::from_millis(300)),
            93 => {
                let group = self.any_group();
                self.take_over(&group);
            }
            94 if self.faults.forgets => {
                let group = self.any_group();
                self.layer.forget(&group);
            }
            _ => tokio::time::sleep(Duration::from_millis(40 * host as u64 + 3)).await,
        }
        if self.rng.random_ratio(1, 2) {
            tokio::task::yield_now().await;
        }
    }

    /// The history of a group begins again without a word and without an event. Returns once a look at silent groups has found
    /// it.
    pub(super) async fn find_silent_loss(&mut self) {
        let name = groups()[0].clone();
        self.open(1).await;
        let group = self.relay.hub().groups().get(&name).unwrap();
        self.publish(&name);
        while group.history().at().is_none_or(|at| at.offset == 0) {
            (0..2).for_each(|host| self.layer.carry(host, 9));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let before = group.history().at().unwrap();
        self.layer.expire(&name);
        while group.history().at().unwrap().epoch == before.epoch {
            // The first look notes that the group is silent, the next one reads; a read may fail.
            self.relay.renew_idle();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Another server process takes over, with all events or without some of those that were delivered.
    fn take_over(&mut self, group: &GroupName) {
        let state = self.relay.hub().groups().get(group);
        let delivered = state.and_then(|group| group.history().at());
        match delivered {
            // What is lost and was not delivered is known to no replica, so that one event at least was.
            Some(at)
                if self.faults.cuts && at.offset > 0 && at.epoch == self.layer.epoch(group) =>
            {
                let last = at.offset.saturating_sub(self.rng.random_range(1..8));
                self.layer.take_over(group, last);
            }
            _ => self.layer.take_over(group, u64::MAX),
        }
    }

    fn publish(&mut self, group: &GroupName) {
        let number = self.published.get_mut(group).unwrap();
        *number += 1;
        let event = Event::new("t", [("n", (*number).into()), ("g", group.as_str().into())]);
        self.layer.record(group, event);
    }

    async fn open(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let member = Member::new(Profile {
            delivery: if client.resumes { RESUMING } else { PLAIN },
            send_queue: self.rng.random_range(300..4000),
            ..Profile::default()
        });
        let hub = self.relay.hub();
        hub.admit(&member, None, &Budget::default()).unwrap();
        let groups = groups();
        if client.resumes {
            let returns = |group: &GroupName| {
                let view = client.views.get(group);
                view.is_some_and(|view| view.position.is_some())
            };
            self.relay.hold(&member, &groups, returns);
            for group in &groups {
                let view = client.views.get(group);
                let position = view.and_then(|view| view.position.as_ref());
                let since = position.and_then(|text| Position::parse(text));
                let since = since.map(|(_, position)| ResumeFrom::Position(position));
                self.relay.add_to_group(&member, group).await.unwrap();
                self.relay.resume(&member, group, since).await;
            }
        } else {
            client.views.clear();
            for group in &groups {
                self.relay.join(&member, group).await.unwrap();
            }
        }
        for group in groups {
            // A handshake does not wait for long, and the machine may be busy.
            let joined = self.relay.hub().groups().get(&group).unwrap();
            while !joined.history().is_known() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let (came_at, known) = (self.published[&group], client.views.contains_key(&group));
            let view = client.views.entry(group).or_default();
            // Without a position to come back with, it is here for the first time.
            if !known || view.position.is_none() {
                *view = View {
                    came_at,
                    ..View::default()
                };
            }
        }
        client.open = Some(member);
    }

    /// The client is gone, and with it the frames that it has not read.
    fn close(&mut self, index: usize) {
        if let Some(member) = self.clients[index].open.take() {
            member.outbound().finish();
            self.relay.unregister(&member);
        }
    }

    /// Returns the number of frames.
    fn read(&mut self, index: usize) -> usize {
        let Some(member) = self.clients[index].open.clone() else {
            return 0;
        };
        let (mut batch, mut frames, ping) = (Vec::new(), 0, Frame::ping(b""));
        loop {
            let mut context = Context::from_waker(Waker::noop());
            batch.clear();
            let next = member
                .outbound()
                .poll_next(&mut context, Takes::All, &ping, &mut batch);
            if next.is_pending() {
                return frames;
            }
            frames += batch.len();
            assert!(!matches!(next, Poll::Ready(crate::hub::Next::Close(_))));
            for frame in &batch {
                let header = if frame.as_bytes()[1] == 126 { 4 } else { 2 };
                let json = serde_json::from_slice(&frame.as_bytes()[header..]).unwrap();
                self.take(index, &json);
            }
        }
    }

    fn take(&mut self, index: usize, frame: &Value) {
        let seed = self.seed;
        let client = &mut self.clients[index];
        let position = || frame["lockgate.position"].as_str().map(str::to_owned);
        match frame["type"].as_str() {
            None => {
                let (group, n) = (frame["g"].as_str().unwrap(), frame["n"].as_u64().unwrap());
                assert_eq!(position().is_some(), client.resumes);
                let view = client.views.get_mut(&GroupName::from(group)).unwrap();
                let fits = match view.next {
                    Some(next) if view.gap => n >= next,
                    Some(next) => n == next,
                    None => view.gap || n <= view.came_at + 1,
                };
                assert!(fits, "seed {seed}, client {index}: {frame} after {view:?}");
                (view.next, view.gap, view.position) = (Some(n + 1), false, position());
            }
            Some("lockgate.position") => {
                let text = frame["position"].as_str().unwrap();
                let (group, _) = Position::parse(text).unwrap();
                let view = client.views.get_mut(&group).unwrap();
                view.position = Some(text.to_owned());
            }
            Some("lockgate.gap") => {
                assert!(
                    self.faults.tells_gaps(),
                    "seed {seed}, client {index}: {frame}"
                );
                // Only groups without history have a notice of the whole tenant.
                let group = frame["group"].as_str().unwrap();
                client.views.get_mut(&GroupName::from(group)).unwrap().gap = true;
            }
            other => panic!("{other:?}"),
        }
    }

    /// Ends all faults, and looks at what each client has.
    pub(super) async fn settle(&mut self) {
        for index in 0..CLIENTS {
            if self.clients[index].open.is_none() {
                self.open(index).await;
            }
        }
        // An event that was lost silently shows with the next one.
        for group in groups() {
            self.publish(&group);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.wanting().is_some() && Instant::now() < deadline {
            self.flow().await;
        }
        // Nothing may follow, except what a replay brings behind a gap.
        let mut quiet = 0;
        while quiet < 20 {
            quiet = match self.flow().await {
                0 => quiet + 1,
                _ => 0,
            };
        }
        assert_eq!(self.wanting(), None, "seed {}", self.seed);
    }

    /// Lets messages and frames flow for a while. Returns the number of frames that clients got.
    async fn flow(&mut self) -> usize {
        (0..2).for_each(|host| self.layer.carry(host, 1000));
        let frames = (0..CLIENTS).map(|index| self.read(index)).sum();
        tokio::time::sleep(Duration::from_millis(10)).await;
        frames
    }

    /// Returns what a client has not got, if there is one.
    fn wanting(&self) -> Option<String> {
        for (index, client) in self.clients.iter().enumerate() {
            for (group, view) in &client.views {
                let published = self.published[group];
                let has_all = match view.next {
                    Some(next) => next == published + 1,
                    None => view.came_at == published,
                };
                if !(has_all || view.gap && self.faults.tells_gaps()) {
                    let wanting = format!("client {index}, group {group}: {published} {view:?}");
                    return Some(wanting);
                }
            }
        }
        None
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        (0..CLIENTS).for_each(|index| self.close(index));
    }
}
