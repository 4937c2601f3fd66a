//! The task that keeps one tenant's memberships on one host: joins, renews, restores what was lost, and leaves.
//!
//! A group is a sorted set with the time of each member's `group_add`; members lapse after `group_expiry`. Joins wait in
//! the callers' tasks, and what waits together goes in one round.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexSet;
use parking_lot::Mutex;
use redis::{Pipeline, RedisResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};
use crate::ids::GroupName;
use crate::metrics::GapCause;
use crate::stores::redis::{RedisStore, error_kind};
use crate::stores::standing::Backoff;

use super::super::inbox::Inbox;
use super::super::link::life::RETRY_REFUSED;
use super::names::{Names, inflight_key};
use super::roster::{GroupRoster, HostNumber};

/// Memberships in one round: long enough that rounds do not matter, short enough that Redis answers others between.
const BATCH: usize = 500;
/// How often it is seen to that nobody flushed the layer's keys, which `flush()` of Channels does.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The mark outlives some looks, so that a pause of this process is not taken for a flush.
const MARK_SECONDS: u64 = 120;
/// Of a membership's life, after so much it is renewed: two renewals may fail.
const RENEWED_AFTER: u32 = 3;
/// What a replica that leaves tries to clean up is bounded by this.
const GOODBYE: Duration = Duration::from_secs(3);
/// Members that could not be taken out are remembered for when the host is back; beyond this they are left to lapse.
const LEAVES_KEPT: usize = 10_000;

/// What others tell the task.
pub(super) enum MembershipOrder {
    /// Somebody waits in the roster for this group.
    Join(GroupName),
    /// Nobody wants the group any more, which had this number.
    Leave(GroupName, u64),
    /// The host is back, and may have lost its data; the tenant hears of the gap once all is restored.
    Restore(GapCause),
    /// Take everything out of Redis and end.
    Close(oneshot::Sender<()>),
}

/// What the task is made of.
pub(super) struct MembershipKeeper {
    pub(super) store: Arc<RedisStore>,
    pub(super) names: Arc<Names>,
    pub(super) roster: Arc<GroupRoster>,
    pub(super) inbox: Arc<Inbox>,
    /// Which of the hosts this is.
    pub(super) shard: HostNumber,
    pub(super) group_expiry: Duration,
    pub(super) orders: mpsc::UnboundedReceiver<MembershipOrder>,
    /// Why Redis does not take what it is told; `None` while it does.
    pub(super) failure: Arc<Mutex<Option<ErrorKind>>>,
}

impl MembershipKeeper {
    /// Runs until it is told to close, or the layer is gone; then it cleans up.
    pub(super) async fn run(self) {
        let now = Instant::now();
        let mut task = Keeping {
            renew_at: now + self.group_expiry / RENEWED_AFTER,
            look_at: now,
            parts: self,
            joins: IndexSet::new(),
            leaves: VecDeque::new(),
            refused: Vec::new(),
            retry_refused_at: now,
            marked: false,
            gap: None,
            backoff: Backoff::default(),
            not_before: now,
        };
        let waiter = task.serve().await;
        drop(tokio::time::timeout(GOODBYE, task.leave_all()).await);
        if let Some(waiter) = waiter {
            let _nobody_waits = waiter.send(()).is_err();
        }
    }
}

struct Keeping {
    parts: MembershipKeeper,
    /// To be said to Redis, for the first time or again.
    joins: IndexSet<GroupName>,
    leaves: VecDeque<(GroupName, u64)>,
    refused: Vec<GroupName>,
    retry_refused_at: Instant,
    renew_at: Instant,
    look_at: Instant,
    /// The mark was set: if it is missing now, somebody flushed.
    marked: bool,
    /// To be told once everything is restored.
    gap: Option<GapCause>,
    backoff: Backoff,
    /// After a failure.
    not_before: Instant,
}

impl Keeping {
    async fn serve(&mut self) -> Option<oneshot::Sender<()>> {
        loop {
            while let Ok(order) = self.parts.orders.try_recv() {
                if let MembershipOrder::Close(waiter) = order {
                    return Some(waiter);
                }
                self.obey(order);
            }
            self.keep_time();
            let work = !self.joins.is_empty() || !self.leaves.is_empty();
            let due = if work {
                self.not_before
            } else {
                self.next_time()
            };
            if work && due <= Instant::now() {
                self.step().await;
                continue;
            }
            tokio::select! {
                order = self.parts.orders.recv() => match order {
                    None => return None,
                    Some(MembershipOrder::Close(waiter)) => return Some(waiter),
                    Some(order) => self.obey(order),
                },
                () = sleep_until(due.min(self.look_at)) => self.look().await,
            }
        }
    }

    fn obey(&mut self, order: MembershipOrder) {
        match order {
            MembershipOrder::Join(group) => drop(self.joins.insert(group)),
            MembershipOrder::Leave(group, number) => {
                self.leaves.push_back((group, number));
                if self.leaves.len() > LEAVES_KEPT {
                    self.leaves.pop_front();
                }
            }
            MembershipOrder::Restore(cause) => self.restore(cause),
            // Taken before.
            MembershipOrder::Close(_) => {}
        }
    }

    fn restore(&mut self, cause: GapCause) {
        self.parts.roster.doubt(self.parts.shard);
        self.joins.extend(self.mine());
        self.gap = Some(cause);
        // Whether the mark is missing is no news any more.
        self.marked = false;
        self.not_before = Instant::now();
    }

    /// The groups whose host this is.
    fn mine(&self) -> Vec<GroupName> {
        self.parts.roster.names(self.parts.shard)
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        if now >= self.renew_at {
            self.renew_at = now + self.parts.group_expiry / RENEWED_AFTER;
            self.joins.extend(self.mine());
        }
        if now >= self.retry_refused_at {
            self.retry_refused_at = now + RETRY_REFUSED;
            self.joins.extend(self.refused.drain(..));
        }
    }

    fn next_time(&self) -> Instant {
        let next = self.look_at.min(self.renew_at);
        if self.refused.is_empty() {
            next
        } else {
            next.min(self.retry_refused_at)
        }
    }

    /// One round: joins before leaves, because somebody waits for them.
    async fn step(&mut self) {
        let done = if self.joins.is_empty() {
            self.leave_some().await
        } else {
            self.join_some().await
        };
        match done {
            Ok(()) => {
                *self.parts.failure.lock() = None;
                self.backoff.reset();
                if self.joins.is_empty()
                    && let Some(cause) = self.gap.take()
                {
                    self.parts.inbox.push_gap(cause);
                }
            }
            Err(error) => {
                *self.parts.failure.lock() = Some(error.kind);
                self.not_before = Instant::now() + self.backoff.pause();
            }
        }
    }

    async fn join_some(&mut self) -> Result<(), StoreError> {
        let names = &self.parts.names;
        let (now, expiry) = (UnixTime::now().0, self.parts.group_expiry.as_secs().max(1));
        let wanted = |group: &GroupName| Some((group.clone(), self.parts.roster.number(group)?));
        let count = self.joins.len().min(BATCH);
        let batch: Vec<(GroupName, u64)> = self.joins[..count].iter().filter_map(wanted).collect();
        let mut pipe = Pipeline::with_capacity(2 * batch.len());
        for (group, number) in &batch {
            let key = names.group_key(group);
            let score = format!("{now:.6}");
            pipe.cmd("ZADD")
                .arg(&key)
                .arg(score)
                .arg(names.member(*number));
            pipe.cmd("EXPIRE").arg(&key).arg(expiry);
        }
        pipe.ignore_errors();
        let answers: Vec<RedisResult<u64>> = if batch.is_empty() {
            Vec::new()
        } else {
            self.parts.store.query_all("zadd", &pipe).await?
        };
        self.joins.drain(..count);
        for ((group, number), answers) in batch.into_iter().zip(answers.chunks(2)) {
            match answers.iter().find_map(|answer| answer.as_ref().err()) {
                None => {
                    let believed = self.parts.roster.joined(&group, number);
                    let added = matches!(answers.first(), Some(Ok(1)));
                    if believed && added && self.gap.is_none() {
                        // It had lapsed, or somebody took it out.
                        self.gap = Some(GapCause::Link);
                    }
                }
                Some(error) => {
                    let kind = error_kind(error);
                    *self.parts.failure.lock() = Some(kind);
                    self.say_refused(&group, error);
                    self.parts.roster.refused(&group, kind);
                    self.refused.push(group);
                }
            }
        }
        Ok(())
    }

    fn say_refused(&self, group: &GroupName, error: &redis::RedisError) {
        if self.refused.is_empty() {
            let user = self.parts.store.url().username().unwrap_or("default");
            tracing::warn!(
                redis.endpoint = self.parts.store.endpoint(), group.name = %group, error = %error,
                "Redis refuses a group; grant it: ACL SETUSER {user} +@sortedset +@scripting +expire +get +set +del +multi +exec ~{}",
                self.parts.names.key_pattern()
            );
        }
    }

    async fn leave_some(&mut self) -> Result<(), StoreError> {
        let count = self.leaves.len().min(BATCH);
        let mut pipe = Pipeline::with_capacity(count);
        for (group, number) in self.leaves.range(..count) {
            let key = self.parts.names.group_key(group);
            pipe.cmd("ZREM")
                .arg(key)
                .arg(self.parts.names.member(*number));
        }
        pipe.ignore_errors();
        let _answers: Vec<RedisResult<u64>> = self.parts.store.query_all("zrem", &pipe).await?;
        self.leaves.drain(..count);
        Ok(())
    }

    /// Renews the mark, and restores everything if it is missing.
    async fn look(&mut self) {
        let now = Instant::now();
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        let key = self.parts.names.alive_key();
        let mut pipe = Pipeline::with_capacity(2);
        pipe.cmd("GET").arg(&key);
        pipe.cmd("SET")
            .arg(&key)
            .arg(1)
            .arg("EX")
            .arg(MARK_SECONDS)
            .ignore();
        let answer: Result<(Option<u8>,), StoreError> =
            self.parts.store.query_all("mark", &pipe).await;
        // No answer is the reader's business: it notices a lost link by itself.
        if let Ok((mark,)) = answer
            && std::mem::replace(&mut self.marked, true)
            && mark.is_none()
        {
            self.restore(GapCause::Link);
            self.marked = true;
        }
    }

    /// Leaves nothing behind on this host, if it answers.
    async fn leave_all(&mut self) {
        for group in self.mine() {
            if let Some(number) = self.parts.roster.unwant(&group) {
                self.leaves.push_back((group, number));
            }
        }
        while !self.leaves.is_empty() {
            if self.leave_some().await.is_err() {
                return;
            }
        }
        let (own, names) = (self.parts.names.own_key(), &self.parts.names);
        let mut delete = redis::cmd("DEL");
        delete
            .arg(&own)
            .arg(inflight_key(&own))
            .arg(names.alive_key());
        // What is left expires.
        drop(self.parts.store.query::<u64>("del", &delete).await);
    }
}
