//! All replicas as one: a question goes out on a control channel, every replica answers, and the result names those that
//! did not answer in time.
//!
//! A replica receives its own questions like those of the others, so there is only one path.

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
use crate::error::StoreError;
use crate::ids::{ReplicaId, TenantId, random_hex};
use crate::stores::key_store::KeyStore;
use crate::stores::redis_keys;

use message::{Answer, Command, Op};

pub use registry::ReplicaRegistry;
pub use reply::{Reply, reply_channel};
pub use serve::{serve_deployment, serve_replies};

pub mod message;
mod registry;
mod reply;
mod serve;

/// The replicas that a question is for: those that serve one tenant, or all of the deployment.
pub struct Circle<'a> {
    /// The key of the set of their ids.
    list: String,
    /// The store of that set and of the replicas' signs of life.
    keys: &'a KeyStore,
    /// The channel on which they receive the question.
    control: &'a Control,
}

impl<'a> Circle<'a> {
    /// Returns the replicas that serve the tenant.
    pub fn of_tenant(tenant: &TenantId, keys: &'a KeyStore, control: &'a Control) -> Self {
        Self {
            list: redis_keys::replicas(tenant),
            keys,
            control,
        }
    }

    /// Returns all replicas of the deployment; `keys` holds their list.
    pub fn of_deployment(keys: &'a KeyStore, control: &'a Control) -> Self {
        Self {
            list: redis_keys::REPLICAS.to_owned(),
            keys,
            control,
        }
    }
}

/// The replicas that a question was for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Replicas {
    /// The number of replicas that are registered or answered.
    pub expected: usize,
    /// The number of replicas that answered in time.
    pub confirmed: usize,
    /// The ids of the replicas that did not answer in time.
    pub missing: Vec<String>,
}

impl Replicas {
    /// Returns the counts for a deployment whose only replica is this one.
    pub fn only_one() -> Self {
        Self {
            expected: 1,
            confirmed: 1,
            missing: Vec::new(),
        }
    }
}

/// The outcome of a question.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// The replicas, those that answered and those that did not.
    pub replicas: Replicas,
    /// The answers, in the order of the replicas' ids.
    pub answers: Vec<Answer>,
}

impl Gathered {
    /// Returns the number of sockets closed, on all replicas that answered.
    pub fn closed(&self) -> u64 {
        self.answers.iter().filter_map(|answer| answer.closed).sum()
    }

    /// Returns the number of sockets that an event was queued for.
    pub fn delivered(&self) -> u64 {
        let delivered = self.answers.iter().filter_map(|answer| answer.delivered);
        delivered.sum()
    }

    /// Returns the number of open sockets.
    pub fn connections(&self) -> u64 {
        let connections = self.answers.iter().filter_map(|answer| answer.connections);
        connections.sum()
    }
}

/// This replica among the others.
pub struct Fleet {
    replica: ReplicaId,
    /// The time limit for answers (`api.timeout`).
    timeout: ArcSwap<Duration>,
    /// The questions that wait for answers, by their ids.
    waiting: Mutex<HashMap<String, mpsc::UnboundedSender<Answer>>>,
}

impl Fleet {
    /// Makes the fleet as the replica `replica` sees it; questions wait for answers for at most `timeout`.
    pub fn new(replica: ReplicaId, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            replica,
            timeout: ArcSwap::from_pointee(timeout),
            waiting: Mutex::default(),
        })
    }

    /// Returns the id of this replica.
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// Returns the time limit for answers.
    pub fn timeout(&self) -> Duration {
        **self.timeout.load()
    }

    /// Changes the time limit for answers, for later questions.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.store(Arc::new(timeout));
    }

    /// Asks all replicas of the circle and gathers their answers for at most `api.timeout`.
    ///
    /// # Errors
    /// [`StoreError`] if the question could not be sent.
    pub async fn ask(&self, circle: Circle<'_>, op: Op) -> Result<Gathered, StoreError> {
        let registered = registry::registered(&circle.list, circle.keys, &self.replica);
        let question = Question::new(self);
        let command = Command {
            op,
            id: Some(question.id.clone()),
            reply: Some(reply_channel(&self.replica)),
        };
        let deadline = Instant::now() + self.timeout();
        let (sent, registered) = tokio::join!(
            circle.control.publish(command.to_json()),
            timeout_at(deadline, registered)
        );
        sent?;
        let registered = match registered {
            Ok(Ok(registered)) => registered,
            // Without the list no other replica is known; this one is there.
            Ok(Err(_)) | Err(_) => vec![self.replica.as_str().to_owned()],
        };
        Ok(question.gather(registered, deadline).await)
    }

    /// Passes an answer to its question.
    fn answered(&self, answer: Answer) {
        let waiting = self.waiting.lock();
        if let Some(asker) = waiting.get(&answer.id) {
            // Sending fails if the caller has given up meanwhile.
            drop(asker.send(answer));
        }
    }
}

/// A question that waits for answers; dropping it ends the wait.
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
                // The first answer counts. After a reload that left this Redis, a replica may answer a second time, and that
                // answer covers fewer sockets.
                Ok(Some(answer)) => {
                    answers.entry(answer.replica.clone()).or_insert(answer);
                }
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
