//! Links that several users share: the first user starts a link, the last one ends it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::ErrorKind;
use crate::stores::redis::RedisStore;
use crate::stores::standing::LinkWords;
use crate::tasks::{self, Task};

use super::super::LayerError;
use super::life::{LinkLife, Session, Status, keep};

/// Time that a join waits for its confirmation, also while the link is lost.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// One link with its task; the task takes orders of type `O`.
pub(in crate::channel_layer) struct Endpoint<O> {
    pub(in crate::channel_layer) store: Arc<RedisStore>,
    orders: mpsc::UnboundedSender<O>,
    users: AtomicU64,
    statuses: Arc<Statuses>,
    _task: Task,
}

/// The states of the connections behind one link: one, or one for each shard of a cluster.
#[derive(Default)]
pub(in crate::channel_layer) struct Statuses(Mutex<Vec<Arc<Status>>>);

impl Statuses {
    pub(in crate::channel_layer) fn set(&self, statuses: Vec<Arc<Status>>) {
        *self.0.lock() = statuses;
    }

    fn ready(&self) -> bool {
        let statuses = self.0.lock();
        !statuses.is_empty() && statuses.iter().all(|status| status.ready())
    }

    fn failure(&self) -> Option<ErrorKind> {
        self.0.lock().iter().find_map(|status| status.failure())
    }
}

impl<O: Send + 'static> Endpoint<O> {
    /// Starts the task of the session that `make` builds around its orders.
    pub(in crate::channel_layer) fn start<S: Session<Order = O> + 'static>(
        store: &Arc<RedisStore>,
        words: LinkWords,
        make: impl FnOnce(mpsc::UnboundedReceiver<O>) -> S,
    ) -> Self {
        Self::run(store, |orders, statuses| {
            let status = Arc::new(Status::default());
            statuses.set(vec![status.clone()]);
            let life = LinkLife::new(store.endpoint(), words, status);
            keep(make(orders), life)
        })
    }

    /// Starts the task that `make` builds around its orders. It states its connections.
    pub(in crate::channel_layer) fn run<F: Future<Output = ()> + Send + 'static>(
        store: &Arc<RedisStore>,
        make: impl FnOnce(mpsc::UnboundedReceiver<O>, Arc<Statuses>) -> F,
    ) -> Self {
        let (orders, taken) = mpsc::unbounded_channel();
        let statuses = Arc::new(Statuses::default());
        let task = make(taken, statuses.clone());
        Self {
            store: store.clone(),
            orders,
            users: AtomicU64::new(0),
            statuses,
            _task: tasks::lasting("a link of a channel layer", task),
        }
    }

    /// Returns the number of a new user; no number is used twice.
    pub(in crate::channel_layer) fn next_user(&self) -> u64 {
        self.users.fetch_add(1, Ordering::Relaxed)
    }

    pub(in crate::channel_layer) fn order(&self, order: O) {
        // Sending fails only if the task panicked, which stops the server.
        drop(self.orders.send(order));
    }

    /// Returns the reason why there is no connection, if there is none.
    pub(in crate::channel_layer) fn failure(&self) -> Option<ErrorKind> {
        self.statuses.failure()
    }

    /// Returns true if every wish was answered and the server takes commands.
    pub(in crate::channel_layer) async fn ready(&self) -> bool {
        self.statuses.ready() && self.store.ping().await.is_ok()
    }
}

/// The links that have users.
pub(in crate::channel_layer) struct Endpoints<O>(Mutex<Vec<Weak<Endpoint<O>>>>);

impl<O> Default for Endpoints<O> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<O> Endpoints<O> {
    /// Returns the link whose store satisfies `serves`, or starts one with `start`.
    pub(in crate::channel_layer) fn shared(
        &self,
        serves: impl Fn(&RedisStore) -> bool,
        start: impl FnOnce() -> Endpoint<O>,
    ) -> Arc<Endpoint<O>> {
        let mut links = self.0.lock();
        links.retain(|link| link.strong_count() > 0);
        let known = links.iter().filter_map(Weak::upgrade);
        { known }
            .find(|link| serves(&link.store))
            .unwrap_or_else(|| {
                let endpoint = Arc::new(start());
                links.push(Arc::downgrade(&endpoint));
                endpoint
            })
    }
}

/// Waits for the confirmation of a join. If none comes in time, `failure` gives the reason.
pub(in crate::channel_layer) async fn confirmed(
    confirmation: oneshot::Receiver<Result<(), ErrorKind>>,
    failure: impl FnOnce() -> Option<ErrorKind>,
) -> Result<(), LayerError> {
    let confirmed = match timeout(JOIN_LIMIT, confirmation).await {
        Ok(Ok(confirmed)) => confirmed,
        // The task has ended.
        Ok(Err(_)) => Err(ErrorKind::Other),
        Err(_) => Err(failure().unwrap_or(ErrorKind::Timeout)),
    };
    confirmed.map_err(LayerError::Unavailable)
}
