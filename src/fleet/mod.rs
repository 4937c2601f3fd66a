//! All replicas as one: a question goes out on a control channel, every replica answers, and what did not answer in time
//! is named.
//!
//! A replica hears its own questions back like all others: there is one path, whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::channel_layer::Control;
use crate::channel_layer::control::{Answer, Command, Op, VERSION, reply_channel};
use crate::error::StoreError;
use crate::ids::{ReplicaId, random_hex};
use crate::state::Tenant;
use crate::stores::key_store::KeyStore;
use crate::stores::redis_keys;

pub use registry::Registry;
pub use serve::{SUSPENDED, serve_deployment, serve_replies, serve_tenant};

mod registry;
mod serve;

/// Which replicas a question was for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Replicas {
    /// Those that were registered, or answered.
    pub expected: usize,
    /// Those that answered in time.
    pub confirmed: usize,
    /// The ids of the others.
    pub missing: Vec<String>,
}

impl Replicas {
    /// This replica, which is the only one.
    pub fn only_one() -> Self {
        Self {
            expected: 1,
            confirmed: 1,
            missing: Vec::new(),
        }
    }
}

/// What came of a question.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Who answered.
    pub replicas: Replicas,
    /// What they said, in the order of their ids.
    pub answers: Vec<Answer>,
}

impl Gathered {
    /// Sockets that were closed, on all replicas that answered.
    pub fn closed(&self) -> u64 {
        self.answers.iter().filter_map(|answer| answer.closed).sum()
    }

    /// Sockets that an event was queued for.
    pub fn delivered(&self) -> u64 {
        let delivered = self.answers.iter().filter_map(|answer| answer.delivered);
        delivered.sum()
    }

    /// Open sockets.
    pub fn connections(&self) -> u64 {
        let connections = self.answers.iter().filter_map(|answer| answer.connections);
        connections.sum()
    }
}

/// This replica among the others.
pub struct Fleet {
    replica: ReplicaId,
    /// `api.timeout`
    timeout: ArcSwap<Duration>,
    /// Questions whose answers are waited for, by their ids.
    waiting: Mutex<HashMap<String, mpsc::UnboundedSender<Answer>>>,
}

impl Fleet {
    /// The replica `replica`, which waits for others as long as `timeout`.
    pub fn new(replica: ReplicaId, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            replica,
            timeout: ArcSwap::from_pointee(timeout),
            waiting: Mutex::default(),
        })
    }

    /// The id of this replica.
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// Waits for others as long as `timeout` from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.store(Arc::new(timeout));
    }

    /// Asks all replicas that serve the tenant, and gathers their answers for at most `api.timeout`.
    ///
    /// # Errors
    /// [`StoreError`] if the question could not be sent.
    pub async fn ask(&self, tenant: &Tenant, op: Op) -> Result<Gathered, StoreError> {
        let registered = registry::registered(&tenant.id, &tenant.keys, &self.replica);
        self.ask_on(&tenant.control, registered, op).await
    }

    /// Has all replicas of the deployment read their configurations again; `keys` holds their registry.
    ///
    /// # Errors
    /// As [`Fleet::ask`].
    pub async fn ask_deployment(
        &self,
        control: &Control,
        keys: &KeyStore,
    ) -> Result<Gathered, StoreError> {
        let registered = registry::registered_in(redis_keys::REPLICAS, keys, &self.replica);
        self.ask_on(control, registered, Op::Reload).await
    }

    async fn ask_on(
        &self,
        control: &Control,
        registered: impl Future<Output = Result<Vec<String>, StoreError>>,
        op: Op,
    ) -> Result<Gathered, StoreError> {
        let question = Question::new(self);
        let command = Command {
            op,
            id: Some(question.id.clone()),
            reply: Some(reply_channel(&self.replica)),
        };
        let deadline = Instant::now() + **self.timeout.load();
        let (sent, registered) = tokio::join!(
            control.publish(command.to_json()),
            timeout_at(deadline, registered)
        );
        sent?;
        let registered = match registered {
            Ok(Ok(registered)) => registered,
            // Who else there is cannot be known: this replica is there.
            Ok(Err(_)) | Err(_) => vec![self.replica.as_str().to_owned()],
        };
        Ok(question.gather(registered, deadline).await)
    }

    /// An answer came in.
    fn answered(&self, answer: Answer) {
        let waiting = self.waiting.lock();
        if let Some(asker) = waiting.get(&answer.id) {
            // Whoever asked may have given up meanwhile.
            drop(asker.send(answer));
        }
    }
}

/// A question that is under way; forgotten when it is dropped.
struct Question<'f> {
    fleet: &'f Fleet,
    id: String,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl<'f> Question<'f> {
    fn new(fleet: &'f Fleet) -> Self {
        let (asker, answers) = mpsc::unbounded_channel();
        let id = random_hex();
        fleet.waiting.lock().insert(id.clone(), asker);
        Self { fleet, id, answers }
    }

    async fn gather(mut self, registered: Vec<String>, deadline: Instant) -> Gathered {
        let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
        while !registered.iter().all(|id| answers.contains_key(id)) {
            match timeout_at(deadline, self.answers.recv()).await {
                Ok(Some(answer)) => drop(answers.insert(answer.replica.clone(), answer)),
                Ok(None) | Err(_) => break,
            }
        }
        let silent = registered.iter().filter(|id| !answers.contains_key(*id));
        let missing: Vec<String> = silent.cloned().collect();
        Gathered {
            replicas: Replicas {
                expected: answers.len() + missing.len(),
                confirmed: answers.len(),
                missing,
            },
            answers: answers.into_values().collect(),
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.fleet.waiting.lock().remove(&self.id);
    }
}

/// An answer of this replica that says nothing yet.
fn blank(fleet: &Fleet, id: &str) -> Answer {
    Answer {
        v: VERSION,
        id: id.to_owned(),
        replica: fleet.replica.as_str().to_owned(),
        ..Answer::default()
    }
}
