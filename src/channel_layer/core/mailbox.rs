//! The messages of one tenant on one host, from the side of the reading link: it takes them, puts them back after a lost
//! link, and delivers them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{RedisError, RedisResult};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::event::MAX_PAYLOAD;
use crate::metrics::GapCause;

use super::super::inbox::{Inbox, Incoming, Payload};
use super::super::link::bounded::BoundedLink;
use super::super::target::Target;
use super::host_times::HostTimes;
use super::names::inflight_key;
use super::roster::{GroupRoster, HostNumber};
use super::seen::Seen;
use super::{membership, script};

/// The bytes of the longest message: a payload behind random bytes.
pub(super) const MAX_MESSAGE: usize = MAX_PAYLOAD + u8::MAX as usize;
/// The largest number of messages taken in one round, and the approximate number of their bytes.
const BATCH: [usize; 2] = [128, 1024 * 1024];
/// The most messages in flight that are put back; a reader has no more there than it took in one round.
const MOST_IN_FLIGHT: usize = 1024;

/// The messages of one tenant on one host.
pub(super) struct Mailbox {
    pub(super) key: String,
    pub(super) inbox: Arc<Inbox>,
    /// Number of waiting messages from which on senders drop new ones.
    pub(super) capacity: u32,
    /// Time after which senders remove a waiting message.
    pub(super) expiry: Duration,
    /// The memberships; they are in doubt after a lost link.
    pub(super) roster: Arc<GroupRoster>,
    pub(super) shard: HostNumber,
    /// The reading link says there how far it has heard.
    pub(super) times: Arc<HostTimes>,
    /// Restores memberships after a lost link. The reference is weak, so that the task ends with the layer.
    pub(super) keeper: mpsc::WeakUnboundedSender<membership::MembershipOrder>,
    /// The ACL pattern that this layer needs, for the log.
    pub(super) pattern: String,
}

impl Mailbox {
    /// Notes that messages of any group may be missing since `at`. The events of groups with sockets are read in any case, and
    /// those of the others are moved when their time is noted again.
    pub(super) fn missed(&self, at: Instant) {
        self.roster.interrupt(&self.shard, at);
    }
}

/// A mailbox and its state on this link.
pub(super) struct Reading {
    pub(super) id: u64,
    pub(super) mailbox: Mailbox,
    inflight: String,
    /// Messages in flight on an earlier connection were put back; the mailbox may be read.
    pub(super) recovered: bool,
    /// Messages may come a second time.
    pub(super) doubt: bool,
    /// Redis refuses the key, and the refusal was logged.
    pub(super) refused: bool,
    /// The mailbox was read at least once since the last loss.
    served: bool,
    /// Messages may have been missed, and the tenant was not told yet.
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

    /// Notes that the link is lost or the key is refused, and that messages may be missing since `at`. The tenant will be told if
    /// it could have missed one.
    pub(super) fn lose(&mut self, cause: GapCause, at: Instant) {
        // The command link may have joined groups before this link was read from, so `served` alone is not enough.
        let joined = self.mailbox.roster.doubt(&self.mailbox.shard, at);
        self.recovered = false;
        self.doubt = true;
        if std::mem::take(&mut self.served) || joined {
            self.gap.get_or_insert(cause);
        }
    }

    /// Puts back the messages that were in flight on an earlier connection.
    pub(super) async fn recover(&mut self, link: &mut BoundedLink) -> RedisResult<()> {
        let mut recover = redis::cmd("EVAL");
        recover.arg(script::RECOVER).arg(2);
        recover.arg(&self.mailbox.key).arg(&self.inflight);
        recover.arg(MOST_IN_FLIGHT).arg(MAX_MESSAGE);
        let _put_back: u64 = link.query(&recover).await?;
        self.recovered = true;
        self.served = true;
        Ok(())
    }

    /// Takes the oldest messages; they are in flight until they are deleted from the second key.
    pub(super) async fn take(&self, link: &mut BoundedLink) -> RedisResult<TakenMessages> {
        let mut take = redis::cmd("EVAL");
        take.arg(script::TAKE).arg(2);
        take.arg(&self.mailbox.key).arg(&self.inflight);
        take.arg(BATCH[0]).arg(BATCH[1]);
        take.arg(self.mailbox.expiry.as_secs().max(1));
        take.arg(MAX_MESSAGE);
        let answer: redis::Value = link.query(&take).await?;
        TakenMessages::read(answer).ok_or_else(not_understood)
    }

    /// Delivers the messages that were taken after a wake-up. Returns the key of those that are in flight now.
    pub(super) fn deliver_all(&mut self, taken: TakenMessages, seen: &mut Seen) -> Option<String> {
        // The message that woke the reader was in the mailbox, too, hence the one. A full mailbox means that senders may
        // have dropped messages.
        if taken.waiting + 1 >= u64::from(self.mailbox.capacity) {
            self.mailbox.missed(Instant::now());
            self.mailbox.inbox.push_gap(GapCause::LayerQueue);
        }
        for _ in 0..taken.too_long {
            self.mailbox.inbox.drop_oversized();
        }
        let in_flight = !taken.messages.is_empty();
        let all = taken.messages.len() as u64 + taken.too_long == taken.waiting;
        let mut all_fit = true;
        for (message, score) in taken.messages {
            all_fit &= self.deliver(message, &score, seen);
        }
        if !all_fit {
            self.mailbox.missed(Instant::now());
        }
        // The mailbox was emptied, so messages written from here on are new.
        self.doubt &= !all;
        in_flight.then(|| self.inflight.clone())
    }

    /// Delivers the message of a wake-up; `None` was too long to be read.
    pub(super) fn deliver_first(&self, message: Option<Vec<u8>>, score: &str, seen: &mut Seen) {
        match message {
            Some(message) => {
                if !self.deliver(message, score, seen) {
                    self.mailbox.missed(Instant::now());
                }
            }
            None => self.mailbox.inbox.drop_oversized(),
        }
    }

    /// Delivers a message, unless it came before a lost link already. Returns false if the inbox has no room for it.
    fn deliver(&self, message: Vec<u8>, score: &str, seen: &mut Seen) -> bool {
        let known = seen.insert(&self.mailbox.key, &message, score);
        if known && self.doubt {
            return true;
        }
        let size = message.len();
        let incoming = Incoming {
            target: Target::Inside,
            payload: Payload::Encoded(Bytes::from(message)),
            recorded: None,
            unrecorded: false,
            read_at: std::time::Instant::now(),
        };
        self.mailbox.inbox.push(incoming, size)
    }
}

/// The outcome of one round.
pub(super) struct TakenMessages {
    /// The number of messages in the mailbox before the round.
    waiting: u64,
    /// The number of messages that were too long and are gone.
    too_long: u64,
    /// The messages taken, each with its score.
    messages: Vec<(Vec<u8>, String)>,
}

impl TakenMessages {
    /// Reads the answer of [`script::TAKE`]; `None` if it has another form.
    fn read(value: redis::Value) -> Option<Self> {
        let mut items = redis::from_redis_value::<Vec<redis::Value>>(value)
            .ok()?
            .into_iter();
        let mut number = || redis::from_redis_value(items.next()?).ok();
        let (waiting, too_long) = (number()?, number()?);
        let mut messages = Vec::with_capacity(items.len() / 2);
        while let (Some(message), Some(score)) = (items.next(), items.next()) {
            let message = redis::from_redis_value(message).ok()?;
            messages.push((message, redis::from_redis_value(score).ok()?));
        }
        Some(Self {
            waiting,
            too_long,
            messages,
        })
    }
}

fn not_understood() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::InvalidData).into()
}
