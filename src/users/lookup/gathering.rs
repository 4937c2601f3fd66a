//! The tasks that gather lookups for a statement, run it and hand out its answers.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::{LookupAnswer, LookupQueue, QueueState, Wanted};
use crate::stores::database::MAX_IDS;
use crate::tasks;

impl LookupQueue {
    /// Starts a task that gathers lookups for the next statement. It does nothing while such a task runs, or while the
    /// most permitted statements are under way; a statement that ends calls it again.
    pub(super) fn begin_gathering(self: &Arc<Self>, state: &mut QueueState) {
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
        // Handshakes whose answers of Redis came in one round look up their users one after the other. Without this turn of
        // the runtime the first of them would have a statement of its own.
        tokio::task::yield_now().await;
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
