//! The way of an answer to a command: back to the replica that asked, and to no other channel.

use std::sync::Arc;

use super::Fleet;
use super::message::{Answer, VERSION};
use crate::channel_layer::Control;
use crate::ids::ReplicaId;
use crate::stores::redis_keys;
use crate::tasks;

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
}

impl Reply {
    /// Makes the address for a command with this `id` and `reply`.
    pub fn new(
        fleet: &Arc<Fleet>,
        control: &Arc<Control>,
        id: Option<String>,
        reply: Option<String>,
    ) -> Self {
        // Other channels are ignored, so that a sender with the right to a control channel cannot make a replica publish
        // to a group.
        let reply = reply.filter(|channel| channel.starts_with(REPLY_PREFIX));
        Self {
            fleet: fleet.clone(),
            control: control.clone(),
            to: id.zip(reply),
        }
    }

    /// Returns true if this replica asked.
    pub fn is_own(&self) -> bool {
        let to = self.to.as_ref();
        to.is_some_and(|(_, channel)| self.is_own_channel(channel))
    }

    fn is_own_channel(&self, channel: &str) -> bool {
        channel.strip_prefix(REPLY_PREFIX) == Some(self.fleet.replica.as_str())
    }

    /// Sends an answer that `fill` completes; does nothing if no answer is wanted.
    pub fn send(self, fill: impl FnOnce(&mut Answer)) {
        let Some((id, channel)) = self.to.clone() else {
            return;
        };
        let mut answer = Answer {
            v: VERSION,
            id,
            replica: self.fleet.replica.as_str().to_owned(),
            ..Answer::default()
        };
        fill(&mut answer);
        if self.is_own_channel(&channel) {
            return self.fleet.answered(answer);
        }
        let Ok(payload) = serde_json::to_vec(&answer) else {
            return;
        };
        let control = self.control;
        // The task ends within Redis' time limit. If the answer is lost, this replica is named among the missing ones.
        tasks::brief(async move { drop(control.answer(&channel, &payload).await) });
    }
}
