//! The way of an answer to a command: back to the replica that asked, and to no other channel.

use std::sync::Arc;

use super::Fleet;
use super::answer::Answer;
use super::message::VERSION;
use crate::channel_layer::Control;
use crate::ids::ReplicaId;
use crate::stores::redis_keys;

/// The prefix of the channels of answers. A command cannot make a replica publish to another channel.
const REPLY_PREFIX: &str = "lockgate::reply:";

/// Returns the channel on which a replica receives answers.
pub fn reply_channel(replica: &ReplicaId) -> String {
    redis_keys::reply(replica)
}

/// The address of an answer.
pub struct Reply {
    fleet: Arc<Fleet>,
    control: Arc<Control>,
    /// The id of the command and the channel; `None` if no answer is wanted.
    to: Option<(String, String)>,
    /// Answers of this channel per second; 0 is no limit.
    per_second: u32,
}

impl Reply {
    /// Makes the address for a command with this `id` and `reply`. Other replicas get at most `per_second` answers per
    /// second (0: no limit).
    pub fn new(
        fleet: &Arc<Fleet>,
        control: &Arc<Control>,
        (id, reply): (Option<String>, Option<String>),
        per_second: u32,
    ) -> Self {
        // Other channels are ignored, so that a sender with the right to a control channel cannot make a replica publish
        // to a group.
        let reply = reply.filter(|channel| channel.starts_with(REPLY_PREFIX));
        Self {
            fleet: fleet.clone(),
            control: control.clone(),
            to: id.zip(reply),
            per_second,
        }
    }

    /// Returns true if this replica asked.
    pub fn is_own(&self) -> bool {
        let to = self.to.as_ref();
        to.is_some_and(|(_, channel)| self.is_own_channel(channel))
    }

    fn is_own_channel(&self, channel: &str) -> bool {
        channel.strip_prefix(REPLY_PREFIX) == Some(self.fleet.replica().as_str())
    }

    /// Sends an answer that `fill` completes; does nothing if no answer is wanted. Returns false if the answer was dropped
    /// because there were too many.
    pub fn send(self, fill: impl FnOnce(&mut Answer)) -> bool {
        let Some((id, channel)) = self.to.clone() else {
            return true;
        };
        let mut answer = Answer {
            v: VERSION,
            id,
            replica: self.fleet.replica().as_str().to_owned(),
            ..Answer::default()
        };
        fill(&mut answer);
        if self.is_own_channel(&channel) {
            self.fleet.answered(answer);
            return true;
        }
        match serde_json::to_vec(&answer) {
            Ok(payload) => self.control.answer(channel, payload, self.per_second),
            Err(_) => false,
        }
    }
}
