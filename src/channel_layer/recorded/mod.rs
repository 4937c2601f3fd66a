//! The histories of groups on Redis, for the layers that lie there: what is recorded, read and begun again, and the rules for
//! back ends. The layers publish and subscribe.
//!
//! Keys and channels of a group lie on the host of the group. A step is one script, so that nothing is recorded without
//! being published, nothing is published in another order than it was recorded, and no lock is needed.

use std::sync::Arc;

use bytes::Bytes;
use redis::Script;

use crate::config::HistoryConfig;
use crate::error::{ErrorKind, StoreError};
use crate::group_rules::GroupRules;
use crate::ids::{GroupName, TenantId};
use crate::position::{Epoch, PastEpochs, Position};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::stores::redis_round::ScriptCall;

use super::history::PAGE;
use super::inbox::Payload;
use super::{CallId, HistoryFrom, HistoryPage, LayerError, RecordedEvent};

pub(super) use memory_watch::watch_memory;
pub(super) use notice::GroupNotice;
pub(super) use upkeep::{RulesAtHost, keep_rules};

mod memory_watch;
mod notice;
pub(super) mod script;
mod upkeep;

/// Finds the history of a group on Redis.
#[derive(Clone, Debug)]
pub struct GroupHistories {
    tenant: TenantId,
    rules: Arc<GroupRules>,
    /// `layer.namespace`
    namespace: Arc<str>,
    /// The layer lies on a cluster.
    sharded: bool,
}

/// A group with history: its rule and the names of its keys.
pub(super) struct RecordedGroup {
    pub(super) kept: HistoryConfig,
    pub(super) history: String,
    pub(super) position: String,
    /// The channel that gateways alone hear.
    pub(super) notices: String,
    sharded: bool,
}

impl GroupHistories {
    /// Records by the rules of one tenant.
    pub fn new(tenant: &TenantId, rules: Arc<GroupRules>) -> Self {
        Self {
            tenant: tenant.clone(),
            rules,
            namespace: "".into(),
            sharded: false,
        }
    }

    /// Publishes to the sharded channels of a cluster.
    pub fn on_cluster(self, sharded: bool) -> Self {
        Self { sharded, ..self }
    }

    /// Names the groups on the wire with this beginning.
    pub fn in_namespace(self, namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            ..self
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    pub(super) fn rules(&self) -> &GroupRules {
        &self.rules
    }

    /// Returns true if some groups have a history.
    pub(super) fn any(&self) -> bool {
        self.rules.longest_history().is_some()
    }

    /// Returns true if the group has a history.
    pub(super) fn records(&self, group: &GroupName) -> bool {
        self.rules.history(group).is_some()
    }

    /// Returns the channel of the group that gateways alone hear, if they tell each other of it; `channel` is the layer's own
    /// name for the group.
    pub(super) fn notices(&self, group: &GroupName, channel: &str) -> Option<String> {
        let told = self.rules.has_notices(group);
        told.then(|| redis_keys::group_notices(&self.tenant, channel))
    }

    /// Returns the group if it has a history; `channel` is the layer's own name for it.
    pub(super) fn of(&self, group: &GroupName, channel: &str) -> Option<RecordedGroup> {
        Some(RecordedGroup {
            kept: self.rules.history(group)?,
            history: redis_keys::history(&self.tenant, channel),
            position: redis_keys::position(&self.tenant, channel),
            notices: redis_keys::group_notices(&self.tenant, channel),
            sharded: self.sharded,
        })
    }
}

impl RecordedGroup {
    fn call(&self, script: &'static Script) -> ScriptCall {
        ScriptCall::new(script, &[&self.history, &self.position])
    }

    /// Returns the call that records an event and publishes it to `channel`, and its position to the gateways.
    pub(super) fn recording(
        &self,
        channel: &[u8],
        event: &[u8],
        id: Option<&CallId>,
    ) -> ScriptCall {
        let mut call = self.call(script::record(self.sharded));
        call.arg(Epoch::random().to_string());
        call.arg(self.kept.size).arg(self.ttl());
        call.arg(&self.notices).arg(channel).arg(event);
        call.arg(id.map(CallId::as_str));
        call
    }

    /// Records an event and publishes it, unless a call with this id has done so.
    ///
    /// # Errors
    /// [`LayerError::NotRecorded`] if Redis refused: the event was not published either.
    pub(super) async fn record(
        &self,
        store: &RedisStore,
        channel: &[u8],
        event: &[u8],
        id: Option<&CallId>,
    ) -> Result<Position, LayerError> {
        let call = self.recording(channel, event, id);
        recorded(store, store.query("record", &call).await)
    }

    /// Reads a page.
    pub(super) async fn read(
        &self,
        store: &RedisStore,
        from: &HistoryFrom,
    ) -> Result<HistoryPage, LayerError> {
        let mut call = self.call(&script::READ);
        self.ask_page(&mut call, from);
        page(store, store.query_again("history", &call).await)
    }

    /// Adds the arguments of a read.
    pub(super) fn ask_page(&self, call: &mut ScriptCall, from: &HistoryFrom) {
        call.arg(Epoch::random().to_string()).arg(self.ttl());
        call.arg(
            from.epoch
                .as_ref()
                .map_or_else(String::new, Epoch::to_string),
        );
        call.arg(from.after).arg(PAGE.0);
        call.arg(PAGE.1.min(from.most));
    }

    /// Notes that events up to `lost` were delivered, as [`super::ChannelLayer::renew_history`] does.
    pub(super) async fn renew(
        &self,
        store: &RedisStore,
        lost: &Position,
    ) -> Result<Position, LayerError> {
        let mut call = self.call(&script::RENEW);
        call.arg(Epoch::random().to_string()).arg(self.ttl());
        call.arg(lost.epoch.to_string()).arg(lost.offset);
        let (epoch, offset): (String, u64) = store.query_again("renew", &call).await?;
        let epoch = Epoch::parse(&epoch).ok_or_else(|| not_understood(store))?;
        Ok(Position { epoch, offset })
    }

    pub(super) fn ttl(&self) -> u64 {
        u64::try_from(self.kept.ttl.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Reads the answer to a record.
pub(super) fn recorded(
    store: &RedisStore,
    answer: Result<Vec<u8>, StoreError>,
) -> Result<Position, LayerError> {
    let answer = answer.map_err(refused)?;
    notice::position(&answer).ok_or_else(|| not_understood(store))
}

/// Reads a page: epoch, newest offset, 1 if more follow, the epochs before, the number of values that are not readable, then
/// offset, event, ….
pub(super) fn page(
    store: &RedisStore,
    answer: Result<Vec<redis::Value>, StoreError>,
) -> Result<HistoryPage, LayerError> {
    let read = |answer: Vec<redis::Value>| {
        let mut values = answer.into_iter();
        let epoch: String = redis::from_redis_value(values.next()?).ok()?;
        let end = Position {
            epoch: Epoch::parse(&epoch)?,
            offset: redis::from_redis_value(values.next()?).ok()?,
        };
        let more: u8 = redis::from_redis_value(values.next()?).ok()?;
        let past: String = redis::from_redis_value(values.next()?).ok()?;
        let unreadable = redis::from_redis_value(values.next()?).ok()?;
        let mut entries = Vec::with_capacity(values.len() / 2);
        while let Some(offset) = values.next() {
            let event: Vec<u8> = redis::from_redis_value(values.next()?).ok()?;
            entries.push(RecordedEvent {
                offset: redis::from_redis_value(offset).ok()?,
                payload: Payload::Encoded(Bytes::from(event)),
            });
        }
        Some(HistoryPage {
            end,
            past: PastEpochs::parse(&past),
            entries,
            more: more == 1,
            unreadable,
        })
    };
    read(answer?).ok_or_else(|| not_understood(store))
}

/// A record that Redis answered with an error was not published. Without an answer it may have been.
pub(super) fn refused(error: StoreError) -> LayerError {
    match error.kind {
        ErrorKind::Io | ErrorKind::Timeout | ErrorKind::Protocol => LayerError::Publish(error),
        _ => LayerError::NotRecorded(error),
    }
}

pub(super) fn not_understood(store: &RedisStore) -> LayerError {
    let text = "a script answered with something else than it does";
    StoreError::new(store.dependency(), ErrorKind::Protocol, text).into()
}
