//! Writing to groups and channels, as `channels_redis.core` does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use indexmap::IndexMap;
use redis::Pipeline;

use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};
use crate::event::{EncodeError, Event};
use crate::ids::{ChannelName, GroupName};
use crate::stores::redis::RedisStore;

use super::super::inbox::Inbox;
use super::super::shards::shard_of;
use super::super::{LayerError, Unread};
use super::capacity::Capacities;
use super::envelope::{Envelope, Named, is_reserved};
use super::names::{Names, non_local};
use super::script;

/// The largest number of members of a group that are read; their names take some 10 MB. A replica of the gateway is one
/// member, a consumer of Channels another.
pub(super) const MAX_MEMBERS: usize = 100_000;
/// The bytes of the longest name of a member. Channels takes 99.
pub(super) const MAX_MEMBER_BYTES: usize = 255;

/// The writing half of one layer.
pub(super) struct Sender {
    /// In the order of the hosts.
    pub(super) stores: Box<[Arc<RedisStore>]>,
    pub(super) names: Arc<Names>,
    pub(super) envelope: Envelope,
    pub(super) capacities: Arc<Capacities>,
    pub(super) expiry: Duration,
    pub(super) group_expiry: Duration,
    pub(super) inbox: Arc<Inbox>,
    pub(super) clock: Clock,
    /// The next host for a message to a plain channel; these go to the hosts in turn.
    pub(super) turn: AtomicUsize,
}

/// A message for one key.
struct Parcel {
    key: String,
    channels: Vec<Box<str>>,
    capacity: u32,
}

impl Sender {
    /// Sends one message to each process that has members in the group. If a key is over its capacity, its message is
    /// dropped and counted.
    pub(super) async fn send_to_group(
        &self,
        group: &GroupName,
        event: &Event,
    ) -> Result<(), LayerError> {
        let members = self.members(group).await?;
        self.send_to_members(members, event).await
    }

    /// Sends one message to each process with one of these members.
    pub(super) async fn send_to_members(
        &self,
        members: Vec<Vec<u8>>,
        event: &Event,
    ) -> Result<(), LayerError> {
        let mut shards: IndexMap<usize, Vec<Parcel>> = IndexMap::new();
        for (key, parcel) in self.parcels(members) {
            let shard = self.shard_of(&key);
            shards.entry(shard).or_default().push(parcel);
        }
        let sends = shards
            .into_iter()
            .map(|(shard, parcels)| self.send_parcels(shard, parcels, event));
        let over: u64 = try_join_all(sends).await?.into_iter().sum();
        self.inbox.over_capacity(over);
        Ok(())
    }

    /// Returns all members of a group that have not lapsed.
    async fn members(&self, group: &GroupName) -> Result<Vec<Vec<u8>>, LayerError> {
        let mut look = redis::cmd("EVAL");
        look.arg(script::MEMBERS).arg(1);
        look.arg(self.names.group_key(group));
        look.arg(expired(self.group_expiry));
        look.arg(MAX_MEMBERS).arg(MAX_MEMBER_BYTES);
        let store = &self.stores[self.names.host_of(group)];
        let answer: Vec<redis::Value> = store.query("members", &look).await?;
        let failed = |text: String| StoreError::new(store.dependency(), ErrorKind::Other, text);
        let mut answer = answer.into_iter();
        let count = answer.next().map(redis::from_redis_value::<usize>);
        let Some(Ok(count)) = count else {
            return Err(failed("the number of members is missing".to_owned()).into());
        };
        if count > MAX_MEMBERS {
            let text = format!("the group has {count} members, and at most {MAX_MEMBERS} are read");
            return Err(failed(text).into());
        }
        let names = answer.map(|name| redis::from_redis_value(name).ok());
        Ok(names.flatten().collect())
    }

    /// Gathers members by the key of their messages. A member that is not UTF-8 cannot be a channel name and is skipped.
    fn parcels(&self, members: Vec<Vec<u8>>) -> IndexMap<Box<str>, Parcel> {
        let mut parcels: IndexMap<Box<str>, Parcel> = IndexMap::new();
        for member in members.iter().filter_map(|name| str::from_utf8(name).ok()) {
            let parcel = parcels.entry(non_local(member).into());
            let parcel = parcel.or_insert_with(|| Parcel {
                key: self.names.message_key(member),
                channels: Vec::new(),
                capacity: self.capacities.of(member),
            });
            parcel.channels.push(member.into());
        }
        parcels
    }

    /// Sends the messages for one host in one round; returns the number of keys over capacity.
    async fn send_parcels(
        &self,
        shard: usize,
        parcels: Vec<Parcel>,
        event: &Event,
    ) -> Result<u64, LayerError> {
        let mut event = event.clone();
        let (mut pipe, mut send) = (Pipeline::new(), redis::cmd("EVAL"));
        pipe.atomic();
        send.arg(script::SEND_TO_GROUP).arg(parcels.len());
        let stale = expired(self.expiry);
        for Parcel { key, .. } in &parcels {
            let trim = pipe.cmd("ZREMRANGEBYSCORE").arg(key);
            trim.arg(0).arg(stale).ignore();
            send.arg(key);
        }
        let capacities: Vec<u32> = parcels.iter().map(|parcel| parcel.capacity).collect();
        for parcel in parcels {
            let channels = Named::Members(parcel.channels);
            send.arg(self.envelope.seal(&mut event, &channels)?);
        }
        send.arg(capacities);
        send.arg(self.clock.score()).arg(self.expiry.as_secs());
        pipe.add_command(send);
        let (over,) = self.stores[shard].query("group_send", &pipe).await?;
        Ok(over)
    }

    /// Sends one message to one channel.
    ///
    /// A channel of a process belongs to the host of its name up to the `!`, where its process reads. Channels itself
    /// writes to the host of the whole name, where no process reads it (channels#1492).
    pub(super) async fn send(
        &self,
        channel: &ChannelName,
        event: &Event,
    ) -> Result<(), LayerError> {
        if is_reserved(event) {
            return Err(EncodeError::Reserved.into());
        }
        let name = channel.as_str();
        let (named, shard) = if name.contains('!') {
            (Named::One(name.into()), self.shard_of(non_local(name)))
        } else {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            (Named::Nobody, turn % self.stores.len())
        };
        let mut command = redis::cmd("EVAL");
        command.arg(script::SEND).arg(1);
        command.arg(self.names.message_key(name));
        command.arg(self.envelope.seal(&mut event.clone(), &named)?);
        command
            .arg(self.capacities.of(name))
            .arg(self.clock.score());
        command.arg(self.expiry.as_secs()).arg(expired(self.expiry));
        match self.stores[shard].query("send", &command).await? {
            0u8 => Err(LayerError::ChannelFull),
            _ => Ok(()),
        }
    }

    /// Looks at these plain channels on every host, since messages to one of them go to the hosts in turn.
    pub(super) async fn unread(&self, channels: &[ChannelName]) -> Result<Unread, LayerError> {
        let mut look = redis::cmd("EVAL");
        look.arg(script::UNREAD).arg(channels.len());
        for channel in channels {
            look.arg(self.names.message_key(channel.as_str()));
        }
        let mut found = Unread::default();
        for store in &self.stores {
            let (events, oldest): (u64, String) = store.query("unread", &look).await?;
            found.events += events;
            if let Ok(since) = oldest.parse::<f64>() {
                // A producer's clock may be ahead.
                let age = (UnixTime::now().0 - since).max(0.0);
                found.oldest = found
                    .oldest
                    .max(Duration::try_from_secs_f64(age).unwrap_or_default());
            }
        }
        Ok(found)
    }

    fn shard_of(&self, name: &str) -> usize {
        shard_of(name.as_bytes(), self.stores.len())
    }
}

/// Returns the latest score that is older than `life`, in whole seconds as in Channels.
pub(super) fn expired(life: Duration) -> i64 {
    UnixTime::now().0 as i64 - i64::try_from(life.as_secs()).unwrap_or(i64::MAX)
}

/// The clock that orders messages. It never gives the same time twice, so that messages of one process arrive in the order
/// of their sends, also if the system's clock stands still or goes back.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The last time given, in microseconds since 1970.
    last: AtomicU64,
}

impl Clock {
    /// Returns the next score: seconds with six decimals.
    fn score(&self) -> String {
        let now = (UnixTime::now().0 * 1e6) as u64;
        let later = |last: u64| Some(now.max(last + 1));
        let last = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, later)
            .unwrap_or_default();
        let score = now.max(last + 1);
        format!("{}.{:06}", score / 1_000_000, score % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_rise() {
        let clock = Clock::default();
        let scores: Vec<f64> = (0..1000).map(|_| clock.score().parse().unwrap()).collect();
        assert!(scores.windows(2).all(|pair| pair[0] < pair[1]));
        assert!((scores[0] - UnixTime::now().0).abs() < 1.0);
    }
}
