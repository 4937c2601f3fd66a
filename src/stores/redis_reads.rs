//! Gathers reads that callers start at the same moment into one round to Redis: one write and one read for all of them.
//!
//! The first caller of a round lets every task that is ready run once, and then asks for all callers that came meanwhile.
//! That caller may be dropped, because its client may hang up. The other callers of its round then ask again.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::StoreError;

use super::key_read::{CallerReads, KeyRead, KeyValue};

/// The largest number of keys in one round. It bounds the time for which a round keeps Redis from other clients, and is far
/// above the keys of one handshake.
const FULL: usize = 512;

/// The result for one caller: the values of its keys, in order.
type Values = Result<Vec<KeyValue>, StoreError>;

/// The rounds of one store.
#[derive(Default)]
pub(super) struct Reads {
    /// The round that still takes callers.
    open: Mutex<Option<Arc<Mutex<Round>>>>,
}

#[derive(Default)]
struct Round {
    keys: Vec<CallerReads>,
    /// The number of keys of all callers.
    count: usize,
    /// The callers after the first, each with the position of its first key.
    callers: Vec<(usize, oneshot::Sender<Values>)>,
}

/// The role of a caller in a round.
enum CallerRole<'a> {
    /// The caller asks Redis for all callers of the round.
    Leader(Lead<'a>),
    /// The caller waits for the answer of the first one.
    Follower(oneshot::Receiver<Values>),
}

impl Reads {
    /// Returns the values of `keys`. `ask` reads the keys of many callers in one round, with a result for each key.
    ///
    /// # Errors
    /// The error of `ask`, or the first error among the caller's own keys.
    pub(super) async fn get<F>(
        &self,
        keys: Vec<KeyRead>,
        ask: impl Fn(Vec<CallerReads>) -> F,
    ) -> Values
    where
        F: Future<Output = Result<Vec<Result<KeyValue, StoreError>>, StoreError>>,
    {
        let keys = Arc::new(keys);
        loop {
            match self.join(&keys) {
                CallerRole::Leader(lead) => {
                    tokio::task::yield_now().await;
                    let answers = ask(lead.close()).await;
                    return lead.share(answers);
                }
                CallerRole::Follower(values) => {
                    // The sender was dropped: the first caller is gone, so this one asks again.
                    if let Ok(values) = values.await {
                        return values;
                    }
                }
            }
        }
    }

    fn join(&self, keys: &CallerReads) -> CallerRole<'_> {
        let mut open = self.open.lock();
        if let Some(round) = &*open {
            let mut round = round.lock();
            if round.count + keys.len() <= FULL {
                let (sender, receiver) = oneshot::channel();
                let begin = round.count;
                round.callers.push((begin, sender));
                round.count += keys.len();
                round.keys.push(keys.clone());
                return CallerRole::Follower(receiver);
            }
        }
        let round = Arc::new(Mutex::new(Round {
            keys: vec![keys.clone()],
            count: keys.len(),
            callers: Vec::new(),
        }));
        *open = Some(round.clone());
        CallerRole::Leader(Lead { reads: self, round })
    }
}

/// The first caller's guard of its round. If it is dropped before the answers came, the other callers ask again.
struct Lead<'a> {
    reads: &'a Reads,
    round: Arc<Mutex<Round>>,
}

impl Lead<'_> {
    /// Closes the round for further callers; returns the keys of all.
    fn close(&self) -> Vec<CallerReads> {
        self.leave_open_place();
        std::mem::take(&mut self.round.lock().keys)
    }

    fn leave_open_place(&self) {
        let mut open = self.reads.open.lock();
        if open
            .as_ref()
            .is_some_and(|open| Arc::ptr_eq(open, &self.round))
        {
            *open = None;
        }
    }

    /// Sends every caller its part of the answers; returns the first caller's part.
    fn share(&self, answers: Result<Vec<Result<KeyValue, StoreError>>, StoreError>) -> Values {
        let callers = std::mem::take(&mut self.round.lock().callers);
        match answers {
            Ok(mut answers) => {
                // From the last caller to the first, so that each part is the end of the answers that are left.
                for (begin, caller) in callers.into_iter().rev() {
                    let part = answers.split_off(begin.min(answers.len()));
                    // Sending fails if the caller is gone.
                    caller.send(part.into_iter().collect()).ok();
                }
                answers.into_iter().collect()
            }
            Err(error) => {
                for (_, caller) in callers {
                    caller.send(Err(error.for_another())).ok();
                }
                Err(error)
            }
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.leave_open_place();
        self.round.lock().callers.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{Dependency, ErrorKind};

    /// A store that answers each key with the key itself, and records the sizes of the rounds.
    struct FakeRedis {
        reads: Reads,
        rounds: Mutex<Vec<usize>>,
        /// Rounds wait for their answers while a test holds this lock.
        gate: tokio::sync::Mutex<()>,
    }

    impl FakeRedis {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                reads: Reads::default(),
                rounds: Mutex::default(),
                gate: tokio::sync::Mutex::default(),
            })
        }

        async fn get(&self, keys: &[&str]) -> Values {
            let keys = keys.iter().map(|&key| KeyRead::text(key.to_owned(), 9));
            let keys: Vec<KeyRead> = keys.collect();
            let ask = |keys: Vec<CallerReads>| async move {
                let keys = keys.iter().flat_map(|keys| keys.iter());
                let keys: Vec<String> = keys.map(|read| read.key().to_owned()).collect();
                self.rounds.lock().push(keys.len());
                drop(self.gate.lock().await);
                let error = |text: &str| {
                    StoreError::new(Dependency::Redis, ErrorKind::Permission, text.to_owned())
                };
                if keys.iter().any(|key| key == "no link") {
                    return Err(error("no link"));
                }
                let answer = |key: String| match key.as_str() {
                    "refused" => Err(error("refused")),
                    _ => Ok(Ok(Some(key.into_bytes()))),
                };
                Ok(keys.into_iter().map(answer).collect())
            };
            self.reads.get(keys, ask).await
        }

        fn spawn(self: &Arc<Self>, keys: [&'static str; 2]) -> tokio::task::JoinHandle<Values> {
            let fake = self.clone();
            tokio::spawn(async move { fake.get(&keys).await })
        }

        /// Waits until this number of rounds has begun.
        async fn begun(&self, rounds: usize) {
            let begun = async {
                while self.rounds.lock().len() < rounds {
                    tokio::task::yield_now().await;
                }
            };
            let begun = tokio::time::timeout(Duration::from_secs(5), begun);
            begun.await.expect("the rounds begin");
        }
    }

    fn texts(values: Values) -> Vec<String> {
        let text = |value: KeyValue| String::from_utf8(value.unwrap().unwrap()).unwrap();
        values.unwrap().into_iter().map(text).collect()
    }

    #[tokio::test]
    async fn callers_of_one_moment_are_one_round_and_each_gets_its_own() {
        let fake = FakeRedis::new();
        let callers: Vec<_> = (0..100)
            .map(|n| {
                let (fake, keys) = (fake.clone(), [format!("a{n}"), format!("b{n}")]);
                tokio::spawn(async move {
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    texts(fake.get(&keys).await)
                })
            })
            .collect();
        for (n, caller) in callers.into_iter().enumerate() {
            assert_eq!(caller.await.unwrap(), [format!("a{n}"), format!("b{n}")]);
        }
        assert_eq!(*fake.rounds.lock(), [200]);
    }

    #[tokio::test]
    async fn a_round_is_bounded() {
        let fake = FakeRedis::new();
        let callers: Vec<_> = (0..FULL).map(|_| fake.spawn(["a", "b"])).collect();
        for caller in callers {
            assert_eq!(texts(caller.await.unwrap()), ["a", "b"]);
        }
        assert_eq!(*fake.rounds.lock(), [FULL, FULL]);
    }

    #[tokio::test]
    async fn those_who_wait_for_a_round_that_is_given_up_ask_again() {
        let fake = FakeRedis::new();
        let closed = fake.gate.lock().await;
        let first = fake.spawn(["a", "b"]);
        let second = fake.spawn(["c", "d"]);
        fake.begun(1).await;
        first.abort();
        fake.begun(2).await;
        drop(closed);
        assert_eq!(texts(second.await.unwrap()), ["c", "d"]);
        assert_eq!(*fake.rounds.lock(), [4, 2]);
    }

    #[tokio::test]
    async fn a_caller_that_leaves_before_its_round_begins_leaves_no_round_behind() {
        let fake = FakeRedis::new();
        let mut first = Box::pin(fake.get(&["a"]));
        // Polled once, and so in its place.
        assert!(futures_util::poll!(&mut first).is_pending());
        drop(first);
        assert_eq!(texts(fake.get(&["b"]).await), ["b"]);
        assert_eq!(*fake.rounds.lock(), [1]);
    }

    #[tokio::test]
    async fn an_error_of_one_key_is_its_callers_and_a_lost_link_everyones() {
        let fake = FakeRedis::new();
        let callers = [["a", "b"], ["refused", "c"], ["d", "e"]].map(|keys| fake.spawn(keys));
        let [first, second, third] = callers;
        assert_eq!(texts(first.await.unwrap()), ["a", "b"]);
        assert_eq!(
            second.await.unwrap().unwrap_err().kind,
            ErrorKind::Permission
        );
        assert_eq!(texts(third.await.unwrap()), ["d", "e"]);
        for caller in [["no link", "a"], ["b", "c"]].map(|keys| fake.spawn(keys)) {
            assert!(caller.await.unwrap().is_err());
        }
    }
}
