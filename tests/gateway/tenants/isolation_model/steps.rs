//! The kinds of steps, and the steps that send.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::connects::encoded;
use super::party::KINDS;
use super::random::Random;
use super::world::{Carried, World};
use crate::support::database::{ALICE, BOB};
use crate::support::http::request;
use crate::support::publisher::msgpack;

/// The kinds of steps, with their number in a hundred.
const STEPS: [(&str, usize); 20] = [
    ("connect", 19),
    ("stranger", 7),
    ("connect with an old token", 5),
    ("foreign token", 6),
    ("nobody's host", 4),
    ("send by the API", 8),
    ("publish in Redis", 8),
    ("broadcast", 7),
    ("send to a user", 4),
    ("revoke a token", 4),
    ("revoke a user", 2),
    ("revoke a tenant", 2),
    ("disconnect a user", 3),
    ("leave", 4),
    ("invalidate a user", 2),
    ("change a user", 2),
    ("suspend or resume", 4),
    ("another's key", 4),
    ("plant a record", 2),
    ("flood", 3),
];

impl World {
    /// One step; answers whether it closed sockets.
    pub(super) async fn step(&mut self, random: &mut Random) -> bool {
        let total: usize = STEPS.iter().map(|(_, weight)| weight).sum();
        let mut at = random.below(total);
        let drawn = STEPS.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let (word, _) = drawn.expect("it is below their sum");
        *self.seen.entry(word).or_default() += 1;
        match *word {
            "connect" => return self.connect(random, false).await,
            "connect with an old token" => return self.connect(random, true).await,
            "stranger" => self.stranger(random).await,
            "foreign token" => self.foreign_token(random).await,
            "nobody's host" => self.nobodys_host(random).await,
            "send by the API" => {
                let party = random.below(self.parties.len());
                self.send(party, random).await;
            }
            "publish in Redis" => self.publish_anywhere(random).await,
            "broadcast" => self.broadcast(random).await,
            "send to a user" => self.send_to_user(random).await,
            "revoke a token" => return self.revoke_token(random).await,
            "revoke a user" => return self.revoke_until(random, true).await,
            "revoke a tenant" => return self.revoke_until(random, false).await,
            "disconnect a user" => return self.disconnect(random).await,
            "leave" => return self.leave(random).await,
            "invalidate a user" => self.invalidate(random).await,
            "change a user" => return self.change_user(random).await,
            "suspend or resume" => return self.suspend(random).await,
            "another's key" => self.anothers_key(random).await,
            "plant a record" => self.plant(random).await,
            "flood" => self.flood(random).await,
            other => unreachable!("{other}"),
        }
        false
    }

    /// Every kind of step was drawn, and sockets opened, heard and closed at every tenant.
    pub(super) fn all_was_seen(&self) {
        for (word, _) in STEPS {
            let count = self.seen.get(word).copied().unwrap_or_default();
            assert!(count > 0, "{word} was never drawn: {:?}", self.seen);
        }
        for (party, kind) in KINDS.iter().enumerate() {
            for (family, labels) in [
                ("lockgate_handshakes_total", "result=accepted"),
                ("lockgate_handshakes_total", "result=token_not_valid"),
                ("lockgate_deliveries_total", ""),
                ("lockgate_events_total", "source=api"),
            ] {
                let count = self.counted(party, family, labels);
                assert!(count > 0.0, "{} {family} {labels}", kind.word);
            }
        }
    }

    fn group(&self, party: usize, random: &mut Random) -> String {
        match random.chance(60) {
            true => "chat_a".to_owned(),
            false => random.pick(&self.rooms[party]).clone(),
        }
    }

    /// `POST …/send`, by the tenant's own key or an operator's, once or twice with an `Idempotency-Key`.
    async fn send(&mut self, party: usize, random: &mut Random) {
        let (replica, group) = (random.below(2), self.group(party, random));
        let event = self.event(party);
        let mut body = event.clone();
        body["type"] = "x".into();
        let of = &self.parties[party];
        let channel = of.channel(&group);
        let path = format!(
            "/v1/tenants/{}/groups/{}/send",
            of.tenant.name,
            encoded(&group)
        );
        // Equal keys at all tenants.
        let key = format!("call-{}", of.idempotency_keys.len());
        let own = match random.chance(50) {
            true => &of.api_key,
            false => &self.gateway.api_key,
        };
        let bearer = format!("Bearer {own}");
        let mut headers = vec![("Authorization", bearer.as_str())];
        let repeated = random.chance(40);
        if repeated {
            headers.push(("Idempotency-Key", &key));
        }
        let api = self.gateway.replicas[replica].api;
        let body = body.to_string();
        let answer = request(api, "POST", &path, &headers, &body).await;
        let word = KINDS[party].word;
        self.log
            .say(format!("send to {channel:?}: {}", answer.status));
        if answer.status == 429 && KINDS[party].publishes_are_limited {
            let limit = "limit=publishes_per_second";
            return self.count(party, "lockgate_rate_limited_total", limit, 1.0);
        }
        assert_eq!(answer.status, 200, "{word} {answer:?}");
        if repeated {
            let other = self.gateway.replicas[1 - replica].api;
            let again = request(other, "POST", &path, &headers, &body).await;
            assert_eq!((again.status, &again.body), (200, &answer.body));
            self.parties[party].idempotency_keys.insert(key);
        }
        self.count(party, "lockgate_events_total", "source=api", 1.0);
        self.published(&channel, &event, Carried::Event);
    }

    /// Publishes to groups of one tenant as Django does, and to channels with almost the same names.
    async fn publish_anywhere(&mut self, random: &mut Random) {
        let party = random.below(self.parties.len());
        let of = &self.parties[party];
        let (prefix, name) = (of.kind.prefix, of.tenant.name.clone());
        let group = self.group(party, random);
        let channel = match random.below(12) {
            // Of a tenant in a namespace this is no group, or that of another one.
            10 => format!("{prefix}__group__{group}"),
            11 => format!(
                "{prefix}__group__{}{group}",
                of.kind.namespace.trim_end_matches('.')
            ),
            0 => format!("{prefix}__group__"),
            1 => format!("{prefix}__group__{prefix}__group__chat_a"),
            2 => format!("{}__group__chat_a", prefix.to_uppercase()),
            3 => format!("{name}__group__chat_a"),
            4 => format!("{prefix}__group__chat_a\0"),
            _ => of.channel(&group),
        };
        let event = self.event(party);
        let mut whole = event.clone();
        whole["type"] = "x".into();
        let garbage = random.chance(20);
        let payload = match garbage {
            true => b"\xc1 no event".to_vec(),
            false => msgpack(&whole),
        };
        let heard = self.publish(&channel, &payload).await;
        self.log
            .say(format!("PUBLISH {channel:?}, garbage: {garbage}: {heard}"));
        let carried = match garbage {
            true => Carried::Garbage,
            false => Carried::Event,
        };
        self.published(&channel, &event, carried);
    }

    /// A client sends to its group, under a name that it would like to have.
    async fn broadcast(&mut self, random: &mut Random) {
        let may = |at: &usize| {
            let open = &self.open[*at];
            open.path.starts_with("/ws/chat/") && !KINDS[open.party].publishes_are_limited
        };
        let senders: Vec<usize> = (0..self.open.len()).filter(may).collect();
        if senders.is_empty() {
            return;
        }
        let at = *random.pick(&senders);
        let party = self.open[at].party;
        let mut event = self.event(party);
        event["user_id"] = "99".into();
        event["username"] = "root".into();
        self.open[at].socket.send_text(&event.to_string()).await;
        let user = self.open[at].token.user.clone();
        event["username"] = self.username(party, &user).into();
        event["user_id"] = user.into();
        // It is in the group itself: what it hears, everybody will have heard before the next barrier.
        let echo = self.open[at].echo().await;
        let name = self.open[at].name(&self.parties);
        assert_eq!(echo, event, "{name}");
        self.log.say(format!("a broadcast of {name}"));
        let channel = self.parties[party].channel("chat_a");
        self.published(&channel, &event, Carried::Event);
        self.open[at].due.pop();
        self.count(party, "lockgate_events_total", "source=socket", 1.0);
    }

    pub(super) fn username(&self, party: usize, user: &str) -> String {
        let name = match user {
            ALICE => "alice",
            BOB => "bob",
            _ => "planted",
        };
        format!("{name} of {}", KINDS[party].word)
    }

    async fn send_to_user(&mut self, random: &mut Random) {
        let party = random.below(self.parties.len());
        let user = *random.pick(&[ALICE, BOB]);
        let event = self.event(party);
        let mut body = event.clone();
        body["type"] = "x".into();
        let path = format!("users/{user}/send");
        let call = ("POST", path.as_str(), body.to_string());
        let answer = self
            .call(
                party,
                random.below(2),
                random.chance(50),
                (call.0, call.1, &call.2),
            )
            .await;
        let mut reached = 0;
        for open in &mut self.open {
            if open.party == party && open.token.user == user {
                open.due.push(("@".to_owned(), event.clone()));
                reached += 1;
            }
        }
        self.log.say(format!(
            "send to user {user} of {}: {reached}",
            KINDS[party].word
        ));
        assert_eq!(answer.json()["delivered"], reached, "{answer:?}");
        // Each replica is handed it.
        self.count(party, "lockgate_events_total", "source=api", 2.0);
    }

    /// One tenant publishes more than it may; that is its own affair: the others do so at the same moment.
    async fn flood(&mut self, random: &mut Random) {
        let limited = |at: &usize| KINDS[*at].publishes_are_limited;
        let party = (0..KINDS.len()).find(limited).expect("there is one");
        let numbered: Vec<Value> = (0..60).map(|_| self.event(party)).collect();
        let messages: Vec<Value> = numbered
            .iter()
            .map(|event| {
                let mut event = event.clone();
                event["type"] = "x".into();
                json!({"group": "chat_a", "event": event})
            })
            .collect();
        let body = json!({"messages": messages}).to_string();
        let replica = random.below(2);
        let started = Instant::now();
        let answer = self
            .call(party, replica, false, ("POST", "send", &body))
            .await;
        let slow = started.elapsed() > Duration::from_millis(500);
        let answer = answer.json();
        let results = answer["results"].as_array().expect("a list");
        let channel = self.parties[party].channel("chat_a");
        let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
        for (event, result) in numbered.iter().zip(results) {
            if result["published"] == 1 {
                *outcomes.entry("published").or_default() += 1;
                self.count(party, "lockgate_events_total", "source=api", 1.0);
                self.published(&channel, event, Carried::Event);
            } else {
                assert_eq!(result["code"], "rate_limited", "{result}");
                *outcomes.entry("refused").or_default() += 1;
                let limit = "limit=publishes_per_second";
                self.count(party, "lockgate_rate_limited_total", limit, 1.0);
            }
        }
        self.log.say(format!("a flood: {outcomes:?}"));
        for other in (0..self.parties.len()).filter(|other| *other != party) {
            self.send(other, random).await;
        }
        assert!(slow || outcomes.contains_key("refused"), "{outcomes:?}");
    }
}
