//! The queue between a layer's readers and the relay of one tenant. It is bounded in bytes and never blocks a reader.
//!
//! An event that does not fit is dropped, and a marker takes its place. One reader for each host of the layer pushes; one
//! relay pops.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::budget::{HeldKind, MemoryBudget};
use crate::metrics::{DropCause, GapCause, TenantMetrics};

use super::codec::Codec;
use super::target::Target;
use crate::event::{DecodeError, Event};
use crate::ids::GroupName;
use crate::position::Position;

/// Bytes that an entry counts beside its payload, so that empty payloads are bounded too.
const ENTRY: u64 = 96;
/// Bytes for which a tenant has room in any case: those that its relay takes at once.
const RUN: u64 = 64 * 1024;
/// Entries for which an empty queue keeps its memory; more is given back.
const KEPT_ROOM: usize = 64;

/// An event that came in for sockets of the tenant.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its recipients.
    pub target: Target,
    /// The event as it came.
    pub payload: Payload,
    /// Its position, if it was recorded.
    pub recorded: Option<Position>,
    /// It came without a position to a group with history, so that it counts as unrecorded if it is an event.
    pub unrecorded: bool,
    /// The time at which its last byte was read from the layer.
    pub read_at: Instant,
}

/// An event on its way through an [`Inbox`].
#[derive(Clone, Debug)]
pub enum Payload {
    /// Untrusted bytes from Redis.
    Encoded(Bytes),
    /// An event from the memory layer.
    Decoded(Arc<Event>),
}

impl Payload {
    /// Returns the approximate bytes of memory that it takes.
    pub fn size(&self) -> usize {
        match self {
            Payload::Encoded(bytes) => bytes.len(),
            Payload::Decoded(event) => event.memory(),
        }
    }

    /// Returns the event itself.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not an event of `codec`.
    pub fn decode(self, codec: &Codec) -> Result<Arc<Event>, DecodeError> {
        match self {
            Payload::Encoded(bytes) => codec.decode(&bytes).map(Arc::new),
            Payload::Decoded(event) => Ok(event),
        }
    }
}

/// An item that the relay of a tenant takes from its layer, in order.
#[derive(Clone, Debug)]
pub enum Signal {
    /// An event.
    Event(Incoming),
    /// Events may have been missed at this place in the order.
    Gap(GapCause),
    /// A position of a group with history whose event did not come here in the order: its history has it, or tells that it is
    /// lost.
    Unheard(GroupName, Position),
    /// Users joined a group or left it; the bytes are a notice of presence.
    Presence(GroupName, Bytes),
    /// Events for one group or socket may have been missed at this place in the order. A history may have them.
    Missed(Target),
}

struct Queue {
    /// Each signal with its cost in bytes.
    signals: VecDeque<(Signal, u64)>,
    bytes: u64,
}

/// The bounded queue of one tenant.
pub struct Inbox {
    queue: Mutex<Queue>,
    filled: Notify,
    /// Bytes; 0 is no limit.
    limit: AtomicU64,
    /// `None` if the queue carries no events of a tenant.
    metrics: Option<Arc<TenantMetrics>>,
    /// The account of the process, in which the events count.
    budget: Arc<MemoryBudget>,
}

impl Inbox {
    /// Builds a queue that holds up to `limit` bytes (`limits.layer_queue`; 0 is no limit). A single event always fits
    /// into an empty queue.
    pub fn new(limit: u64, metrics: Arc<TenantMetrics>) -> Arc<Self> {
        Self::make(limit, Some(metrics), Arc::default())
    }

    /// Builds such a queue whose events count in `budget`. A quarter over its bound the queue takes no more than
    /// 64 KiB.
    pub fn counted_in(
        limit: u64,
        metrics: Arc<TenantMetrics>,
        budget: Arc<MemoryBudget>,
    ) -> Arc<Self> {
        Self::make(limit, Some(metrics), budget)
    }

    /// Builds a queue for messages that are not events of a tenant; no metric counts them.
    pub fn uncounted(limit: u64) -> Arc<Self> {
        Self::make(limit, None, Arc::default())
    }

    fn make(
        limit: u64,
        metrics: Option<Arc<TenantMetrics>>,
        budget: Arc<MemoryBudget>,
    ) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(Queue {
                signals: VecDeque::new(),
                bytes: 0,
            }),
            filled: Notify::new(),
            limit: AtomicU64::new(limit),
            metrics,
            budget,
        })
    }

    /// Queues an event of `size` bytes, or marks the place where it is missing and returns false.
    pub(super) fn push(&self, event: Incoming, size: usize) -> bool {
        self.offer(Signal::Event(event), size)
    }

    /// Marks that an event of a group was recorded, but not heard.
    pub(super) fn push_unheard(&self, group: GroupName, position: Position) {
        self.offer(Signal::Unheard(group, position), 0);
    }

    /// Queues a notice of presence.
    pub(super) fn push_presence(&self, group: GroupName, notice: Bytes) {
        let size = notice.len();
        self.offer(Signal::Presence(group, notice), size);
    }

    /// Counts losses of events before they were recorded.
    pub(super) fn count_lost(&self, losses: u64) {
        if let Some(metrics) = &self.metrics {
            for _ in 0..losses {
                metrics.gap(GapCause::LayerQueue);
            }
        }
    }

    /// Marks that events for one group or socket may have been missed, because its shard was away.
    pub(super) fn push_missed(&self, target: Target) {
        if let Some(metrics) = &self.metrics {
            metrics.gap(GapCause::Link);
        }
        // It is no event: a full queue would turn it into a gap of the whole tenant.
        self.append(&mut self.queue.lock(), Signal::Missed(target), 0);
    }

    fn offer(&self, signal: Signal, size: usize) -> bool {
        let cost = ENTRY + size as u64;
        let mut queue = self.queue.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        // An empty queue takes an event of any size: the bound is against a backlog, not against large events.
        let fits = limit == 0 || queue.bytes == 0 || queue.bytes + cost <= limit;
        // Where the process has no room, each tenant keeps room for a run, so that only the fullest pay. The account is
        // asked first, because it wakes the task that makes room.
        let has_room = self.budget.takes_events() || queue.bytes < RUN;
        if fits && has_room {
            // The gauge is moved by the difference, not set: the inboxes that a tenant has during a reload share it.
            queue.bytes += cost;
            self.budget.hold(HeldKind::Events, cost);
            if let Some(metrics) = &self.metrics {
                metrics.layer_queue_bytes.increment(cost as f64);
            }
            self.append(&mut queue, signal, cost);
        } else {
            self.dropped(DropCause::Limit);
            let is_new = self.append_gap(&mut queue, GapCause::LayerQueue);
            // The gap is the hit, and not each event that it holds. The bound of the process is another limit.
            if let Some(metrics) = self.metrics.as_ref().filter(|_| is_new && !fits) {
                metrics.rate_limited("layer_queue");
            }
        }
        fits && has_room
    }

    /// Queues a signal of a layer that a test plays.
    #[cfg(test)]
    pub(crate) fn push_signal(&self, signal: Signal) {
        match signal {
            Signal::Gap(cause) => self.push_gap(cause),
            other => drop(self.offer(other, 1)),
        }
    }

    /// Marks that events may have been missed. Two gaps of one cause with no event between them become one.
    pub(super) fn push_gap(&self, cause: GapCause) {
        self.append_gap(&mut self.queue.lock(), cause);
    }

    /// Counts an event that was dropped because it is longer than the largest payload.
    pub(super) fn drop_oversized(&self) {
        self.dropped(DropCause::NotDecoded);
    }

    /// Counts events that this replica recorded for other senders.
    pub(super) fn count_recorded(&self, events: u64) {
        if let Some(metrics) = &self.metrics {
            metrics.recorded.increment(events);
        }
    }

    /// Counts a message to gateways that is none, or that tells of a value that is none.
    pub(super) fn count_unreadable(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.unreadable_values.increment(1);
        }
    }

    fn dropped(&self, cause: DropCause) {
        if let Some(metrics) = &self.metrics {
            metrics.dropped(cause);
        }
    }

    /// Changes the bound in bytes; 0 is no limit. Events that wait already stay.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Counts events sent from here that the layer dropped because channels were full.
    pub(super) fn over_capacity(&self, channels: u64) {
        for _ in 0..channels {
            self.dropped(DropCause::Limit);
        }
    }

    /// Marks a gap; returns false if the last signal is one of this cause already.
    fn append_gap(&self, queue: &mut Queue, cause: GapCause) -> bool {
        if matches!(queue.signals.back(), Some((Signal::Gap(last), _)) if *last == cause) {
            return false;
        }
        if let Some(metrics) = &self.metrics {
            metrics.gap(cause);
        }
        self.append(queue, Signal::Gap(cause), 0);
        true
    }

    fn append(&self, queue: &mut Queue, signal: Signal, cost: u64) {
        // The relay waits only while the queue is empty, so only the first signal has to wake it.
        queue.signals.push_back((signal, cost));
        if queue.signals.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// Waits for the next signal. For a single caller at a time. No signal is lost if the future is dropped.
    pub async fn next(&self) -> Signal {
        loop {
            if let Some(signal) = self.try_next() {
                return signal;
            }
            self.filled.notified().await;
        }
    }

    /// Takes the next signal, if there is one.
    pub fn try_next(&self) -> Option<Signal> {
        let mut queue = self.queue.lock();
        let (signal, cost) = queue.signals.pop_front()?;
        self.took(&mut queue, cost);
        Some(signal)
    }

    /// Waits until there is a signal. For a single caller at a time.
    pub async fn filled(&self) {
        while self.queue.lock().signals.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Moves the first signals to the end of `out` under one lock. It stops at `most` signals, or when those moved have
    /// reached `bytes`.
    pub fn drain_into(&self, out: &mut Vec<Signal>, most: usize, bytes: u64) {
        let mut queue = self.queue.lock();
        let (mut taken, mut freed) = (0, 0);
        while taken < most
            && freed < bytes
            && let Some((signal, cost)) = queue.signals.pop_front()
        {
            out.push(signal);
            (taken, freed) = (taken + 1, freed + cost);
        }
        self.took(&mut queue, freed);
    }

    fn took(&self, queue: &mut Queue, bytes: u64) {
        queue.bytes -= bytes;
        self.freed(bytes);
        if queue.signals.is_empty() && queue.signals.capacity() > KEPT_ROOM {
            queue.signals.shrink_to(KEPT_ROOM);
        }
    }

    fn freed(&self, bytes: u64) {
        self.budget.release(HeldKind::Events, bytes);
        if let Some(metrics) = &self.metrics {
            metrics.layer_queue_bytes.decrement(bytes as f64);
        }
    }

    /// Returns the bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.queue.lock().bytes
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let bytes = self.queue.get_mut().bytes;
        self.freed(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(limit: u64) -> Arc<Inbox> {
        let tenant = "acme".parse().unwrap();
        Inbox::new(limit, Arc::new(TenantMetrics::new(&tenant)))
    }

    fn event(number: u8) -> Incoming {
        Incoming {
            target: Target::Group("g".into()),
            payload: Payload::Encoded(Bytes::copy_from_slice(&[number])),
            recorded: None,
            unrecorded: false,
            read_at: Instant::now(),
        }
    }

    /// `Some(n)` for event n, `None` for a gap.
    fn drain(inbox: &Inbox) -> Vec<Option<u8>> {
        let mut signals = Vec::new();
        inbox.drain_into(&mut signals, usize::MAX, u64::MAX);
        let number = |signal| match signal {
            Signal::Event(Incoming {
                payload: Payload::Encoded(bytes),
                ..
            }) => Some(bytes[0]),
            _ => None,
        };
        signals.into_iter().map(number).collect()
    }

    #[test]
    fn an_overflow_leaves_one_marker_where_events_are_missing() {
        let inbox = inbox(2 * (ENTRY + 1));
        for number in 1..=5 {
            inbox.push(event(number), 1);
        }
        assert!(matches!(inbox.try_next(), Some(Signal::Event(_))));
        inbox.push(event(6), 1);
        inbox.push(event(7), 1);
        assert_eq!(drain(&inbox), [Some(2), None, Some(6), None]);
        assert_eq!(inbox.bytes(), 0);
    }

    #[test]
    fn an_event_longer_than_the_bound_fits_an_empty_queue() {
        let inbox = inbox(10);
        inbox.push(event(1), 1000);
        inbox.push(event(2), 1);
        assert_eq!(drain(&inbox), [Some(1), None]);
    }

    #[test]
    fn events_count_in_the_account_and_over_its_bound_a_run_fits() {
        let (budget, tenant) = (Arc::new(MemoryBudget::default()), "acme".parse().unwrap());
        let metrics = Arc::new(TenantMetrics::new(&tenant));
        let inbox = Inbox::counted_in(0, metrics, budget.clone());
        budget.set_most(1);
        for number in 1..=3 {
            inbox.push(event(number), RUN as usize / 2);
        }
        assert_eq!(budget.of(HeldKind::Events), 2 * (ENTRY + RUN / 2));
        assert!(matches!(inbox.try_next(), Some(Signal::Event(_))));
        inbox.push(event(4), 1);
        assert_eq!(drain(&inbox), [Some(2), None, Some(4)]);
        inbox.push(event(5), 1);
        drop(inbox);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn gaps_of_one_cause_without_events_between_are_one() {
        let inbox = inbox(0);
        for cause in [GapCause::Link, GapCause::Link, GapCause::Canary] {
            inbox.push_gap(cause);
        }
        assert_eq!(drain(&inbox), [None, None]);
    }

    #[tokio::test]
    async fn a_waiting_relay_wakes() {
        let inbox = inbox(0);
        let waiting = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.next().await }
        });
        tokio::task::yield_now().await;
        inbox.push(event(1), 1);
        assert!(matches!(waiting.await, Ok(Signal::Event(_))));
        inbox.push(event(2), 1);
        inbox.push(event(3), 1);
        inbox.filled().await;
        assert_eq!(drain(&inbox), [Some(2), Some(3)]);
    }
}
