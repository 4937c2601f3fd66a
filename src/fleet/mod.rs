//! All replicas as one: a question goes out on a control channel, every replica answers, and the result names those that
//! did not answer in time.
//!
//! A replica receives its own questions like those of the others, so there is only one path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
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

use answer::Answer;
use message::{Command, NotCarried, Op};
use replica_list::Registered;
use serve::Wishes;

pub use deployment::DeploymentLine;
pub use replica_list::{Doubt, ReplicaList};
pub use reply::{Reply, reply_channel};
pub use serve::{hear_deployment, serve_deployment, serve_replies};
pub use turns::MessageTurn;

pub mod answer;
mod deployment;
pub mod message;
mod replica_list;
mod reply;
mod serve;
mod turns;

/// The replicas that a question is for: those that serve one tenant, or all of the deployment.
pub struct Circle<'a> {
    /// The key of the set of their ids.
    list: String,
    /// The store of that set and of the replicas' signs of life.
    key_store: &'a KeyStore,
    /// The channel on which they receive the question.
    control: &'a Control,
}

impl<'a> Circle<'a> {
    /// Returns the replicas that serve the tenant.
    pub fn of_tenant(tenant: &TenantId, key_store: &'a KeyStore, control: &'a Control) -> Self {
        Self {
            list: redis_keys::replicas(tenant),
            key_store,
            control,
        }
    }

    /// Returns all replicas of the deployment that take part in this line.
    pub fn of_deployment(line: &'a DeploymentLine) -> Self {
        Self {
            list: redis_keys::REPLICAS.to_owned(),
            key_store: &line.key_store,
            control: &line.control,
        }
    }
}

/// The replicas that a question was for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Replicas {
    /// The number of replicas that are registered or answered; `null` if it cannot be known, which `warning` explains.
    #[schema(required)]
    pub expected: Option<usize>,
    /// The number of replicas that answered in time.
    pub confirmed: usize,
    /// The ids of the registered replicas that did not answer in time.
    pub missing: Vec<String>,
    /// The reason why there may be replicas that are neither counted nor named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl Replicas {
    /// Returns the counts for a deployment whose only replica is this one.
    pub fn only_one() -> Self {
        Self {
            expected: Some(1),
            confirmed: 1,
            ..Self::default()
        }
    }

    /// Returns true if every replica is known to have answered.
    pub fn all_confirmed(&self) -> bool {
        self.expected == Some(self.confirmed)
    }
}

/// A question that was not put to the replicas.
#[derive(Debug, thiserror::Error)]
pub enum NotAsked {
    /// No replica would read it.
    #[error(transparent)]
    NotCarried(#[from] NotCarried),
    /// It could not be sent.
    #[error(transparent)]
    NotSent(#[from] StoreError),
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
        self.total(|answer| answer.closed)
    }

    /// Returns the number of sockets that an event was queued for.
    pub fn delivered(&self) -> u64 {
        self.total(|answer| answer.delivered)
    }

    /// Returns the number of sockets that joined or left a group.
    pub fn changed(&self) -> u64 {
        self.total(|answer| answer.changed)
    }

    /// Returns the number of sockets that have no room for another group.
    pub fn over_limit(&self) -> u64 {
        self.total(|answer| answer.over_limit)
    }

    /// Returns true if no replica has a socket that the question was about, and each is known to have answered.
    pub fn found_nowhere(&self) -> bool {
        self.replicas.all_confirmed() && self.total(|answer| answer.found) == 0
    }

    /// Returns the number of open sockets.
    pub fn connections(&self) -> u64 {
        self.total(|answer| answer.connections)
    }

    fn total(&self, of: impl Fn(&Answer) -> Option<u64>) -> u64 {
        self.answers.iter().filter_map(of).sum()
    }
}

/// This replica among the others.
pub struct Fleet {
    replicas: Arc<ReplicaList>,
    /// The time limit for answers (`api.timeout`).
    timeout: ArcSwap<Duration>,
    /// The line of all replicas; `None` without a `[redis]`.
    deployment: ArcSwapOption<DeploymentLine>,
    /// The requests of others that came on it.
    wishes: Wishes,
    /// The questions that wait for answers, by their ids.
    waiting: Mutex<HashMap<String, mpsc::Sender<Answer>>>,
}

/// Answers to one question that may wait to be counted. Any process that knows a question's id can forge any number.
const MOST_ANSWERS: usize = 1024;

impl Fleet {
    /// Makes the fleet as the replica of `replicas` sees it; questions wait for answers for at most `timeout`.
    pub fn new(replicas: Arc<ReplicaList>, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            replicas,
            timeout: ArcSwap::from_pointee(timeout),
            deployment: ArcSwapOption::empty(),
            wishes: Wishes::default(),
            waiting: Mutex::default(),
        })
    }

    /// Returns the id of this replica.
    pub fn replica(&self) -> &ReplicaId {
        self.replicas.replica()
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
    /// [`NotAsked`]
    pub async fn ask(&self, circle: Circle<'_>, op: Op) -> Result<Gathered, NotAsked> {
        let question = Question::new(self);
        let command = Command {
            op,
            id: Some(question.id.clone()),
            reply: Some(reply_channel(self.replica())),
        };
        let message = command.to_json()?;
        let deadline = Instant::now() + self.timeout();
        let registered = self.replicas.registered(&circle.list, circle.key_store);
        let (receivers, registered) = tokio::join!(
            circle.control.publish(message),
            timeout_at(deadline, registered)
        );
        let registered = registered.unwrap_or_else(|_| self.replicas.only_this(Doubt::ListNotRead));
        Ok(question.gather(registered, receivers?, deadline).await)
    }

    /// Passes an answer to its question.
    fn answered(&self, answer: Answer) {
        let waiting = self.waiting.lock();
        if let Some(asker) = waiting.get(&answer.id) {
            // Fails if the caller has given up meanwhile, or if somebody floods it with answers.
            drop(asker.try_send(answer));
        }
    }
}

/// A question that waits for answers; dropping it ends the wait.
struct Question<'f> {
    fleet: &'f Fleet,
    id: String,
    answers: mpsc::Receiver<Answer>,
}

impl<'f> Question<'f> {
    fn new(fleet: &'f Fleet) -> Self {
        let (asker, answers) = mpsc::channel(MOST_ANSWERS);
        let id = random_hex();
        fleet.waiting.lock().insert(id.clone(), asker);
        Self { fleet, id, answers }
    }

    /// Gathers answers until all `registered` replicas and all `receivers` of the question have answered, or until the
    /// deadline.
    async fn gather(
        mut self,
        registered: Registered,
        receivers: u64,
        deadline: Instant,
    ) -> Gathered {
        let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
        // Each receiver answers once. After a reload that left this Redis, one replica may be two receivers.
        let mut heard = 0u64;
        let ids = &registered.ids;
        while heard < receivers || !ids.iter().all(|id| answers.contains_key(id)) {
            match timeout_at(deadline, self.answers.recv()).await {
                Ok(Some(answer)) => {
                    heard += 1;
                    // The first answer counts: a second one covers fewer sockets.
                    answers.entry(answer.replica.clone()).or_insert(answer);
                }
                Ok(None) | Err(_) => break,
            }
        }
        let silent = ids.iter().filter(|id| !answers.contains_key(*id));
        let missing: Vec<String> = silent.cloned().collect();
        // Redis counts the connections that got the question: a replica that no list names is still one of them.
        let unnamed = receivers.saturating_sub(heard + missing.len() as u64);
        let unheard = (unnamed > 0).then_some(Doubt::Unheard(unnamed));
        let doubt = registered.doubt.or(unheard);
        Gathered {
            replicas: Replicas {
                expected: doubt.is_none().then_some(answers.len() + missing.len()),
                confirmed: answers.len(),
                missing,
                warning: doubt.map(|doubt| doubt.to_string()),
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
