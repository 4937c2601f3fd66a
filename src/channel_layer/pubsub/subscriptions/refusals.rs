//! Answers that end a subscription or refuse one: by the server itself, by the node of another slot, or for want of a right.

use bytes::Bytes;

use super::super::sent::{CommandKind, OutOfStep};
use super::{Subscriptions, mark_changed, tell};
use crate::error::ErrorKind;
use crate::stores::redis::cluster::slot_of;

/// The owners of channels that Redis refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::channel_layer) struct RefusedChannels {
    /// The layers concerned, one entry per channel.
    pub(in crate::channel_layer) attachments: Vec<u64>,
    /// The link's own channel.
    pub(in crate::channel_layer) own: bool,
}

impl Subscriptions {
    /// Takes the confirmation of an UNSUBSCRIBE. Returns the channel if the server has ended it by itself, because its slot has
    /// moved to another node.
    pub(in crate::channel_layer) fn ended(
        &mut self,
        name: &[u8],
    ) -> Result<Option<Bytes>, OutOfStep> {
        if self.sharded && !self.sent.ends_next(name) {
            // One that is forgotten here needs no other place.
            let name = self.name(name);
            if let Some(name) = &name {
                self.misplaced(name);
            }
            return Ok(name);
        }
        self.sent.answered(CommandKind::Unsubscribe)?;
        let channel = self.channels.get_mut(name).ok_or(OutOfStep)?;
        channel.unanswered = channel.unanswered.checked_sub(1).ok_or(OutOfStep)?;
        let name = Bytes::copy_from_slice(name);
        self.settle(&name);
        Ok(None)
    }

    /// Takes an error as the answer to the oldest command: another node has the slot of its channels, or none has it at the
    /// moment. Returns the channels that are wanted. `slot` is the one that the error names.
    pub(in crate::channel_layer) fn redirected(
        &mut self,
        slot: Option<u16>,
    ) -> Result<Vec<Bytes>, OutOfStep> {
        // The server ends the channels of a slot that moves by itself. That looks like the answer to an UNSUBSCRIBE on its way;
        // the command's own answer, this error, comes later and belongs to no command any more.
        let next = self.sent.next_channel().map(|channel| slot_of(channel));
        if slot.is_some() && slot != next {
            return Ok(Vec::new());
        }
        let command = self.sent.take_oldest()?;
        let mut wanted = Vec::new();
        for name in command.channels {
            let Some(channel) = self.channels.get_mut(&name) else {
                continue;
            };
            channel.unanswered = channel.unanswered.saturating_sub(1);
            if channel.unanswered > 0 || command.kind != CommandKind::Subscribe {
                self.settle(&name);
                continue;
            }
            self.misplaced(&name);
            wanted.push(name);
        }
        Ok(wanted)
    }

    /// Notes that this link does not hear a channel, and why: its slot is elsewhere. It is asked for again by the next wish, or
    /// with the refused channels.
    fn misplaced(&mut self, name: &Bytes) {
        if let Some(channel) = self.channels.get_mut(name) {
            channel.said = None;
            channel.refused = true;
            channel.late |= channel.confirmed;
            // The switchboard asks again, with waiters of its own.
            channel.waiters.clear();
            channel
                .routes
                .iter()
                .for_each(|route| route.set_heard(false));
            self.refused.push(name.clone());
        }
        self.settle(name);
    }

    /// Takes an error as the answer to the oldest command. Returns the owners of refused channels.
    ///
    /// One name without permission refuses its whole batch, also the names of other tenants. The batch is sent again in
    /// halves until the name stands alone. Other errors concern the server, and the whole batch is sent again later.
    pub(in crate::channel_layer) fn failed(
        &mut self,
        kind: ErrorKind,
    ) -> Result<RefusedChannels, OutOfStep> {
        let command = self.sent.take_oldest()?;
        let subscribe = command.kind == CommandKind::Subscribe;
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
                if command.recovery {
                    self.sent.expect_recovery();
                }
                self.parts.push((half.to_vec(), command.recovery));
            }
            return Ok(RefusedChannels::default());
        }
        let mut refused = RefusedChannels::default();
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
                // These do not heal by themselves.
                if matches!(kind, ErrorKind::Permission | ErrorKind::Protocol) {
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

    /// Repeats the wishes that were refused.
    pub(in crate::channel_layer) fn retry_refused(&mut self) {
        for name in std::mem::take(&mut self.refused) {
            if let Some(channel) = self.channels.get_mut(&name) {
                channel.refused = false;
                mark_changed(&mut self.changed, &name, channel);
            }
        }
    }
}
