//! Groups with history in the core layer: moves what Channels sent to the history of a group, records what this process sends,
//! and reads.
//!
//! Channels knows no history. A member of the group stands for it, and Redis fills its mailbox like any other. A gateway that
//! gets its own copy of an event only learns that there is one, and moves what waits in the mailbox. Every replica tries;
//! the first one moves all and publishes it to the others, and they find nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use indexmap::IndexSet;
use parking_lot::Mutex;
use redis::Pipeline;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::error::{ErrorKind, StoreError};
use crate::event::{Event, MAX_PAYLOAD};
use crate::ids::GroupName;
use crate::position::{Epoch, Position};
use crate::stores::backoff::Backoff;
use crate::stores::redis::{RedisStore, error_kind};
use crate::stores::redis_round::ScriptCall;

use super::super::inbox::{Inbox, Payload};
use super::super::recorded::{self, GroupHistories, RecordedGroup, script};
use super::super::{CallId, HistoryFrom, HistoryPage, LayerError};
use super::capacity::Capacities;
use super::envelope::Envelope;
use super::host_times::HostTimes;
use super::names::Names;
use super::roster::{GroupRoster, WatchTicket};
use super::send::{MAX_MEMBER_BYTES, MAX_MEMBERS};

/// The most events that one script moves. Channels keeps 100 in a mailbox, unless its configuration says otherwise.
const MOVED: usize = 256;
/// Groups in one round of moves.
const ROUND: usize = 64;

/// The member of a mailbox that shows that the mailbox has not expired; see `mailbox.lua`.
pub(super) const MARK: &str = "";

/// A group whose events could not be moved, with the error if it is about the group alone.
type FailedMove = (GroupName, Option<redis::RedisError>);

/// The numbers of `take_in` in `mailbox.lua`: events that were moved, those that still wait, offsets that stay empty; then the time
/// of the host.
type TakenIn = (u64, u64, u64, i64);

/// Takes these numbers from the beginning of an answer.
fn taken_in(values: &mut Vec<redis::Value>) -> TakenIn {
    let numbers = values.drain(..values.len().min(4));
    redis::from_redis_value(redis::Value::Array(numbers.collect())).unwrap_or_default()
}

/// The histories of one tenant's groups.
pub(super) struct GroupMover {
    /// In the order of the hosts.
    pub(super) stores: Box<[Arc<RedisStore>]>,
    /// Of each host.
    pub(super) times: Box<[Arc<HostTimes>]>,
    pub(super) names: Arc<Names>,
    pub(super) roster: Arc<GroupRoster>,
    pub(super) histories: Option<GroupHistories>,
    pub(super) capacities: Arc<Capacities>,
    pub(super) envelope: Envelope,
    /// The longest time that a message may wait.
    pub(super) expiry: Duration,
    pub(super) inbox: Arc<Inbox>,
    /// Groups for which events may wait.
    pub(super) wanted: Mutex<IndexSet<GroupName>>,
    /// Groups of which the time at which nothing waited is noted again; they come after all others.
    pub(super) quiet: Mutex<IndexSet<GroupName>>,
    pub(super) wake: Notify,
}

/// A group with history, and its mailbox.
pub(super) struct MovedGroup {
    name: GroupName,
    recorded: RecordedGroup,
    /// The member that stands for the history.
    pub(super) member: String,
    host: usize,
}

/// A recorded event, and the members of its group that get it from Channels' keys.
pub(super) struct RecordedSend {
    pub(super) position: Position,
    pub(super) members: Vec<Vec<u8>>,
}

impl GroupMover {
    /// Returns the group if it has a history.
    pub(super) fn of(&self, group: &GroupName) -> Option<MovedGroup> {
        let channel = self.names.group_key(group);
        Some(MovedGroup {
            name: group.clone(),
            recorded: self.histories.as_ref()?.of(group, &channel)?,
            member: self.names.history_member(group),
            host: self.names.host_of(group),
        })
    }

    /// Returns true if some groups have a history.
    pub(super) fn any(&self) -> bool {
        self.histories.as_ref().is_some_and(GroupHistories::any)
    }

    /// Returns true if the group has a history.
    pub(super) fn records(&self, group: &GroupName) -> bool {
        let histories = self.histories.as_ref();
        histories.is_some_and(|histories| histories.records(group))
    }

    /// Returns the time for which a group stays joined that has no socket here: as long as its history lives.
    pub(super) fn kept_idle(&self, group: &GroupName) -> Option<Duration> {
        let rules = self.histories.as_ref()?.rules();
        rules.history(group).map(|kept| kept.ttl)
    }

    /// Notes that an event of the group came.
    pub(super) fn wake(&self, group: GroupName) {
        self.wanted.lock().insert(group);
        self.wake.notify_one();
    }

    /// Asks for a move of groups for which nothing may wait, so that the history knows it.
    pub(super) fn look_after(&self, groups: Vec<GroupName>) {
        let recorded = groups.into_iter().filter(|group| self.records(group));
        self.quiet.lock().extend(recorded);
        self.wake.notify_one();
    }

    /// Takes the groups of the next round.
    fn next_round(&self) -> Vec<GroupName> {
        let some = |groups: &Mutex<IndexSet<GroupName>>| -> Vec<GroupName> {
            let mut groups = groups.lock();
            let count = groups.len().min(ROUND);
            groups.drain(..count).collect()
        };
        let wanted = some(&self.wanted);
        match wanted.is_empty() {
            true => some(&self.quiet),
            false => wanted,
        }
    }

    /// Moves what waits for these groups, and returns after one try.
    pub(super) async fn settle(&self, groups: &[GroupName]) {
        for groups in groups.chunks(ROUND) {
            self.move_each(groups.to_vec()).await;
        }
    }

    /// Notes what a call to a host has done that was made with this ticket.
    fn note(&self, host: usize, group: &GroupName, ticket: Option<WatchTicket>, taken: TakenIn) {
        let (moved, left, empty, now) = taken;
        self.times[host].tick(now);
        self.inbox.count_recorded(moved);
        self.inbox.count_lost(empty);
        if let Some(ticket) = ticket.filter(|_| left == 0) {
            self.roster.watched(group, ticket);
        }
    }

    /// Returns a call on a group, with the arguments of a move, and the state of the group's watch before it.
    fn call(
        &self,
        script: &'static redis::Script,
        group: &MovedGroup,
    ) -> (ScriptCall, Option<WatchTicket>) {
        let mailbox = self.names.message_key(&group.member);
        let RecordedGroup {
            kept,
            history,
            position,
            notices,
            ..
        } = &group.recorded;
        let members = self.names.group_key(&group.name);
        let mut call = ScriptCall::new(script, &[&mailbox, history, position, &members]);
        call.arg(Epoch::random().to_string()).arg(kept.size);
        call.arg(group.recorded.ttl()).arg(notices);
        call.arg(self.envelope.random_bytes()).arg(MOVED);
        call.arg(self.capacities.of(&group.member)).arg(MAX_PAYLOAD);
        let times = &self.times[group.host];
        let ticket = self.roster.watch(&group.name, times.asked_at());
        let known = ticket.and_then(|ticket| times.time_of(ticket.known?));
        call.arg(self.expiry.as_millis() as u64);
        call.arg(known.unwrap_or(-1));
        call.arg(&group.member);
        (call, ticket)
    }

    /// Records an event and publishes it to gateways, unless a call with this id has done so.
    pub(super) async fn record(
        &self,
        moved: &MovedGroup,
        event: &Event,
        lapsed: i64,
        id: Option<&CallId>,
    ) -> Result<RecordedSend, LayerError> {
        let (mut call, ticket) = self.call(&script::RECORD_HERE, moved);
        call.arg(self.envelope.codec().encode(event)?);
        call.arg(lapsed).arg(MAX_MEMBERS).arg(MAX_MEMBER_BYTES);
        call.arg(id.map(CallId::as_str));
        let store = &self.stores[moved.host];
        let mut answer: Vec<redis::Value> =
            { store.query("record", &call).await }.map_err(recorded::refused)?;
        self.note(moved.host, &moved.name, ticket, taken_in(&mut answer));
        let mut values = answer.into_iter();
        let position = values
            .next()
            .and_then(|at| redis::from_redis_value(at).ok());
        let position = recorded::recorded(store, Ok(position.unwrap_or_default()))?;
        let count = values
            .next()
            .and_then(|count| redis::from_redis_value(count).ok());
        if count.is_none_or(|count: usize| count > MAX_MEMBERS) {
            let text = format!("the group has more than the {MAX_MEMBERS} members that are read");
            let error = StoreError::new(store.dependency(), ErrorKind::Other, text);
            return Err(error.into());
        }
        let names = values.map(|name| redis::from_redis_value(name).ok());
        Ok(RecordedSend {
            position,
            members: names.flatten().collect(),
        })
    }

    /// Reads a page. What waits in the mailbox is moved first, so that it is in it.
    pub(super) async fn read(
        &self,
        moved: &MovedGroup,
        from: &HistoryFrom,
    ) -> Result<HistoryPage, LayerError> {
        let (mut call, ticket) = self.call(&script::READ_HERE, moved);
        moved.recorded.ask_page(&mut call, from);
        let store = &self.stores[moved.host];
        // Not repeated after a lost link: what was moved by the first call is moved.
        let answer = store.query("history", &call).await;
        let answer = answer.map(|mut values: Vec<redis::Value>| {
            self.note(moved.host, &moved.name, ticket, taken_in(&mut values));
            values
        });
        let mut page = recorded::page(store, answer)?;
        for entry in &mut page.entries {
            if let Payload::Encoded(bytes) = &entry.payload
                && let Ok(event) = self.envelope.open_recorded(bytes)
            {
                entry.payload = Payload::Decoded(Arc::new(event));
            }
        }
        Ok(page)
    }

    /// Notes a loss, as [`RecordedGroup::renew`] does.
    pub(super) async fn renew(
        &self,
        moved: &MovedGroup,
        lost: &Position,
    ) -> Result<Position, LayerError> {
        moved.recorded.renew(&self.stores[moved.host], lost).await
    }

    /// Moves events of the groups that were noted. Never returns.
    pub(super) async fn run(self: Arc<Self>) -> Infallible {
        let (mut backoff, mut told) = (Backoff::default(), false);
        // Groups whose move failed. They are tried again after a pause, which delays no other group.
        let mut later: Vec<GroupName> = Vec::new();
        loop {
            let groups = self.next_round();
            if groups.is_empty() {
                let pause = backoff.pause();
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep(pause), if !later.is_empty() => self.wanted.lock().extend(later.drain(..)),
                }
                continue;
            }
            let failures = self.move_each(groups).await;
            if failures.is_empty() && later.is_empty() {
                backoff.reset();
                told = false;
            }
            for (group, error) in failures {
                later.push(group);
                if let Some(error) = error
                    && !std::mem::replace(&mut told, true)
                {
                    tracing::warn!(
                        error.kind = error_kind(&error).label(), error = %error,
                        "Redis refuses to move events to the history of a group, and they are not delivered until it does"
                    );
                }
            }
        }
    }

    /// Moves events of groups. Returns those that failed, with the error if it is about the group alone.
    async fn move_each(&self, groups: Vec<GroupName>) -> Vec<FailedMove> {
        let mut hosts: Vec<Vec<MovedGroup>> = Vec::new();
        hosts.resize_with(self.stores.len(), Vec::new);
        for group in groups {
            if let Some(moved) = self.of(&group) {
                hosts[moved.host].push(moved);
            }
        }
        let rounds = { hosts.into_iter().zip(&self.stores) }
            .filter(|(groups, _)| !groups.is_empty())
            .map(|(groups, store)| self.move_on(store, groups));
        join_all(rounds).await.into_iter().flatten().collect()
    }

    async fn move_on(&self, store: &RedisStore, groups: Vec<MovedGroup>) -> Vec<FailedMove> {
        let mut pipe = Pipeline::with_capacity(groups.len() + 1);
        pipe.cmd("SCRIPT").arg("LOAD").arg(script::move_source());
        let mut tickets = Vec::with_capacity(groups.len());
        for moved in &groups {
            let (call, ticket) = self.call(&script::MOVE, moved);
            pipe.add_command(call.into_command());
            tickets.push(ticket);
        }
        let answers = store.query_each::<redis::Value>("move", &mut pipe).await;
        let groups = groups.into_iter().map(|moved| (moved.host, moved.name));
        let Ok(answers) = answers else {
            // The store has counted and logged it.
            let failed = groups.inspect(|(_, group)| self.roster.not_moved(group));
            return failed.map(|(_, group)| (group, None)).collect();
        };
        let mut failures = Vec::new();
        for (((host, group), ticket), answer) in
            groups.zip(tickets).zip(answers.into_iter().skip(1))
        {
            let answer = answer.and_then(|answer| Ok(redis::from_redis_value::<TakenIn>(answer)?));
            match answer {
                Ok(taken) => {
                    self.note(host, &group, ticket, taken);
                    if taken.1 > 0 {
                        self.wanted.lock().insert(group);
                    }
                }
                Err(error) => {
                    self.roster.not_moved(&group);
                    failures.push((group, Some(error)));
                }
            }
        }
        failures
    }
}
