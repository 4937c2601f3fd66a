//! Turns many waiting lookups into few statements: callers share a lookup of one user, and lookups share a statement.
//!
//! A lookup is sent at once if no statement is under way. Otherwise it waits with later ones until a statement ends,
//! but no longer than the last statement took. A fast database is therefore asked at once, a slow one seldom, and no
//! lookup takes longer than two statements. A statement runs in its own task, so a client that hangs up ends no other
//! client's lookup.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::record::{MAX_FIELDS, UserRecord};
use super::unusable::UnusableUsers;
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::UserId;
use crate::stores::database::{FetchedUsers, MAX_IDS, UserRow, by_id};
use crate::tasks;

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
    /// Starts a task that gathers lookups for the next statement. It does nothing while such a task runs, or while the
    /// most permitted statements are under way; a statement that ends calls it again.
    fn begin_gathering(self: &Arc<Self>, state: &mut QueueState) {
        if state.gathering || state.waiting.is_empty() || state.statements == self.max_statements {
            return;
        }
        // The last statements are dropped while the runtime shuts down; it takes no new tasks then.
        if Handle::try_current().is_err() {
            return;
        }
        state.gathering = true;
        // The task is not awaited. It ends with its statement, which has a time limit.
        tasks::brief(Gathering(Arc::clone(self)).run());
    }
}

/// The right to gather lookups for the next statement. It is given back on drop, also if the task panics.
struct Gathering(Arc<LookupQueue>);

impl Drop for Gathering {
    fn drop(&mut self) {
        self.0.state.lock().gathering = false;
    }
}

/// The right to run one statement. It is given back on drop, also if the task panics.
struct StatementSlot(Arc<LookupQueue>);

impl Drop for StatementSlot {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.statements -= 1;
        self.0.look_again.notify_one();
        self.0.begin_gathering(&mut state);
    }
}

impl Gathering {
    async fn run(self) {
        let queue = Arc::clone(&self.0);
        let (statement, batch) = loop {
            match self.take() {
                GatheringStep::Wait(until) => {
                    // A timeout and a wake-up have the same consequence: `take` checks again.
                    timeout_at(until, queue.look_again.notified()).await.ok();
                }
                GatheringStep::Ask(statement, batch) => break (statement, batch),
                GatheringStep::End => return,
            }
        };
        drop(self);
        // A new task may gather for the next statement while this statement is under way.
        queue.begin_gathering(&mut queue.state.lock());
        let taken = Taken {
            queue: &queue,
            batch,
        };
        let started = Instant::now();
        let answers = queue.answer(&taken.batch).await;
        // The time of a failed statement, perhaps a timeout, does not predict that of the next one.
        if answers.iter().any(Result::is_ok) {
            queue.state.lock().took = started.elapsed();
        }
        drop(statement);
        taken.publish(answers).await;
    }

    /// Takes the next batch of lookups if it is due. Lookups whose callers have all left are dropped.
    fn take(&self) -> GatheringStep {
        let mut guard = self.0.state.lock();
        let state = &mut *guard;
        let in_flight = &mut state.in_flight;
        state.waiting.retain(|wanted| {
            let awaited = in_flight
                .get(wanted)
                .is_some_and(|sender| sender.receiver_count() > 0);
            if !awaited {
                in_flight.remove(wanted);
            }
            awaited
        });
        let (count, now) = (state.waiting.len().min(MAX_IDS), Instant::now());
        let until = state.waiting_since.unwrap_or(now) + state.took;
        let gathers = state.statements > 0 && now < until && count < MAX_IDS;
        match gathers {
            _ if count == 0 => {
                state.waiting_since = None;
                GatheringStep::End
            }
            true => GatheringStep::Wait(until),
            false => {
                let batch = state.waiting.drain(..count).collect();
                state.waiting_since = (!state.waiting.is_empty()).then_some(now);
                state.statements += 1;
                GatheringStep::Ask(StatementSlot(Arc::clone(&self.0)), batch)
            }
        }
    }
}

/// The next step of a task that gathers lookups.
enum GatheringStep {
    /// Wait for more lookups until this time.
    Wait(Instant),
    /// Run a statement for these lookups.
    Ask(StatementSlot, Vec<Wanted>),
    /// No lookup waits.
    End,
}

/// The lookups of one statement. They leave the queue when this is dropped at the latest.
struct Taken<'a> {
    queue: &'a LookupQueue,
    batch: Vec<Wanted>,
}

impl Taken<'_> {
    /// Caches the answers and sends them to the callers, one by one. Handshakes that all continued at once would delay
    /// the open sockets.
    async fn publish(mut self, answers: Vec<LookupAnswer>) {
        let found = self.batch.iter().zip(&answers);
        let found = found.filter_map(|(wanted, answer)| {
            let user = answer.as_ref().ok()?;
            Some((wanted.clone(), user.clone()))
        });
        self.queue.source.keep(found.collect());
        // `pop` below takes from the end. If this future is dropped, `Drop` removes the rest of the batch.
        self.batch.reverse();
        for answer in answers {
            let Some(wanted) = self.batch.pop() else {
                return;
            };
            let sender = self.queue.state.lock().in_flight.remove(&wanted);
            if let Some(sender) = sender {
                sender.send_replace(Some(answer));
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        for wanted in &self.batch {
            state.in_flight.remove(wanted);
        }
    }
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
                Err(why) if self.unusable.add(id, why) => {
                    warn!(user.id = %id, error = %why.source, "A user cannot be used; further handshakes are refused without a word");
                }
                Err(_) => {}
            }
        }
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
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    /// Answers one statement per permit, and records the number of ids in each.
    struct FakeSource {
        permits: Semaphore,
        statements: Mutex<Vec<usize>>,
    }

    #[async_trait]
    impl UserSource for FakeSource {
        async fn fetch(&self, ids: &[UserId]) -> Result<FetchedUsers, StoreError> {
            self.statements.lock().push(ids.len());
            self.permits.acquire().await.unwrap().forget();
            let row = |id: &UserId| UserRow {
                id: id.clone(),
                is_active: Some(true),
                fields: if id.as_str() == "large" {
                    "x".repeat(MAX_FIELDS + 1).into()
                } else {
                    "{}".into()
                },
                password_digest: None,
            };
            if ids[0].as_str() == "panic" {
                panic!("as a bug would");
            }
            let mut rows: Vec<_> = ids
                .iter()
                .filter(|id| id.as_str() != "absent")
                .map(row)
                .collect();
            rows.extend(ids.iter().filter(|id| id.as_str() == "twice").map(row));
            Ok(FetchedUsers {
                rows,
                unreadable: Vec::new(),
            })
        }

        fn record(&self, row: UserRow) -> UserRecord {
            UserRecord::from_row(row, true)
        }

        fn known(&self, _: &Wanted) -> Option<Option<Arc<UserRecord>>> {
            None
        }

        fn keep(&self, _: Vec<(Wanted, Option<Arc<UserRecord>>)>) {}
    }

    fn fake() -> (Arc<FakeSource>, Arc<Lookups>) {
        let fake = Arc::new(FakeSource {
            permits: Semaphore::new(0),
            statements: Mutex::default(),
        });
        let source: Arc<dyn UserSource> = fake.clone();
        (fake, Arc::new(Lookups::new(source, 2, WAIT)))
    }

    fn wanted(id: &str, generation: &str) -> Wanted {
        Wanted {
            id: id.into(),
            generation: Some(generation.into()),
            epoch: 0,
        }
    }

    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until this number of statements has begun.
    async fn asked(fake: &FakeSource, statements: usize) {
        let begun = async {
            while fake.statements.lock().len() < statements {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let begun = tokio::time::timeout(Duration::from_secs(5), begun);
        begun.await.expect("the statements begin");
    }

    fn ask(
        lookups: &Arc<Lookups>,
        id: &str,
        generation: &str,
    ) -> tokio::task::JoinHandle<Result<Option<Arc<UserRecord>>, StoreError>> {
        let (lookups, wanted) = (Arc::clone(lookups), wanted(id, generation));
        tokio::spawn(async move { lookups.look_up(wanted).await })
    }

    #[tokio::test]
    async fn a_thousand_lookups_of_one_user_are_one_statement() {
        let (fake, lookups) = fake();
        let callers: Vec<_> = (0..1000).map(|_| ask(&lookups, "7", "")).collect();
        settle().await;
        fake.permits.add_permits(10);
        for caller in callers {
            assert!(caller.await.unwrap().unwrap().is_some());
        }
        assert_eq!(*fake.statements.lock(), [1]);
        assert!(lookups.queue.state.lock().in_flight.is_empty());
    }

    #[tokio::test]
    async fn a_thousand_users_that_wait_together_are_few_statements() {
        let (fake, lookups) = fake();
        let callers: Vec<_> = (0..1000)
            .map(|id| ask(&lookups, &id.to_string(), ""))
            .collect();
        settle().await;
        fake.permits.add_permits(100);
        for caller in callers {
            assert!(caller.await.unwrap().unwrap().is_some());
        }
        let statements = fake.statements.lock().clone();
        assert_eq!(statements.iter().sum::<usize>(), 1000);
        assert!(statements.len() <= 6, "{statements:?}");
    }

    #[tokio::test]
    async fn lookups_gather_while_a_statement_is_under_way() {
        let (fake, lookups) = fake();
        lookups.queue.state.lock().took = WAIT;
        let first = ask(&lookups, "first", "");
        asked(&fake, 1).await;
        let others: Vec<_> = (0..100)
            .map(|id| ask(&lookups, &id.to_string(), ""))
            .collect();
        settle().await;
        fake.permits.add_permits(2);
        assert!(first.await.unwrap().unwrap().is_some());
        for caller in others {
            assert!(caller.await.unwrap().unwrap().is_some());
        }
        // The end of the first statement began the second, which held all of the hundred lookups.
        assert_eq!(*fake.statements.lock(), [1, 100]);
    }

    #[tokio::test]
    async fn a_lookup_gathers_no_longer_than_the_last_statement_took() {
        let (fake, lookups) = fake();
        lookups.queue.state.lock().took = Duration::from_millis(1);
        let first = ask(&lookups, "first", "");
        asked(&fake, 1).await;
        let second = ask(&lookups, "second", "");
        // The second statement begins although the first has not ended.
        asked(&fake, 2).await;
        fake.permits.add_permits(2);
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_lookup_while_no_statement_is_under_way_waits_for_none() {
        let (fake, lookups) = fake();
        fake.permits.add_permits(50);
        for id in 0..50 {
            lookups.queue.state.lock().took = WAIT;
            // A lookup that waited for others would run into its time limit.
            let found = ask(&lookups, &id.to_string(), "").await.unwrap();
            assert!(found.unwrap().is_some());
        }
        assert_eq!(fake.statements.lock().len(), 50);
    }

    #[tokio::test]
    async fn a_caller_that_knows_of_a_newer_generation_asks_again() {
        let (fake, lookups) = fake();
        let old = ask(&lookups, "7", "g1");
        settle().await;
        let new = ask(&lookups, "7", "g2");
        asked(&fake, 2).await;
        fake.permits.add_permits(2);
        assert!(old.await.unwrap().is_ok() && new.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_caller_that_leaves_ends_no_other_lookup_and_is_not_asked_for() {
        let (fake, lookups) = fake();
        let first = ask(&lookups, "1", "");
        settle().await;
        let second = ask(&lookups, "2", "");
        asked(&fake, 2).await;
        let leaver = ask(&lookups, "3", "");
        let shared = [ask(&lookups, "1", ""), ask(&lookups, "4", "")];
        settle().await;
        first.abort();
        leaver.abort();
        settle().await;
        fake.permits.add_permits(10);
        for caller in shared {
            assert!(caller.await.unwrap().unwrap().is_some());
        }
        assert!(second.await.unwrap().unwrap().is_some());
        assert_eq!(*fake.statements.lock(), [1, 1, 1]);
    }

    #[tokio::test]
    async fn every_id_has_its_own_answer() {
        let (fake, lookups) = fake();
        fake.permits.add_permits(100);
        let callers = ["absent", "large", "twice", "good"].map(|id| ask(&lookups, id, ""));
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(
                caller
                    .await
                    .unwrap()
                    .map(|user| user.is_some())
                    .map_err(|e| e.kind),
            );
        }
        assert_eq!(
            answers,
            [
                Ok(false),
                Err(ErrorKind::Other),
                Err(ErrorKind::Other),
                Ok(true)
            ]
        );
    }

    /// Before: each handshake of such a user was a statement and a warning.
    #[tokio::test]
    async fn an_unusable_user_is_asked_for_once() {
        let (fake, lookups) = fake();
        fake.permits.add_permits(100);
        for id in ["twice", "large", "twice", "large", "twice"] {
            let error = ask(&lookups, id, "").await.unwrap().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Other);
        }
        assert_eq!(fake.statements.lock().len(), 2);
        // The checks of open sockets ask in any case, and so does a handshake after an invalidation.
        let again = lookups.look_up_in_database(wanted("twice", ""));
        assert!(again.await.is_err());
        lookups.forget(&"large".into());
        assert!(ask(&lookups, "large", "").await.unwrap().is_err());
        assert_eq!(fake.statements.lock().len(), 4);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_to_its_callers_alone() {
        let (fake, lookups) = fake();
        fake.permits.add_permits(100);
        assert!(ask(&lookups, "panic", "").await.unwrap().is_err());
        assert!(ask(&lookups, "7", "").await.unwrap().unwrap().is_some());
        assert!(lookups.queue.state.lock().in_flight.is_empty());
    }
}
