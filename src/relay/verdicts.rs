//! Handshakes that wait for a worker's answer (`accept = "worker"`), and the last words about sockets to workers.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Acceptance, AcceptanceError, Relay};
use crate::channel_layer::SocketChannel;
use crate::close_code::CloseFrame;
use crate::hub::Member;

/// A worker's answer about a socket that is not open yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerVerdict {
    /// The worker sent `websocket.accept`.
    Accept(Acceptance),
    /// The worker sent `websocket.close`.
    Close(CloseFrame),
    /// The worker sent a `websocket.accept` that cannot become a 101.
    NotValid(AcceptanceError),
}

/// A handshake that waits for the worker. Dropping it ends the wait.
pub struct Waiting {
    relay: Arc<Relay>,
    channel: SocketChannel,
    verdict: oneshot::Receiver<WorkerVerdict>,
}

impl Waiting {
    /// Waits for the worker's answer, without a deadline.
    pub async fn verdict(&mut self) -> WorkerVerdict {
        match (&mut self.verdict).await {
            Ok(verdict) => verdict,
            // Cannot happen: the relay keeps the sender until `self` is dropped.
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
    /// Registers a handshake, so that the worker's answer for this channel reaches it.
    pub fn expect_verdict(self: &Arc<Self>, channel: SocketChannel) -> Waiting {
        let (sender, verdict) = oneshot::channel();
        self.waiting.lock().insert(channel, sender);
        Waiting {
            relay: self.clone(),
            channel,
            verdict,
        }
    }

    /// Passes the worker's answer to the handshake of the socket; returns false if none waits.
    pub(super) fn decide(&self, member: &Member, verdict: impl FnOnce() -> WorkerVerdict) -> bool {
        let channel = SocketChannel(member.channel());
        let waiting = self.waiting.lock().remove(&channel);
        waiting.is_some_and(|waiting| waiting.send(verdict()).is_ok())
    }
}
