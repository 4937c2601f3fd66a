//! Turns many waiting lookups into few statements: callers share a lookup of one user, and lookups share a statement.
//!
//! Lookups of one moment share a statement, which is sent at once if none is under way. Otherwise they wait with later ones
//! until a statement ends, but no longer than the last statement took. A fast database is therefore asked at once, a slow
//! one seldom, and no lookup takes longer than two statements. A statement runs in its own task, so a client that hangs up
//! ends no other client's lookup.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::warn;

use super::record::{MAX_FIELDS, UserRecord};
use super::unusable::{UnusableUsers, UserLines};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::UserId;
use crate::stores::database::{FetchedUsers, MAX_IDS, UserRow, by_id};

mod gathering;

/// The longest wait of a handshake. It covers a connection from the pool, a statement and its one retry.
const WAIT: Duration = Duration::from_secs(5);

/// The database of the users, and the caches of its answers.
#[async_trait]
pub(super) trait UserSource: Send + Sync + 'static {
    /// Returns the rows of these users.
    async fn fetch(&self, ids: &[UserId]) -> Result<FetchedUsers, StoreError>;
    /// Converts a row to a record.
    fn record(&self, row: UserRow) -> UserRecord;
    /// Returns a cached answer that is not older than what the caller knows.
    fn known(&self, wanted: &Wanted) -> Option<Option<Arc<UserRecord>>>;
    /// Caches the answers. It is called before their lookups end, and must not block.
    fn keep(&self, answers: Vec<(Wanted, Option<Arc<UserRecord>>)>);
}

/// The key of a lookup. Lookups with different generations or epochs are not shared, because an answer must not be
/// older than what its caller knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) id: UserId,
    /// The user's generation in Redis. `None` if it could not be read; the answer is then not cached in Redis.
    pub(super) generation: Option<Arc<str>>,
    /// The number of users that this process had forgotten when the lookup began.
    pub(super) epoch: u64,
}

type LookupAnswer = Result<Option<Arc<UserRecord>>, Arc<StoreError>>;

/// The lookups of one tenant.
pub(super) struct Lookups {
    queue: Arc<LookupQueue>,
}

/// The lookups that wait, and the statements that answer them.
struct LookupQueue {
    source: Arc<dyn UserSource>,
    max_statements: usize,
    state: Mutex<QueueState>,
    unusable: UnusableUsers,
    lines: UserLines,
    /// Wakes the gathering task when a statement has ended or the next one is full.
    look_again: Notify,
}

#[derive(Default)]
struct QueueState {
    /// All lookups that have no answer yet, with the channels to their callers.
    in_flight: HashMap<Wanted, watch::Sender<Option<LookupAnswer>>>,
    /// The lookups in flight that no statement has taken yet, in order of arrival.
    waiting: Vec<Wanted>,
    /// The arrival of the first waiting lookup.
    waiting_since: Option<Instant>,
    /// The number of statements under way.
    statements: usize,
    /// True while a task gathers lookups for the next statement.
    gathering: bool,
    /// The duration of the last statement that succeeded.
    took: Duration,
}

impl Lookups {
    /// Asks `source` in at most `max_statements` statements at once, and about an unusable user once in `ask_again`.
    pub(super) fn new(
        source: Arc<dyn UserSource>,
        max_statements: usize,
        ask_again: Duration,
    ) -> Self {
        Self {
            queue: Arc::new(LookupQueue {
                source,
                unusable: UnusableUsers::new(ask_again),
                lines: UserLines::default(),
                max_statements: max_statements.max(1),
                state: Mutex::default(),
                look_again: Notify::new(),
            }),
        }
    }

    /// Returns the user, or `None` for an absent one, from the cache or the database.
    pub(super) async fn look_up(
        &self,
        wanted: Wanted,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        match self.join(wanted, true) {
            Lookup::Known(user) => user.map_err(|error| error.for_another()),
            Lookup::InFlight(answer) => Self::wait(answer).await,
        }
    }

    /// Returns the user as [`Self::look_up`] does, but never from the cache.
    pub(super) async fn look_up_in_database(
        &self,
        wanted: Wanted,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        match self.join(wanted, false) {
            Lookup::Known(user) => user.map_err(|error| error.for_another()),
            Lookup::InFlight(answer) => Self::wait(answer).await,
        }
    }

    /// Asks the database again about a user that was unusable.
    pub(super) fn forget(&self, id: &UserId) {
        self.queue.unusable.forget(id);
    }

    async fn wait(
        mut answer: watch::Receiver<Option<LookupAnswer>>,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        let ended = match tokio::time::timeout(WAIT, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            // The sender was dropped: the statement's task has panicked.
            Ok(Err(_)) => None,
            Err(_) => return Err(StoreError::timeout(Dependency::Database, WAIT)),
        };
        match ended {
            Some(Ok(user)) => Ok(user),
            Some(Err(error)) => Err(error.for_another()),
            None => Err(failed("the lookup was given up")),
        }
    }

    fn join(&self, wanted: Wanted, known_will_do: bool) -> Lookup {
        let mut state = self.queue.state.lock();
        if let Some(sender) = state.in_flight.get(&wanted) {
            return Lookup::InFlight(sender.subscribe());
        }
        // Checked under the lock: a lookup that leaves `in_flight` has cached its answer before.
        if known_will_do && let Some(user) = self.queue.source.known(&wanted) {
            return Lookup::Known(Ok(user));
        }
        if known_will_do && let Some(why) = self.queue.unusable.why(&wanted.id) {
            return Lookup::Known(Err(why));
        }
        let (sender, receiver) = watch::channel(None);
        state.in_flight.insert(wanted.clone(), sender);
        state.waiting.push(wanted);
        state.waiting_since.get_or_insert_with(Instant::now);
        if state.waiting.len() == MAX_IDS {
            self.queue.look_again.notify_one();
        }
        self.queue.begin_gathering(&mut state);
        Lookup::InFlight(receiver)
    }
}

/// A lookup that has just begun.
enum Lookup {
    Known(LookupAnswer),
    InFlight(watch::Receiver<Option<LookupAnswer>>),
}

impl LookupQueue {
    /// Runs one statement for the batch and returns one answer for each lookup, in order.
    async fn answer(&self, batch: &[Wanted]) -> Vec<LookupAnswer> {
        let mut ids: Vec<_> = batch.iter().map(|wanted| wanted.id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let fetched = match self.source.fetch(&ids).await {
            Ok(fetched) => fetched,
            Err(error) => {
                let error = Arc::new(error);
                return batch.iter().map(|_| Err(Arc::clone(&error))).collect();
            }
        };
        let mut users: HashMap<_, _> = by_id(fetched.rows)
            .into_iter()
            .map(|(id, row)| (id, self.checked(row)))
            .collect();
        let unreadable = fetched.unreadable.into_iter();
        users.extend(unreadable.map(|(id, error)| (id, Err(Arc::new(error)))));
        for (id, answer) in &users {
            match answer {
                Ok(_) => self.unusable.forget(id),
                Err(why) if self.unusable.add(id, why) && self.lines.take() => {
                    warn!(user.id = %id, error = %why.source, "A user cannot be used; further handshakes are refused without a word");
                }
                Err(_) => {}
            }
        }
        let unanswered = fetched.unanswered.into_iter();
        users.extend(unanswered.map(|(id, error)| (id, Err(Arc::new(error)))));
        let absent = |wanted: &Wanted| users.get(&wanted.id).cloned().unwrap_or(Ok(None));
        batch.iter().map(absent).collect()
    }

    /// Converts a row to an answer. A user with two rows or with too large columns gets an error.
    fn checked(&self, row: Option<UserRow>) -> LookupAnswer {
        let Some(row) = row else {
            return Err(Arc::new(failed(
                "the database has two rows for this user; neither is used",
            )));
        };
        if row.fields.len() > MAX_FIELDS {
            return Err(Arc::new(failed(&format!(
                "the user's columns have {} bytes, more than 64 KiB; select fewer",
                row.fields.len()
            ))));
        }
        Ok(Some(Arc::new(self.source.record(row))))
    }
}

fn failed(why: &str) -> StoreError {
    StoreError::new(Dependency::Database, ErrorKind::Other, why.to_owned())
}

#[cfg(test)]
mod tests;
