//! The commands that were sent on a link and are not answered completely, in the order of their answers.

use std::collections::VecDeque;

use bytes::Bytes;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandKind {
    Subscribe,
    Unsubscribe,
    Ping,
}

/// A command that Redis has not answered completely.
pub(super) struct SentCommand {
    pub(super) kind: CommandKind,
    pub(super) channels: Vec<Bytes>,
    /// It belongs to the resubscription after a lost link.
    pub(super) recovery: bool,
    answers_left: usize,
}

/// Redis answered a command that was not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

/// The commands of one link.
#[derive(Default)]
pub(super) struct SentCommands {
    on_the_way: VecDeque<SentCommand>,
    /// Commands of the resubscription that are unanswered or still to be sent.
    recovery_left: usize,
}

impl SentCommands {
    /// Adds a command; each of its channels gets an answer, and a PING gets one.
    pub(super) fn push(&mut self, kind: CommandKind, channels: Vec<Bytes>, recovery: bool) {
        self.recovery_left += usize::from(recovery);
        self.on_the_way.push_back(SentCommand {
            kind,
            answers_left: channels.len().max(1),
            channels,
            recovery,
        });
    }

    /// Takes one answer to the oldest command, which must be of this kind.
    pub(super) fn answered(&mut self, kind: CommandKind) -> Result<(), OutOfStep> {
        let command = self.on_the_way.front_mut().ok_or(OutOfStep)?;
        if command.kind != kind {
            return Err(OutOfStep);
        }
        command.answers_left -= 1;
        if command.answers_left == 0 {
            self.take_oldest()?;
        }
        Ok(())
    }

    /// Returns true if the oldest command ends a channel.
    pub(super) fn ends_next(&self, channel: &[u8]) -> bool {
        self.on_the_way.front().is_some_and(|command| {
            command.kind == CommandKind::Unsubscribe
                && command.channels.iter().any(|name| name == channel)
        })
    }

    /// Returns a channel of the oldest command; `None` if that has none, or there is no command.
    pub(super) fn next_channel(&self) -> Option<&Bytes> {
        self.on_the_way.front()?.channels.first()
    }

    /// Takes an error, which answers the oldest command as a whole.
    pub(super) fn take_oldest(&mut self) -> Result<SentCommand, OutOfStep> {
        let command = self.on_the_way.pop_front().ok_or(OutOfStep)?;
        self.recovery_left -= usize::from(command.recovery);
        Ok(command)
    }

    /// Notes a command of the resubscription that will be sent later.
    pub(super) fn expect_recovery(&mut self) {
        self.recovery_left += 1;
    }

    /// Takes back what [`Self::expect_recovery`] noted, before the command is sent.
    pub(super) fn expected_recovery(&mut self) {
        self.recovery_left -= 1;
    }

    /// Returns true if the resubscription is answered completely.
    pub(super) fn recovered(&self) -> bool {
        self.recovery_left == 0
    }

    /// Forgets all commands, since their connection is lost.
    pub(super) fn clear(&mut self) {
        self.on_the_way.clear();
        self.recovery_left = 0;
    }

    /// The number of channels in each command.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.on_the_way.iter().map(|c| c.channels.len()).collect()
    }
}
