//! Subscriptions against a Redis in memory that answers late, loses its link and refuses names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::metrics::TenantMetrics;

/// Redis as this module sees it, with channels that may be denied.
#[derive(Default)]
struct FakeServer {
    wire: VecDeque<Vec<String>>,
    subscribed: BTreeSet<String>,
    denied: BTreeSet<String>,
}

impl FakeServer {
    fn hear(&mut self, out: &mut BytesMut) {
        let text = String::from_utf8(out.split().to_vec()).unwrap();
        for command in text.split('*').skip(1) {
            let words = command.split("\r\n").skip(2).step_by(2);
            let words: Vec<String> = words.map(String::from).collect();
            self.wire.push_back(words);
        }
    }

    /// Carries out one command and tells `wishes`.
    fn step(&mut self, wishes: &mut Subscriptions) {
        let Some(words) = self.wire.pop_front() else {
            return;
        };
        let names = &words[1..];
        if words[0] == "SUBSCRIBE" && names.iter().any(|name| self.denied.contains(name)) {
            wishes.failed(ErrorKind::Permission).unwrap();
            return;
        }
        for name in names {
            if words[0] == "SUBSCRIBE" {
                self.subscribed.insert(name.clone());
                assert!(wishes.confirmed(name.as_bytes()).is_ok());
            } else {
                self.subscribed.remove(name);
                assert!(wishes.ended(name.as_bytes()).is_ok());
            }
        }
    }

    /// Returns true if events of the channel arrive from now on until the wish ends.
    fn stays_subscribed(&self, name: &str) -> bool {
        let mut coming = self
            .wire
            .iter()
            .filter(|words| words[1..].iter().any(|n| n == name));
        self.subscribed.contains(name) && coming.all(|words| words[0] == "SUBSCRIBE")
    }
}

#[derive(Clone, Debug)]
enum Act {
    Want(u8, u64),
    Unwant(u8, u64),
    Flush,
    Step,
    Lose,
    Deny(u8),
    Grant(u8),
}

fn act() -> impl Strategy<Value = Act> {
    let channel = 0..4_u8;
    prop_oneof![
        4 => (channel.clone(), 0..2_u64).prop_map(|(c, a)| Act::Want(c, a)),
        4 => (channel.clone(), 0..2_u64).prop_map(|(c, a)| Act::Unwant(c, a)),
        4 => Just(Act::Flush),
        6 => Just(Act::Step),
        1 => Just(Act::Lose),
        1 => channel.clone().prop_map(Act::Deny),
        1 => channel.prop_map(Act::Grant),
    ]
}

fn inbox() -> Arc<Inbox> {
    let metrics = TenantMetrics::new(&"acme".parse().unwrap());
    Inbox::new(0, Arc::new(metrics))
}

fn name(channel: u8) -> Bytes {
    Bytes::from(format!("c{channel}"))
}

/// Runs everything that is under way to its end.
fn quiesce(wishes: &mut Subscriptions, server: &mut FakeServer) {
    let mut out = BytesMut::new();
    for _ in 0..20 {
        wishes.flush(&mut out);
        server.hear(&mut out);
        while !server.wire.is_empty() {
            server.step(wishes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_crosses_redis_ends_as_wished(acts in prop::collection::vec(act(), 1..60)) {
        let (mut wishes, mut server, inbox) = (Subscriptions::default(), FakeServer::default(), inbox());
        let mut out = BytesMut::new();
        let mut wanted: BTreeMap<u8, BTreeSet<u64>> = BTreeMap::new();
        let mut heard: BTreeMap<(u8, u64), Heard> = BTreeMap::new();
        let mut waiting: Vec<(u8, oneshot::Receiver<Result<(), ErrorKind>>)> = Vec::new();
        for act in acts {
            match act {
                Act::Want(channel, attachment) => {
                    let (waiter, outcome) = oneshot::channel();
                    let heard = heard.entry((channel, attachment)).or_default().clone();
                    let route = ChannelRoute { attachment, inbox: inbox.clone(), target: Target::Group("g".into()), role: ChannelRole::Events, heard: Some(heard), voice: None };
                    wishes.want(&name(channel), route, waiter);
                    wanted.entry(channel).or_default().insert(attachment);
                    waiting.push((channel, outcome));
                }
                Act::Unwant(channel, attachment) => {
                    wishes.unwant(&name(channel), attachment);
                    heard.remove(&(channel, attachment));
                    wanted.entry(channel).or_default().remove(&attachment);
                }
                Act::Flush => {
                    wishes.flush(&mut out);
                    server.hear(&mut out);
                }
                Act::Step => server.step(&mut wishes),
                Act::Lose => {
                    wishes.link_lost();
                    server.wire.clear();
                    server.subscribed.clear();
                    wishes.link_made();
                }
                Act::Deny(channel) => drop(server.denied.insert(format!("c{channel}"))),
                Act::Grant(channel) => {
                    server.denied.remove(&format!("c{channel}"));
                }
            }
            for ((channel, _), heard) in &heard {
                let name = format!("c{channel}");
                prop_assert!(!heard.load(Ordering::Acquire) || server.stays_subscribed(&name));
            }
            waiting.retain_mut(|(channel, outcome)| match outcome.try_recv() {
                Ok(Ok(())) => {
                    let still = wanted.get(channel).is_some_and(|who| !who.is_empty());
                    assert!(!still || server.stays_subscribed(&format!("c{channel}")));
                    false
                }
                Ok(Err(_)) => false,
                Err(_) => true,
            });
        }
        server.denied.clear();
        quiesce(&mut wishes, &mut server);
        wishes.retry_refused();
        quiesce(&mut wishes, &mut server);
        let expected = wanted.iter().filter(|(_, who)| !who.is_empty());
        let expected: BTreeSet<String> = expected.map(|(channel, _)| format!("c{channel}")).collect();
        prop_assert_eq!(&server.subscribed, &expected);
        prop_assert_eq!(wishes.len(), expected.len());
        prop_assert!(wishes.recovered());
        prop_assert!(heard.values().all(|heard| heard.load(Ordering::Acquire)));
        prop_assert!(wishes.sent.sizes().is_empty());
        for (channel, mut outcome) in waiting {
            // A wish that ended meanwhile took its waiters with it.
            let empty = oneshot::error::TryRecvError::Empty;
            let answered = outcome.try_recv() != Err(empty);
            let name = format!("c{channel}");
            prop_assert!(answered || !expected.contains(&name));
        }
    }
}

fn route(inbox: &Arc<Inbox>) -> ChannelRoute {
    ChannelRoute {
        attachment: 0,
        inbox: inbox.clone(),
        target: Target::Group("g".into()),
        role: ChannelRole::Events,
        heard: None,
        voice: None,
    }
}

#[test]
fn names_go_in_batches() {
    let (mut wishes, inbox) = (Subscriptions::default(), inbox());
    for number in 0..1201 {
        let name = Bytes::from(format!("c{number}"));
        wishes.want(&name, route(&inbox), oneshot::channel().0);
    }
    let mut out = BytesMut::new();
    wishes.flush(&mut out);
    assert_eq!(wishes.sent.sizes(), [500, 500, 201]);
    let before = out.len();
    wishes.flush(&mut out);
    assert_eq!(out.len(), before);
}

#[test]
fn an_answer_without_a_command_is_an_error() {
    let mut wishes = Subscriptions::default();
    assert!(wishes.confirmed(b"c").is_err());
    assert_eq!(wishes.ended(b"c"), Err(OutOfStep));
    assert_eq!(wishes.ponged(), Err(OutOfStep));
    assert_eq!(wishes.failed(ErrorKind::Other), Err(OutOfStep));
}

/// A link to a shard on which these channels are wanted and confirmed.
fn of_shard(names: &[&'static str]) -> Subscriptions {
    let (mut wishes, inbox) = (Subscriptions::sharded(), inbox());
    for name in names {
        let name = Bytes::from_static(name.as_bytes());
        wishes.want(&name, route(&inbox), oneshot::channel().0);
    }
    wishes.flush(&mut BytesMut::new());
    for name in names {
        assert!(wishes.confirmed(name.as_bytes()).is_ok());
    }
    wishes
}

/// A group is left while its slot moves: the server ends the channel by itself, and then refuses our command for it.
#[test]
fn the_refusal_of_an_unsubscribe_whose_channel_the_server_has_ended_answers_nothing_else() {
    let mut wishes = of_shard(&["left", "stays"]);
    let mut out = BytesMut::new();
    wishes.unwant(&Bytes::from_static(b"left"), 0);
    wishes.flush(&mut out);
    wishes.ping(&mut out);
    // The push comes first, and looks like the answer.
    assert_eq!(wishes.ended(b"left"), Ok(None));
    let slot = Some(slot_of(b"left"));
    assert_eq!(wishes.redirected(slot), Ok(Vec::new()));
    assert_eq!(wishes.ponged(), Ok(()));
    assert!(wishes.subscribed(b"stays"));
    // The same with nothing on its way, and a push for a channel that is forgotten.
    assert_eq!(wishes.redirected(slot), Ok(Vec::new()));
    assert_eq!(wishes.ended(b"left"), Ok(None));
}

/// A channel whose slot moves has no waiters here: they wait for the shard that gets it.
#[test]
fn a_channel_that_the_shard_does_not_have_lets_its_waiters_go() {
    let mut wishes = of_shard(&["moves"]);
    assert_eq!(
        wishes.ended(b"moves"),
        Ok(Some(Bytes::from_static(b"moves")))
    );
    assert!(!wishes.subscribed(b"moves"));
    let mut out = BytesMut::new();
    let (waiter, mut answer) = oneshot::channel();
    wishes.want(&Bytes::from_static(b"moves"), route(&inbox()), waiter);
    wishes.flush(&mut out);
    let moved = wishes.redirected(Some(slot_of(b"moves")));
    assert_eq!(moved, Ok(vec![Bytes::from_static(b"moves")]));
    assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
}
