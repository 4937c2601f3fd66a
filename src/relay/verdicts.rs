//! Handshakes that wait for a worker's word (`accept = "worker"`).

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Relay;
use crate::channel_layer::SocketChannel;
use crate::close_code::CloseFrame;
use crate::hub::Member;

/// What a worker says of a socket that is not open yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `websocket.accept`
    Accept,
    /// `websocket.close`
    Close(CloseFrame),
}

/// A handshake that waits; dropped, it waits no more.
pub struct Waiting {
    relay: Arc<Relay>,
    channel: SocketChannel,
    verdict: oneshot::Receiver<Verdict>,
}

impl Waiting {
    /// Returns the worker's word, whenever it comes.
    pub async fn verdict(&mut self) -> Verdict {
        match (&mut self.verdict).await {
            Ok(verdict) => verdict,
            // The sender lives until this is dropped.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.relay.waiting.lock().remove(&self.channel);
    }
}

impl Relay {
    /// From now on the worker's word about the socket with this channel is kept for the handshake.
    pub fn expect_verdict(self: &Arc<Self>, channel: SocketChannel) -> Waiting {
        let (sender, verdict) = oneshot::channel();
        self.waiting.lock().insert(channel, sender);
        Waiting {
            relay: self.clone(),
            channel,
            verdict,
        }
    }

    /// Hands the worker's word to the handshake of the socket; false if none waits.
    pub(super) fn decide(&self, member: &Member, verdict: impl FnOnce() -> Verdict) -> bool {
        let channel = SocketChannel(member.channel());
        let waiting = self.waiting.lock().remove(&channel);
        waiting.is_some_and(|waiting| waiting.send(verdict()).is_ok())
    }
}
