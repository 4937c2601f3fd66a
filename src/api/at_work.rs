//! The calls that are carried out at once: a quarter of the listener's connections for each caller, and two with a large body.
//!
//! A call may wait for a store that does not answer, and a large body takes a processor for milliseconds. Without these bounds the calls
//! of one tenant, whose Redis stands still, would keep those of all others out, and its large bodies would take every turn of heavy
//! work.

use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::call_rate::{Payer, is_urgent, refuse};
use super::problem::ApiProblem;
use crate::heavy::HEAVY_BYTES;

/// Calls with a large body of one caller that are carried out at once. The others wait.
const LARGE_AT_ONCE: usize = 2;
/// The part of the listener's connections that the calls of one caller may take.
const SHARE: usize = 4;

/// The owner of calls. Those that take something back are counted apart, so that no other holds them up.
type Account = (Payer, bool);

/// The calls under way, by their callers. A caller without one has no entry.
#[derive(Clone)]
pub(super) struct CallsAtWork(Arc<CallBook>);

struct CallBook {
    /// The most calls of one caller.
    most: usize,
    under_way: Mutex<HashMap<Account, CallerAtWork>>,
}

/// The calls of one caller.
struct CallerAtWork {
    count: usize,
    large: Arc<Semaphore>,
}

/// A call that is carried out. Its drop makes room for another.
pub(super) struct CallAtWork {
    calls: Arc<CallBook>,
    account: Account,
    /// The turn of a large body.
    turn: Option<OwnedSemaphorePermit>,
}

impl CallsAtWork {
    /// Makes the bound for a listener of so many connections.
    pub(super) fn new(connections: usize) -> Self {
        Self(Arc::new(CallBook {
            most: (connections / SHARE).max(1),
            under_way: Mutex::default(),
        }))
    }

    /// Returns the place of a call, which it takes later.
    pub(super) fn place(&self, payer: Payer, request: &Request) -> CallPlace {
        CallPlace(Arc::new(PlaceOfCall {
            calls: self.clone(),
            account: (payer, is_urgent(request)),
            taken: OnceLock::new(),
        }))
    }

    /// Begins a call, and waits for its turn if its body is large. `None` if its caller has the most calls under way.
    async fn take(&self, account: Account, is_large: bool) -> Option<CallAtWork> {
        let (mut call, large) = {
            let mut under_way = self.0.under_way.lock();
            let caller = under_way
                .entry_ref(&account)
                .or_insert_with(|| CallerAtWork {
                    count: 0,
                    large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
                });
            if caller.count >= self.0.most {
                return None;
            }
            caller.count += 1;
            let large = is_large.then(|| caller.large.clone());
            let calls = self.0.clone();
            let call = CallAtWork {
                calls,
                account,
                turn: None,
            };
            (call, large)
        };
        if let Some(large) = large {
            // The semaphore is never closed.
            call.turn = large.acquire_owned().await.ok();
        }
        Some(call)
    }
}

/// The place of a call among those of its caller. The last clone gives it back.
#[derive(Clone)]
pub(super) struct CallPlace(Arc<PlaceOfCall>);

struct PlaceOfCall {
    calls: CallsAtWork,
    account: Account,
    taken: OnceLock<CallAtWork>,
}

impl CallPlace {
    /// Takes the place once the body is there, of so many bytes: one that does not come is no work. Waits for its turn if it is large.
    ///
    /// # Errors
    /// The refusal of a caller that has the most calls under way.
    pub(super) async fn take(&self, bytes: usize) -> Result<(), ApiProblem> {
        let PlaceOfCall {
            calls,
            account,
            taken,
        } = &*self.0;
        match calls.take(account.clone(), bytes >= HEAVY_BYTES).await {
            Some(call) => {
                // A call has one body, so that the place is empty; a second taking would be given back.
                taken.set(call).ok();
                Ok(())
            }
            None => Err(refuse().await),
        }
    }
}

impl Drop for CallAtWork {
    fn drop(&mut self) {
        let mut under_way = self.calls.under_way.lock();
        let Some(caller) = under_way.get_mut(&self.account) else {
            return;
        };
        caller.count -= 1;
        if caller.count == 0 {
            under_way.remove(&self.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Returns the call, if it has begun.
    fn poll<F: Future<Output = Option<CallAtWork>> + Unpin>(mut call: F) -> Option<CallAtWork> {
        (&mut call).now_or_never().flatten()
    }

    fn account(tenant: &str) -> Account {
        (Payer::Tenant(tenant.parse().unwrap()), false)
    }

    /// Before, the calls of a tenant whose Redis stood still took every connection of the listener.
    #[test]
    fn the_calls_of_one_caller_leave_room_for_others() {
        let calls = CallsAtWork::new(8);
        let take = |tenant| calls.take(account(tenant), false).now_or_never().unwrap();
        let first = take("a").unwrap();
        let _second = take("a").unwrap();
        assert!(take("a").is_none());
        assert!(take("b").is_some());
        let urgent = (account("a").0, true);
        let urgent = calls.take(urgent, false).now_or_never().unwrap();
        assert!(urgent.is_some());
        drop(first);
        assert!(take("a").is_some());
    }

    /// Before, large batches waited in threads of the runtime, and the large calls of all callers in one line.
    #[test]
    fn two_large_calls_of_a_caller_are_carried_out_at_once() {
        let calls = CallsAtWork::new(100);
        let mut large = [0; 4].map(|_| Some(Box::pin(calls.take(account("a"), true))));
        let first = poll(large[0].as_mut().unwrap()).unwrap();
        let _second = poll(large[1].as_mut().unwrap()).unwrap();
        assert!(poll(large[2].as_mut().unwrap()).is_none());
        assert!(poll(large[3].as_mut().unwrap()).is_none());
        // Neither a small call nor another caller waits for them.
        let small = calls.take(account("a"), false).now_or_never();
        assert!(small.is_some());
        let other = calls.take(account("b"), true).now_or_never();
        assert!(other.is_some());
        // One that is given up gives its place to the next.
        large[2] = None;
        drop(first);
        assert!(poll(large[3].as_mut().unwrap()).is_some());
    }

    #[test]
    fn a_caller_without_a_call_takes_no_memory() {
        let calls = CallsAtWork::new(100);
        let first = calls.take(account("a"), true).now_or_never();
        let _second = calls.take(account("a"), true).now_or_never();
        let mut waits = Box::pin(calls.take(account("a"), true));
        assert!(waits.as_mut().now_or_never().is_none());
        drop((first, _second, waits));
        assert!(calls.0.under_way.lock().is_empty());
    }
}
