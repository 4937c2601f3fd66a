//! The deployment beside the model of it: what every socket must get, and how each comparison is made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::party::{KINDS, Party, Source, Token, start};
use crate::support::http::Response;
use crate::support::jwks::Jwks;
use crate::support::publisher::msgpack;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, token};

/// An open socket, and what it has yet to read.
pub(super) struct Open {
    /// The barriers before it opened.
    pub(super) since: u64,
    pub(super) party: usize,
    pub(super) replica: usize,
    pub(super) token: Token,
    pub(super) path: String,
    pub(super) groups: BTreeSet<String>,
    pub(super) socket: Socket,
    /// By group, or by `@` for what is sent to its user.
    pub(super) due: Vec<(String, Value)>,
}

/// The deployment and its model.
pub(super) struct World {
    pub(super) source: Source,
    pub(super) gateway: Gateway,
    _redis: RedisServer,
    link: MultiplexedConnection,
    pub(super) parties: Vec<Party>,
    /// Names for groups, by tenant.
    pub(super) rooms: Vec<Vec<String>>,
    pub(super) open: Vec<Open>,
    /// The expected metrics, by tenant (the last: of none), family and labels.
    pub(super) expected: Vec<BTreeMap<(&'static str, String), f64>>,
    /// By how much these may have risen beyond that: a replica reads a group for a while after its last member left.
    pub(super) lingering: Vec<BTreeMap<(&'static str, String), f64>>,
    /// User lookups as they were, and the tenants whose own doing may have added to them.
    pub(super) lookups: Vec<f64>,
    pub(super) looks_up: BTreeSet<usize>,
    /// The time in tokens: they are issued in order, one a second, long ago.
    pub(super) clock: i64,
    events: u64,
    pub(super) barriers: u64,
    /// The number of steps of each kind.
    pub(super) seen: BTreeMap<&'static str, usize>,
    pub(super) log: Log,
}

/// The steps so far; printed when the test fails.
pub(super) struct Log {
    seed: u64,
    steps: Vec<String>,
}

impl Log {
    pub(super) fn say(&mut self, step: String) {
        self.steps.push(step);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}:", self.seed);
            for (number, step) in self.steps.iter().enumerate() {
                println!("{number:4} {step}");
            }
        }
    }
}

impl World {
    pub(super) async fn new(seed: u64, source: Source) -> Self {
        let (redis, jwks) = (RedisServer::start().await, Arc::new(Jwks::start().await));
        let gateway = start(&redis, &jwks, source).await;
        let parties: Vec<Party> = KINDS
            .iter()
            .map(|kind| Party::new(kind, &gateway, jwks.clone()))
            .collect();
        let rooms = parties.iter().map(|party| party.rooms(&parties)).collect();
        let link = redis.connection().await.expect("redis-server answers");
        let count = parties.len();
        let world = Self {
            source,
            gateway,
            _redis: redis,
            link,
            parties,
            rooms,
            open: Vec::new(),
            expected: vec![BTreeMap::new(); count + 1],
            lingering: vec![BTreeMap::new(); count + 1],
            lookups: vec![0.0; count],
            looks_up: BTreeSet::new(),
            clock: token::now() - 100_000,
            events: 0,
            barriers: 0,
            seen: BTreeMap::new(),
            log: Log {
                seed,
                steps: Vec::new(),
            },
        };
        if source == Source::File {
            for party in &world.parties {
                world.acquainted(party).await;
            }
        }
        world
    }

    /// Waits until each replica knows of the other.
    async fn acquainted(&self, party: &Party) {
        let path = format!("/v1/tenants/{}/connections", party.tenant.name);
        eventually(PATIENCE, "the replicas know each other", async || {
            for replica in &self.gateway.replicas {
                let answer = replica.api(&self.gateway.api_key, "GET", &path, "").await;
                if answer.json()["replicas"]["confirmed"] != 2 {
                    return Err(answer);
                }
            }
            Ok(())
        })
        .await;
    }

    /// A call of a tenant's API, by its own key or an operator's; it must be answered so.
    pub(super) async fn call(
        &self,
        party: usize,
        replica: usize,
        operator: bool,
        (method, path, body): (&str, &str, &str),
    ) -> Response {
        let party = &self.parties[party];
        let key = match operator {
            true => &self.gateway.api_key,
            false => &party.api_key,
        };
        let path = format!("/v1/tenants/{}/{path}", party.tenant.name);
        let replica = &self.gateway.replicas[replica];
        replica.api(key, method, &path, body).await
    }

    /// One command to Redis, as a back end would give it.
    pub(super) async fn command<T: redis::FromRedisValue>(&self, command: &[&[u8]]) -> T {
        let mut cmd = redis::cmd(std::str::from_utf8(command[0]).expect("a word"));
        for argument in &command[1..] {
            cmd.arg(*argument);
        }
        let answer = cmd.query_async(&mut self.link.clone()).await;
        answer.expect("redis-server answers")
    }

    /// So many replicas may take part in a call: those that have made the tenant, and the one that is called.
    pub(super) fn takes_part(&self, replicas: u64) -> bool {
        match self.source {
            Source::File => replicas == 2,
            Source::Registry => (1..=2).contains(&replicas),
        }
    }

    /// So many replicas may hear what Redis announces to a tenant: those that have made it, as those with sockets have.
    pub(super) fn hears(&self, party: usize, replicas: u64) -> bool {
        let open = self.open.iter().filter(|open| open.party == party);
        let with_sockets: BTreeSet<usize> = open.map(|open| open.replica).collect();
        match self.source {
            Source::File => replicas == 2,
            Source::Registry => (with_sockets.len() as u64..=2).contains(&replicas),
        }
    }

    /// A metric of a tenant must have risen.
    pub(super) fn count(&mut self, party: usize, family: &'static str, labels: &str, by: f64) {
        let key = (family, labels.to_owned());
        *self.expected[party].entry(key).or_default() += by;
    }

    /// Returns the counts so far.
    pub(super) fn counted(&self, party: usize, family: &'static str, labels: &str) -> f64 {
        let key = (family, labels.to_owned());
        self.expected[party].get(&key).copied().unwrap_or_default()
    }

    /// A fresh event that no other is equal to.
    pub(super) fn event(&mut self, party: usize) -> Value {
        self.events += 1;
        // The content of an event does not decide its tenant.
        let claim = &self.parties[(party + 1) % self.parties.len()];
        json!({"n": self.events, "tenant": claim.tenant.name, "group": claim.channel("chat_a")})
    }

    /// An event was published to a Redis channel: who must get it, by the channel's name alone.
    pub(super) fn published(&mut self, channel: &str, event: &Value, carried: Carried) {
        for party in 0..self.parties.len() {
            let prefix = self.parties[party].channel("");
            let Some(group) = channel.strip_prefix(&prefix).map(str::to_owned) else {
                continue;
            };
            let mut replicas = BTreeSet::new();
            let mut members = 0.0;
            for open in &mut self.open {
                if open.party == party && open.groups.contains(&group) {
                    replicas.insert(open.replica);
                    members += 1.0;
                    if carried == Carried::Event {
                        open.due.push((group.clone(), event.clone()));
                    }
                }
            }
            let heard = replicas.len() as f64;
            let lingers = match self.parties[party].groups.contains(&group) {
                true => self.gateway.replicas.len() as f64 - heard,
                false => 0.0,
            };
            let dropped = ("lockgate_events_dropped_total", "cause=not_decoded");
            let read = ("lockgate_events_total", "source=layer");
            let counted = match carried {
                Carried::Garbage => vec![read, dropped],
                Carried::Event | Carried::Barrier => {
                    self.count(party, "lockgate_deliveries_total", "", members);
                    vec![read]
                }
            };
            for (family, labels) in counted {
                self.count(party, family, labels, heard);
                let key = (family, labels.to_owned());
                *self.lingering[party].entry(key).or_default() += lingers;
            }
        }
    }

    /// Publishes bytes as any back end on this Redis could.
    pub(super) async fn publish(&mut self, channel: &str, payload: &[u8]) -> u64 {
        self.command(&[b"PUBLISH", channel.as_bytes(), payload])
            .await
    }

    /// Every open socket reads to an event that comes after all others: it got what it must, and nothing else.
    pub(super) async fn settle_events(&mut self) {
        self.barriers += 1;
        let mut channels = BTreeSet::new();
        for open in &self.open {
            let party = &self.parties[open.party];
            channels.extend(open.groups.iter().map(|group| party.channel(group)));
        }
        for channel in &channels {
            let barrier = json!({"type": "barrier", "barrier": self.barriers, "of": channel});
            self.published(channel, &barrier, Carried::Barrier);
            let heard = self.publish(channel, &msgpack(&barrier)).await;
            assert!((1..=2).contains(&heard), "{channel}: {heard} replicas");
        }
        for open in &mut self.open {
            let party = &self.parties[open.party];
            let mut barriers: BTreeSet<String> = open
                .groups
                .iter()
                .map(|group| party.channel(group))
                .collect();
            let mut got = Vec::new();
            while !barriers.is_empty() {
                let message = open.socket.next_json().await;
                match message["barrier"].as_u64() {
                    // One that was on its way when the socket entered a group whose subscription lingered.
                    Some(number) if number <= open.since => {
                        let of = message["of"].as_str().expect("ours");
                        let is_theirs = open.groups.iter().any(|group| party.channel(group) == of);
                        assert!(is_theirs, "{}: {message}", open.name(&self.parties));
                    }
                    Some(number) => {
                        let of = message["of"].as_str().expect("ours");
                        let expected = number == self.barriers && barriers.remove(of);
                        assert!(expected, "{}: {message}", open.name(&self.parties));
                    }
                    None => got.push(message),
                }
            }
            open.check(got, &self.parties);
        }
    }

    /// The sockets for which `concerned` says so must close with this code, and have read everything before.
    pub(super) async fn closes(
        &mut self,
        (code, reason): (u16, &str),
        concerned: impl Fn(&Open) -> bool,
    ) -> u64 {
        let (mut gone, kept) = std::mem::take(&mut self.open)
            .into_iter()
            .partition::<Vec<_>, _>(|open| concerned(open));
        self.open = kept;
        for open in &mut gone {
            let (got, why) = open.socket.closed().await;
            let word = why.split(' ').next().unwrap_or_default();
            assert_eq!((got, word), (code, reason), "{}", open.name(&self.parties));
            self.left(
                open.party,
                open.groups.len(),
                &format!("code={code} reason={reason}"),
            );
        }
        gone.len() as u64
    }

    /// A socket of the model is gone.
    pub(super) fn left(&mut self, party: usize, groups: usize, labels: &str) {
        self.count(party, "lockgate_connections", "", -1.0);
        self.count(party, "lockgate_subscriptions", "", -(groups as f64));
        self.count(party, "lockgate_disconnects_total", labels, 1.0);
    }
}

/// The content of a message of a channel.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Carried {
    Event,
    Barrier,
    Garbage,
}

impl Open {
    pub(super) fn name(&self, parties: &[Party]) -> String {
        let Token { user, jti, .. } = &self.token;
        let word = parties[self.party].kind.word;
        format!(
            "{word}: user {user}, {jti}, replica {}, {:?}",
            self.replica, self.groups
        )
    }

    /// Holds what came against what was due: in each group in order, nothing more and nothing less.
    fn check(&mut self, got: Vec<Value>, parties: &[Party]) {
        let name = self.name(parties);
        let due = std::mem::take(&mut self.due);
        let number = |event: &Value| event["n"].as_u64().unwrap_or_default();
        let sorted = |mut events: Vec<Value>| {
            events.sort_by_key(number);
            events
        };
        let expected = due.iter().map(|(_, event)| event.clone()).collect();
        assert_eq!(sorted(got.clone()), sorted(expected), "{name}");
        let groups: BTreeSet<&String> = due.iter().map(|(group, _)| group).collect();
        for group in groups {
            let of_group = |event: &&Value| due.iter().any(|(g, due)| g == group && due == *event);
            let numbers: Vec<u64> = got.iter().filter(of_group).map(number).collect();
            assert!(numbers.is_sorted(), "{name}: {group}: {numbers:?}");
        }
    }

    /// The next message, which is the echo of its own frame.
    pub(super) async fn echo(&mut self) -> Value {
        match self.socket.next().await {
            Message::Text(text) => serde_json::from_str(text.as_str()).expect("JSON"),
            other => panic!("not an event: {other:?}"),
        }
    }
}
