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
    /// The time for which the gateway read nothing.
    paused: Duration,
    /// The beginning of the pause, while the gateway reads nothing.
    paused_at: Option<Instant>,
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
            paused: Duration::ZERO,
            paused_at: None,
            bytes: bytes as u64,
        };
        UnfinishedMessage {
            all: self.clone(),
            ticket: self.line.lock().push(unfinished),
            held: HeldBytes::of(&self.budget, HeldKind::Messages, bytes),
        }
    }

    /// Closes the sockets whose message is over its deadline at `now`. The time in which the gateway reads nothing from a
    /// socket does not count.
    pub fn close_overdue(&self, now: Instant) {
        // Closed ones stay in the line until their tasks have run, as those with a pause do.
        let overdue: Vec<_> = {
            let line = self.line.lock();
            let old = line
                .iter()
                .take_while(|message| message.began + self.timeout <= now);
            old.filter(|message| message.is_overdue(self.timeout, now))
                .filter_map(|message| message.member.upgrade())
                .collect()
        };
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

impl Unfinished {
    fn is_overdue(&self, timeout: Duration, now: Instant) -> bool {
        self.paused_at.is_none() && self.began + self.paused + timeout <= now
    }
}

impl UnfinishedMessage {
    /// Notes that the gateway reads nothing from now on: the rest of the message may have come.
    pub fn pause(&self, now: Instant) {
        if let Some(unfinished) = self.all.line.lock().get_mut(self.ticket) {
            unfinished.paused_at.get_or_insert(now);
        }
    }

    /// Notes that the gateway reads again.
    pub fn resume(&self, now: Instant) {
        if let Some(unfinished) = self.all.line.lock().get_mut(self.ticket)
            && let Some(since) = unfinished.paused_at.take()
        {
            unfinished.paused += now.saturating_duration_since(since);
        }
    }

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

    /// Before: the deadline ran on, and the message could not be complete.
    #[test]
    fn the_time_in_which_the_gateway_reads_nothing_does_not_count() {
        let (all, member) = unfinished();
        let message = all.begin(&member, 100);
        let began = Instant::now();
        let pause = TIMEOUT * 2;
        message.pause(began);
        message.pause(began + pause / 2);
        all.close_overdue(began + pause);
        assert!(!member.outbound().is_closing(), "it reads nothing");
        message.resume(began + pause);
        message.resume(began + pause * 2);
        all.close_overdue(began + pause + TIMEOUT / 2);
        assert!(!member.outbound().is_closing(), "half of its time is left");
        all.close_overdue(began + pause + TIMEOUT);
        let cause = member.outbound().closing_cause();
        assert_eq!(cause, Some(CloseReason::MessageTimeout));
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
