//! The messages of clients that have begun and are not complete: their bytes and their deadline.
//!
//! A message that its first read completes never comes here.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::ages::{AgeList, AgeTicket};
use crate::budget::{HeldBytes, HeldKind, MemoryBudget};
use crate::close_code::CloseReason;
use crate::hub::{CloseOrder, Member};

/// The unfinished messages of this replica, at most one for each socket.
pub struct UnfinishedMessages {
    /// `server.message_timeout`
    timeout: Duration,
    line: Mutex<AgeList<Unfinished>>,
    budget: Arc<MemoryBudget>,
}

struct Unfinished {
    member: Weak<Member>,
    began: Instant,
    bytes: u64,
}

/// One unfinished message. Its drop takes it off: the message is complete, or its socket is gone.
pub struct UnfinishedMessage {
    all: Arc<UnfinishedMessages>,
    ticket: AgeTicket,
    held: HeldBytes,
}

impl UnfinishedMessages {
    /// Creates the list of no messages. Each may take `timeout`; their bytes count in `budget`.
    pub fn new(timeout: Duration, budget: Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self {
            timeout,
            line: Mutex::default(),
            budget,
        })
    }

    /// Notes that a message of `member` has begun, and takes `bytes`.
    pub fn begin(self: &Arc<Self>, member: &Arc<Member>, bytes: usize) -> UnfinishedMessage {
        let unfinished = Unfinished {
            member: Arc::downgrade(member),
            began: Instant::now(),
            bytes: bytes as u64,
        };
        UnfinishedMessage {
            all: self.clone(),
            ticket: self.line.lock().push(unfinished),
            held: HeldBytes::of(&self.budget, HeldKind::Messages, bytes),
        }
    }

    /// Closes the sockets whose message is over its deadline at `now`.
    pub fn close_overdue(&self, now: Instant) {
        let mut overdue = Vec::new();
        {
            let mut line = self.line.lock();
            let ends = |oldest: &Unfinished| oldest.began + self.timeout <= now;
            while line.oldest().is_some_and(ends) {
                overdue.extend(line.pop_oldest().and_then(|over| over.member.upgrade()));
            }
        }
        for member in overdue {
            let frame = CloseReason::MessageTimeout.frame();
            member.outbound().close(frame, CloseOrder::Now);
        }
    }

    /// Returns the sockets with an unfinished message, and its bytes, oldest first.
    pub fn holders(&self) -> Vec<(Arc<Member>, u64)> {
        let line = self.line.lock();
        let holder = |held: &Unfinished| Some((held.member.upgrade()?, held.bytes));
        line.iter().filter_map(holder).collect()
    }

    /// Returns the account in which the messages count.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }
}

impl UnfinishedMessage {
    /// Notes that the message takes `bytes` now.
    pub fn set(&mut self, bytes: usize) {
        if self.held.bytes() == bytes as u64 {
            return;
        }
        self.held.set(bytes);
        if let Some(unfinished) = self.all.line.lock().get_mut(self.ticket) {
            unfinished.bytes = bytes as u64;
        }
    }
}

impl Drop for UnfinishedMessage {
    fn drop(&mut self) {
        let unfinished = self.all.line.lock().take(self.ticket);
        drop(unfinished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Profile;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn unfinished() -> (Arc<UnfinishedMessages>, Arc<Member>) {
        let all = UnfinishedMessages::new(TIMEOUT, Arc::default());
        (all, Member::new(Profile::default()))
    }

    #[test]
    fn a_message_that_is_over_its_deadline_closes_its_socket_and_no_other() {
        let (all, slow) = unfinished();
        let other = Member::new(Profile::default());
        let message = all.begin(&slow, 100);
        let done = all.begin(&other, 100);
        drop(done);
        all.close_overdue(Instant::now());
        assert!(!slow.outbound().is_closing());
        all.close_overdue(Instant::now() + TIMEOUT);
        let cause = slow.outbound().closing_cause();
        assert_eq!(cause, Some(CloseReason::MessageTimeout));
        assert!(!other.outbound().is_closing());
        assert_eq!(all.budget.bytes(), 100, "it holds its bytes until it goes");
        drop(message);
        assert_eq!(all.budget.bytes(), 0);
    }

    #[test]
    fn a_message_counts_what_it_takes() {
        let (all, member) = unfinished();
        let mut message = all.begin(&member, 100);
        message.set(5000);
        let held: Vec<u64> = all.holders().iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!((held, all.budget.bytes()), (vec![5000], 5000));
        drop(message);
        assert!(all.holders().is_empty());
        assert_eq!(all.budget.bytes(), 0);
    }
}
