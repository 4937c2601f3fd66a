//! The knowledge of clients and publishers, and the events that they send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Size;
use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::http::{Response, try_request};
use crate::support::{Tenant, token, unique};

/// A publisher's wait for an answer, and before it asks again.
const ANSWER: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);
/// A call whose replica was killed may hold its key for long. Its event is recorded or not, and the history knows.
const ATTEMPTS: usize = 40;
/// The letters in each event.
const PADDING: usize = 600;
/// Events in a burst, and their letters: more than the systems at both ends keep for a client that stands still.
const BURST: (u64, usize) = (60, 50_000);
/// The letters that the events of a burst have more than those of the burst before.
pub(super) const MORE_LETTERS: usize = 1_000;

/// The replicas as they are now.
#[derive(Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) sockets: Vec<SocketAddr>,
    pub(crate) api: Vec<SocketAddr>,
}

/// All that clients and publishers know.
pub(crate) struct Ground {
    /// The doors for sockets, by replica; they stay where they are when a replica is replaced.
    pub(crate) fronts: Vec<SocketAddr>,
    /// The addresses behind the doors, by replica.
    pub(crate) addresses: Mutex<Addresses>,
    pub(crate) tenant: Tenant,
    /// A tenant that has groups of the same names on the same Redis. None of its events is one of ours.
    pub(crate) neighbour: Tenant,
    pub(crate) api_key: String,
    /// The numbers that the gateway has answered with success, by group: no history may be without one of them.
    pub(crate) answered: Vec<Mutex<Vec<u64>>>,
    /// The next number of each group. Those of the API are even, those of Django odd.
    next: Vec<Mutex<u64>>,
}

impl Ground {
    /// The channel of a group on the layers `pubsub` and `sharded`.
    pub(crate) fn channel(&self, group: usize) -> String {
        format!("{}__group__g_{group}", self.tenant.prefix)
    }

    pub(crate) fn new(
        fronts: Vec<SocketAddr>,
        [tenant, neighbour]: [Tenant; 2],
        api_key: String,
        groups: usize,
    ) -> Self {
        Self {
            fronts,
            addresses: Mutex::default(),
            tenant,
            neighbour,
            api_key,
            answered: (0..groups).map(|_| Mutex::default()).collect(),
            next: (0..groups).map(|_| Mutex::default()).collect(),
        }
    }

    /// Returns a token that outlives the run.
    pub(crate) fn token(&self) -> String {
        let mut claims = token::access(ALICE);
        claims["exp"] = (token::now() + 86_400).into();
        self.tenant.sign(&claims)
    }

    /// Publishes the next event of a group, and asks again until it is answered. The gateway carries out a repeated call once.
    async fn publish(&self, group: usize, padding: &str) {
        let number = {
            let mut next = self.next[group].lock();
            *next += 2;
            *next - 2
        };
        let event = json!({"type": "n", "tenant": self.tenant.name, "group": group, "number": number, "padding": padding});
        let (body, id) = (event.to_string(), unique());
        for attempt in group..group + ATTEMPTS {
            let answer = self.send(&self.tenant, group, attempt, &body, &id);
            match tokio::time::timeout(ANSWER, answer).await {
                Ok(Some(answer)) if answer.status == 200 => {
                    return self.answered[group].lock().push(number);
                }
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn send(
        &self,
        tenant: &Tenant,
        group: usize,
        attempt: usize,
        body: &str,
        id: &str,
    ) -> Option<Response> {
        let path = format!("/v1/tenants/{}/groups/g_{group}/send", tenant.name);
        let bearer = format!("Bearer {}", self.api_key);
        let headers = [("Authorization", bearer.as_str()), ("Idempotency-Key", id)];
        let api = self.addresses.lock().api.clone();
        try_request(api[attempt % api.len()], "POST", &path, &headers, body).await
    }

    /// Publishes a burst of large events to the first group. Bursts are counted from 0.
    pub(crate) async fn burst(&self, count: usize) {
        let padding = "x".repeat(BURST.1 + count * MORE_LETTERS);
        for _ in 0..BURST.0 {
            self.publish(0, &padding).await;
        }
    }
}

/// Starts a publisher for each group, and one of the neighbour. They end with the switch.
pub(crate) fn publishers(
    ground: &Arc<Ground>,
    size: Size,
    switch: &watch::Sender<bool>,
) -> JoinSet<()> {
    let mut publishers = JoinSet::new();
    for group in 0..=size.groups {
        let (ground, publishing) = (ground.clone(), switch.subscribe());
        publishers.spawn(async move {
            let padding = "x".repeat(PADDING);
            let mut tick = tokio::time::interval(size.pace);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for turn in 0.. {
                tick.tick().await;
                if !*publishing.borrow() {
                    return;
                }
                if group < size.groups {
                    ground.publish(group, &padding).await;
                    continue;
                }
                let group = turn % size.groups;
                let event = json!({"type": "n", "tenant": ground.neighbour.name, "group": group, "number": turn});
                let (body, id) = (event.to_string(), unique());
                let sent = ground.send(&ground.neighbour, group, turn, &body, &id);
                // It only has to disturb.
                drop(tokio::time::timeout(ANSWER, sent).await);
            }
        });
    }
    publishers
}

/// Lets Django send numbered events to all groups, and returns at once.
pub(crate) async fn begin_numbers(django: &Django, tenant: &Tenant, size: Size) {
    let pace = size.pace.as_secs_f64();
    let order = json!({"op": "publish_numbers", "tenant": tenant.name, "groups": size.groups, "pace": pace, "padding": PADDING});
    django.ask(order).await;
}

/// Ends that. Returns the numbers that were sent without an error, by group.
pub(crate) async fn end_numbers(django: &Django) -> Vec<Vec<u64>> {
    let sent = django.ask(json!({"op": "end_numbers"})).await;
    serde_json::from_value(sent).expect("numbers by group")
}
