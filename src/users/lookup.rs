//! Many who wait, one statement: lookups of one user in flight are shared, and those that wait together go together.
//!
//! A lookup goes at once where no statement is under way. Otherwise it gathers with those that come after it until a
//! statement ends, and no longer than the last one took: a quick database is asked at once, a slow one seldom, and no
//! lookup waits longer than twice a statement. A statement belongs to no handshake: a client that hangs up takes no
//! other client's answer along.

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
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::UserId;
use crate::stores::database::{FetchedUsers, MAX_IDS, UserRow, by_id};

/// How long one handshake waits: an acquired connection, a statement and its one retry.
const WAIT: Duration = Duration::from_secs(5);

/// Where users come from and where answers are kept.
#[async_trait]
pub(super) trait Source: Send + Sync + 'static {
    /// The rows of these users.
    async fn fetch(&self, ids: &[UserId]) -> Result<FetchedUsers, StoreError>;
    /// A row as a record.
    fn record(&self, row: UserRow) -> UserRecord;
    /// An answer that is there already, and not older than what the caller knows.
    fn known(&self, wanted: &Wanted) -> Option<Option<Arc<UserRecord>>>;
    /// Takes the answers for the caches, before their lookups end; must not wait.
    fn keep(&self, answers: Vec<(Wanted, Option<Arc<UserRecord>>)>);
}

/// One lookup. Two that differ in the generation they have read, or in the number of users that this process was
/// told to forget before, are never the same: an answer may not be older than what its caller knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) id: UserId,
    /// `None`: Redis could not be asked for it, so the answer cannot be kept there.
    pub(super) generation: Option<Arc<str>>,
    pub(super) epoch: u64,
}

type Answer = Result<Option<Arc<UserRecord>>, Arc<StoreError>>;

/// The lookups of one tenant.
pub(super) struct Lookups {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn Source>,
    max_statements: usize,
    state: Mutex<State>,
    /// A statement has ended, or the next one is full: the turn that gathers looks again.
    look_again: Notify,
}

#[derive(Default)]
struct State {
    in_flight: HashMap<Wanted, watch::Sender<Option<Answer>>>,
    /// Those in flight that no statement has taken yet, in order of arrival.
    waiting: Vec<Wanted>,
    /// When the first of them came.
    waiting_since: Option<Instant>,
    /// Statements under way.
    statements: usize,
    /// A turn gathers for the next statement.
    gathering: bool,
    /// How long the last statement took.
    took: Duration,
}

impl Lookups {
    pub(super) fn new(source: Arc<dyn Source>, max_statements: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                source,
                max_statements: max_statements.max(1),
                state: Mutex::default(),
                look_again: Notify::new(),
            }),
        }
    }

    /// The user, or `None` for an absent one.
    pub(super) async fn look_up(
        &self,
        wanted: Wanted,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        match self.join(wanted, true) {
            Joined::Known(user) => Ok(user),
            Joined::InFlight(answer) => Self::wait(answer).await,
        }
    }

    /// Like [`Self::look_up`], but asks the database whatever is known.
    pub(super) async fn ask_anew(
        &self,
        wanted: Wanted,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        match self.join(wanted, false) {
            Joined::Known(user) => Ok(user),
            Joined::InFlight(answer) => Self::wait(answer).await,
        }
    }

    async fn wait(
        mut answer: watch::Receiver<Option<Answer>>,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        let ended = match tokio::time::timeout(WAIT, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            // The statement's task is gone without an answer.
            Ok(Err(_)) => None,
            Err(_) => return Err(StoreError::timeout(Dependency::Database, WAIT)),
        };
        match ended {
            Some(Ok(user)) => Ok(user),
            Some(Err(error)) => Err(error.for_another()),
            None => Err(failed("the lookup was given up")),
        }
    }

    fn join(&self, wanted: Wanted, known_will_do: bool) -> Joined {
        let mut state = self.shared.state.lock();
        if let Some(sender) = state.in_flight.get(&wanted) {
            return Joined::InFlight(sender.subscribe());
        }
        // Asked within the lock: what has just ended is known already.
        if known_will_do && let Some(user) = self.shared.source.known(&wanted) {
            return Joined::Known(user);
        }
        let (sender, receiver) = watch::channel(None);
        state.in_flight.insert(wanted.clone(), sender);
        state.waiting.push(wanted);
        state.waiting_since.get_or_insert_with(Instant::now);
        if state.waiting.len() == MAX_IDS {
            self.shared.look_again.notify_one();
        }
        self.shared.begin_turn(&mut state);
        Joined::InFlight(receiver)
    }
}

enum Joined {
    Known(Option<Arc<UserRecord>>),
    InFlight(watch::Receiver<Option<Answer>>),
}

impl Shared {
    /// Starts a turn that gathers the next statement, unless one does or all permitted statements are under way: the
    /// first that ends then begins the turn.
    fn begin_turn(self: &Arc<Self>, state: &mut State) {
        if state.gathering || state.waiting.is_empty() || state.statements == self.max_statements {
            return;
        }
        // A runtime that shuts down drops statements, and takes no new ones.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        state.gathering = true;
        // No handshake awaits the task: it ends with its statement, which has a time limit.
        runtime.spawn(Turn(Arc::clone(self)).run());
    }
}

/// The right to gather one statement; given back even if the task panics.
struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state.lock().gathering = false;
    }
}

/// The right to run one statement; given back even if the task panics.
struct Statement(Arc<Shared>);

impl Drop for Statement {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.statements -= 1;
        self.0.look_again.notify_one();
        self.0.begin_turn(&mut state);
    }
}

impl Turn {
    async fn run(self) {
        let shared = Arc::clone(&self.0);
        let (statement, batch) = loop {
            match self.take() {
                Next::Gather(until) => {
                    // Time is up, or there is a reason to look again: both are looked at.
                    timeout_at(until, shared.look_again.notified()).await.ok();
                }
                Next::Ask(statement, batch) => break (statement, batch),
                Next::Nothing => return,
            }
        };
        drop(self);
        // Another turn may gather for the next statement while this one is under way.
        shared.begin_turn(&mut shared.state.lock());
        let taken = Taken {
            shared: &shared,
            batch,
        };
        let started = Instant::now();
        let answers = shared.answer(&taken.batch).await;
        // A statement that failed, perhaps by its time limit, says nothing of the next one.
        if answers.iter().any(Result::is_ok) {
            shared.state.lock().took = started.elapsed();
        }
        drop(statement);
        taken.publish(answers).await;
    }

    /// The next ids to ask for; those whose callers have all left are dropped.
    fn take(&self) -> Next {
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
                Next::Nothing
            }
            true => Next::Gather(until),
            false => {
                let batch = state.waiting.drain(..count).collect();
                state.waiting_since = (!state.waiting.is_empty()).then_some(now);
                state.statements += 1;
                Next::Ask(Statement(Arc::clone(&self.0)), batch)
            }
        }
    }
}

/// What a turn does next.
enum Next {
    /// Others may come until then.
    Gather(Instant),
    Ask(Statement, Vec<Wanted>),
    Nothing,
}

/// Lookups that a statement has taken; they leave the shared state in any case.
struct Taken<'a> {
    shared: &'a Shared,
    batch: Vec<Wanted>,
}

impl Taken<'_> {
    /// One after another: handshakes that all go on at once would hold up the sockets that are open.
    async fn publish(mut self, answers: Vec<Answer>) {
        let found = self.batch.iter().zip(&answers);
        let found = found.filter_map(|(wanted, answer)| {
            let user = answer.as_ref().ok()?;
            Some((wanted.clone(), user.clone()))
        });
        self.shared.source.keep(found.collect());
        // What is left of the batch if this is dropped, its own drop forgets.
        self.batch.reverse();
        for answer in answers {
            let Some(wanted) = self.batch.pop() else {
                return;
            };
            let sender = self.shared.state.lock().in_flight.remove(&wanted);
            if let Some(sender) = sender {
                sender.send_replace(Some(answer));
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        for wanted in &self.batch {
            state.in_flight.remove(wanted);
        }
    }
}

impl Shared {
    async fn answer(&self, batch: &[Wanted]) -> Vec<Answer> {
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
            .map(|(id, row)| (id.clone(), self.checked(&id, row)))
            .collect();
        for (id, error) in fetched.unreadable {
            warn!(user.id = %id, error = %error.source, "The database cannot read this user");
            users.insert(id, Err(Arc::new(error)));
        }
        let absent = |wanted: &Wanted| users.get(&wanted.id).cloned().unwrap_or(Ok(None));
        batch.iter().map(absent).collect()
    }

    fn checked(&self, id: &UserId, row: Option<UserRow>) -> Answer {
        let Some(row) = row else {
            warn!(user.id = %id, "The database has two rows for one user; neither is believed");
            return Err(Arc::new(failed("two rows for one user")));
        };
        if row.fields.len() > MAX_FIELDS {
            warn!(user.id = %id, size_bytes = row.fields.len(), "The user's columns are larger than 64 KiB; select fewer");
            return Err(Arc::new(failed(
                "the user's columns are larger than 64 KiB",
            )));
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

    /// Answers one statement per permit, and remembers the sizes of what it was asked.
    struct Fake {
        permits: Semaphore,
        statements: Mutex<Vec<usize>>,
    }

    #[async_trait]
    impl Source for Fake {
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

    fn fake() -> (Arc<Fake>, Arc<Lookups>) {
        let fake = Arc::new(Fake {
            permits: Semaphore::new(0),
            statements: Mutex::default(),
        });
        let source: Arc<dyn Source> = fake.clone();
        (fake, Arc::new(Lookups::new(source, 2)))
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

    /// Waits until so many statements were begun.
    async fn asked(fake: &Fake, statements: usize) {
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
    async fn u19_a_thousand_lookups_of_one_user_are_one_statement() {
        let (fake, lookups) = fake();
        let callers: Vec<_> = (0..1000).map(|_| ask(&lookups, "7", "")).collect();
        settle().await;
        fake.permits.add_permits(10);
        for caller in callers {
            assert!(caller.await.unwrap().unwrap().is_some());
        }
        assert_eq!(*fake.statements.lock(), [1]);
        assert!(lookups.shared.state.lock().in_flight.is_empty());
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
        lookups.shared.state.lock().took = WAIT;
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
        // The end of the first began the second: none of the hundred went before, and none alone.
        assert_eq!(*fake.statements.lock(), [1, 100]);
    }

    #[tokio::test]
    async fn a_lookup_gathers_no_longer_than_the_last_statement_took() {
        let (fake, lookups) = fake();
        lookups.shared.state.lock().took = Duration::from_millis(1);
        let first = ask(&lookups, "first", "");
        asked(&fake, 1).await;
        let second = ask(&lookups, "second", "");
        // Though the first statement does not end.
        asked(&fake, 2).await;
        fake.permits.add_permits(2);
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_lookup_while_no_statement_is_under_way_waits_for_none() {
        let (fake, lookups) = fake();
        fake.permits.add_permits(50);
        for id in 0..50 {
            lookups.shared.state.lock().took = WAIT;
            // A lookup that gathered would run into its time limit.
            let found = ask(&lookups, &id.to_string(), "").await.unwrap();
            assert!(found.unwrap().is_some());
        }
        assert_eq!(fake.statements.lock().len(), 50);
    }

    #[tokio::test]
    async fn a_caller_that_knows_of_a_newer_generation_asks_anew() {
        let (fake, lookups) = fake();
        let old = ask(&lookups, "7", "g1");
        settle().await;
        let new = ask(&lookups, "7", "g2");
        asked(&fake, 2).await;
        fake.permits.add_permits(2);
        assert!(old.await.unwrap().is_ok() && new.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_caller_that_leaves_takes_nobody_along_and_is_not_asked_for() {
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

    #[tokio::test]
    async fn a_panic_is_an_error_to_its_callers_alone() {
        let (fake, lookups) = fake();
        fake.permits.add_permits(100);
        assert!(ask(&lookups, "panic", "").await.unwrap().is_err());
        assert!(ask(&lookups, "7", "").await.unwrap().unwrap().is_some());
        assert!(lookups.shared.state.lock().in_flight.is_empty());
    }
}
