//! A channel that all replicas hear, beside the groups of a layer. It carries bytes and survives lost links.
//!
//! The meaning of the bytes belongs to [`crate::fleet`].

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::error::StoreError;
use crate::ids::GroupName;
use crate::metrics::GapCause;
use crate::rate::Bucket;
use crate::stores::redis::RedisStore;
use crate::tasks;

use super::LayerError;
use super::inbox::{Inbox, Incoming, Payload, Signal};
use super::memory::{BusLine, MemoryBus};
use super::pubsub::{LinkShare, PubSubEndpoints};
use super::target::Target;

/// Bytes of control messages that may wait. Beyond this a gap is marked, after which the replica checks all its sockets
/// again.
const WAITING: u64 = 8 * 1024 * 1024;
/// Answers on their way to Redis at the same time. A Redis that stands still must not pile them up.
const ANSWERS_AT_ONCE: usize = 64;

/// An item that came in on a control channel.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Bytes),
    /// Messages may have been missed.
    Gap(GapCause),
}

/// A channel of control messages. [`Control::open`] subscribes it; the subscription survives lost links.
pub struct Control {
    channel: Box<str>,
    inbox: Arc<Inbox>,
    line: ControlLine,
    /// Bounds the answers per second. A command names the channel of its answer, so a flood could publish without end.
    answers: Mutex<Bucket>,
    answering: Arc<Semaphore>,
}

/// The way to the other replicas.
enum ControlLine {
    Redis(LinkShare),
    /// The replicas of this process, most often this one alone.
    Memory(BusLine),
}

impl Control {
    /// Returns the channel `name` on the server of `store`; it shares the link of the layers there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on(endpoints: &PubSubEndpoints, store: &Arc<RedisStore>, name: &str) -> Self {
        let inbox = Inbox::uncounted(WAITING);
        let line = endpoints.own_line(store, inbox.clone());
        Self::make(name, inbox, ControlLine::Redis(line))
    }

    /// Returns a channel between the replicas of this process. It hears from now on.
    pub fn in_memory(bus: &Arc<MemoryBus>, name: &str) -> Self {
        let inbox = Inbox::uncounted(WAITING);
        let line = BusLine::new(bus, name, &inbox);
        Self::make(name, inbox, ControlLine::Memory(line))
    }

    fn make(name: &str, inbox: Arc<Inbox>, line: ControlLine) -> Self {
        Self {
            channel: name.into(),
            inbox,
            line,
            answers: Mutex::default(),
            answering: Arc::new(Semaphore::new(ANSWERS_AT_ONCE)),
        }
    }

    /// Asks for the channel's messages; returns once Redis has confirmed. Idempotent.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`]; the link goes on trying to subscribe.
    pub async fn open(&self) -> Result<(), LayerError> {
        match &self.line {
            ControlLine::Redis(line) => {
                let name = GroupName::from(&*self.channel);
                line.subscribe(self.name_on_redis(), Target::Group(name))
                    .await
            }
            ControlLine::Memory(_) => Ok(()),
        }
    }

    /// Sends a message to every subscriber; returns their number on this server.
    ///
    /// # Errors
    /// [`StoreError`]; the message may have been sent nevertheless.
    pub async fn publish(&self, payload: Vec<u8>) -> Result<u64, StoreError> {
        match &self.line {
            ControlLine::Redis(line) => line.publish(self.channel.as_bytes(), &payload).await,
            ControlLine::Memory(line) => Ok(line.publish(&self.channel, payload)),
        }
    }

    /// Sends an answer to the channel that a command named, on the same Redis or in the same memory.
    /// Returns false if the answer was dropped: there were more than `per_second` (0: no limit), or too many have not left yet.
    pub fn answer(self: &Arc<Self>, channel: String, payload: Vec<u8>, per_second: u32) -> bool {
        if !self.answers.lock().take(Instant::now(), per_second) {
            return false;
        }
        if let ControlLine::Memory(line) = &self.line {
            line.publish(&channel, payload);
            return true;
        }
        let Ok(permit) = self.answering.clone().try_acquire_owned() else {
            return false;
        };
        let control = self.clone();
        // The task ends within Redis' time limit. If the answer is lost, the caller finds this replica missing.
        tasks::brief(async move {
            if let ControlLine::Redis(line) = &control.line {
                drop(line.publish(channel.as_bytes(), &payload).await);
            }
            drop(permit);
        });
        true
    }

    /// Returns true if both are channels of one Redis, reached with one login, or of one memory.
    pub fn shares_line_with(&self, other: &Control) -> bool {
        match (&self.line, &other.line) {
            (ControlLine::Redis(line), ControlLine::Redis(other)) => line.is_same_link(other),
            (ControlLine::Memory(line), ControlLine::Memory(other)) => line.shares_bus_with(other),
            _ => false,
        }
    }

    /// Waits for the next message. For a single caller at a time.
    pub async fn next(&self) -> Heard {
        match self.inbox.next().await {
            Signal::Event(Incoming {
                payload: Payload::Encoded(bytes),
                ..
            }) => Heard::Message(bytes),
            // A channel of commands carries bytes only.
            Signal::Event(_) | Signal::Presence(..) | Signal::Unheard(..) | Signal::Missed(_) => {
                Heard::Gap(GapCause::Link)
            }
            Signal::Gap(cause) => Heard::Gap(cause),
        }
    }

    fn name_on_redis(&self) -> Bytes {
        Bytes::copy_from_slice(self.channel.as_bytes())
    }
}
