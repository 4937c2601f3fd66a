//! Where the answer to a command goes: back to the replica that asked, and nowhere else.

use std::sync::Arc;

use super::Fleet;
use super::message::{Answer, VERSION};
use crate::channel_layer::Control;
use crate::ids::ReplicaId;
use crate::stores::redis_keys;

/// What the channels of answers begin with: a command cannot make a replica publish anywhere else.
const REPLY_PREFIX: &str = "lockgate::reply:";

/// The channel on which a replica takes answers.
pub fn reply_channel(replica: &ReplicaId) -> String {
    redis_keys::reply(replica)
}

/// Where an answer goes.
pub struct Reply {
    fleet: Arc<Fleet>,
    control: Arc<Control>,
    /// Id and channel, where an answer is wanted.
    to: Option<(String, String)>,
}

impl Reply {
    /// The way back to who sent a command with this `id` and `reply`.
    pub fn new(
        fleet: &Arc<Fleet>,
        control: &Arc<Control>,
        id: Option<String>,
        reply: Option<String>,
    ) -> Self {
        // Nowhere else: whoever may write a control channel cannot make a replica publish to a group.
        let reply = reply.filter(|channel| channel.starts_with(REPLY_PREFIX));
        Self {
            fleet: fleet.clone(),
            control: control.clone(),
            to: id.zip(reply),
        }
    }

    /// Whether this replica has asked.
    pub fn is_own(&self) -> bool {
        let to = self.to.as_ref();
        to.is_some_and(|(_, channel)| self.is_own_channel(channel))
    }

    fn is_own_channel(&self, channel: &str) -> bool {
        channel.strip_prefix(REPLY_PREFIX) == Some(self.fleet.replica.as_str())
    }

    /// Sends an answer, once `fill` has written it; nothing where none is wanted.
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
        // Ends within Redis' time limit; an answer that is lost makes this replica one of the missing.
        tokio::spawn(async move { drop(control.answer(&channel, &payload).await) });
    }
}
