//! The turns of the groups whose history is read for all their members.
//!
//! A gap concerns every group with history, and clients choose how many there are. So a tenant has at most [`READERS`] tasks for
//! them, and each reads one page of the group whose turn it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Relay;
use super::reader::{GroupReader, READERS};
use crate::tasks;

/// The groups that wait for their turn.
#[derive(Default)]
pub(super) struct ReadTurns {
    state: Mutex<TurnsState>,
    /// A turn has come in that is due before the others.
    sooner: Notify,
}

#[derive(Default)]
struct TurnsState {
    /// By the time from which a group may be read, and in the order of their coming.
    waiting: BTreeMap<(Instant, u64), Box<GroupReader>>,
    came: u64,
    /// The tasks.
    at_work: usize,
    /// True while a task waits for the time of the first turn.
    is_awaited: bool,
}

/// The next work of a task.
enum NextTurn {
    Read(Box<GroupReader>),
    /// Nothing is due before.
    Await(Instant),
    End,
}

impl ReadTurns {
    /// Adds a group. Returns true if a task has to start.
    fn add(&self, reader: Box<GroupReader>, due: Instant) -> bool {
        let mut state = self.state.lock();
        state.came += 1;
        let place = (due, state.came);
        let first = state.waiting.first_key_value();
        let is_first = first.is_none_or(|(first, _)| place < *first);
        state.waiting.insert(place, reader);
        if is_first && state.is_awaited {
            self.sooner.notify_one();
        }
        let is_awaited = state.is_awaited && due > Instant::now();
        let starts = !is_awaited && state.at_work < READERS;
        state.at_work += usize::from(starts);
        starts
    }

    fn next(&self, now: Instant) -> NextTurn {
        let mut state = self.state.lock();
        match state.waiting.first_entry() {
            Some(first) if first.key().0 <= now => return NextTurn::Read(first.remove()),
            Some(first) => {
                let (due, _) = *first.key();
                if !std::mem::replace(&mut state.is_awaited, true) {
                    return NextTurn::Await(due);
                }
            }
            None => {}
        }
        state.at_work -= 1;
        NextTurn::End
    }
}

/// A task that reads. It counts until it has found nothing to do, or panics.
struct AtWork<'t>(&'t ReadTurns);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state.lock().at_work -= 1;
        }
    }
}

impl Relay {
    /// Has a group read for all its members once it is its turn, not before `due`.
    pub(super) fn read_in_turn(self: &Arc<Self>, reader: Box<GroupReader>, due: Instant) {
        if self.turns.add(reader, due) {
            tasks::brief(self.clone().read_due());
        }
    }

    async fn read_due(self: Arc<Self>) {
        let _at_work = AtWork(&self.turns);
        loop {
            match self.turns.next(Instant::now()) {
                NextTurn::Read(reader) => self.read_turn(reader).await,
                NextTurn::Await(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = self.turns.sooner.notified() => {}
                    }
                    self.turns.state.lock().is_awaited = false;
                }
                NextTurn::End => return,
            }
        }
    }
}
