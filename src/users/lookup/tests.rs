//! Lookups of a source that answers when the test lets it.

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
        let late = ids.iter().filter(|id| id.as_str() == "late");
        rows.retain(|row| row.id.as_str() != "late");
        Ok(FetchedUsers {
            rows,
            unanswered: late.map(|id| (id.clone(), failed("late"))).collect(),
            ..FetchedUsers::default()
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

/// Before: the first of them had a statement of its own, and a fast database had one for each two users.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn lookups_of_one_moment_share_the_first_statement() {
    let (fake, lookups) = fake();
    fake.permits.add_permits(100);
    // From a task, so that all of them are ready on the worker before the first one runs.
    let callers = tokio::spawn(async move {
        let callers = (0..40).map(|id| ask(&lookups, &id.to_string(), ""));
        callers.collect::<Vec<_>>()
    });
    for caller in callers.await.unwrap() {
        assert!(caller.await.unwrap().unwrap().is_some());
    }
    assert_eq!(*fake.statements.lock(), [40]);
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
async fn a_user_without_an_answer_is_neither_absent_nor_remembered() {
    let (fake, lookups) = fake();
    fake.permits.add_permits(2);
    for _ in 0..2 {
        assert!(ask(&lookups, "late", "").await.unwrap().is_err());
    }
    assert_eq!(*fake.statements.lock(), [1, 1]);
}

#[tokio::test]
async fn a_panic_is_an_error_to_its_callers_alone() {
    let (fake, lookups) = fake();
    fake.permits.add_permits(100);
    assert!(ask(&lookups, "panic", "").await.unwrap().is_err());
    assert!(ask(&lookups, "7", "").await.unwrap().unwrap().is_some());
    assert!(lookups.queue.state.lock().in_flight.is_empty());
}
