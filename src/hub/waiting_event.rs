//! An event that waits for the consumers of sockets, and its part of the account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::{HeldBytes, HeldKind, MemoryBudget};
use crate::event::Event;

/// An event in the outbound queues of sockets whose consumers handle events. All of them share it, so it counts once.
#[derive(Debug)]
pub struct WaitingEvent {
    event: Arc<Event>,
    since: Instant,
    memory: usize,
    _held: HeldBytes,
}

impl WaitingEvent {
    /// Makes an event that waits from now on. Its bytes count in `budget` until the last consumer has handled it.
    pub fn new(event: Arc<Event>, budget: &Arc<MemoryBudget>) -> Arc<Self> {
        Self::since(Instant::now(), event, budget)
    }

    /// Makes an event that has waited since then.
    pub(super) fn since(
        since: Instant,
        event: Arc<Event>,
        budget: &Arc<MemoryBudget>,
    ) -> Arc<Self> {
        let memory = event.memory();
        Arc::new(Self {
            _held: HeldBytes::of(budget, HeldKind::Waiting, memory),
            event,
            since,
            memory,
        })
    }

    /// Returns the event.
    pub fn event(&self) -> &Arc<Event> {
        &self.event
    }

    /// Returns the time since it began to wait.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Returns the approximate bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        self.memory
    }
}
