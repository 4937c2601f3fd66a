//! The task that keeps one tenant's memberships on one host: joins, renews, restores what was lost, and leaves.
//!
//! A group is a sorted set with the time of each member's `group_add`; members lapse after `group_expiry`. Callers of a
//! join wait in their own tasks, and joins that wait at the same time go to Redis in one round.

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
use crate::stores::backoff::Backoff;
use crate::stores::redis::{RedisStore, error_kind};

use super::super::inbox::Inbox;
use super::super::link::life::RETRY_REFUSED;
use super::history::{GroupMover, MARK};
use super::idle::{IdleGroup, IdleGroups};
use super::names::{Names, inflight_key};
use super::refusals::remedy;
use super::roster::{GroupRoster, HostNumber};
use super::script;
use super::send::expired;

/// Memberships in one round: many, so that the number of rounds does not matter; few enough that Redis answers other
/// clients in between.
const BATCH: usize = 500;
/// Time between two looks at the mark, which is missing after a flush of the layer's keys (`flush()` of Channels).
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Life of the mark. It outlives several looks, so that a pause of this process is not taken for a flush.
const MARK_SECONDS: u64 = 120;
/// Memberships are renewed after `group_expiry` divided by this, so that two renewals may fail.
const RENEWED_AFTER: u32 = 3;
/// The time at which a mailbox was empty is noted again after `expiry` divided by this. A replica that is killed then leaves at
/// least a third of `expiry` in which what waits is known to be complete.
const NOTED_AFTER: u32 = 4;
/// Time limit for the clean-up of a replica that leaves.
const GOODBYE: Duration = Duration::from_secs(3);
/// Leaves that are kept until the host is back. Beyond this the oldest are dropped, and those members lapse by themselves.
const LEAVES_KEPT: usize = 10_000;

/// An order to the task.
pub(super) enum MembershipOrder {
    /// A caller waits in the roster for this group.
    Join(GroupName),
    /// The group, which had this number, is no longer wanted.
    Leave(GroupName, u64),
    /// The group, which has a history, is no longer wanted after its time.
    Idle(IdleGroup),
    /// The host is back and may have lost its data. The tenant is told of the gap once everything is restored.
    Restore(GapCause),
    /// Remove everything from Redis and end.
    Close(oneshot::Sender<()>),
}

/// The parts of the task.
pub(super) struct MembershipKeeper {
    pub(super) store: Arc<RedisStore>,
    pub(super) names: Arc<Names>,
    /// Knows which groups have a history, and moves their events.
    pub(super) mover: Arc<GroupMover>,
    pub(super) roster: Arc<GroupRoster>,
    pub(super) inbox: Arc<Inbox>,
    /// The number of the host.
    pub(super) shard: HostNumber,
    pub(super) group_expiry: Duration,
    pub(super) orders: mpsc::UnboundedReceiver<MembershipOrder>,
    /// The kind of the last failure; `None` while Redis takes the commands.
    pub(super) failure: Arc<Mutex<Option<ErrorKind>>>,
}

impl MembershipKeeper {
    /// Returns the channel that stands for a group's members in this process.
    fn own_member(&self, group: &GroupName, number: u64) -> String {
        match self.mover.records(group) {
            true => self.names.recorded_member(group, number),
            false => self.names.member(number),
        }
    }

    /// Runs until it is told to close or the layer is dropped; then it cleans up.
    pub(super) async fn run(self) {
        let now = Instant::now();
        let mut task = Keeping {
            renew_at: now + self.group_expiry / RENEWED_AFTER,
            look_at: now,
            note_at: now + self.mover.expiry / NOTED_AFTER,
            parts: self,
            joins: IndexSet::new(),
            leaves: VecDeque::new(),
            idle: IdleGroups::default(),
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
            let _caller_is_gone = waiter.send(()).is_err();
        }
    }
}

struct Keeping {
    parts: MembershipKeeper,
    /// Groups to be joined, for the first time or again.
    joins: IndexSet<GroupName>,
    leaves: VecDeque<(GroupName, u64)>,
    idle: IdleGroups,
    refused: Vec<GroupName>,
    retry_refused_at: Instant,
    renew_at: Instant,
    look_at: Instant,
    /// The time of the next move of the groups with history for which nothing may wait.
    note_at: Instant,
    /// The mark was set: if it is missing at the next look, the keys were flushed.
    marked: bool,
    /// The gap to be told once everything is restored.
    gap: Option<GapCause>,
    backoff: Backoff,
    /// The earliest time of the next round, after a failure.
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
            MembershipOrder::Leave(group, number) => self.leave(group, number),
            MembershipOrder::Idle(group) => self.idle.add(group),
            MembershipOrder::Restore(cause) => self.restore(cause),
            // `serve` takes this order itself.
            MembershipOrder::Close(_) => {}
        }
    }

    fn leave(&mut self, group: GroupName, number: u64) {
        self.leaves.push_back((group, number));
        if self.leaves.len() > LEAVES_KEPT {
            self.leaves.pop_front();
        }
    }

    fn restore(&mut self, cause: GapCause) {
        let roster = &self.parts.roster;
        roster.doubt(&self.parts.shard, Instant::now());
        self.joins.extend(self.mine());
        self.gap = Some(cause);
        // Everything is being restored, so a missing mark would say nothing new.
        self.marked = false;
        self.not_before = Instant::now();
    }

    /// Returns the groups that belong to this host.
    fn mine(&self) -> Vec<GroupName> {
        self.parts.roster.names(&self.parts.shard)
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        if now >= self.renew_at {
            self.renew_at = now + self.parts.group_expiry / RENEWED_AFTER;
            self.joins.extend(self.mine());
        }
        if now >= self.note_at {
            self.note_at = now + self.parts.mover.expiry / NOTED_AFTER;
            if self.parts.mover.any() {
                self.parts.mover.look_after(self.mine());
            }
        }
        if now >= self.retry_refused_at {
            self.retry_refused_at = now + RETRY_REFUSED;
            self.joins.extend(self.refused.drain(..));
        }
        while let Some(group) = self.idle.ended(now) {
            if self.parts.roster.end_idle(&group) {
                self.leave(group.0, group.1);
            }
        }
    }

    fn next_time(&self) -> Instant {
        let next = self.look_at.min(self.renew_at).min(self.note_at);
        let next = next.min(self.idle.next_end().unwrap_or(next));
        if self.refused.is_empty() {
            next
        } else {
            next.min(self.retry_refused_at)
        }
    }

    /// Runs one round. Joins come before leaves, because callers wait for them.
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
        let score = format!("{now:.6}");
        for (group, number) in &batch {
            let key = names.group_key(group);
            // The member for the history comes first: an event that this replica hears of is in its mailbox.
            if self.parts.mover.records(group) {
                let history = names.history_member(group);
                let join = pipe.cmd("EVAL").arg(script::JOIN_HISTORY).arg(2);
                join.arg(&key).arg(names.message_key(&history));
                join.arg(&score).arg(history);
                join.arg(expired(self.parts.group_expiry)).arg(MARK);
            }
            let own = self.parts.own_member(group, *number);
            pipe.cmd("ZADD").arg(&key).arg(&score).arg(own);
            pipe.cmd("EXPIRE").arg(&key).arg(expiry);
        }
        let answers: Vec<RedisResult<u64>> = if batch.is_empty() {
            Vec::new()
        } else {
            self.parts.store.query_each("zadd", &mut pipe).await?
        };
        self.joins.drain(..count);
        let mut answers = answers.as_slice();
        for (group, number) in batch {
            let recorded = self.parts.mover.records(&group);
            let (own, rest) = answers.split_at((2 + usize::from(recorded)).min(answers.len()));
            answers = rest;
            match own.iter().find_map(|answer| answer.as_ref().err()) {
                None => {
                    // The last answer is that of EXPIRE.
                    let (_, added) = own.split_last().unwrap_or((&Ok(0), &[]));
                    let added = added.iter().any(|answer| matches!(answer, Ok(1)));
                    let believed = self.parts.roster.joined(&group, number, added);
                    // A member was added that should have been there: it had lapsed or was removed.
                    if believed && added && !recorded && self.gap.is_none() {
                        self.gap = Some(GapCause::Link);
                    }
                    let unsure = recorded && self.parts.roster.is_idle_and_unsure(&group);
                    if unsure || (recorded && added) {
                        self.parts.mover.wake(group);
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
            let rights = "+@sortedset +@scripting +expire +set +del +multi +exec";
            let pattern = self.parts.names.key_pattern();
            tracing::warn!(
                redis.endpoint = self.parts.store.endpoint(), group.name = %group, error = %error,
                "Redis refuses a group; {}",
                remedy(&self.parts.store, error, rights, &pattern)
            );
        }
    }

    async fn leave_some(&mut self) -> Result<(), StoreError> {
        let count = self.leaves.len().min(BATCH);
        let mut pipe = Pipeline::with_capacity(count);
        for (group, number) in self.leaves.range(..count) {
            let key = self.parts.names.group_key(group);
            let own = self.parts.own_member(group, *number);
            pipe.cmd("ZREM").arg(key).arg(own);
        }
        let _answers: Vec<RedisResult<u64>> =
            self.parts.store.query_each("zrem", &mut pipe).await?;
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
        // The mark is not read: it is a public key, whose value may have any length.
        let mark = pipe.cmd("SET").arg(&key).arg(1);
        mark.arg("EX").arg(MARK_SECONDS).arg("NX");
        pipe.cmd("EXPIRE").arg(&key).arg(MARK_SECONDS).ignore();
        let answer: Result<(Option<redis::Value>,), StoreError> =
            self.parts.store.query("mark", &pipe).await;
        // A failed look is ignored: the reader notices a lost link by itself.
        if let Ok((set,)) = answer
            && std::mem::replace(&mut self.marked, true)
            && set.is_some()
        {
            self.restore(GapCause::Link);
            // This look has set the mark again, so its next absence is a new flush.
            self.marked = true;
        }
    }

    /// Removes the layer's memberships and keys from this host, if it answers.
    async fn leave_all(&mut self) {
        let mine = self.mine();
        // It is known that nothing waits now, and the one who reads next has no doubt about what came before.
        drop(tokio::time::timeout(GOODBYE / 3, self.parts.mover.settle(&mine)).await);
        for group in mine {
            if let Some(number) = self.parts.roster.unwant(&group) {
                self.leaves.push_back((group, number));
            }
        }
        while !self.leaves.is_empty() {
            if self.leave_some().await.is_err() {
                return;
            }
        }
        let names = &self.parts.names;
        let mut delete = redis::cmd("DEL");
        delete.arg(names.alive_key());
        let lane = names.lane_key(self.parts.shard.index);
        for key in std::iter::once(names.own_key()).chain(lane) {
            delete.arg(inflight_key(&key)).arg(key);
        }
        // Keys that remain after a failure expire.
        drop(self.parts.store.query::<u64>("del", &delete).await);
    }
}
