//! The account of the memory that clients and back ends can make this replica hold: one for the whole process.
//!
//! Each holder adds its bytes under their kind, and takes them off when they go. `server.max_queue_bytes` bounds the sum.
//! The account only counts: `server/shed.rs` ends the fullest holders over the bound, and those who take in more ask
//! [`MemoryBudget::has_room_for`] first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::labels::{PerLabel, labels};

labels! {
    /// The things that hold memory for others.
    pub enum HeldKind {
        /// Frames in outbound queues; a frame for a thousand sockets counts once.
        Frames = "frames",
        /// Events that wait for fan-out.
        Events = "events",
        /// Events that wait for the consumers of sockets; one for a thousand sockets counts once.
        Waiting = "waiting",
        /// Messages of clients that are not complete.
        Messages = "messages",
        /// Bytes and messages of clients that are read and wait for a busy consumer.
        Input = "input",
        /// Events of histories that are read for sockets which missed them.
        History = "history",
        /// Requests that are not answered yet.
        Heads = "heads",
    }
}

/// The bytes that any holder may have, however much the others hold: so a small request is served and a short message
/// comes in while someone else uses the memory up.
pub const LITTLE: usize = 4096;

/// The bytes held, by kind, and their bound.
#[derive(Debug)]
pub struct MemoryBudget {
    held: PerLabel<HeldKind, AtomicU64>,
    most: AtomicU64,
    /// Told when a holder finds the account over its bound.
    passed: Notify,
}

impl Default for MemoryBudget {
    /// Makes an account without a bound.
    fn default() -> Self {
        Self {
            held: PerLabel::new(|_| AtomicU64::new(0)),
            most: AtomicU64::new(u64::MAX),
            passed: Notify::new(),
        }
    }
}

impl MemoryBudget {
    /// Sets the bound in bytes.
    pub fn set_most(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Returns the bound in bytes.
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Adds bytes of a holder. They are taken off again by [`MemoryBudget::release`].
    pub fn hold(&self, kind: HeldKind, bytes: u64) {
        self.held.of(kind).fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes off bytes that were added.
    pub fn release(&self, kind: HeldKind, bytes: u64) {
        self.held.of(kind).fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes of one kind.
    pub fn of(&self, kind: HeldKind) -> u64 {
        self.held.of(kind).load(Ordering::Relaxed)
    }

    /// Returns the bytes of all kinds.
    pub fn bytes(&self) -> u64 {
        HeldKind::ALL.iter().map(|kind| self.of(*kind)).sum()
    }

    /// Returns true if a holder may come to `bytes`: they are few, or there is room.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        bytes <= LITTLE || !self.is_exhausted()
    }

    /// Returns the bytes without those of events, which fan-out alone frees.
    pub fn bytes_of_clients(&self) -> u64 {
        let all = HeldKind::ALL.iter();
        let of_clients = all.filter(|kind| **kind != HeldKind::Events);
        of_clients.map(|kind| self.of(*kind)).sum()
    }

    /// Returns true over the bound: the fullest holders have to go.
    pub fn is_over(&self) -> bool {
        self.bytes() > self.most()
    }

    /// Returns true while more events may come: up to a quarter over the bound. Over the bound it asks for room at once.
    pub fn takes_events(&self) -> bool {
        if !self.is_over() {
            return true;
        }
        self.passed.notify_one();
        !self.is_exhausted()
    }

    /// Returns once a holder has asked for room.
    pub async fn room_wanted(&self) {
        self.passed.notified().await;
    }

    /// Returns true if the bytes are a quarter over the bound, because what holds them goes slower than new bytes come.
    /// No holder gets more than [`LITTLE`] then.
    pub fn is_exhausted(&self) -> bool {
        let most = self.most();
        self.bytes() > most.saturating_add(most / 4)
    }
}

/// The bytes of one holder. Its drop takes them off the account.
#[derive(Debug)]
pub struct HeldBytes {
    budget: Arc<MemoryBudget>,
    kind: HeldKind,
    bytes: u64,
}

impl HeldBytes {
    /// Makes a holder of no bytes.
    pub fn none(budget: &Arc<MemoryBudget>, kind: HeldKind) -> Self {
        Self {
            budget: budget.clone(),
            kind,
            bytes: 0,
        }
    }

    /// Makes a holder of so many bytes.
    pub fn of(budget: &Arc<MemoryBudget>, kind: HeldKind, bytes: usize) -> Self {
        let mut held = Self::none(budget, kind);
        held.set(bytes);
        held
    }

    /// Changes the bytes that it holds.
    pub fn set(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        if bytes > self.bytes {
            self.budget.hold(self.kind, bytes - self.bytes);
        } else if bytes < self.bytes {
            self.budget.release(self.kind, self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// Returns the bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the account.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_counts_what_it_holds_until_it_goes() {
        let budget = Arc::new(MemoryBudget::default());
        let mut head = HeldBytes::of(&budget, HeldKind::Heads, 2048);
        let message = HeldBytes::of(&budget, HeldKind::Messages, 100);
        head.set(4096);
        assert_eq!(budget.of(HeldKind::Heads), 4096);
        head.set(1024);
        assert_eq!((budget.bytes(), head.bytes()), (1124, 1024));
        drop((head, message));
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn over_its_bound_it_sheds_and_a_quarter_above_it_takes_nothing() {
        let budget = Arc::new(MemoryBudget::default());
        budget.set_most(100);
        let mut held = HeldBytes::of(&budget, HeldKind::Messages, 100);
        assert!(!budget.is_over());
        held.set(101);
        assert!(budget.is_over() && !budget.is_exhausted());
        held.set(126);
        assert!(budget.is_exhausted());
        assert!(budget.has_room_for(LITTLE) && !budget.has_room_for(LITTLE + 1));
    }
}
