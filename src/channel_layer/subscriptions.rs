//! What one link shall be subscribed to, and what Redis has confirmed: a state machine without IO.
//!
//! The wishes are the truth. [`Subscriptions::flush`] compares them with what was last said on the link and writes only the
//! difference, in batches. Confirmations are matched by channel name, errors by the order of commands.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use hashbrown::HashMap;
use tokio::sync::oneshot;

use crate::error::ErrorKind;
use crate::ids::GroupName;

use super::inbox::Inbox;

/// Channel names per command: long enough that commands do not matter, short enough that Redis answers others between.
const BATCH: usize = 500;

/// Tells a caller of `subscribe` how it went.
pub(super) type Waiter = oneshot::Sender<Result<(), ErrorKind>>;

/// Where the messages of a channel go.
pub(super) struct Route {
    /// The layer that wished for it.
    pub(super) attachment: u64,
    pub(super) inbox: Arc<Inbox>,
    pub(super) group: GroupName,
}

#[derive(Default)]
struct Channel {
    routes: Vec<Route>,
    waiters: Vec<Waiter>,
    /// The link's own channel: wanted without routes.
    own: bool,
    /// What was last said on this link: SUBSCRIBE (true) or UNSUBSCRIBE.
    said: Option<bool>,
    /// Commands of this channel that Redis has not answered.
    unanswered: u32,
    /// Listed in [`Subscriptions::changed`].
    changed: bool,
    /// Redis refused it since this link was made or the wish was last repeated.
    refused: bool,
    /// It was refused after it had been confirmed on an earlier link: events have been missed for longer than others'.
    late: bool,
    /// It was confirmed at some time.
    confirmed: bool,
}

impl Channel {
    fn wanted(&self) -> bool {
        self.own || !self.routes.is_empty()
    }

    fn subscribed(&self) -> bool {
        self.said == Some(true) && self.unanswered == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Subscribe,
    Unsubscribe,
    Ping,
}

/// A command on its way.
struct Command {
    kind: Kind,
    channels: Vec<Bytes>,
    answers_left: usize,
    /// It belongs to the resubscription after a lost link.
    recovery: bool,
}

/// Whose channels Redis refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    /// The layers concerned, one entry per channel.
    pub(super) attachments: Vec<u64>,
    /// The link's own channel.
    pub(super) own: bool,
}

/// Redis answered what nobody asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

/// The subscriptions of one link.
#[derive(Default)]
pub(super) struct Subscriptions {
    channels: HashMap<Bytes, Channel>,
    /// Channels whose wish may differ from what was said.
    changed: Vec<Bytes>,
    /// Batches that were refused as a whole and are asked again in parts.
    parts: Vec<(Vec<Bytes>, bool)>,
    refused: Vec<Bytes>,
    on_the_way: VecDeque<Command>,
    /// What `changed` holds was lost with the last link.
    recovery_due: bool,
    /// Commands of the resubscription that are on the way or due.
    recovery_left: usize,
}

impl Subscriptions {
    /// Wishes for a channel. `waiter` hears when it is confirmed.
    pub(super) fn want(&mut self, name: &Bytes, route: Route, waiter: Waiter) {
        let channel = self.channels.entry(name.clone()).or_default();
        let known = |other: &Route| other.attachment == route.attachment;
        if !channel.routes.iter().any(known) {
            channel.routes.push(route);
        }
        if channel.subscribed() {
            tell(waiter, Ok(()));
            return;
        }
        channel.waiters.push(waiter);
        channel.refused = false;
        mark_changed(&mut self.changed, name, channel);
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

    /// Where messages of a channel go; empty if nobody wants them any more.
    pub(super) fn routes(&self, name: &[u8]) -> &[Route] {
        self.channels
            .get(name)
            .map_or(&[], |channel| &channel.routes)
    }

    /// Whether Redis has confirmed the channel on this link.
    pub(super) fn subscribed(&self, name: &[u8]) -> bool {
        self.channels.get(name).is_some_and(Channel::subscribed)
    }

    /// How many channels are wished for.
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Writes what differs from the wishes.
    pub(super) fn flush(&mut self, out: &mut BytesMut) {
        for (names, recovery) in std::mem::take(&mut self.parts) {
            let names = names.into_iter();
            let names: Vec<Bytes> = names.filter(|name| self.due(name) == Some(true)).collect();
            self.recovery_left -= usize::from(recovery);
            self.say(Kind::Subscribe, names, recovery, out);
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
        let [unsubscribe, subscribe] = wishes;
        for (kind, names, recovery) in [
            (Kind::Subscribe, subscribe, recovery),
            (Kind::Unsubscribe, unsubscribe, false),
        ] {
            for names in names.chunks(BATCH) {
                self.say(kind, names.to_vec(), recovery, out);
            }
        }
    }

    /// Whether to SUBSCRIBE (true) or UNSUBSCRIBE, if anything.
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

    fn say(&mut self, kind: Kind, names: Vec<Bytes>, recovery: bool, out: &mut BytesMut) {
        if names.is_empty() {
            return;
        }
        for name in &names {
            if let Some(channel) = self.channels.get_mut(name) {
                channel.said = Some(kind == Kind::Subscribe);
                channel.unanswered += 1;
            }
        }
        let word: &[u8] = match kind {
            Kind::Subscribe => b"SUBSCRIBE",
            _ => b"UNSUBSCRIBE",
        };
        let arguments = std::iter::once(word).chain(names.iter().map(|name| &name[..]));
        write_command(arguments, out);
        self.recovery_left += usize::from(recovery);
        self.on_the_way.push_back(Command {
            kind,
            answers_left: names.len(),
            channels: names,
            recovery,
        });
    }

    /// Writes a PING, whose answer is expected in turn.
    pub(super) fn ping(&mut self, out: &mut BytesMut) {
        write_command([&b"PING"[..]].into_iter(), out);
        self.on_the_way.push_back(Command {
            kind: Kind::Ping,
            channels: Vec::new(),
            answers_left: 1,
            recovery: false,
        });
    }

    /// A PING was answered.
    pub(super) fn ponged(&mut self) -> Result<(), OutOfStep> {
        self.answered(Kind::Ping)
    }

    /// Redis confirmed a SUBSCRIBE. Returns the routes that missed events for longer than the link was lost.
    pub(super) fn confirmed(&mut self, name: &[u8]) -> Result<&[Route], OutOfStep> {
        self.answered(Kind::Subscribe)?;
        let channel = self.channels.get_mut(name).ok_or(OutOfStep)?;
        channel.unanswered = channel.unanswered.checked_sub(1).ok_or(OutOfStep)?;
        if !channel.subscribed() {
            return Ok(&[]);
        }
        for waiter in std::mem::take(&mut channel.waiters) {
            tell(waiter, Ok(()));
        }
        channel.confirmed = true;
        let late = std::mem::take(&mut channel.late);
        Ok(if late { &channel.routes } else { &[] })
    }

    /// Redis confirmed an UNSUBSCRIBE.
    pub(super) fn ended(&mut self, name: &[u8]) -> Result<(), OutOfStep> {
        self.answered(Kind::Unsubscribe)?;
        let channel = self.channels.get_mut(name).ok_or(OutOfStep)?;
        channel.unanswered = channel.unanswered.checked_sub(1).ok_or(OutOfStep)?;
        let name = Bytes::copy_from_slice(name);
        self.settle(&name);
        Ok(())
    }

    fn answered(&mut self, kind: Kind) -> Result<(), OutOfStep> {
        let command = self.on_the_way.front_mut().ok_or(OutOfStep)?;
        if command.kind != kind {
            return Err(OutOfStep);
        }
        command.answers_left -= 1;
        if command.answers_left == 0 {
            self.recovery_left -= usize::from(command.recovery);
            self.on_the_way.pop_front();
        }
        Ok(())
    }

    /// Forgets a channel that nobody wants and nothing is under way for.
    fn settle(&mut self, name: &Bytes) {
        let done = |channel: &Channel| {
            !channel.wanted() && channel.unanswered == 0 && channel.said != Some(true)
        };
        if self.channels.get(name).is_some_and(done) {
            self.channels.remove(name);
        }
    }

    /// Redis answered the oldest command with an error. Returns who was refused a channel.
    ///
    /// One name without permission refuses its whole batch, whoever the other names belong to: the batch is asked again in
    /// halves until the name stands alone. Other errors concern the server, and all is asked again later.
    pub(super) fn failed(&mut self, kind: ErrorKind) -> Result<Refused, OutOfStep> {
        let command = self.on_the_way.pop_front().ok_or(OutOfStep)?;
        self.recovery_left -= usize::from(command.recovery);
        let subscribe = command.kind == Kind::Subscribe;
        for name in &command.channels {
            if let Some(channel) = self.channels.get_mut(name) {
                channel.unanswered = channel.unanswered.saturating_sub(1);
                if subscribe && channel.unanswered == 0 && channel.said == Some(true) {
                    channel.said = None;
                }
            }
        }
        if subscribe && kind == ErrorKind::Permission && command.channels.len() > 1 {
            let (left, right) = command.channels.split_at(command.channels.len() / 2);
            for half in [left, right] {
                self.recovery_left += usize::from(command.recovery);
                self.parts.push((half.to_vec(), command.recovery));
            }
            return Ok(Refused::default());
        }
        let mut refused = Refused::default();
        for name in command.channels {
            let Some(channel) = self.channels.get_mut(&name) else {
                continue;
            };
            if subscribe && channel.said.is_none() {
                channel.refused = true;
                channel.late |= channel.confirmed;
                refused.own |= channel.own;
                let attachments = channel.routes.iter().map(|route| route.attachment);
                refused.attachments.extend(attachments);
                if kind == ErrorKind::Permission {
                    for waiter in std::mem::take(&mut channel.waiters) {
                        tell(waiter, Err(kind));
                    }
                }
                self.refused.push(name);
            } else {
                self.settle(&name);
            }
        }
        Ok(refused)
    }

    /// Wishes again for what was refused.
    pub(super) fn retry_refused(&mut self) {
        for name in std::mem::take(&mut self.refused) {
            if let Some(channel) = self.channels.get_mut(&name) {
                channel.refused = false;
                mark_changed(&mut self.changed, &name, channel);
            }
        }
    }

    /// The link is gone, and with it everything that was said on it.
    pub(super) fn link_lost(&mut self) {
        self.on_the_way.clear();
        self.parts.clear();
        self.refused.clear();
        self.changed.clear();
        self.recovery_left = 0;
        self.recovery_due = false;
        self.channels.retain(|_, channel| {
            channel.said = None;
            channel.unanswered = 0;
            channel.changed = false;
            channel.refused = false;
            channel.wanted()
        });
    }

    /// There is a new link: everything is to be said again.
    pub(super) fn link_made(&mut self) {
        for (name, channel) in &mut self.channels {
            mark_changed(&mut self.changed, name, channel);
        }
        self.recovery_due = true;
    }

    /// Whether everything that the link had to be told when it was made is answered.
    pub(super) fn recovered(&self) -> bool {
        !self.recovery_due && self.recovery_left == 0
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

/// Appends a command as an array of bulk strings.
pub(super) fn write_command<'a>(
    arguments: impl Iterator<Item = &'a [u8]> + Clone,
    out: &mut BytesMut,
) {
    let head = |mark: char, len: usize, out: &mut BytesMut| {
        out.put_slice(format!("{mark}{len}\r\n").as_bytes());
    };
    head('*', arguments.clone().count(), out);
    for argument in arguments {
        head('$', argument.len(), out);
        out.put_slice(argument);
        out.put_slice(b"\r\n");
    }
}
