//! The messages of one tenant on one host, as the reading link sees them: taken, put back, handed over.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::mpsc;

use crate::error::ErrorKind;
use crate::event::MAX_PAYLOAD;
use crate::metrics::GapCause;
use crate::stores::redis::error_kind;

use super::super::inbox::{Inbox, Incoming, Payload};
use super::super::target::Target;
use super::names::inflight_key;
use super::roster::{GroupRoster, HostNumber};
use super::seen::Seen;
use super::{membership, script};

/// Messages that are taken in one round, and their bytes, roughly.
const BATCH: [usize; 2] = [128, 1024 * 1024];

/// The messages of one tenant on one host.
pub(super) struct Mailbox {
    pub(super) key: String,
    pub(super) inbox: Arc<Inbox>,
    /// With so many messages in it, senders drop.
    pub(super) capacity: u32,
    /// What waits for longer, senders remove.
    pub(super) expiry: Duration,
    /// The memberships that are lost with the link.
    pub(super) roster: Arc<GroupRoster>,
    pub(super) shard: HostNumber,
    /// Restores memberships after a lost link. Weak: the layer alone keeps that task going.
    pub(super) keeper: mpsc::WeakUnboundedSender<membership::MembershipOrder>,
    /// The ACL pattern that this layer needs, for the log.
    pub(super) pattern: String,
}

/// A mailbox and how it stands on this link.
pub(super) struct Reading {
    pub(super) id: u64,
    pub(super) mailbox: Mailbox,
    inflight: String,
    /// What was in flight when an earlier link was lost is back in its place.
    pub(super) recovered: bool,
    /// Messages may come for a second time.
    pub(super) doubt: bool,
    /// Redis refuses the key, and the log has it.
    pub(super) refused: bool,
    /// It was read at some time.
    served: bool,
    /// Messages may have been missed since the tenant was last told.
    pub(super) gap: Option<GapCause>,
}

impl Reading {
    pub(super) fn new(id: u64, mailbox: Mailbox) -> Self {
        Self {
            id,
            inflight: inflight_key(&mailbox.key),
            mailbox,
            recovered: false,
            doubt: false,
            refused: false,
            served: false,
            gap: None,
        }
    }

    /// The link is gone, or the key is refused: the tenant will hear of it, if it could have heard anything.
    pub(super) fn lose(&mut self, cause: GapCause) {
        // Groups may have been joined, by another link, before this one was read from.
        let joined = self.mailbox.roster.doubt(self.mailbox.shard);
        self.recovered = false;
        self.doubt = true;
        if std::mem::take(&mut self.served) || joined {
            self.gap.get_or_insert(cause);
        }
    }

    /// Puts back what was in flight on an earlier link.
    pub(super) async fn recover(&mut self, link: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut recover = redis::cmd("EVAL");
        recover.arg(script::RECOVER).arg(2);
        recover.arg(&self.mailbox.key).arg(&self.inflight);
        let _put_back: u64 = recover.query_async(link).await?;
        self.recovered = true;
        self.served = true;
        Ok(())
    }

    /// Takes the oldest messages; they are in flight from then on.
    pub(super) async fn take(
        &self,
        link: &mut MultiplexedConnection,
    ) -> RedisResult<TakenMessages> {
        let mut take = redis::cmd("EVAL");
        take.arg(script::TAKE).arg(2);
        take.arg(&self.mailbox.key).arg(&self.inflight);
        take.arg(BATCH[0]).arg(BATCH[1]);
        take.arg(self.mailbox.expiry.as_secs().max(1));
        let answer: redis::Value = take.query_async(link).await?;
        TakenMessages::read(answer).ok_or_else(not_understood)
    }

    /// Hands over what was taken behind the message of a wake-up. Returns the key of what is in flight now.
    pub(super) fn deliver_all(&mut self, taken: TakenMessages, seen: &mut Seen) -> Option<String> {
        // The one that woke the reader was in it, too.
        if taken.waiting + 1 >= u64::from(self.mailbox.capacity) {
            self.mailbox.inbox.push_gap(GapCause::LayerQueue);
        }
        let in_flight = !taken.messages.is_empty();
        let all = taken.messages.len() as u64 == taken.waiting;
        for (message, score) in taken.messages {
            self.deliver(message, &score, seen);
        }
        // What is written from here on is new.
        self.doubt &= !all;
        in_flight.then(|| self.inflight.clone())
    }

    /// Hands a message over, unless it came before.
    pub(super) fn deliver(&self, message: Vec<u8>, score: &str, seen: &mut Seen) {
        let known = seen.insert(&self.mailbox.key, &message, score);
        if known && self.doubt {
            return;
        }
        if message.len() > MAX_PAYLOAD + usize::from(u8::MAX) {
            return self.mailbox.inbox.drop_oversized();
        }
        let size = message.len();
        let incoming = Incoming {
            target: Target::Inside,
            payload: Payload::Encoded(Bytes::from(message)),
            read_at: std::time::Instant::now(),
        };
        self.mailbox.inbox.push(incoming, size);
    }
}

/// What came of one round.
pub(super) struct TakenMessages {
    /// How many messages there were before it.
    waiting: u64,
    /// Each with its score.
    messages: Vec<(Vec<u8>, String)>,
}

impl TakenMessages {
    /// The answer of [`script::TAKE`].
    fn read(value: redis::Value) -> Option<Self> {
        let mut items = redis::from_redis_value::<Vec<redis::Value>>(value)
            .ok()?
            .into_iter();
        let waiting = redis::from_redis_value(items.next()?).ok()?;
        let mut messages = Vec::with_capacity(items.len() / 2);
        while let (Some(message), Some(score)) = (items.next(), items.next()) {
            let message = redis::from_redis_value(message).ok()?;
            messages.push((message, redis::from_redis_value(score).ok()?));
        }
        Some(Self { waiting, messages })
    }
}

/// Whether an error is about one key, and not about the server or the link.
pub(super) fn concerns_a_key(error: &RedisError) -> bool {
    let text = || error.to_string().contains("WRONGTYPE");
    error_kind(error) == ErrorKind::Permission || error.code() == Some("WRONGTYPE") || text()
}

fn not_understood() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::InvalidData).into()
}
