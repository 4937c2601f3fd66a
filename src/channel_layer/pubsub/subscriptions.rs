//! The wished subscriptions of one link and those that Redis has confirmed: a state machine without IO.
//!
//! The wishes are the truth. [`Subscriptions::flush`] compares them with the commands last sent on the link and writes only
//! the difference, in batches. Confirmations are matched by channel name, errors by the order of commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use tokio::sync::oneshot;

use crate::error::ErrorKind;

use super::super::inbox::Inbox;
use super::super::link::command::write_command;
use super::super::target::Target;
use super::repeats::Repeats;
use super::sent::{CommandKind, OutOfStep, SentCommands};
use crate::stores::redis::cluster::slot_of;

mod refusals;

/// Channel names per command: many, so that the number of commands does not matter; few enough that Redis answers other
/// clients in between.
const BATCH: usize = 500;

/// Carries the outcome to a caller of `subscribe`.
pub(super) type Waiter = oneshot::Sender<Result<(), ErrorKind>>;

/// The meaning of a channel's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::channel_layer) enum ChannelRole {
    /// Each message is an event.
    Events,
    /// Each message is an event of a group with history. Its position comes just before it, by [`ChannelRole::Notices`].
    Recorded,
    /// Each message is for gateways: a notice of a group.
    Notices,
}

/// A destination of a channel's messages.
pub(super) struct ChannelRoute {
    /// The layer that wished for the channel.
    pub(super) attachment: u64,
    pub(super) inbox: Arc<Inbox>,
    pub(super) target: Target,
    pub(super) role: ChannelRole,
    /// Tells the layer that its channel is subscribed, so that a later join does not ask. `None` if it does not look.
    pub(super) heard: Option<Heard>,
    /// `None` where only one link may have the channel.
    pub(super) voice: Option<Voice>,
}

/// The place of a link among those that may have a channel, while it moves from one shard to another. A master that has lost its
/// last slot may become a replica of the new one, and replicas hear the same messages: only those of one link count.
#[derive(Clone)]
pub(super) struct Voice {
    /// The number of this link.
    pub(super) link: u32,
    /// The number of the link whose messages count.
    pub(super) counting: Arc<AtomicU32>,
    /// Messages that the link before has delivered, and that may come again.
    pub(super) repeats: Option<Arc<Repeats>>,
}

/// True while Redis has confirmed a channel on the present connection and the wish for it has not ended.
pub(in crate::channel_layer) type Heard = Arc<AtomicBool>;

impl ChannelRoute {
    /// Returns true if the messages of this link are to be delivered.
    pub(super) fn counts(&self) -> bool {
        let counts = |voice: &Voice| voice.counting.load(Ordering::Acquire) == voice.link;
        self.voice.as_ref().is_none_or(counts)
    }

    /// Returns true if the link before has delivered this message, which comes again.
    pub(super) fn repeats(&self, payload: &[u8], now: Instant) -> bool {
        let voice = self.voice.as_ref();
        let repeats = voice.and_then(|voice| voice.repeats.as_ref());
        repeats.is_some_and(|repeats| repeats.take(payload, now))
    }

    fn set_heard(&self, heard: bool) {
        if let Some(flag) = &self.heard {
            flag.store(heard, Ordering::Release);
        }
    }
}

#[derive(Default)]
struct Channel {
    routes: Vec<ChannelRoute>,
    waiters: Vec<Waiter>,
    /// The link's own channel: wanted without routes.
    own: bool,
    /// The command last sent on this link: SUBSCRIBE (true) or UNSUBSCRIBE.
    said: Option<bool>,
    /// Commands of this channel that Redis has not answered.
    unanswered: u32,
    /// Listed in [`Subscriptions::changed`].
    changed: bool,
    /// Redis refused it on this connection, and the wish was not repeated since.
    refused: bool,
    /// It was confirmed on an earlier connection and refused on a later one, so its gap is longer than that of the link.
    late: bool,
    /// It was confirmed at least once.
    confirmed: bool,
}

impl Channel {
    fn wanted(&self) -> bool {
        self.own || !self.routes.is_empty()
    }

    fn subscribed(&self) -> bool {
        // With commands unanswered, a confirmation may belong to an earlier SUBSCRIBE that an UNSUBSCRIBE follows.
        self.said == Some(true) && self.unanswered == 0
    }
}

/// The subscriptions of one link.
#[derive(Default)]
pub(super) struct Subscriptions {
    channels: HashMap<Bytes, Channel>,
    /// Channels whose wish may differ from the command last sent.
    changed: Vec<Bytes>,
    /// Batches that were refused as a whole and are asked again in parts.
    parts: Vec<(Vec<Bytes>, bool)>,
    refused: Vec<Bytes>,
    sent: SentCommands,
    /// The link leads to a node of a cluster: its channels are sharded, and all of a command are of one slot.
    sharded: bool,
    /// `changed` holds the channels to resubscribe after a lost connection.
    recovery_due: bool,
}

impl Subscriptions {
    /// Makes the subscriptions of a link to a node of a cluster.
    pub(super) fn sharded() -> Self {
        Self {
            sharded: true,
            ..Self::default()
        }
    }

    /// Wishes for a channel; `waiter` is told when it is confirmed.
    pub(super) fn want(&mut self, name: &Bytes, route: ChannelRoute, waiter: Waiter) {
        let channel = self.channels.entry(name.clone()).or_default();
        let subscribed = channel.subscribed();
        let known = |other: &ChannelRoute| other.attachment == route.attachment;
        // A link that lost the channel to this one may have taken the flag back.
        route.set_heard(subscribed);
        match channel.routes.iter_mut().find(|other| known(other)) {
            // The channel has come back before its end was asked for.
            Some(known) => known.voice = route.voice,
            None => channel.routes.push(route),
        }
        if subscribed {
            tell(waiter, Ok(()));
            return;
        }
        // During an outage handshakes come and give up. Their waiters are removed here, or they would pile up.
        channel.waiters.retain(|waiter| !waiter.is_closed());
        channel.waiters.push(waiter);
        channel.refused = false;
        mark_changed(&mut self.changed, name, channel);
    }

    /// Notes that events of a channel may have been missed before this link had it. Its routes are told once it is confirmed.
    pub(super) fn missed_before(&mut self, name: &Bytes) {
        if let Some(channel) = self.channels.get_mut(name) {
            channel.late |= !channel.subscribed();
        }
    }

    /// Replaces the channel of the link itself.
    pub(super) fn replace_own(&mut self, before: &Bytes, name: &Bytes) {
        if let Some(channel) = self.channels.get_mut(before) {
            channel.own = false;
            mark_changed(&mut self.changed, before, channel);
        }
        self.want_own(name);
    }

    /// Wishes for a channel of the link itself.
    pub(super) fn want_own(&mut self, name: &Bytes) {
        let channel = self.channels.entry(name.clone()).or_default();
        channel.own = true;
        mark_changed(&mut self.changed, name, channel);
    }

    /// Ends the wish of one layer for a channel.
    pub(super) fn unwant(&mut self, name: &Bytes, attachment: u64) {
        if let Some(channel) = self.channels.get_mut(name) {
            channel
                .routes
                .retain(|route| route.attachment != attachment);
            mark_changed(&mut self.changed, name, channel);
        }
    }

    /// Ends all wishes of one layer.
    pub(super) fn detach(&mut self, attachment: u64) {
        for (name, channel) in &mut self.channels {
            let before = channel.routes.len();
            channel
                .routes
                .retain(|route| route.attachment != attachment);
            if channel.routes.len() < before {
                mark_changed(&mut self.changed, name, channel);
            }
        }
    }

    /// Returns the destinations of a channel's messages; empty if no layer wants them any more.
    pub(super) fn routes(&self, name: &[u8]) -> &[ChannelRoute] {
        self.channels
            .get(name)
            .map_or(&[], |channel| &channel.routes)
    }

    /// Returns the name under which a channel is kept, to hold on to without a copy.
    pub(super) fn name(&self, name: &[u8]) -> Option<Bytes> {
        let (name, _) = self.channels.get_key_value(name)?;
        Some(name.clone())
    }

    /// Returns true if the channel's messages are notices of a group.
    fn is_notices(&self, name: &Bytes) -> bool {
        let channel = self.channels.get(name);
        channel.is_some_and(|channel| {
            let mut routes = channel.routes.iter();
            routes.any(|route| route.role == ChannelRole::Notices)
        })
    }

    /// Returns true if Redis has confirmed the channel on this connection.
    pub(super) fn subscribed(&self, name: &[u8]) -> bool {
        self.channels.get(name).is_some_and(Channel::subscribed)
    }

    /// Returns the number of channels that are wished for or still being ended.
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Writes the commands that bring the link to the wishes.
    pub(super) fn flush(&mut self, out: &mut BytesMut) {
        for (names, recovery) in std::mem::take(&mut self.parts) {
            let names = names.into_iter();
            let names: Vec<Bytes> = names.filter(|name| self.due(name) == Some(true)).collect();
            if recovery {
                self.sent.expected_recovery();
            }
            self.say(CommandKind::Subscribe, names, recovery, out);
        }
        if self.changed.is_empty() {
            self.recovery_due = false;
            return;
        }
        let mut wishes = [Vec::new(), Vec::new()];
        for name in std::mem::take(&mut self.changed) {
            if let Some(channel) = self.channels.get_mut(&name) {
                channel.changed = false;
                match self.due(&name) {
                    Some(wanted) => wishes[usize::from(wanted)].push(name),
                    None => self.settle(&name),
                }
            }
        }
        let recovery = std::mem::take(&mut self.recovery_due);
        let [mut unsubscribe, mut subscribe] = wishes;
        // An event of a group with history must not be heard before its position can be. Few groups have one, so mostly
        // there is nothing to sort. Both are in one slot.
        if self.sharded {
            subscribe.sort_by_cached_key(|name| (slot_of(name), !self.is_notices(name)));
            unsubscribe.sort_by_cached_key(|name| slot_of(name));
        } else if subscribe.iter().any(|name| self.is_notices(name)) {
            subscribe.sort_by_cached_key(|name| !self.is_notices(name));
        }
        for (kind, names, recovery) in [
            (CommandKind::Subscribe, subscribe, recovery),
            (CommandKind::Unsubscribe, unsubscribe, false),
        ] {
            let sharded = self.sharded;
            let together = |a: &Bytes, b: &Bytes| !sharded || slot_of(a) == slot_of(b);
            for names in names
                .chunk_by(together)
                .flat_map(|names| names.chunks(BATCH))
            {
                self.say(kind, names.to_vec(), recovery, out);
            }
        }
    }

    /// Returns the command that is due for a channel, SUBSCRIBE (true) or UNSUBSCRIBE; `None` if there is none.
    fn due(&self, name: &Bytes) -> Option<bool> {
        let channel = self.channels.get(name)?;
        match (channel.wanted(), channel.said) {
            (true, Some(true)) => None,
            (true, _) if channel.refused => None,
            (true, _) => Some(true),
            (false, Some(true)) => Some(false),
            (false, _) => None,
        }
    }

    fn say(&mut self, kind: CommandKind, names: Vec<Bytes>, recovery: bool, out: &mut BytesMut) {
        if names.is_empty() {
            return;
        }
        for name in &names {
            if let Some(channel) = self.channels.get_mut(name) {
                channel.said = Some(kind == CommandKind::Subscribe);
                channel.unanswered += 1;
            }
        }
        let word: &[u8] = match (kind, self.sharded) {
            (CommandKind::Subscribe, false) => b"SUBSCRIBE",
            (CommandKind::Subscribe, true) => b"SSUBSCRIBE",
            (_, false) => b"UNSUBSCRIBE",
            (_, true) => b"SUNSUBSCRIBE",
        };
        let arguments = std::iter::once(word).chain(names.iter().map(|name| &name[..]));
        write_command(arguments, out);
        self.sent.push(kind, names, recovery);
    }

    /// Writes a PING; its answer comes in the order of commands.
    pub(super) fn ping(&mut self, out: &mut BytesMut) {
        write_command([&b"PING"[..]].into_iter(), out);
        self.sent.push(CommandKind::Ping, Vec::new(), false);
    }

    /// Takes the answer to a PING.
    pub(super) fn ponged(&mut self) -> Result<(), OutOfStep> {
        self.sent.answered(CommandKind::Ping)
    }

    /// Takes the confirmation of a SUBSCRIBE. Returns the routes whose gap is longer than that of the link.
    pub(super) fn confirmed(&mut self, name: &[u8]) -> Result<&[ChannelRoute], OutOfStep> {
        self.sent.answered(CommandKind::Subscribe)?;
        let channel = self.channels.get_mut(name).ok_or(OutOfStep)?;
        channel.unanswered = channel.unanswered.checked_sub(1).ok_or(OutOfStep)?;
        if !channel.subscribed() {
            return Ok(&[]);
        }
        for waiter in std::mem::take(&mut channel.waiters) {
            tell(waiter, Ok(()));
        }
        channel
            .routes
            .iter()
            .for_each(|route| route.set_heard(true));
        channel.confirmed = true;
        let late = std::mem::take(&mut channel.late);
        Ok(if late { &channel.routes } else { &[] })
    }

    /// Forgets a channel that is neither wanted nor subscribed and has no unanswered command.
    fn settle(&mut self, name: &Bytes) {
        let done = |channel: &Channel| {
            !channel.wanted() && channel.unanswered == 0 && channel.said != Some(true)
        };
        if self.channels.get(name).is_some_and(done) {
            self.channels.remove(name);
        }
    }

    /// Resets the state after a lost connection: no command was sent on the next one.
    pub(super) fn link_lost(&mut self) {
        self.sent.clear();
        self.parts.clear();
        self.refused.clear();
        self.changed.clear();
        self.recovery_due = false;
        self.channels.retain(|_, channel| {
            channel
                .routes
                .iter()
                .for_each(|route| route.set_heard(false));
            channel.said = None;
            channel.unanswered = 0;
            channel.changed = false;
            channel.refused = false;
            // A link to one server tells its gap once for all channels, one to a shard tells each of its groups.
            channel.late |= self.sharded && channel.confirmed;
            channel.wanted()
        });
    }

    /// Marks every wish to be sent again on a new connection.
    pub(super) fn link_made(&mut self) {
        for (name, channel) in &mut self.channels {
            mark_changed(&mut self.changed, name, channel);
        }
        self.recovery_due = true;
    }

    /// Returns true if the resubscription on this connection is answered completely.
    pub(super) fn recovered(&self) -> bool {
        !self.recovery_due && self.sent.recovered()
    }
}

fn tell(waiter: Waiter, outcome: Result<(), ErrorKind>) {
    let _caller_is_gone = waiter.send(outcome).is_err();
}

fn mark_changed(changed: &mut Vec<Bytes>, name: &Bytes, channel: &mut Channel) {
    if !channel.changed {
        channel.changed = true;
        changed.push(name.clone());
    }
}

#[cfg(test)]
mod tests;
